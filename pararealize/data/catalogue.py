"""A name -> a data set: what ``--data`` of the commands takes, and ``load`` in Python."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pararealize.argument_types import typed_arguments
from pararealize.errors import DataError

from . import archives, glyphs, idx_files, image_folder, peaks
from .augmentation import Augmentation
from .dataset import Dataset, Scale, Split, fewer
from .images import resize

__all__ = ["digits", "load", "names"]

DARKEST = 16  # of the digits' pixels
TEST_SHARE = 5  # every fifth image of the shuffled digits is a test image
PEAKS = (5000, 1000)  # points for training and for the test, where no count is given
FOLDER = "data"  # where files are looked for that no data_dir is given for
MOST_DEVIATION = 10.0  # of pixels from 0 to 1: what is more is meant for pixels to 255
SCALED_BY = 1000  # of the training glyphs, which are made one by one
AT_A_TIME = 10_000  # images that are resized for their mean and deviation
PADDING_SHARE = 8  # the margin of random crops is an eighth of the side: 4 pixels of 32


def names() -> list[str]:
    """What :func:`load` takes; ``DIR`` stands for a folder."""
    return [name for entry in ENTRIES.values() for name in entry.names]


@typed_arguments(DataError, "count", "mean", "std")
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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    data_seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The data set of this name.

    Args:
        name: one of :func:`names`.
        batch_size: samples in a batch.
        seed: of the order of the batches and of the augmentation. Which samples there are does not depend on it.
        data_dir: the folder of the set's files, ``data`` by default; for glyphs, which are made, the folder to store
            them in, by default the user's cache.
        augment: random crops of images with a margin of an eighth of their side, and mirror images of CIFAR and of
            image folders; None for what is usual, which is True for CIFAR and False for all others.
        image_size: pixels of a side; None for the set's own, which an image folder has not.
        channels: 1 or 3; None for the set's own.
        count: how many training and test samples at most; a smaller set is a part of a larger one. Of glyphs and
            peaks so many are made.
        mean: of each channel's pixels, from 0 to 1, that is taken from them; one number for all channels, or one for
            each. None for that of the whole training part, whatever ``count`` is (of glyphs, of its first thousand; of
            an image folder, ImageNet's).
        std: the deviation that they are divided by, likewise; ``mean`` and ``std`` come together.
        data_seed: of the samples themselves, of glyphs and peaks.
        progress: called with the number of samples made so far and of all, while samples are made.

    Raises:
        DataError: the name is unknown, a file is missing, or the set does not come with these options.

    Example:
        >>> from pararealize.data import load
        >>> print(load("peaks"))
        peaks: 5000 training and 1000 test points of 2, 5 classes, batches of 128
        >>> x, labels = next(load("peaks").epoch(0))
        >>> x.shape, labels.shape
        (torch.Size([128, 2]), torch.Size([128]))
    """
    kind, colon, variant = name.partition(":")
    entry = ENTRIES.get(kind)
    if entry is None or (colon and name not in entry.names and f"{kind}:DIR" not in entry.names):
        raise DataError(f"no data set is called {name!r}; there are {', '.join(names())}")
    if count is not None and not _is_pair(count):
        raise DataError(f"count = {count!r} is no pair of integers; write (train, test), such as (1000, 200)")
    if count is not None and min(count) < 1:
        raise DataError(f"count = {count} leaves a part empty; write two positive numbers, for training and test")
    request = _Request(
        name=name,
        variant=variant,
        batch_size=batch_size,
        seed=seed,
        data_dir=data_dir,
        augment=augment,
        image_size=image_size,
        channels=channels,
        count=count,
        normalisation=_normalisation(mean, std),
        data_seed=data_seed,
        progress=progress,
    )
    data = entry.make(request)
    if entry.augmented if augment is None else augment:
        padding = max(1, data.shape[-1] // PADDING_SHARE)
        # digits are stored normalised; the darkest pixel is black
        black = (0.0,) if data.scale is not None else tuple(map(float, data.images[:].amin((0, 2, 3))))
        return replace(data, augmentation=Augmentation(padding=padding, flip=entry.mirrored, black=black))
    return data


def _normalisation(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Means and deviations as they were asked for; ``None`` where they were not."""
    if mean is None and std is None:
        return None
    parts = [[value] if isinstance(value, int | float) else value for value in (mean, std)]
    first, second = (
        tuple(map(float, part)) if isinstance(part, Sequence) and all(isinstance(v, int | float) for v in part) else ()
        for part in parts
    )
    if not (first and second and all(0 <= v <= 1 for v in first) and all(0 < v <= MOST_DEVIATION for v in second)):
        raise DataError(
            f"mean = {mean!r} and std = {std!r} are no means and deviations of channels; write both, numbers from 0 to "
            "1 such as mean=(0.5,) and std=(0.25,), and deviations above 0"
        )
    return first, second


def _is_pair(count: object) -> bool:
    return isinstance(count, Sequence) and len(count) == 2 and all(isinstance(part, Integral) for part in count)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The arguments of :func:`load`; ``variant`` is what follows the colon of the name."""

    name: str
    variant: str
    batch_size: int
    seed: int
    data_dir: str | Path | None
    augment: bool | None
    image_size: int | None
    channels: int | None
    count: tuple[int, int] | None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    data_seed: int
    progress: Callable[[int, int], None] | None

    def dataset(self, split: Split[Any], scale: Scale | None) -> Dataset:
        """The batches of these samples."""
        parts = {name: getattr(split, name) for name in Split.__slots__}
        return Dataset(name=self.name, batch_size=self.batch_size, seed=self.seed, scale=scale, **parts)

    def resized(self, split: Split[Tensor], scaled_by: Tensor) -> Dataset:
        """The batches of these images of bytes, of the size and with the channels that were asked for.

        Args:
            split: the images that were asked for.
            scaled_by: whose mean and deviation are taken; the same however many are asked for, so that who tests with
                fewer of them tests on the same inputs.
        """

        def resized(images: Tensor) -> Tensor:
            return resize(images, image_size=self.image_size, channels=self.channels)

        images, test_images = resized(split.images), resized(split.test_images)
        if (scale := self.scale(images.shape[1])) is None:
            parts = [images] if scaled_by is split.images else map(resized, scaled_by.split(AT_A_TIME))
            scale = Scale.of(parts)
        return self.dataset(replace(split, images=images, test_images=test_images), scale)

    def scale(self, channels: int) -> Scale | None:
        """Of the means and deviations that were asked for; ``None`` where none were."""
        if self.normalisation is None:
            return None
        mean, std = (torch.tensor(part) * 255 for part in self.normalisation)
        if {len(mean), len(std)} - {1, channels}:
            raise DataError(
                f"{self.name} has {channels} channels here, and there are {len(mean)} means and {len(std)} deviations; "
                "write one for each channel, or one for all"
            )
        return Scale(mean=mean.expand(channels).view(-1, 1, 1), deviation=std.expand(channels).view(-1, 1, 1))


# What makes each data set --------------------------------------------------------------------------------------------


def _archive(request: _Request) -> Dataset:
    split = archives.read(request.name, Path(request.data_dir or FOLDER))
    return request.resized(fewer(split, request.count), split.images)


def _idx(request: _Request) -> Dataset:
    data_dir = None if request.data_dir is None else Path(request.data_dir)
    split = idx_files.read(request.name, data_dir, Path(FOLDER))
    return request.resized(fewer(split, request.count), split.images)


def _glyphs(request: _Request) -> Dataset:
    train, test = request.count or glyphs.FULL
    split = glyphs.recall_or_make(
        (max(train, SCALED_BY), test),
        seed=request.data_seed,
        system_fonts=request.variant == "system",
        difficulty=glyphs.CLEAN if request.variant == "clean" else glyphs.CLUTTERED,
        data_dir=request.data_dir,
        progress=request.progress,
    )
    first = replace(split, images=split.images[:train], labels=split.labels[:train])
    return request.resized(first, split.images[:SCALED_BY])


def _image_folder(request: _Request) -> Dataset:
    if not request.variant:
        raise DataError(f"{request.name} needs a folder; write imagefolder:DIR")
    if request.image_size is None:
        raise DataError(
            f"{request.name} needs the size that its images are to have; pass image_size=224 (--image-size 224), for "
            "example"
        )
    channels = 3 if request.channels is None else request.channels
    folder = Path(request.data_dir or "", request.variant)
    split = image_folder.read(folder, image_size=request.image_size, channels=channels, count=request.count)
    return request.dataset(split, request.scale(channels) or image_folder.scale(channels))


def _peaks(request: _Request) -> Dataset:
    options = request.image_size, request.channels, request.normalisation
    if request.augment or any(option is not None for option in options):
        raise DataError("peaks has points and no images; leave out augment, image_size, channels, mean and std")
    train, test = request.count or PEAKS
    x, labels = peaks.points(train, seed=request.data_seed)
    test_x, test_labels = peaks.points(test, seed=request.data_seed, part="test")
    split = Split(classes=peaks.CLASSES, images=x, labels=labels, test_images=test_x, test_labels=test_labels)
    return request.dataset(split, None)


def _digits(request: _Request) -> Dataset:
    image_size = 32 if request.image_size is None else request.image_size
    channels = 3 if request.channels is None else request.channels
    data = digits(request.batch_size, request.seed, image_size=image_size, channels=channels)
    if (scale := request.scale(channels)) is not None:
        images, _, train, test = _raw_digits(image_size)
        pixels = scale((images * (255 / DARKEST)).repeat(1, channels, 1, 1))
        data = replace(data, images=pixels[train], test_images=pixels[test])
    return fewer(data, request.count)


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
    images, labels, train, test = _raw_digits(image_size)
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


def _raw_digits(image_size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images ``(count, 1, size, size)`` from 0 to 16, labels, and the numbers of the training and of the test ones."""
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
    return images, labels, order[~is_test], order[is_test]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    """One kind of data set.

    Attributes:
        names: by which :func:`load` knows it.
        make: makes it, without augmentation.
        augmented: whether it is augmented where the caller says nothing, as in the papers.
        mirrored: whether augmentation mirrors it: the mirror image of a digit or a letter is none.
    """

    names: tuple[str, ...]
    make: Callable[[_Request], Dataset]
    augmented: bool = False
    mirrored: bool = False


ENTRIES = {
    "cifar10": _Entry(names=("cifar10",), make=_archive, augmented=True, mirrored=True),
    "cifar100": _Entry(names=("cifar100",), make=_archive, augmented=True, mirrored=True),
    "mnist": _Entry(names=("mnist",), make=_idx),
    "fashion_mnist": _Entry(names=("fashion_mnist",), make=_idx, mirrored=True),
    "svhn": _Entry(names=("svhn",), make=_archive),
    "digits": _Entry(names=("digits",), make=_digits),
    "glyphs": _Entry(names=("glyphs", "glyphs:clean", "glyphs:system"), make=_glyphs),
    "imagefolder": _Entry(names=("imagefolder:DIR",), make=_image_folder, mirrored=True),
    "peaks": _Entry(names=("peaks",), make=_peaks),
}
