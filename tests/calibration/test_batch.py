"""Batches: inputs, labels and masks of the forms that people have them in; passes that can be repeated."""

from __future__ import annotations

import inspect

import pytest
import torch

from pararealize.calibration.batch import check_finite, inputs_of, labels_of, mask_of, one_pass, unmasked
from pararealize.errors import CalibrationError, ExampleError
from pararealize.tracing.call_signature import CallSignature


def test_inputs_and_labels_of_a_batch() -> None:
    x, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    call, _ = CallSignature.of("Model", inspect.signature(lambda x, mask=None: x).bind(x))
    for batch in (x, (x, labels), [x, labels]):
        assert inputs_of(batch, call) == {"x": x}
    assert inputs_of({"x": x, "labels": labels}, call) == {"x": x}
    with pytest.raises(ExampleError, match="no input 'x'"):
        inputs_of({"labels": labels}, call)
    with pytest.raises(ExampleError, match=r"a batch holds no sample: x \(0, 2\); leave it out"):
        inputs_of(x[:0], call)
    for batch in ((x, labels), {"x": x, "labels": labels}):
        assert labels_of(batch) is labels
    for batch in (x, (x,), (x, x), (x, labels.float()), {"x": x}):
        assert labels_of(batch) is None


def test_masks_of_batches() -> None:
    x, mask = torch.randn(3, 4, 2), torch.tensor([[1, 1, 0, 0]] * 3)
    assert torch.equal(mask_of({"x": x, "attention_mask": mask}), mask != 0)
    for batch in (x, (x, mask), {"x": x}, {"attention_mask": mask[:, None]}):
        assert mask_of(batch) is None
    values = torch.arange(24.0).view(3, 4, 2)
    assert torch.equal(unmasked(values, mask != 0), values[:, :2].reshape(6, 2))
    for value, given in ((values, None), (x, mask[:, :3] != 0), (x[0], mask != 0)):
        assert unmasked(value, given) is value


def test_batches_can_be_read_several_times() -> None:
    for batches in ([1, 2], lambda: iter([1, 2])):
        assert [list(one_pass(batches)) for _ in range(2)] == [[1, 2], [1, 2]]
    with pytest.raises(ExampleError, match="an iterator gives them once"):
        one_pass(iter([1, 2]))


def test_what_is_not_finite_is_told() -> None:
    check_finite(torch.ones(2), "the output", 1)
    with pytest.raises(CalibrationError, match="the output is not finite in batch 3"):
        check_finite(torch.tensor([1.0, torch.inf]), "the output", 3)
