"""A map within a layer's weights: the formula, back to the bit, and what is forgotten when weights are loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pararealize.coarse.folded_map import FoldedMap, as_matrix

DOUBLE = {"dtype": torch.float64}


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 3), st.booleans(), st.integers(0, 9))
def test_the_layer_gives_what_it_and_the_map_gave(width: int, inner: int, axes: int, bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    layer = (
        nn.Linear(inner, width, bias=bias, **DOUBLE)
        if axes == 0
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](inner, width, 3, padding=1, bias=bias, **DOUBLE)
    )
    z = torch.randn(2, inner, *(4,) * axes, **DOUBLE)
    A, b = torch.randn(width, width, **DOUBLE), torch.randn(width, **DOUBLE) if bias else None
    before, e = copy.deepcopy(layer.state_dict()), layer(z).detach()
    folded = FoldedMap()
    assert folded.knows(layer)
    for _ in range(2):  # a map takes the place of the one before
        folded.fold(layer, A, b)
    channels_last = e.movedim(1, -1)
    expected = channels_last + channels_last @ A.T + (0 if b is None else b)
    torch.testing.assert_close(layer(z), expected.movedim(-1, 1), rtol=1e-10, atol=1e-10)
    assert torch.equal(folded(z, e), e)
    assert folded.is_folded
    folded.unfold(layer)
    assert not folded.is_folded
    assert all(torch.equal(value, before[key]) for key, value in layer.state_dict().items())


def test_a_map_of_factors() -> None:
    reads, gives, e = torch.randn(4, 2), torch.randn(2, 4), torch.randn(5, 4)
    torch.testing.assert_close(e @ as_matrix(reads, gives).T, e @ reads @ gives)
    torch.testing.assert_close(e @ as_matrix(reads @ gives, None).T, e @ reads @ gives)


def test_what_it_had_before_is_known_in_this_process_alone() -> None:
    layer, folded = nn.Linear(3, 3), FoldedMap()
    folded.fold(layer, torch.eye(3), None)
    assert copy.deepcopy(folded).knows(layer)
    assert repr(folded) == "FoldedMap(in the segment's last layer)"
    state = folded.state(layer)
    loaded = FoldedMap()
    loaded.load_state_dict(folded.state_dict())
    assert (bool(loaded.is_folded), loaded.knows(layer)) == (True, False)
    folded.unfold(layer)
    folded.restore(layer, state)
    assert torch.equal(layer.weight, state.weights["weight"])
    assert (bool(folded.is_folded), folded.knows(layer)) == (True, True)
    layer.half()
    assert folded.knows(layer)
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert not folded.knows(layer)  # trained, and nobody can tell the map from what was learnt
    loaded.forget()
    assert loaded.knows(layer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_computed_in_double_precision(dtype: torch.dtype) -> None:
    layer, folded = nn.Linear(4, 4, dtype=dtype), FoldedMap()
    weight, A = layer.weight.detach().double(), torch.randn(4, 4)
    folded.fold(layer, A, torch.zeros(4))
    assert torch.equal(layer.weight.detach(), (weight + A.double() @ weight).to(dtype))


def test_on_the_meta_device_there_is_none() -> None:
    folded = FoldedMap().to("meta")
    layer = nn.Linear(2, 2, device="meta")
    assert not folded.has_map
    assert folded.knows(layer)
    assert not folded.state(layer).is_folded
