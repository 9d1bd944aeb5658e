"""Batches -> those to train on, round after round, and those held out, which say when it was best."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree

from pararealize.data.dataset import Dataset
from pararealize.errors import ExampleError
from pararealize.random_state import generator

from .batch import Batches, RepeatedBatches, samples_of

__all__ = ["TuningData"]

SHARE = 0.2  # of the batches is held out, the last ones


class TuningData:
    """Training and held-out batches.

    Without ``test`` the last fifth of the batches is held out; of a single batch nothing, and it is both. Batches that
    fit into memory are kept, and come in a new random order in every round; others are read anew, in the order in which
    they come, with the same random numbers for a loader that shuffles.

    Args:
        batches: a list, a loader, a function that gives an iterator, or a data set, of which every round is an epoch.
        test: others to hold out; of a data set its test part.
        keep: bytes of batches that are kept in memory.
        seed: of the order.

    Attributes:
        count: how many batches a round has.
        samples: how many samples a round has.
        held_out: says what is held out; empty where nothing is.

    Raises:
        ExampleError: there is no batch, or they can be read only once.
        CalibrationError: while they are read: batches that are not kept are others than in the first pass.
    """

    def __init__(self, batches: Batches | Dataset, test: Batches | None, *, keep: int, seed: int) -> None:
        self._data = batches if isinstance(batches, Dataset) else None
        source: Batches = batches.batches if isinstance(batches, Dataset) else batches
        test = batches.test_batches if isinstance(batches, Dataset) and test is None else test
        self._source, self._seed = RepeatedBatches(source, seed=seed), seed
        self._test = None if test is None else RepeatedBatches(test, seed=seed)
        self._kept: list[Any] | None = []
        self.count = self.samples = size = 0
        for number, batch in enumerate(self._source.one_pass()):
            self.count += 1
            self.samples += samples_of(batch)
            size += sum(leaf.nbytes for leaf in pytree.tree_leaves(batch) if isinstance(leaf, torch.Tensor))
            if self._kept is None:
                self._source.note(number, batch)
                continue
            self._kept.append(batch)
            if self._data is not None or (size > keep and not isinstance(batches, list | tuple)):
                for place, kept in enumerate(self._kept):
                    self._source.note(place, kept)
                self._kept = None
        if not self.count:
            raise ExampleError("there is no batch; pass some tens of batches of training inputs")
        self._last = max(1, round(SHARE * self.count)) if self._test is None and self.count > 1 else 0
        self.held_out = "the test batches" if self._test is not None else ""
        if self._last:
            self.held_out = f"the last {self._last} of {self.count} batches"
            self.samples -= sum(map(samples_of, self.tests()))

    def training(self) -> Iterator[Any]:
        """Batches to train on, without end."""
        number = 0
        while True:
            stop = self.count - self._last
            if self._data is not None:
                yield from self._data.epoch(number)
            elif self._kept is None:
                yield from self._source.later_pass(0, stop, self.count, alike=False)
            else:
                order = torch.randperm(stop, generator=generator(self._seed, "order", number))
                yield from (self._kept[i] for i in order.tolist())
            number += 1

    def tests(self) -> Iterator[Any]:
        """The batches held out, in a fixed order; all where none are."""
        if self._test is not None:
            return self._test.one_pass()
        start = self.count - self._last if self._last else 0
        return iter(self._kept[start:]) if self._kept is not None else self._later(start, self.count)

    def all(self) -> Iterator[Any]:
        """All batches but those of ``test``."""
        return iter(self._kept) if self._kept is not None else self._later(0, self.count)

    def _later(self, start: int, stop: int) -> Iterator[Any]:
        """The batches from ``start`` up to ``stop``, in a pass behind the first."""
        return self._source.later_pass(start, stop, self.count)
