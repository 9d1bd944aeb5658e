"""Masks: found, named or computed; positions that they exclude; shapes that they cannot have."""

from __future__ import annotations

import inspect

import pytest
import torch

from pararealize.calibration.masks import mask_of, positions, unmasked
from pararealize.errors import CalibrationError, ExampleError
from pararealize.tracing.call_signature import CallSignature

X, MASK = torch.randn(3, 4, 2), torch.tensor([[1, 1, 0, 0]] * 3)


def test_an_attention_mask_is_found_where_it_fits() -> None:
    assert torch.equal(mask_of({"x": X, "attention_mask": MASK}, "auto", X, 2), MASK != 0)
    for batch in (X, (X, MASK), {"x": X}, {"attention_mask": MASK[:, None]}, {"attention_mask": MASK[:, :3]}):
        assert mask_of(batch, "auto", X, 2) is None
    channels_first = torch.randn(3, 4, 7)  # four channels: a mask of four tokens is none of these
    assert mask_of({"attention_mask": MASK}, "auto", channels_first, 1) is None
    assert mask_of({"attention_mask": MASK}, None, X, 2) is None


def test_masks_by_name_and_function() -> None:
    assert torch.equal(mask_of({"pad": MASK.float()}, "pad", X, 2), MASK != 0)
    assert torch.equal(mask_of((X, MASK), lambda batch: batch[1][:, 0], X, 2), MASK[:, 0] != 0)  # whole samples
    assert mask_of(X, lambda batch: None, X, 2) is None
    with pytest.raises(ExampleError, match="no mask 'pad'; it has x; name an item"):
        mask_of({"x": X}, "pad", X, 2)
    with pytest.raises(ExampleError, match="no mask 'pad'; name an item"):
        mask_of(X, "pad", X, 2)
    for wrong in (MASK[:, :2], torch.ones(3, 4, 2), torch.tensor(1), "all"):
        with pytest.raises(CalibrationError, match=r"function gives is .*such as \(3, 4\)"):
            mask_of(X, lambda batch, wrong=wrong: wrong, X, 2)


def test_inputs_in_a_tuple_have_the_names_of_the_network() -> None:
    call, _ = CallSignature.of("Model", inspect.signature(lambda x, attention_mask: x).bind(X, MASK))
    for choice in ("auto", "attention_mask"):
        assert torch.equal(mask_of(((X, MASK), MASK[:, 0]), choice, X, 2, call), MASK != 0)
    assert torch.equal(mask_of(((X, MASK),), lambda batch: batch[0][1], X, 2, call), MASK != 0)


def test_positions_that_count() -> None:
    values = torch.arange(24.0).view(3, 4, 2)
    assert torch.equal(unmasked(values, MASK != 0), values[:, :2].reshape(6, 2))
    for value, mask in ((values, None), (X, MASK[:, :3] != 0), (X[:, :, 0], MASK != 0)):
        assert unmasked(value, mask) is value
    assert torch.equal(unmasked(X[:, :, 0], MASK != 0, by_position=True), X[:, :2, 0].reshape(-1))
    assert torch.equal(unmasked(X[:, 0, 0], torch.tensor([True, False, True])), X[[0, 2], 0, 0])


def test_rows_of_values_with_channels_anywhere() -> None:
    value, mask = torch.randn(3, 4, 5, 6), MASK != 0
    for axis in (2, 3):
        rows = value.movedim(axis, -1).reshape(-1, value.shape[axis])
        wanted = value[:, :2].movedim(axis, -1).reshape(-1, value.shape[axis])
        assert torch.equal(rows[positions(value, axis, mask)], wanted)
    assert positions(value, 1, mask) is positions(value, 2, None) is None
