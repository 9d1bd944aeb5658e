"""Recurrent layers with their steps in one have the operations, and the shapes, of those that go step by step."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from pararealize.analysis import counter
from pararealize.analysis.recurrence import join_steps
from tests.recurrent_layers import MAKES, first_states, layer_of, steps_of


class WithStates(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        output, states = self.layer(*inputs)
        return output, *(states if isinstance(states, tuple) else (states,))


# LSTMs with projections
pytestmark = pytest.mark.filterwarnings("ignore:.*not supported with oneDNN.*:UserWarning")


@pytest.mark.parametrize("make", MAKES)
@pytest.mark.parametrize("steps", [1, 4])
def test_as_many_operations_as_step_by_step(monkeypatch, make, steps):
    layer, batched = layer_of(make)
    for given in (False, True):
        x = steps_of(layer, steps, batched).requires_grad_()
        inputs = [x, first_states(layer, batched)] if given else [x]
        at_once = counter.count_operations(WithStates(layer), lambda _, inputs=inputs: list(inputs))
        with monkeypatch.context() as patch:
            patch.setattr(counter, "join_steps", lambda module: None)
            patch.setattr(torch.backends.mkldnn, "enabled", False) if hasattr(
                torch.backends.mkldnn, "enabled"
            ) else None
            one_by_one = counter.count_operations(WithStates(layer), lambda _, inputs=inputs: list(inputs))
        assert at_once.flops == one_by_one.flops
        for mine, theirs in zip(at_once.elements, one_by_one.elements, strict=True):
            assert 0.4 < mine / theirs < 2.5


@pytest.mark.parametrize("make", MAKES)
def test_results_have_the_shapes_that_they_have_step_by_step(make):
    layer, batched = layer_of(make)
    for given, steps in itertools.product((False, True), (1, 5)):
        inputs = (steps_of(layer, steps, batched), *([first_states(layer, batched)] if given else []))
        expected = [(value.shape, value.dtype) for value in WithStates(layer)(*inputs)]
        module = WithStates(layer)
        as_it_is = layer.forward
        join_steps(module)
        assert [(value.shape, value.dtype) for value in module(*inputs)] == expected
        layer.forward = as_it_is


def test_products_of_an_lstm_by_hand():
    """Torch's own counter knows no formula of the call that takes all steps, and says 0 (seen in 2.15)."""
    forward = 2 * 6 * 3 * (4 * 4 * 5 + 4 * 4 * 4)
    layer = nn.LSTM(5, 4)
    count = counter.count_operations(WithStates(layer), lambda _: [torch.empty(6, 3, 5, requires_grad=True)])
    assert count.flops == (forward, 2 * forward - 2 * 3 * 4 * 4 * 4)  # none into the first state


def test_packed_sequences_go_step_by_step():
    layer = nn.GRU(5, 4)
    packed = nn.utils.rnn.pack_sequence([torch.randn(4, 5), torch.randn(2, 5)])
    expected, states = layer(packed)
    join_steps(layer)
    output, last = layer(packed)
    assert torch.equal(output.data, expected.data)
    assert torch.equal(last, states)
