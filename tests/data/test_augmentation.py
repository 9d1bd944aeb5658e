"""Crops and mirror images against the same made one image at a time with torchvision."""

import pytest
import torch
from torchvision.transforms import functional

from pararealize.data.augmentation import Augmentation
from pararealize.errors import DataError


def test_each_image_is_cropped_and_mirrored_as_drawn():
    augmentation = Augmentation(padding=4)
    images = torch.randint(0, 256, (64, 3, 32, 24), dtype=torch.uint8)
    draws = augmentation.draw(64, torch.Generator().manual_seed(0))
    for image, (row, column, mirrored), made in zip(
        images, draws.tolist(), augmentation.apply(images, draws), strict=True
    ):
        expected = functional.crop(functional.pad(image, 4), row, column, 32, 24)
        assert torch.equal(functional.hflip(expected) if mirrored else expected, made)


def test_every_corner_and_side_is_drawn_about_equally_often():
    draws = Augmentation(padding=4).draw(90_000, torch.Generator().manual_seed(0))
    for column in (0, 1):
        counts = draws[:, column].bincount()
        assert len(counts) == 9
        assert (counts - 10_000).abs().max() < 500  # five standard deviations
    assert draws[:, 2].double().mean().item() == pytest.approx(0.5, abs=0.01)


def test_without_flips_the_crops_are_the_same():
    with_flips = Augmentation().draw(100, torch.Generator().manual_seed(3))
    without = Augmentation(flip=False).draw(100, torch.Generator().manual_seed(3))
    assert torch.equal(with_flips[:, :2], without[:, :2])
    assert without[:, 2].sum() == 0
    assert with_flips[:, 2].sum() > 0


def test_padding_is_not_negative():
    with pytest.raises(DataError, match="padding = -1"):
        Augmentation(padding=-1)


def test_the_margin_is_as_black_as_each_channel_has_it():
    augmentation = Augmentation(padding=1, flip=False, black=(-1.0, 5.0))
    crop = augmentation.apply(torch.zeros(1, 2, 2, 2), torch.tensor([[0, 0, 0]]))[0]
    assert crop.tolist() == [[[-1.0, -1.0], [-1.0, 0.0]], [[5.0, 5.0], [5.0, 0.0]]]
