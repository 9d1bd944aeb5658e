"""Images as they were found -> images of another size, number or kind of colours, as bytes again.

Bytes are a quarter of the memory of numbers, and their mean and deviation can be counted exactly.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from pararealize.errors import DataError

__all__ = ["Pictures", "chosen", "fitted"]

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
AT_A_TIME = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Pictures:
    """A training and a test part: bytes ``(count, channels, height, width)`` and labels ``(count,)`` from 0."""

    classes: int
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)


def chosen(there: int, wanted: int) -> Tensor:
    """Numbers of ``wanted`` samples out of those ``there``: always the same, and a smaller choice begins a larger one.

    Example:
        >>> bool((chosen(100, 5) == chosen(100, 50)[:5]).all())
        True
    """
    return torch.randperm(there, generator=torch.Generator().manual_seed(0))[:wanted]


def fitted(images: Tensor, *, image_size: int | None, channels: int | None) -> Tensor:
    """Bytes ``(count, channels, height, width)`` to squares of ``image_size`` and to 1 or 3 channels; None keeps.

    Resizing is bilinear, and averages where it makes smaller. One channel becomes three equal ones, three become their
    luminance.

    Raises:
        DataError: the size is not positive, or the channels are neither 1 nor 3.

    Example:
        >>> fitted(torch.full((2, 3, 32, 32), 7, dtype=torch.uint8), image_size=16, channels=1).shape
        torch.Size([2, 1, 16, 16])
    """
    if (image_size is not None and image_size < 1) or channels not in (None, 1, 3):
        raise DataError(
            f"images cannot have image_size = {image_size} and channels = {channels}; write a positive size, 1 or 3 "
            f"channels, or None for as they are"
        )
    there, height, width = images.shape[1:]
    channels, size = channels or there, (image_size, image_size) if image_size else (height, width)
    if (there, height, width) == (channels, *size):
        return images
    made = torch.empty(len(images), channels, *size, dtype=torch.uint8)
    for start in range(0, len(images), AT_A_TIME):
        part = images[start : start + AT_A_TIME].float()
        if channels < there:
            part = (part * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
        if (height, width) != size:
            part = functional.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)
        made[start : start + AT_A_TIME] = part.round().clamp(0, 255).byte()
    return made
