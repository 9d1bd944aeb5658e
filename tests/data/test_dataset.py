"""Any part of any epoch, for any rank, is what a whole run sees there."""

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pararealize.data.augmentation import Augmentation
from pararealize.data.dataset import Dataset, Scale, choose
from pararealize.errors import DataError


def numbered(count: int, batch_size: int, *, seed: int = 0, augmentation: Augmentation | None = None) -> Dataset:
    """Images of which each pixel is another number, so that a moved one is told from all others; labels count."""
    pixels = torch.arange(count * 16, dtype=torch.int32).view(count, 1, 4, 4)
    return Dataset(
        name="numbered",
        classes=count,
        batch_size=batch_size,
        seed=seed,
        images=pixels,
        labels=torch.arange(count),
        test_images=pixels[:3],
        test_labels=torch.arange(3),
        augmentation=augmentation,
    )


def same(one, other):
    """Whether two lists of batches are equal bit for bit."""
    one, other = list(one), list(other)
    return len(one) == len(other) and all(
        torch.equal(x, y) and torch.equal(a, b) for (x, a), (y, b) in zip(one, other, strict=True)
    )


@given(st.data())
def test_the_rest_of_an_epoch_and_the_shares_of_ranks(data):
    """``start=k`` gives the tail; the shares of all ranks make up batches that hold every sample once."""
    count = data.draw(st.integers(1, 60))
    batch_size = data.draw(st.integers(1, 30))
    world = data.draw(st.integers(1, max(1, min(batch_size, count) // 2)))
    seed, number = data.draw(st.integers(-5, 5)), data.draw(st.integers(0, 3))
    found = numbered(count, batch_size, seed=seed, augmentation=data.draw(st.sampled_from([None, Augmentation()])))
    if world > 1 and batch_size < 4 * world - 2 and 1 < count % batch_size < min(2 * world, 4 * world - batch_size):
        with pytest.raises(DataError, match=f"the last two batches .* at least {4 * world - 2}, or one that divides"):
            found.epoch(number, world=world)
        return
    ranks = [list(found.epoch(number, rank=rank, world=world)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {found.steps}
    whole = [tuple(map(torch.cat, zip(*shares, strict=True))) for shares in zip(*ranks, strict=True)]
    assert torch.cat([labels for _, labels in whole]).sort().values.equal(torch.arange(count))
    assert min(len(labels) for batches in ranks for _, labels in batches) >= min(world, 2)
    start = data.draw(st.integers(0, found.steps))
    rank = data.draw(st.integers(0, world - 1))
    assert same(found.epoch(number, start=start, rank=rank, world=world), ranks[rank][start:])
    if count % batch_size == 0:
        assert same(found.epoch(number), whole)


@pytest.mark.parametrize(
    "count, batch_size, world, sizes",
    [
        (10, 4, 1, [4, 4, 2]),
        (9, 4, 1, [4, 5]),  # never one sample alone
        (1, 4, 1, [1]),  # unless there is no other
        (8, 4, 1, [4, 4]),
        (18, 8, 2, [8, 5, 5]),  # two samples would be one a rank
        (17, 8, 2, [8, 9]),
        (20, 8, 2, [8, 8, 4]),
    ],
)
def test_sizes(count, batch_size, world, sizes):
    found = numbered(count, batch_size)
    ranks = [[len(labels) for _, labels in found.epoch(0, rank=rank, world=world)] for rank in range(world)]
    assert [sum(shares) for shares in zip(*ranks, strict=True)] == sizes
    assert found.steps == len(sizes)


def test_epochs_differ_and_seeds_differ():
    found = numbered(50, 50)
    (first, _), (second, _) = itertools.islice(found.batches(None), 2)
    assert not torch.equal(first, second)
    assert torch.equal(next(found.epoch(1))[0], second)
    assert not torch.equal(next(numbered(50, 50, seed=1).epoch(0))[0], first)


def test_augmentation_differs_between_epochs_batches_and_seeds():
    """The same image, moved otherwise: labels tell which one it is."""
    found = numbered(200, 100, augmentation=Augmentation())

    def moved(data, number):
        return {int(label): x for xs, labels in data.epoch(number) for x, label in zip(xs, labels, strict=True)}

    def alike(one, other):
        return sum(torch.equal(one[label], other[label]) for label in one) / len(one)

    first = moved(found, 0)
    assert alike(first, moved(found, 0)) == 1
    assert alike(first, moved(found, 1)) < 0.3  # a sixth of the crops of a 4×4 image holds none of it
    assert alike(first, moved(numbered(200, 100, seed=1, augmentation=Augmentation()), 0)) < 0.3


def test_every_batch_of_every_epoch_draws_anew():
    """All images are the same one, so batches are equal where the draws are."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(60, 1, 16, 16)
    found = replace(numbered(60, 20, augmentation=Augmentation()), images=pixels)
    others = replace(found, seed=1)
    drawn = [x for number in range(3) for x, _ in found.epoch(number)] + [x for x, _ in others.epoch(0)]
    assert len(torch.stack(drawn).unique(dim=0)) == 12


def test_test_batches_are_in_order_and_as_they_are():
    found = numbered(50, 2, augmentation=Augmentation())
    (x, labels), *rest = found.test_batches()
    assert labels.tolist() == [0, 1, 2]
    assert not rest
    assert torch.equal(x, found.test_images)
    assert torch.equal(found.example(3), x)


def test_the_scale_is_of_the_training_images():
    pixels = torch.randint(0, 256, (40, 3, 5, 5), dtype=torch.uint8)
    pixels[:, 2] = 7  # a channel without any variation stays finite
    scale = Scale.of(pixels.split(7))
    scaled = scale(pixels)
    reference = pixels.double()
    assert torch.allclose(scale.mean.flatten().double(), reference.mean((0, 2, 3)))
    assert torch.allclose(scale.deviation.flatten()[:2].double(), reference.std((0, 2, 3), correction=0)[:2])
    assert scaled[:, :2].mean().item() == pytest.approx(0, abs=1e-5)
    assert scaled[:, 2].abs().max() == 0
    assert scaled.dtype == torch.float32


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"number": -1}, "epoch -1 is negative"),
        ({"number": 0, "start": 6}, "start = 6 is none of its 5 batches"),
        ({"number": 0, "rank": 2, "world": 2}, "rank 2 is none of 2"),
        ({"number": 0, "world": 0}, "rank 0 is none of 0"),
        ({"number": 0, "world": 6}, "batch of 10 is too small for 6 ranks.*at least 12"),
        (
            {"number": 0, "world": 4},
            "the last two batches of an epoch have 12 samples .* at least 14, or .* divides 42",
        ),
        ({"number": -1, "start": -1}, "epoch -1.*; start = -1"),
    ],
)
def test_what_is_out_of_range(wanted, message):
    """Refused when it is asked for, and not when the first batch is."""
    with pytest.raises(DataError, match=message):
        numbered(42 if wanted.get("world") == 4 else 50, 10).epoch(**wanted)


def test_empty_parts():
    with pytest.raises(DataError, match="the training part is empty"):
        numbered(0, 10)
    with pytest.raises(DataError, match="batch_size = 0 is not positive"):
        numbered(5, 0)


def test_choose():
    assert sorted(choose(10, 20).tolist()) == list(range(10))
    assert len(choose(10, 4).unique()) == 4
