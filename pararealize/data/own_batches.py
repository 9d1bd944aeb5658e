"""``file.py:callable`` that yields batches -> the training and the test batches that the commands take.

The callable takes no argument. It gives batches, or a pair of a training and a test part, each of which gives batches;
or a :class:`~pararealize.data.dataset.Dataset`. It is called anew for every pass, so that a generator function will do.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pararealize.errors import DataError
from pararealize.lookup import brief, find
from pararealize.tracing.containers import leaves_of, map_leaves

from .dataset import Dataset, fewer

__all__ = ["OwnBatches", "own_data"]

EXAMPLE = 2  # samples


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBatches:
    """Batches of the user's own: tensors, ``(inputs, labels)``, or dicts of inputs by name with ``"labels"``.

    Attributes:
        name: as it stands on the command line.
        make: gives the batches of a part, ``"train"`` or ``"test"``, from the first on.
        has_test: whether there is a test part; else the training part is the test, too.
        count: how many samples of each part at most.
    """

    name: str
    make: Callable[[str], Iterable[Any]] = field(repr=False)
    has_test: bool
    count: tuple[int, int] | None = None

    def batches(self) -> Iterator[Any]:
        """The training part once."""
        return self._pass("train", None if self.count is None else self.count[0])

    def test_batches(self) -> Iterator[Any]:
        """The test part once."""
        return self._pass("test" if self.has_test else "train", None if self.count is None else self.count[1])

    def example(self, count: int = EXAMPLE) -> Any:
        """Inputs of the first training samples, without labels: a tensor, or a dict of inputs by name."""
        first = next(self.batches())
        return _head(_inputs(first), count)

    def dataset(self, batch_size: int, seed: int) -> Dataset:
        """All samples in memory, for training, which takes them in an order of its own.

        Raises:
            DataError: batches are no pairs of a tensor and labels.
        """
        parts = [self._together(part) for part in (self.batches(), self.test_batches())]
        (images, labels), (test_images, test_labels) = parts
        return Dataset(
            name=self.name,
            classes=1 + int(max(labels.max(), test_labels.max())),
            batch_size=batch_size,
            seed=seed,
            images=images,
            labels=labels,
            test_images=test_images,
            test_labels=test_labels,
        )

    def _together(self, batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
        inputs, labels = [], []
        for batch in batches:
            x, y = batch if isinstance(batch, list | tuple) and len(batch) == 2 else (None, None)
            if not isinstance(x, Tensor) or not isinstance(y, Tensor) or y.ndim != 1 or y.is_floating_point():
                raise DataError(
                    f"{self.name} gives batches of {_text(batch)}; to be trained on, they have to be pairs of a tensor "
                    "and whole numbers, one a sample"
                )
            inputs.append(x)
            labels.append(y.long())
        if not inputs:
            raise DataError(f"{self.name} gives no batch; give at least one")
        return torch.cat(inputs), torch.cat(labels)

    def _pass(self, part: str, most: int | None) -> Iterator[Any]:
        left = most
        for batch in self.make(part):
            if isinstance(batch, list | tuple) and not 1 <= len(batch) <= 2:
                raise DataError(
                    f"{self.name} gives a batch of {len(batch)} things, {_text(batch)}; give inputs, (inputs, labels), "
                    "or a dict of inputs by name"
                )
            size = _size(batch, self.name)
            if left is not None and size >= left:
                yield batch if size == left else _head(batch, left)
                return
            left = None if left is None else left - size
            yield batch

    def __str__(self) -> str:
        return f"{self.name}: batches of one's own, {'with a test part' if self.has_test else 'one part for all'}"


def own_data(name: str, *, count: tuple[int, int] | None = None) -> OwnBatches | Dataset:
    """What ``file.py:callable`` or ``package.module:callable`` gives; code of the user's is run.

    Args:
        name: of the callable.
        count: how many training and test samples at most.

    Raises:
        DataError: it cannot be called, or gives no batches.
        ModelError: there is nothing of that name.
    """
    value = find(name)
    if isinstance(value, Dataset):
        return fewer(value, count)
    if not callable(value):
        raise DataError(f"{name} is a {type(value).__name__}, which cannot be called; name a function of batches")
    given = _called(name, value)
    if isinstance(given, Dataset):
        return fewer(given, count)
    has_test = _is_pair_of_parts(name, given)
    position = {"train": 0, "test": 1}

    def make(part: str) -> Iterable[Any]:
        again = _called(name, value)
        source: Any = again[position[part]] if has_test else again
        return source() if callable(source) else source  # type: ignore[no-any-return]

    own = OwnBatches(name=name, make=make, has_test=has_test, count=count)
    for batches in (own.batches(), own.test_batches()):
        if next(itertools.islice(batches, 1), None) is None:
            raise DataError(f"{name} gives no batch; give at least one, of training and of test")
    return own


def _called(name: str, function: Callable[[], Any]) -> Any:
    try:
        given = function()
    except Exception as error:
        raise DataError(f"calling {name} failed: {brief(error)}") from error
    if isinstance(given, Dataset):
        return given
    if not (isinstance(given, Iterable) or callable(given)) or isinstance(given, Tensor | Mapping | str):
        raise DataError(
            f"{name} gives a {type(given).__name__}; give batches (a list, a loader, a generator), or a pair of those "
            "for training and for the test"
        )
    return given


def _is_pair_of_parts(name: str, given: Any) -> bool:
    """Whether it is a pair of parts, each of which gives batches; a pair of two batches is none."""
    if not isinstance(given, tuple) or len(given) != 2:
        return False
    if not all((isinstance(part, Iterable) or callable(part)) and not isinstance(part, _BATCHES) for part in given):
        return False
    if any(map(_may_be_either, given)):
        raise DataError(
            f"{name} gives a pair of {_text(given[0])} and {_text(given[1])}, which may be two parts of two batches or "
            "two batches with labels; write batches with labels as tuples, or parts as generators"
        )
    return not all(map(_is_batch, given))


_BATCHES = (Tensor, Mapping)


def _is_batch(value: Any) -> bool:
    """Whether it is a pair of inputs and labels, or the one tensor that a loader wraps into a list."""
    return isinstance(value, tuple | list) and len(value) in (1, 2) and all(isinstance(item, Tensor) for item in value)


def _may_be_either(value: Any) -> bool:
    """Whether a list of two tensors may be two batches without labels as well as one with them."""
    if not isinstance(value, list) or len(value) != 2 or not _is_batch(value):
        return False
    first, second = value
    return second.ndim > 1 and first.shape[1:] == second.shape[1:] and first.dtype is second.dtype


def _inputs(batch: Any) -> Any:
    if isinstance(batch, list | tuple):
        return batch[0]
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch


def _size(batch: Any, name: str) -> int:
    sizes = [int(leaf.shape[0]) for leaf in leaves_of(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    if not sizes:
        raise DataError(f"{name} gives a batch without a tensor, {_text(batch)}; give tensors, pairs or dicts of them")
    return sizes[0]


def _head(batch: Any, count: int) -> Any:
    """The first samples of a batch: of every tensor that has as many rows as the first."""
    rows = next((leaf.shape[0] for leaf in leaves_of(batch) if isinstance(leaf, Tensor) and leaf.ndim), 0)
    return map_leaves(
        lambda leaf: leaf[:count] if isinstance(leaf, Tensor) and leaf.ndim and leaf.shape[0] == rows else leaf, batch
    )


def _text(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor {tuple(batch.shape)}"
    if isinstance(batch, list | tuple):
        return f"({', '.join(_text(item) for item in batch[:3])})"
    return f"{type(batch).__name__}"
