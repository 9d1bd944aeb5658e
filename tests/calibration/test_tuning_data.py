"""Training and held-out batches: none is in both, rounds are complete, loaders that shuffle hold out the same."""

from __future__ import annotations

from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from pararealize.calibration.tuning_data import TuningData
from pararealize.data.catalogue import load
from pararealize.errors import CalibrationError, ExampleError


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 23), st.integers(0, 5))
def test_rounds_are_complete_and_what_is_held_out_is_never_trained_on(count: int, seed: int) -> None:
    batches = [torch.full((2, 1), i) for i in range(count)]
    data = TuningData(batches, None, keep=0, seed=seed)
    held = [int(batch[0]) for batch in data.tests()]
    trained = [int(batch[0]) for batch in islice(data.training(), 2 * (count - len(held)))]
    assert sorted(held) == list(range(count - max(1, round(count / 5)), count))
    assert sorted(trained) == sorted(2 * [i for i in range(count) if i not in held])
    assert data.samples == 2 * (count - len(held))
    assert data.held_out == f"the last {len(held)} of {count} batches"
    assert len(list(data.all())) == count


@pytest.mark.parametrize("keep", [0, 1 << 20])
def test_a_loader_that_shuffles_holds_out_the_same_samples(keep: int) -> None:
    loader = DataLoader(TensorDataset(torch.arange(40).float()), batch_size=4, shuffle=True)
    data = TuningData(loader, None, keep=keep, seed=3)
    held = [{int(x) for (batch,) in data.tests() for x in batch} for _ in range(2)]
    trained = {int(x) for (batch,) in islice(data.training(), 16) for x in batch}
    assert held[0] == held[1] == set(range(40)) - trained


def test_test_batches_come_in_one_order() -> None:
    loader = DataLoader(torch.arange(40).float(), batch_size=4, shuffle=True)
    data = TuningData([torch.ones(2)], loader, keep=0, seed=3)
    first, second = (torch.cat(list(data.tests())) for _ in range(2))
    assert torch.equal(first, second)
    assert len(set(first.tolist())) == 40


def test_a_look_at_what_is_held_out_changes_no_pass() -> None:
    """Both are read at once, where batches are not kept."""
    loader = DataLoader(torch.arange(40).float(), batch_size=4, shuffle=True)
    data = TuningData(loader, loader, keep=0, seed=3)
    round_of = []
    for batch in islice(data.training(), 10):
        list(data.tests())
        round_of.append(batch)
    assert torch.equal(torch.cat(round_of), torch.cat(list(data.all())))


def test_a_loader_with_a_generator_of_its_own_is_refused_where_it_is_read_again() -> None:
    """What is held out would be trained on; with test batches it may give others, as augmentation does."""
    loader = DataLoader(torch.arange(40).float(), batch_size=4, shuffle=True, generator=torch.Generator())
    kept = TuningData(loader, None, keep=1 << 20, seed=3)
    assert len(list(islice(kept.training(), 20))) == 20
    assert len(list(islice(TuningData(loader, [torch.ones(2)], keep=0, seed=3).training(), 20))) == 20
    with pytest.raises(CalibrationError, match="batch 9 is another one in a later pass"):
        TuningData(loader, None, keep=0, seed=3)


def test_one_batch_is_both_and_test_batches_are_held_out() -> None:
    x = torch.ones(3, 2)
    data = TuningData([x], None, keep=0, seed=0)
    assert data.held_out == ""
    assert next(data.training()) is next(data.tests()) is x
    data = TuningData(lambda: iter([x, x]), lambda: iter([2 * x]), keep=0, seed=0)
    assert (data.held_out, data.samples, len(list(data.tests()))) == ("the test batches", 6, 1)


def test_a_data_set_has_epochs_and_a_test_part() -> None:
    digits = load("digits", batch_size=50, image_size=8, count=(140, 40))
    data = TuningData(digits, None, keep=1 << 30, seed=0)
    wanted = [x for number in range(2) for x, _ in digits.epoch(number)]
    assert all(torch.equal(x, other) for (x, _), other in zip(data.training(), wanted, strict=False))
    assert sum(len(y) for _, y in data.tests()) == 40


def test_refusals() -> None:
    with pytest.raises(ExampleError, match="there is no batch"):
        TuningData([], None, keep=0, seed=0)
    with pytest.raises(ExampleError, match="an iterator gives them once"):
        TuningData(iter([torch.ones(2)]), None, keep=0, seed=0)


def test_a_function_whose_iterator_was_read_is_no_other_pass() -> None:
    """Training waited for ever for a batch."""
    iterator = iter([torch.ones(2)] * 5)
    data = TuningData(lambda: iterator, [torch.ones(2)], keep=0, seed=0)
    with pytest.raises(ExampleError, match=r"first pass over the batches gave 5, and a later one 0; .* new iterator"):
        next(data.training())
