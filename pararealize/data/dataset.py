"""Samples in a training and a test part -> the batches of any epoch, from any place in it, for any rank.

A batch is a function of (seed, epoch, number of the batch) alone, so two integers in a checkpoint say where a run
stands in its data, and what follows is bit-identical to a run that never stopped.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from pararealize.errors import DataError
from pararealize.random_state import generator

from .augmentation import Augmentation

__all__ = ["Dataset", "Samples", "Scale", "Split", "choose", "fewer"]


class Samples(Protocol):
    """One part of a data set, indexed like a tensor: a tensor, or images that are read from disk at that moment."""

    @property
    def shape(self) -> Any:
        """``(count, ...)``."""

    def __getitem__(self, numbers: Any, /) -> Any:
        """The samples with these numbers, in this order: a tensor, or a container of tensors that a network takes.

        A container, such as a dict, has no augmentation and no scale.
        """


S_co = TypeVar("S_co", bound=Samples, covariant=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Split(Generic[S_co]):
    """A training and a test part: samples ``(count, ...)`` as they are stored, and labels ``(count,)`` from 0."""

    classes: int
    images: S_co = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: S_co = field(repr=False)
    test_labels: Tensor = field(repr=False)


def choose(total: int, count: int) -> Tensor:
    """Numbers of ``count`` samples out of ``total``: always the same, and a smaller choice begins a larger one.

    Example:
        >>> bool((choose(100, 5) == choose(100, 50)[:5]).all())
        True
    """
    return torch.randperm(total, generator=torch.Generator().manual_seed(0))[:count]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """(x − mean) / deviation, channel by channel, of pixels from 0 to 255; both ``(channels, 1, 1)``."""

    mean: Tensor
    deviation: Tensor

    def __call__(self, pixels: Tensor) -> Tensor:
        """Scale ``(count, channels, height, width)`` of any element type; the result is float32."""
        return (pixels.float() - self.mean) / self.deviation

    @staticmethod
    def of(parts: Iterable[Tensor]) -> "Scale":
        """The scale that gives every channel of these bytes ``(count, channels, height, width)`` mean 0, deviation 1.

        Computed from the 256 counts of each channel, in float64: exact whatever the number of pixels.

        Args:
            parts: of the images, which need not all be in memory at once.
        """
        values = torch.arange(256, dtype=torch.float64)
        shares = sum(
            (
                torch.stack([pixels[:, c].flatten().bincount(minlength=256) for c in range(pixels.shape[1])])
                for pixels in parts
            ),
            start=torch.zeros((), dtype=torch.int64),
        ).double()
        shares /= shares.sum(1, keepdim=True)
        mean = shares @ values
        deviation = (shares @ values.square() - mean.square()).clamp_min(1.0).sqrt()
        return Scale(mean=mean.float().view(-1, 1, 1), deviation=deviation.float().view(-1, 1, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples ``(count, *shape)`` and labels ``(count,)`` in two parts, and the batches of them.

    Attributes:
        name: as :func:`~pararealize.data.catalogue.load` takes it.
        classes: how many classes there are; labels count from 0.
        batch_size: samples in a batch of all ranks together.
        seed: of the order of the training samples and of their augmentation.
        images: the training samples as they are stored; ``example`` and ``epoch`` give them as a network takes them.
        labels: int64.
        test_images: the test samples as they are stored.
        test_labels: int64.
        scale: how stored bytes become numbers; None where ``images`` are those numbers.
        augmentation: of the training images; None for none.
    """

    name: str
    classes: int
    batch_size: int
    seed: int
    images: Samples = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: Samples = field(repr=False)
    test_labels: Tensor = field(repr=False)
    scale: Scale | None = field(default=None, repr=False)
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise DataError(f"{self.name}: batch_size = {self.batch_size} is not positive; write 1 or more")
        for part, labels in (("training", self.labels), ("test", self.test_labels)):
            if not len(labels):
                raise DataError(f"{self.name}: the {part} part is empty; give it at least one sample")

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample: ``(channels, height, width)``, or ``(features,)``."""
        return tuple(int(size) for size in self.images.shape[1:])

    @property
    def train_count(self) -> int:
        """How many training samples there are."""
        return len(self.labels)

    @property
    def test_count(self) -> int:
        """How many test samples there are."""
        return len(self.test_labels)

    @property
    def steps(self) -> int:
        """How many batches an epoch has, for any number of ranks."""
        return len(_sizes(self.train_count, self.batch_size))

    def batch_sizes(self, world: int = 1) -> list[int]:
        """How many samples every batch of an epoch has, of all ranks that share it: the last two depend on these."""
        return _sizes(self.train_count, self.batch_size, world)

    def example(self, count: int = 2) -> Tensor:
        """The first training samples as a network takes them, without augmentation."""
        return self._scaled(self.images[torch.arange(min(count, self.train_count))])

    def epoch(self, number: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch from batch ``start`` on: each a function of ``(seed, number, batch)`` alone.

        Args:
            number: the epoch, from 0; each has an order and an augmentation of its own.
            start: the first batch to give, from 0 to ``steps``. Those before it are not computed.
            rank: the rank whose share of every batch is given.
            world: how many ranks share a batch. The shares of all ranks, one after the other, are the batch. All ranks
                get ``steps`` batches, and none an empty share.

        Yields:
            ``(x, labels)``: ``(share, *shape)`` float32 and ``(share,)`` int64.

        The last batch is smaller where the batch size does not divide the number of samples, but never a single one,
        which batch norm cannot take: that one joins the batch before it. With several ranks, a last batch of fewer than
        two samples a rank shares evenly with the batch before it.

        Raises:
            DataError: a number is out of range, or a batch has fewer than two samples for each of several ranks.

        Example:
            >>> from pararealize.data import load
            >>> data = load("peaks", batch_size=2000, count=(5000, 500))
            >>> [len(labels) for _, labels in data.epoch(0)]
            [2000, 2000, 1000]
            >>> [len(labels) for _, labels in data.epoch(0, start=1, rank=2, world=3)]
            [666, 333]
        """
        sizes = self._checked_sizes(number, start, rank, world)
        return self._epoch(number, start, rank, world, sizes)

    def _epoch(
        self, number: int, start: int, rank: int, world: int, sizes: list[int]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        orders = torch.Generator().manual_seed(self.seed)
        for _ in range(number):  # the order of an epoch is the next draw after those of the epochs before it
            torch.randperm(self.train_count, generator=orders)
        order = torch.randperm(self.train_count, generator=orders)
        for batch, samples in enumerate(order.split(sizes)):
            if batch < start:
                continue
            share = torch.arange(len(samples)).tensor_split(world)[rank]
            x = self.images[samples[share]]
            if self.augmentation is not None:
                # drawn for the whole batch: an image undergoes the same whatever the number of ranks
                draws = self.augmentation.draw(len(samples), generator(self.seed, number, batch))
                x = self.augmentation.apply(x, draws[share])
            yield self._scaled(x), self.labels[samples[share]]

    def batches(self, epochs: int | None = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches, each epoch in another random order; without end where ``epochs`` is None."""
        for number in itertools.count() if epochs is None else range(epochs):
            yield from self.epoch(number)

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part once, in a fixed order, without augmentation."""
        for samples in torch.arange(self.test_count).split(_sizes(self.test_count, self.batch_size)):
            yield self._scaled(self.test_images[samples]), self.test_labels[samples]

    def _scaled(self, x: Tensor) -> Tensor:
        return x if self.scale is None else self.scale(x)

    def _checked_sizes(self, number: int, start: int, rank: int, world: int) -> list[int]:
        faults = []
        if number < 0:
            faults.append(f"epoch {number} is negative; epochs count from 0")
        if not 0 <= start <= self.steps:
            faults.append(f"start = {start} is none of its {self.steps} batches; write 0 to {self.steps}")
        if world < 1 or not 0 <= rank < world:
            faults.append(f"rank {rank} is none of {world}; write 0 to world − 1")
        elif world > 1 and min(self.batch_size, self.train_count) < 2 * world:
            faults.append(
                f"a batch of {min(self.batch_size, self.train_count)} is too small for {world} ranks; "
                f"batch_size has to be at least {2 * world}, two samples a rank"
            )
        elif world > 1 and min(sizes := _sizes(self.train_count, self.batch_size, world)) < 2 * world:
            faults.append(
                f"the last two batches of an epoch have {sum(sizes[-2:])} samples together, too few for {world} ranks "
                f"with two samples each; write a batch_size of at least {4 * world - 2}, or one that divides "
                f"{self.train_count}"
            )
        if faults:
            raise DataError(f"{self.name}: " + "; ".join(faults))
        return _sizes(self.train_count, self.batch_size, world)

    def __str__(self) -> str:
        what = "images" if len(self.shape) == 3 else "points"
        return (
            f"{self.name}: {self.train_count} training and {self.test_count} test {what} of "
            f"{'×'.join(map(str, self.shape))}, {self.classes} classes, batches of {self.batch_size}"
        )


def _sizes(count: int, batch_size: int, world: int = 1) -> list[int]:
    """How many samples every batch of an epoch has; the number of batches is the same for every ``world``."""
    whole, rest = divmod(count, batch_size)
    sizes = [batch_size] * whole + [rest] * (rest > 0)
    if rest == 1 and whole:
        sizes[-2:] = [batch_size + 1]
    elif world > 1 and whole and 0 < rest < 2 * world:
        both = batch_size + rest
        sizes[-2:] = [both - both // 2, both // 2]
    return sizes


InMemory = TypeVar("InMemory", Dataset, Split[Tensor])


def fewer(data: InMemory, count: tuple[int, int] | None) -> InMemory:
    """At most so many samples of each part, as :func:`choose` chooses them; all without a count."""
    if count is None:
        return data
    train, test = choose(len(data.labels), count[0]), choose(len(data.test_labels), count[1])
    return replace(
        data,
        images=data.images[train],
        labels=data.labels[train],
        test_images=data.test_images[test],
        test_labels=data.test_labels[test],
    )
