"""A batch of images and random draws for each of them -> random crops and mirror images, all computed at once.

The draws are made for the whole batch and then shared out, so a rank's images are those that one process would have.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pararealize.errors import DataError

__all__ = ["Augmentation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """Random crops of the size that the images have, out of images with a black margin, and random mirror images.

    The augmentation of CIFAR-10 in the residual networks' paper and in the parareal one: a margin of 4 pixels, and
    ``flip``.

    Args:
        padding: pixels of the margin, on each side.
        flip: whether every second image, on average, is mirrored from left to right.
        black: the value of a black pixel in images as they are stored, of all channels or of each.

    Source: K. He, X. Zhang, S. Ren and J. Sun, "Deep residual learning for image recognition", CVPR 2016, section 4.2.

    Example:
        >>> augmentation = Augmentation(padding=1, flip=False)
        >>> image = torch.tensor([[[[1, 2], [3, 4]]]], dtype=torch.uint8)
        >>> augmentation.apply(image, torch.tensor([[0, 2, 0]]))[0, 0]  # the crop at the top right
        tensor([[0, 0],
                [2, 0]], dtype=torch.uint8)
    """

    padding: int = 4
    flip: bool = True
    black: tuple[float, ...] = (0.0,)

    def __post_init__(self) -> None:
        if self.padding < 0:
            raise DataError(f"padding = {self.padding} is negative; write 0 or more pixels")

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """For each of ``count`` images the crop's first row and column in the padded one, and 1 for a mirror image.

        Returns ``(count, 3)`` int64. Three random numbers are drawn for every image even without ``flip``, so that this
        setting does not change the crops.
        """
        draws = torch.rand(count, 3, dtype=torch.float64, generator=generator)
        corners = (draws[:, :2] * (2 * self.padding + 1)).long()
        mirrored = (draws[:, 2:] < 0.5).long() if self.flip else torch.zeros(count, 1, dtype=torch.long)
        return torch.cat([corners, mirrored], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Crop and mirror ``(count, channels, height, width)`` as ``draws`` (count, 3) say; no pixel is mixed."""
        count, channels, height, width = images.shape
        margin, sides = self.padding, (height + 2 * self.padding, width + 2 * self.padding)
        black = torch.tensor(self.black).to(images.dtype).view(1, -1, 1, 1)
        padded = black.expand(count, channels, *sides).clone()
        padded[:, :, margin : margin + height, margin : margin + width] = images
        rows = draws[:, 0, None] + torch.arange(height)
        columns = torch.arange(width).expand(count, width)
        columns = torch.where(draws[:, 2, None] > 0, columns.flip(1), columns) + draws[:, 1, None]
        # a slice between index tensors puts the channels last: (count, height, width, channels)
        crops = padded[torch.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]
        return crops.permute(0, 3, 1, 2).contiguous()
