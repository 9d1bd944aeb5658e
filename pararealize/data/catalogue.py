"""A name -> a data set: what ``--data`` of the commands takes, and ``load`` in Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path

import torch
from torch.nn import functional

from pararealize.errors import DataError

from . import archives, glyphs, image_folder, peaks
from .augmentation import Augmentation
from .dataset import Dataset, Scale
from .images import Pictures, chosen, fitted

__all__ = ["Dataset", "digits", "load", "names"]

TEST_SHARE = 5  # every fifth image of the shuffled digits is a test image
PEAKS = (5000, 1000)  # points for training and for the test, where no count is given
FOLDER = "data"  # where files are looked for that no data_dir is given for
PADDING_SHARE = 8  # the margin of random crops is an eighth of the side: 4 pixels of 32
AUGMENTED = ("cifar10", "cifar100")  # where nothing else is said, as in the papers
MIRRORED = (*AUGMENTED, "imagefolder")  # a mirror image of a digit or a letter is none


def names() -> list[str]:
    """What :func:`load` takes; ``DIR`` stands for a folder."""
    return [*archives.NAMES, "digits", "glyphs", "glyphs:clean", "glyphs:system", "imagefolder:DIR", "peaks"]


def load(
    name: str,
    *,
    batch_size: int = 128,
    seed: int = 0,
    data_dir: str | Path | None = None,
    augment: bool | None = None,
    image_size: int | None = None,
    channels: int | None = None,
    count: tuple[int, int] | None = None,
    data_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set of this name.

    Args:
        name: one of :func:`names`.
        batch_size: samples in a batch.
        seed: of the order of the batches and of the augmentation. Which samples there are does not depend on it.
        data_dir: where the set lies on disk, ``data`` by default; for glyphs, which are made, where they are kept, by
            default the user's cache.
        augment: random crops of images with a margin of an eighth of their side, and mirror images of CIFAR and of
            image folders; None for what is usual, which is True for CIFAR and False for all others.
        image_size: pixels of a side; None for the set's own. An image folder has none.
        channels: 1 or 3; None for the set's own.
        count: how many training and test samples at most; a smaller set is a part of a larger one. Of glyphs and
            peaks so many are made.
        data_seed: of the samples themselves, where they are made and not collected.
        progress: called with the number of samples made so far and of all, while samples are made.

    Raises:
        DataError: the name is unknown, something is missing on disk, or the set cannot be had so.

    Example:
        >>> print(load("peaks"))
        peaks: 5000 training and 1000 test points of 2, 5 classes, batches of 128
        >>> x, labels = next(load("peaks").epoch(0))
        >>> x.shape, labels.shape
        (torch.Size([128, 2]), torch.Size([128]))
    """
    kind, colon, place = name.partition(":")
    known = {known.partition(":")[0]: known for known in names()}
    if kind not in known or (colon and name not in names() and known[kind] != f"{kind}:DIR"):
        raise DataError(f"no data set is called {name!r}; there are {', '.join(names())}")
    if count is not None and not _is_pair(count):
        raise DataError(f"count = {count!r} is no pair of integers; write (train, test), such as (1000, 200)")
    if count is not None and min(count) < 1:
        raise DataError(f"count = {count} leaves a part empty; write two positive numbers, for training and test")
    wanted = _Wanted(
        name=name,
        place=place,
        batch_size=batch_size,
        seed=seed,
        data_dir=data_dir,
        image_size=image_size,
        channels=channels,
        count=count,
        data_seed=data_seed,
        progress=progress,
    )
    if kind == "peaks":
        return _peaks(wanted, augment)
    make = {"digits": _digits, "glyphs": _glyphs, "imagefolder": _image_folder}.get(kind, _archive)
    data = make(wanted)
    if augment if augment is not None else kind in AUGMENTED:
        padding = max(1, data.shape[-1] // PADDING_SHARE)
        return replace(data, augmentation=Augmentation(padding=padding, flip=kind in MIRRORED))
    return data


def _is_pair(count: object) -> bool:
    return isinstance(count, Sequence) and len(count) == 2 and all(isinstance(part, Integral) for part in count)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What :func:`load` was asked for."""

    name: str
    place: str
    batch_size: int
    seed: int
    data_dir: str | Path | None
    image_size: int | None
    channels: int | None
    count: tuple[int, int] | None
    data_seed: int
    progress: Callable[[int, int], None] | None

    def of_bytes(self, pictures: Pictures) -> Dataset:
        """A data set of pictures in memory, as large and as colourful as wanted."""
        images, test_images = (
            fitted(part, image_size=self.image_size, channels=self.channels)
            for part in (pictures.images, pictures.test_images)
        )
        return Dataset(
            name=self.name,
            classes=pictures.classes,
            batch_size=self.batch_size,
            seed=self.seed,
            images=images,
            labels=pictures.labels,
            test_images=test_images,
            test_labels=pictures.test_labels,
            scale=Scale.of(images),
        )


def _archive(wanted: _Wanted) -> Dataset:
    pictures = archives.read(wanted.name, Path(wanted.data_dir or FOLDER))
    if wanted.count is not None:
        train, test = chosen(len(pictures.labels), wanted.count[0]), chosen(len(pictures.test_labels), wanted.count[1])
        pictures = Pictures(
            classes=pictures.classes,
            images=pictures.images[train],
            labels=pictures.labels[train],
            test_images=pictures.test_images[test],
            test_labels=pictures.test_labels[test],
        )
    return wanted.of_bytes(pictures)


def _glyphs(wanted: _Wanted) -> Dataset:
    pictures = glyphs.kept_or_made(
        wanted.count or glyphs.FULL,
        seed=wanted.data_seed,
        system_fonts=wanted.place == "system",
        difficulty=glyphs.CLEAN if wanted.place == "clean" else None,
        data_dir=wanted.data_dir,
        progress=wanted.progress,
    )
    return wanted.of_bytes(pictures)


def _image_folder(wanted: _Wanted) -> Dataset:
    if not wanted.place:
        raise DataError(f"{wanted.name} needs a folder; write imagefolder:DIR")
    if wanted.image_size is None:
        raise DataError(
            f"{wanted.name} needs the size that its images are to have; pass image_size=224 (--image-size 224), for "
            "example"
        )
    channels = 3 if wanted.channels is None else wanted.channels
    found = image_folder.read(
        Path(wanted.data_dir or "", wanted.place),
        image_size=wanted.image_size,
        channels=channels,
        count=wanted.count,
    )
    return Dataset(
        name=wanted.name,
        classes=len(found.classes),
        batch_size=wanted.batch_size,
        seed=wanted.seed,
        images=found.images,
        labels=found.labels,
        test_images=found.test_images,
        test_labels=found.test_labels,
        scale=image_folder.scale(channels),
    )


def _peaks(wanted: _Wanted, augment: bool | None) -> Dataset:
    if augment or wanted.image_size is not None or wanted.channels is not None:
        raise DataError("peaks has points and no images; leave out augment, image_size and channels")
    train, test = wanted.count or PEAKS
    x, labels = peaks.points(train, seed=wanted.data_seed)
    test_x, test_labels = peaks.points(test, seed=wanted.data_seed, part="test")
    return Dataset(
        name="peaks",
        classes=peaks.CLASSES,
        batch_size=wanted.batch_size,
        seed=wanted.seed,
        images=x,
        labels=labels,
        test_images=test_x,
        test_labels=test_labels,
    )


def _digits(wanted: _Wanted) -> Dataset:
    image_size, channels = (32 if wanted.image_size is None else wanted.image_size), wanted.channels
    data = digits(wanted.batch_size, wanted.seed, image_size=image_size, channels=3 if channels is None else channels)
    if wanted.count is None:
        return data
    train, test = chosen(data.train_count, wanted.count[0]), chosen(data.test_count, wanted.count[1])
    return replace(
        data,
        images=data.images[train],
        labels=data.labels[train],
        test_images=data.test_images[test],
        test_labels=data.test_labels[test],
    )


def digits(batch_size: int = 64, seed: int = 0, *, image_size: int = 32, channels: int = 3) -> Dataset:
    """scikit-learn's 1797 handwritten digits, 8×8 pixels, resized and normalised.

    Args:
        batch_size: images in a batch.
        seed: the order of the training batches. Which images are test images does not depend on it.
        image_size: pixels of a side after bilinear resizing.
        channels: how often the one grey channel is repeated.

    The training images have mean 0 and standard deviation 1; the test images are shifted and scaled alike.

    Raises:
        DataError: scikit-learn is not installed, or a number is not positive.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Example:
        >>> print(digits(batch_size=64))
        digits: 1437 training and 360 test images of 3×32×32, 10 classes, batches of 64
    """
    if min(batch_size, image_size, channels) < 1:
        raise DataError(
            f"digits needs positive numbers, but batch_size = {batch_size}, image_size = {image_size} and "
            f"channels = {channels}"
        )
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise DataError(
            "the digits come with scikit-learn, which is not installed; say pip install 'pararealize[data]' "
            "(or pip install scikit-learn)"
        ) from error
    raw = load_digits()
    images = torch.from_numpy(raw.images).float().unsqueeze(1)
    images = functional.interpolate(images, size=(image_size, image_size), mode="bilinear", align_corners=False)
    labels = torch.from_numpy(raw.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    is_test = torch.arange(len(labels)) % TEST_SHARE == 0
    train, test = order[~is_test], order[is_test]
    mean, deviation = images[train].mean(), images[train].std()
    images = ((images - mean) / deviation).repeat(1, channels, 1, 1)
    return Dataset(
        name="digits",
        classes=10,
        batch_size=batch_size,
        seed=seed,
        images=images[train],
        labels=labels[train],
        test_images=images[test],
        test_labels=labels[test],
    )
