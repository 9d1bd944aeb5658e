"""A count and a seed -> points of the plane, each with the level that MATLAB's ``peaks`` function has there.

The smallest problem that layer-parallel training is tried on: two features, five classes, curved borders, no noise.
"""

import torch
from torch import Tensor

from pararealize.errors import DataError
from pararealize.random_state import generator

__all__ = ["CLASSES", "height", "points"]

CLASSES = 5
SIDE = 3.0  # the square is [−3, 3]²
LOWEST, HIGHEST = -6.551133332835834, 8.106213589442337  # of the function, on the square
AT_A_TIME = 65536  # points that are drawn, of which each class takes as many as it still lacks


def height(x: Tensor, y: Tensor) -> Tensor:
    """The surface 3(1−x)² exp(−x²−(y+1)²) − 10(x/5 − x³ − y⁵) exp(−x²−y²) − exp(−(x+1)²−y²)/3.

    Example:
        >>> height(torch.tensor(0.0), torch.tensor(0.0))
        tensor(0.9810)
    """
    first = 3 * (1 - x).square() * torch.exp(-x.square() - (y + 1).square())
    second = 10 * (x / 5 - x**3 - y**5) * torch.exp(-x.square() - y.square())
    return first - second - torch.exp(-(x + 1).square() - y.square()) / 3


def points(count: int, *, seed: int = 0, part: str = "train") -> tuple[Tensor, Tensor]:
    """``count`` points ``(count, 2)`` float32, and their classes, whose sizes differ by one at most.

    The class is the fifth of the range between the function's lowest and highest value on the square [−3, 3]² in which
    the function's value lies. Within a class, points are uniform. Every ``seed`` and ``part``, which is any word, has
    points of its own.

    Raises:
        DataError: ``count`` is smaller than the five classes.

    Source: E. Haber and L. Ruthotto, "Stable architectures for deep neural networks", Inverse Problems 34 (2018), whose
    "peaks" has equal classes likewise; the exact draw is ours.

    Example:
        >>> x, labels = points(1000)
        >>> x.shape, labels.bincount().tolist()
        (torch.Size([1000, 2]), [200, 200, 200, 200, 200])
    """
    if count < CLASSES:
        raise DataError(f"peaks needs a point for each of its {CLASSES} classes, but count = {count}")
    stream = generator("peaks", seed, part)
    missing = [len(share) for share in torch.arange(count).tensor_split(CLASSES)]
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor(missing))
    samples: list[list[Tensor]] = [[] for _ in missing]
    while any(missing):
        draws = (torch.rand(AT_A_TIME, 2, dtype=torch.float64, generator=stream) * 2 - 1) * SIDE
        level = (height(draws[:, 0], draws[:, 1]) - LOWEST) / (HIGHEST - LOWEST)
        classes = (level * CLASSES).long().clamp(0, CLASSES - 1)
        for number in range(CLASSES):
            samples[number].append(draws[classes == number][: missing[number]])
            missing[number] -= len(samples[number][-1])
    x = torch.cat([torch.cat(parts) for parts in samples]).float()
    order = torch.randperm(count, generator=stream)
    return x[order], labels[order]
