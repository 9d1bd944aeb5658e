"""A folder of classes of image files -> two parts of a data set whose images are read when a batch wants them."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError
from pararealize.files import open_file

from .dataset import Scale, Split, choose
from .images import LUMINANCE

__all__ = ["DEVIATION", "MEAN", "ImageFiles", "read", "scale"]

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's red, green and blue, from 0 to 1
TEST_FOLDERS = ("val", "test")
WORKERS = 8  # threads that decode; pillow releases the interpreter's lock while it does


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageFiles:
    """Files that are indexed like a tensor of bytes ``(count, channels, size, size)``, and read at that moment."""

    paths: list[str] = field(repr=False)
    image_size: int
    channels: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """As a tensor's."""
        return len(self.paths), self.channels, self.image_size, self.image_size

    def __getitem__(self, index: Any) -> Tensor:
        numbers = torch.arange(len(self.paths))[index].flatten().tolist()
        images = torch.empty(len(numbers), *self.shape[1:], dtype=torch.uint8)
        with ThreadPoolExecutor(WORKERS) as threads:
            for place, image in enumerate(threads.map(self._read, numbers)):
                images[place] = image
        return images

    def _read(self, number: int) -> Tensor:
        """The shorter side resized to ``image_size``, and the middle of the longer one."""
        from PIL import Image, ImageOps

        path = self.paths[number]
        try:
            with open_file(path, follow=True) as file, Image.open(file) as opened:
                image = opened.convert("RGB" if self.channels == 3 else "L")
        except Exception as error:  # readers of damaged files raise whatever they meet
            raise DataError(f"{path} cannot be read as an image: {error}; remove or replace it") from error
        image = ImageOps.fit(image, (self.image_size, self.image_size), method=Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
        return pixels.permute(2, 0, 1) if self.channels == 3 else pixels[None]


def read(
    folder: Path, *, image_size: int, channels: int = 3, count: tuple[int, int] | None = None
) -> Split[ImageFiles]:
    """List ``folder/train/CLASS/*`` and ``folder/val/CLASS/*``, or ``folder/test/CLASS/*``.

    Labels count the classes' names in alphabetical order.

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
    (names, paths, labels), (test_names, test_paths, test_labels) = _list(train), _list(test)
    if names != test_names:
        differing = ", ".join(sorted(set(names) ^ set(test_names)))
        raise DataError(f"imagefolder: {train} and {test} have not the same classes; they differ in {differing}")
    numbers, test_numbers = (
        torch.arange(len(part)) if count is None else choose(len(part), most)
        for part, most in zip((paths, test_paths), count or (0, 0), strict=True)
    )
    images, test_images = (
        ImageFiles(paths=[part[i] for i in choice.tolist()], image_size=image_size, channels=channels)
        for part, choice in ((paths, numbers), (test_paths, test_numbers))
    )
    return Split(
        classes=len(names),
        images=images,
        labels=labels[numbers],
        test_images=test_images,
        test_labels=test_labels[test_numbers],
    )


def _list(part: Path) -> tuple[list[str], list[str], Tensor]:
    """Names of classes, paths of images, and labels."""
    from torchvision.datasets import ImageFolder

    try:
        folder = ImageFolder(str(part))
    except OSError as error:
        raise DataError(f"imagefolder: {part} has no images, or a class without any: {error}") from error
    return folder.classes, [path for path, _ in folder.samples], torch.tensor(folder.targets)


def scale(channels: int) -> Scale:
    """ImageNet's means and deviations; for grey images their means, weighted as colours are in luminance."""
    mean, deviation = torch.tensor(MEAN) * 255, torch.tensor(DEVIATION) * 255
    if channels == 1:
        weights = torch.tensor(LUMINANCE)
        mean, deviation = (weights @ mean)[None], (weights @ deviation)[None]
    return Scale(mean=mean.view(-1, 1, 1), deviation=deviation.view(-1, 1, 1))
