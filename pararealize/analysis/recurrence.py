"""Recurrent layers -> the same operations with all steps but the first in one, to be counted.

The operations of ``nn.RNN``, ``nn.GRU`` and ``nn.LSTM`` are the products with the weights of a cell, and what the cell
computes of these element by element, for each step. How many there are depends on the number of steps alone, and not on
their order: a cell on all steps as one batch has as many, and takes one call in the place of one for every step. The
first step is apart, for no gradient flows into a first state of zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["join_steps"]

_RECURRENT = (nn.RNN, nn.GRU, nn.LSTM)


def join_steps(module: nn.Module) -> None:
    """Let the recurrent layers of a copy compute their steps at once: results of the right shapes and other values."""
    for part in module.modules():
        if type(part) in _RECURRENT:
            part.forward = partial(_steps_at_once, part, part.forward)


def _steps_at_once(layer: Any, as_it_is: Callable[..., Any], x: Any, first: Any = None) -> Any:
    if not isinstance(x, Tensor) or x.ndim not in (2, 3) or not x.numel():
        return as_it_is(x, first)
    turned = layer.batch_first and x.ndim == 3
    lead = (x.shape[1], x.shape[0]) if turned else x.shape[:-1]  # steps, and the batch if there is one
    value = (x.transpose(0, 1) if turned else x).reshape(-1, x.shape[-1])
    given: tuple[Tensor, ...] | None = first if first is None or isinstance(layer, nn.LSTM) else (first,)
    states: list[tuple[Tensor, ...]] = []
    rows = len(value) // lead[0]  # of one step
    for i, weights in enumerate(layer.all_weights):
        if given is None:
            start = [value.new_zeros(rows, size) for size in (weights[1].shape[1], layer.hidden_size)]
        else:
            start = [state[i].reshape(rows, -1) for state in given]
        states.append(_cell(layer, value, start, weights))
        if len(states) % (1 + layer.bidirectional) == 0:
            value = torch.cat([h for h, *_ in states[-2:]], 1) if layer.bidirectional else states[-1][0]
    last = tuple(torch.stack([s[-rows:].reshape(*lead[1:], -1) for s in kind]) for kind in zip(*states, strict=True))
    output = value.reshape(*lead, -1)
    return output.transpose(0, 1) if turned else output, last if isinstance(layer, nn.LSTM) else last[0]


def _cell(layer: Any, x: Tensor, start: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    """One direction of one layer: what it hands on of all steps, and the states of its cell, where it has one."""
    rows = len(start[0])
    parts = [_step(layer, x[:rows], start, weights)]
    if len(x) > rows:
        later = [x[rows:, :1].expand(-1, state.shape[1]) for state in start]  # whose gradients are computed, too
        parts.append(_step(layer, x[rows:], later, weights))
    return tuple(torch.cat(kind) for kind in zip(*parts, strict=True))


def _step(layer: Any, x: Tensor, state: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
    biases = weights[2:4] if layer.bias else [None, None]
    if isinstance(layer, nn.LSTM):
        gates = functional.linear(x, weights[0], biases[0]) + functional.linear(state[0], weights[1], biases[1])
        i, f, g, o = gates.chunk(4, 1)
        c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        return functional.linear(h, weights[-1]) if layer.proj_size else h, c
    tanh = isinstance(layer, nn.RNN) and layer.nonlinearity == "tanh"
    cell: Any = torch.gru_cell if isinstance(layer, nn.GRU) else torch.rnn_tanh_cell if tanh else torch.rnn_relu_cell
    return (cell(x, state[0], *weights[:2], *biases),)
