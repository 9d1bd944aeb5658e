"""Images of another size or number of channels, against pillow and by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from pararealize.data.images import resize
from pararealize.errors import DataError


def test_smaller_images_as_pillow_makes_them():
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    made = resize(images, image_size=12, channels=None)
    for image, small in zip(images, made, strict=True):
        expected = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((12, 12), Image.Resampling.BILINEAR)
        difference = np.asarray(expected).astype(int) - small.permute(1, 2, 0).numpy().astype(int)
        assert abs(difference).max() <= 1


def test_channels():
    image = torch.tensor([200, 100, 50], dtype=torch.uint8).view(1, 3, 1, 1)
    grey = resize(image, image_size=None, channels=1)
    assert grey.flatten().tolist() == [round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)]
    assert resize(grey, image_size=None, channels=3).flatten().tolist() == [124] * 3
    assert resize(image, image_size=1, channels=3) is image


def test_more_images_than_are_done_at_a_time():
    images = torch.randint(0, 256, (2100, 1, 2, 2), dtype=torch.uint8)
    assert torch.equal(resize(images, image_size=None, channels=3)[:, 1:2], images)


@pytest.mark.parametrize("wrong", [{"image_size": 0, "channels": 1}, {"image_size": 8, "channels": 2}])
def test_refusals(wrong):
    with pytest.raises(DataError, match="write a positive size, 1 or 3 channels"):
        resize(torch.zeros(1, 3, 4, 4, dtype=torch.uint8), **wrong)
