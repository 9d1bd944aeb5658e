"""Batches: inputs, labels and masks of the forms that people have them in; passes that can be repeated."""

from __future__ import annotations

import inspect

import pytest
import torch

from pararealize.calibration.batch import call_arguments, check_finite, inputs_of, labels_of, one_pass, samples_of
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


def test_labels_that_a_model_was_converted_without_are_no_input() -> None:
    x, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    call, _ = CallSignature.of("Model", inspect.signature(lambda x, labels=None: x).bind(x))
    assert call_arguments({"x": x, "labels": labels}, call) == ((), {"x": x})
    with_labels, _ = CallSignature.of("Model", inspect.signature(lambda x, labels=None: x).bind(x, labels))
    assert list(inputs_of({"x": x, "labels": labels}, with_labels)) == ["x", "labels"]


def test_samples_of_a_batch() -> None:
    x = torch.randn(3, 2)
    assert [samples_of(batch) for batch in (x, (x, torch.zeros(3)), {"flag": True, "x": x}, [])] == [3, 3, 3, 0]


def test_batches_can_be_read_several_times() -> None:
    for batches in ([1, 2], lambda: iter([1, 2])):
        assert [list(one_pass(batches)) for _ in range(2)] == [[1, 2], [1, 2]]
    with pytest.raises(ExampleError, match="an iterator gives them once"):
        one_pass(iter([1, 2]))


def test_what_is_not_finite_is_told() -> None:
    check_finite(torch.ones(2), "the output", 1)
    with pytest.raises(CalibrationError, match="the output is not finite in batch 3"):
        check_finite(torch.tensor([1.0, torch.inf]), "the output", 3)
