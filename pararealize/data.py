"""A name -> a data set: what ``--data`` of the commands takes, and ``load`` in Python."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional

from . import glyphs, peaks
from .augment import Augmentation
from .dataset import Dataset, Scale
from .errors import DataError
from .pixels import Pictures, chosen, fitted

__all__ = ["Dataset", "digits", "load", "names"]

TEST_SHARE = 5  # every fifth image of the shuffled digits is a test image
PEAKS = (5000, 1000)  # points for training and for the test, where no count is given
PADDING_SHARE = 8  # the margin of random crops is an eighth of the side: 4 pixels of 32


def names() -> list[str]:
    """What :func:`load` takes."""
    return ["digits", "glyphs", "glyphs:system", "peaks"]


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
        data_dir: where the set lies on disk, or is to be kept once it is made.
        augment: random crops of images with a margin of an eighth of their side, and mirror images where a mirror image
            is still of its class; None for what the set's name stands for in the literature.
        image_size: pixels of a side; None for the set's own.
        channels: 1 or 3; None for the set's own.
        count: how many training and test samples at most; a smaller set is a part of a larger one.
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
    if count is not None and min(count) < 1:
        raise DataError(f"count = {count} leaves a part empty; write two positive numbers, for training and test")
    if name == "peaks":
        return _peaks(batch_size, seed, augment, image_size, channels, count or PEAKS, data_seed)
    if name == "digits":
        data = digits(batch_size, seed, image_size=image_size or 32, channels=channels or 3)
        return _augmented(_subset(data, count), flip=False) if augment else _subset(data, count)
    if name in ("glyphs", "glyphs:system"):
        pictures = glyphs.kept_or_made(
            count or glyphs.FULL,
            seed=data_seed,
            system_fonts=name == "glyphs:system",
            data_dir=data_dir,
            progress=progress,
        )
        return _scaled(name, pictures, batch_size, seed, augment, image_size, channels)
    raise DataError(f"no data set is called {name!r}; there are {', '.join(names())}")


def _augmented(data: Dataset, *, flip: bool) -> Dataset:
    padding = max(1, data.shape[-1] // PADDING_SHARE)
    return replace(data, augmentation=Augmentation(padding=padding, flip=flip))


def _subset(data: Dataset, count: tuple[int, int] | None) -> Dataset:
    """The same samples for the same count, and samples of a smaller count among those of a larger one."""
    if count is None:
        return data
    train, test = chosen(data.train_count, count[0]), chosen(data.test_count, count[1])
    return replace(
        data,
        images=data.images[train],
        labels=data.labels[train],
        test_images=data.test_images[test],
        test_labels=data.test_labels[test],
    )


def _scaled(
    name: str,
    pictures: Pictures,
    batch_size: int,
    seed: int,
    augment: bool | None,
    image_size: int | None,
    channels: int | None,
    *,
    flip: bool = False,
) -> Dataset:
    images = fitted(pictures.images, image_size=image_size, channels=channels)
    data = Dataset(
        name=name,
        classes=pictures.classes,
        batch_size=batch_size,
        seed=seed,
        images=images,
        labels=pictures.labels,
        test_images=fitted(pictures.test_images, image_size=image_size, channels=channels),
        test_labels=pictures.test_labels,
        scale=Scale.of(images),
    )
    return _augmented(data, flip=flip) if augment else data


def _peaks(
    batch_size: int,
    seed: int,
    augment: bool | None,
    image_size: int | None,
    channels: int | None,
    count: tuple[int, int],
    data_seed: int,
) -> Dataset:
    if augment or image_size is not None or channels is not None:
        raise DataError("peaks has points and no images; leave out augment, image_size and channels")
    x, labels = peaks.points(sum(count), seed=data_seed)
    return Dataset(
        name="peaks",
        classes=peaks.CLASSES,
        batch_size=batch_size,
        seed=seed,
        images=x[: count[0]],
        labels=labels[: count[0]],
        test_images=x[count[0] :],
        test_labels=labels[count[0] :],
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
