"""Batches: inputs, labels and masks of the forms that people have them in; passes that can be repeated."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

from pararealize.calibration.batch import (
    RepeatedBatches,
    call_arguments,
    check_finite,
    inputs_of,
    labels_of,
    named_inputs,
    one_pass,
    samples_of,
)
from pararealize.errors import CalibrationError, ExampleError
from pararealize.tracing.call_signature import CallSignature


def is_copy(inputs: Mapping[str, Tensor], x: Tensor) -> bool:
    """Whether the inputs are x alone, in memory of its own."""
    return list(inputs) == ["x"] and torch.equal(inputs["x"], x) and inputs["x"].data_ptr() != x.data_ptr()


def test_inputs_and_labels_of_a_batch() -> None:
    x, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    call, _ = CallSignature.of("Model", inspect.signature(lambda x, mask=None: x).bind(x))
    for batch in (x, (x, labels), [x, labels]):
        assert is_copy(inputs_of(batch, call), x)
    assert is_copy(inputs_of({"x": x, "labels": labels}, call), x)
    with pytest.raises(ExampleError, match="no input 'x'"):
        inputs_of({"labels": labels}, call)
    with pytest.raises(ExampleError, match=r"a batch holds no sample: x \(0, 2\); leave it out"):
        inputs_of(x[:0], call)
    for batch in ((x, labels), {"x": x, "labels": labels}):
        assert labels_of(batch) is labels
    for batch in (x, (x,), (x, x), (x, labels.float()), {"x": x}):
        assert labels_of(batch) is None


def test_several_inputs_stand_in_a_tuple_in_the_place_of_one() -> None:
    x, mask, labels = torch.randn(3, 2), torch.ones(3, 1), torch.tensor([0, 1, 2])
    for forward in (lambda x, mask: x, lambda x, mask=None: x, lambda x, mask, /: x):
        call, _ = CallSignature.of("Model", inspect.signature(forward).bind(x, mask))
        for inputs in ((x, mask), [x, mask]):
            for batch in ((inputs, labels), (inputs,), [inputs, labels]):
                assert call_arguments(batch, call) == ((x, mask), {})
                assert named_inputs(batch, call) == {"x": x, "mask": mask}
        for batch in (x, (x, mask), (x, labels), ((x,), labels)):
            with pytest.raises(
                ExampleError, match=r"one input, 'x', .* with x, mask; pass \(\(x, mask\), labels\), or a"
            ):
                call_arguments(batch, call)
    several, _ = CallSignature.of("Model", inspect.signature(lambda *xs: xs).bind(x, mask))
    assert call_arguments(((x, mask), labels), several) == ((x, mask), {})
    assert call_arguments({"xs_0": x, "xs_1": mask}, several) == ((), {"xs_0": x, "xs_1": mask})
    pair, _ = CallSignature.of("Model", inspect.signature(lambda pair: pair).bind((x, mask)))
    assert call_arguments(((x, mask), labels), pair) == (((x, mask),), {})
    assert named_inputs(((x, mask), labels), pair)[1] is labels


def test_labels_that_a_model_was_converted_without_are_no_input() -> None:
    x, labels = torch.randn(3, 2), torch.tensor([0, 1, 2])
    call, _ = CallSignature.of("Model", inspect.signature(lambda x, labels=None: x).bind(x))
    assert call_arguments({"x": x, "labels": labels}, call) == ((), {"x": x})
    with_labels, _ = CallSignature.of("Model", inspect.signature(lambda x, labels=None: x).bind(x, labels))
    assert list(inputs_of({"x": x, "labels": labels}, with_labels)) == ["x", "labels"]


def test_samples_of_a_batch() -> None:
    x = torch.randn(3, 2)
    assert [samples_of(batch) for batch in (x, (x, torch.zeros(3)), {"flag": True, "x": x}, [])] == [3, 3, 3, 0]
    positions = {"position_ids": torch.arange(2)[None]}
    assert [samples_of(positions | batch) for batch in ({"x": x}, {"x": x, "mask": x}, {"x": x[:1]})] == [3, 3, 1]


def test_batches_can_be_read_several_times() -> None:
    for batches in ([1, 2], lambda: iter([1, 2])):
        assert [list(one_pass(batches)) for _ in range(2)] == [[1, 2], [1, 2]]
    with pytest.raises(ExampleError, match="an iterator gives them once"):
        one_pass(iter([1, 2]))


def test_passes_draw_the_same_random_numbers_whatever_is_drawn_between() -> None:
    def drawn() -> Iterator[torch.Tensor]:
        for _ in range(3):
            yield torch.tensor([torch.rand(()).item(), random.random(), np.random.random()])

    batches = RepeatedBatches(drawn, seed=5)
    first = list(batches.one_pass())
    for number, batch in enumerate(first):
        batches.note(number, batch)
    second, other = batches.later_pass(0, 3, 3), batches.one_pass()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    for batch in first:
        assert torch.equal(next(second), batch)
        assert torch.equal(next(other), batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_batches_of_a_later_pass_are_those_of_the_first() -> None:
    given = [torch.eye(3), torch.eye(3)[:, [1, 0, 2]], torch.full((3, 3), torch.nan)]
    passes = iter([given, given[1:], given[::-1], given[:2]])
    batches = RepeatedBatches(lambda: iter(next(passes)), seed=0)
    for number, batch in enumerate(batches.one_pass()):
        batches.note(number, batch)
    with pytest.raises(CalibrationError, match="batch 1 is another one in a later pass"):
        list(batches.later_pass(0, 2, 3))
    assert torch.equal(*list(batches.later_pass(1, 2, 3)), given[1])
    with pytest.raises(ExampleError, match="gave 3, and a later one 2"):
        list(batches.later_pass(0, 3, 3))


def test_what_is_not_finite_is_told() -> None:
    check_finite(torch.ones(2), "the output", 1)
    with pytest.raises(CalibrationError, match="the output is not finite in batch 3"):
        check_finite(torch.tensor([1.0, torch.inf]), "the output", 3)


def test_what_is_alike_for_all_samples_counts_none() -> None:
    ids, one = torch.zeros(3, 5), torch.zeros(1, 5)
    for batch in ({"bias": one, "positions": one, "ids": ids}, ({"positions": one, "ids": ids}, torch.zeros(3))):
        assert samples_of(batch) == 3
    assert samples_of({"ids": one}) == 1


def test_who_trains_may_see_other_batches_again() -> None:
    """Augmentation, and persistent workers of a loader, draw anew."""
    batches = RepeatedBatches(lambda: iter([torch.randn(2) for _ in range(3)]), seed=0)
    drawn = random.SystemRandom()
    others = RepeatedBatches(lambda: iter([torch.tensor([drawn.random()]) for _ in range(3)]), seed=0)
    for repeated in (batches, others):
        for number, batch in enumerate(repeated.one_pass()):
            repeated.note(number, batch)
    assert len(list(batches.later_pass(0, 3, 3))) == len(list(others.later_pass(0, 3, 3, alike=False))) == 3
    assert batches.is_known(2)
    with pytest.raises(CalibrationError, match="batch 1 is another one in a later pass"):
        list(others.later_pass(0, 3, 3))
