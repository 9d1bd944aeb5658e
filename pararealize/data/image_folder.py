"""A folder of classes of image files -> two parts of a data set whose images are read when a batch wants them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError

from .dataset import Scale
from .images import LUMINANCE, chosen

__all__ = ["DEVIATION", "MEAN", "Folder", "ImageFiles", "read", "scale"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, from 0 to 1
TEST_FOLDERS = ("val", "test")
WORKERS = 8  # threads that decode; pillow lets others run while it does


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """Files that are indexed like a tensor of bytes ``(count, channels, size, size)``, and read at that moment."""

    paths: list[str] = field(repr=False)
    image_size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As of a tensor."""
        return len(self.paths), self.channels, self.image_size, self.image_size

    def __getitem__(self, wanted: Any) -> Tensor:
        numbers = torch.arange(len(self.paths))[wanted].flatten().tolist()
        made = torch.empty(len(numbers), *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(WORKERS) as threads:
            for place, image in enumerate(threads.map(self._read, numbers)):
                made[place] = image
        return made

    def _read(self, number: int) -> Tensor:
        """The shorter side resized to ``image_size``, and the middle of the longer one."""
        from PIL import Image, ImageOps

        path = self.paths[number]
        try:
            with Image.open(path) as opened:
                image = opened.convert("RGB" if self.channels == 3 else "L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}; remove or replace it") from error
        image = ImageOps.fit(image, (self.image_size, self.image_size), method=Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1) if self.channels == 3 else pixels[None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Both parts of an image folder; the labels count its classes' names in alphabetical order."""

    classes: tuple[str, ...]
    images: ImageFiles
    labels: Tensor = field(repr=False)
    test_images: ImageFiles
    test_labels: Tensor = field(repr=False)


def read(
    folder: Path,
    *,
    image_size: int,
    channels: int = 3,
    count: tuple[int, int] | None = None,
) -> Folder:
    """List ``folder/train/CLASS/*`` and ``folder/val/CLASS/*``, or ``folder/test/CLASS/*``.

    Args:
        folder: as torchvision's ImageFolder and the usual ImageNet scripts lay it out.
        image_size: pixels of a side; the shorter side is resized to it, and the middle of the longer one is taken.
        channels: 3 for colours or 1 for grey.
        count: how many images at most, of each part.

    Raises:
        DataError: a folder is missing or empty, both parts have not the same classes, or a number is not positive.
    """
    if image_size < 1 or channels not in (1, 3):
        raise DataError(f"imagefolder cannot have image_size = {image_size} and channels = {channels}")
    train = folder / "train"
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    if not train.is_dir() or test is None:
        raise DataError(
            f"imagefolder: the folder {str(folder)!r} "
            + ("has not the folders train and val (or test)" if folder.is_dir() else "is not there")
            + "; it has to hold train and val (or test), each with one folder of images a class"
        )
    (names, paths, labels), (test_names, test_paths, test_labels) = _listed(train), _listed(test)
    if names != test_names:
        differing = ", ".join(sorted(set(names) ^ set(test_names)))
        raise DataError(f"imagefolder: {train} and {test} have not the same classes; they differ in {differing}")
    kept, test_kept = (
        torch.arange(len(all_)) if count is None else chosen(len(all_), count[part])
        for part, all_ in enumerate((paths, test_paths))
    )
    return Folder(
        classes=names,
        images=ImageFiles(paths=[paths[i] for i in kept.tolist()], image_size=image_size, channels=channels),
        labels=labels[kept],
        test_images=ImageFiles(
            paths=[test_paths[i] for i in test_kept.tolist()], image_size=image_size, channels=channels
        ),
        test_labels=test_labels[test_kept],
    )


def _listed(part: Path) -> tuple[tuple[str, ...], list[str], Tensor]:
    """Classes, files and labels."""
    from torchvision.datasets import ImageFolder

    try:
        found = ImageFolder(str(part))
    except FileNotFoundError as error:
        raise DataError(f"imagefolder: {part} has no images, or a class without any: {error}") from error
    return tuple(found.classes), [path for path, _ in found.samples], torch.tensor(found.targets)


def scale(channels: int) -> Scale:
    """By ImageNet's means and deviations; of grey, by those weighted as colours are in luminance."""
    mean, deviation = torch.tensor(MEAN) * 255, torch.tensor(DEVIATION) * 255
    if channels == 1:
        weights = torch.tensor(LUMINANCE)
        mean, deviation = (weights @ mean)[None], (weights @ deviation)[None]
    return Scale(mean=mean.view(-1, 1, 1), deviation=deviation.view(-1, 1, 1))
