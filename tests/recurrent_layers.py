"""Recurrent layers of every make, and what they take."""

from __future__ import annotations

import pytest
import torch
from torch import nn

RNN, GRU, LSTM = nn.RNN, nn.GRU, nn.LSTM
DEEP = {"num_layers": 2, "bidirectional": True, "batch_first": True}
MAKES = [
    pytest.param((kind, options, batched), id=f"{kind.__name__}-{i}-{'batched' if batched else 'alone'}")
    for batched in (True, False)
    for i, (kind, options) in enumerate(
        [
            (RNN, {}),
            (RNN, {"nonlinearity": "relu", "bias": False, "batch_first": True}),
            (RNN, DEEP),
            (GRU, {"batch_first": True}),
            (GRU, {"bias": False, "bidirectional": True}),
            (GRU, DEEP),
            (LSTM, {"batch_first": True}),
            (LSTM, {"bias": False, "num_layers": 2}),
            (LSTM, DEEP),
            (LSTM, {"proj_size": 3, "batch_first": True}),
            (LSTM, {"proj_size": 3, **DEEP}),
        ]
    )
]


def layer_of(make):
    """The layer of a make, and whether its inputs have a batch."""
    kind, options, batched = make
    return kind(5, 4, **options), batched


def steps_of(layer, steps, batched, batch=3):
    """An input of so many steps."""
    if not batched:
        return torch.randn(steps, 5)
    return torch.randn(*((batch, steps) if layer.batch_first else (steps, batch)), 5)


def first_states(layer, batched, batch=3):
    """First states for it, which require gradients."""
    lead = (layer.num_layers * (2 if layer.bidirectional else 1), *([batch] if batched else []))
    h = torch.randn(*lead, layer.proj_size or 4, requires_grad=True)
    return (h, torch.randn(*lead, 4, requires_grad=True)) if isinstance(layer, LSTM) else h
