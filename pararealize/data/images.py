"""Images as bytes -> images of another size or number of channels, as bytes again.

Bytes take a quarter of the memory of float32, and their mean and deviation can be counted exactly.
"""

import torch
from torch import Tensor
from torch.nn import functional

from pararealize.errors import DataError

__all__ = ["LUMINANCE", "resize"]

LUMINANCE = (0.299, 0.587, 0.114)  # of red, green and blue: ITU-R BT.601
AT_A_TIME = 1000  # images, since in between they are float32


def resize(images: Tensor, *, image_size: int | None, channels: int | None) -> Tensor:
    """Bytes ``(count, channels, height, width)`` as squares of ``image_size`` with 1 or 3 channels; None for as it is.

    Interpolation is bilinear, with antialiasing where images become smaller. One channel becomes three equal ones,
    three become their luminance.

    Raises:
        DataError: the size is not positive, or the channels are neither 1 nor 3.

    Example:
        >>> resize(torch.full((2, 3, 32, 32), 7, dtype=torch.uint8), image_size=16, channels=1).shape
        torch.Size([2, 1, 16, 16])
    """
    if (image_size is not None and image_size < 1) or channels not in (None, 1, 3):
        raise DataError(
            f"images cannot have image_size = {image_size} and channels = {channels}; write a positive size, 1 or 3 "
            f"channels, or None for as they are"
        )
    own_channels, height, width = images.shape[1:]
    channels, size = channels or own_channels, (image_size, image_size) if image_size else (height, width)
    if (own_channels, height, width) == (channels, *size):
        return images
    resized = torch.empty(len(images), channels, *size, dtype=torch.uint8)
    for start in range(0, len(images), AT_A_TIME):
        part = images[start : start + AT_A_TIME].float()
        if channels < own_channels:
            part = (part * torch.tensor(LUMINANCE).view(3, 1, 1)).sum(1, keepdim=True)
        if (height, width) != size:
            part = functional.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)
        resized[start : start + AT_A_TIME] = part.round().clamp(0, 255).byte()
    return resized
