"""A name -> a data set: small tensors of real images in memory, split into training and test parts.

One set so far: the handwritten digits that scikit-learn ships, so that nothing needs to be downloaded.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from .errors import ExampleError

__all__ = ["Dataset", "digits"]

TEST_SHARE = 5  # every fifth image of the shuffled set is a test image


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Images ``(count, channels, height, width)`` and labels ``(count,)`` in two parts, and the batches of them."""

    name: str
    classes: int
    batch_size: int
    seed: int
    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)

    def batches(self, epochs: int | None = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Training batches, each epoch in another random order; without end where ``epochs`` is None.

        The order follows from ``seed`` alone, so two runs see the same batches. The last batch of an epoch is smaller
        where the batch size does not divide the number of images, but never a single image, which batch norm cannot
        take: that one joins the batch before it.
        """
        generator = torch.Generator().manual_seed(self.seed)
        epoch = 0
        while epochs is None or epoch < epochs:
            order = torch.randperm(len(self.labels), generator=generator)
            yield from self._chunks(self.images, self.labels, order)
            epoch += 1

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return len(self._parts(torch.arange(len(self.labels))))

    def epoch(self, number: int, *, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of one epoch, from 0, beginning with batch ``start``; each rank's share of them."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(number + 1):
            order = torch.randperm(len(self.labels), generator=generator)
        for chosen in self._parts(order)[start:]:
            own = chosen.tensor_split(world)[rank]
            yield self.images[own], self.labels[own]

    def test_batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The test part once, in a fixed order."""
        yield from self._chunks(self.test_images, self.test_labels, torch.arange(len(self.test_labels)))

    def _chunks(self, images: Tensor, labels: Tensor, order: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        for chosen in self._parts(order):
            yield images[chosen], labels[chosen]

    def _parts(self, order: Tensor) -> list[Tensor]:
        chunks = list(order.split(self.batch_size))
        if len(chunks) > 1 and len(chunks[-1]) == 1:
            chunks[-2:] = [torch.cat(chunks[-2:])]
        return chunks

    def __str__(self) -> str:
        shape = "×".join(str(size) for size in self.images.shape[1:])
        return (
            f"{self.name}: {len(self.labels)} training and {len(self.test_labels)} test images of {shape}, "
            f"{self.classes} classes, batches of {self.batch_size}"
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
        ExampleError: scikit-learn is not installed, or a number is not positive.

    Source: E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998.

    Example:
        >>> print(digits(batch_size=64))
        digits: 1437 training and 360 test images of 3×32×32, 10 classes, batches of 64
    """
    if min(batch_size, image_size, channels) < 1:
        raise ExampleError(
            f"digits needs positive numbers, but batch_size = {batch_size}, image_size = {image_size} and "
            f"channels = {channels}"
        )
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ExampleError(
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
