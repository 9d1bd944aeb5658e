"""Folders of images, read batch by batch."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pararealize.data.augmentation import Augmentation
from pararealize.data.catalogue import load
from pararealize.errors import DataError


def write(folder: Path, counts: dict[str, int], *, size: tuple[int, int] = (20, 12), test: str = "val") -> None:
    """Images of one grey each: 10 · class + number."""
    for part in ("train", test):
        for place, (name, count) in enumerate(counts.items()):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                Image.new("RGB", size, (10 * place + number,) * 3).save(folder / part / name / f"{number}.png")


@pytest.mark.parametrize("test", ["val", "test"])
def test_images_labels_and_classes(tmp_path, test):
    write(tmp_path, {"cat": 5, "dog": 3}, test=test)
    data = load(f"imagefolder:{tmp_path}", image_size=8, batch_size=4)
    assert (data.train_count, data.test_count, data.classes, data.shape) == (8, 8, 2, (3, 8, 8))
    assert data.labels.tolist() == [0] * 5 + [1] * 3
    stored = data.images[torch.tensor([7, 0, 6])]
    assert stored.dtype == torch.uint8
    assert stored[:, :, 0, 0].tolist() == [[12] * 3, [0] * 3, [11] * 3]
    x, labels = next(data.epoch(0))
    shades = (x[:, 0, 0, 0] * 0.229 + 0.485) * 255
    assert (shades.round().long() // 10).tolist() == labels.tolist()
    assert next(iter(data.test_batches()))[0].shape == (4, 3, 8, 8)


def test_the_middle_is_taken_and_nothing_squeezed(tmp_path):
    """A wide image: the left and the right quarter are cut off."""
    write(tmp_path, {"a": 1, "b": 1})
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, :16], pixels[:, 16:48], pixels[:, 48:] = 255, (0, 200, 0), 255
    Image.fromarray(pixels).save(tmp_path / "train" / "a" / "0.png")
    data = load(f"imagefolder:{tmp_path}", image_size=16)
    green = data.images[torch.tensor([0])][0, 1, :, 1:-1]  # but for the columns that are mixed with their neighbours
    assert torch.equal(green, torch.full((16, 14), 200, dtype=torch.uint8))
    grey = load(f"imagefolder:{tmp_path}", image_size=16, channels=1)
    assert grey.images[torch.tensor([0])][..., 1:-1].unique().tolist() == [117]
    assert grey.example(1).shape == (1, 1, 16, 16)


def test_nothing_is_read_before_it_is_wanted(tmp_path):
    write(tmp_path, {"a": 3, "b": 3})
    data = load(f"imagefolder:{tmp_path}", image_size=8, batch_size=3)
    before = [x for x, _ in data.epoch(2)]
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"no image any more")
    with pytest.raises(DataError, match=r"\.png cannot be read as an image: .*; remove or replace it"):
        next(data.epoch(0))
    assert len(before) == 2


def test_what_is_no_file_is_not_opened(tmp_path):
    """Pillow would wait for somebody to write into a FIFO, for ever."""
    write(tmp_path, {"a": 3, "b": 3})
    path = next((tmp_path / "train" / "a").glob("*.png"))
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"cannot be read as an image: .*it is a FIFO and no file"):
        list(load(f"imagefolder:{tmp_path}", image_size=8, batch_size=3).epoch(0))


def test_augmentation_on_request(tmp_path):
    write(tmp_path, {"a": 3, "b": 3})
    assert load(f"imagefolder:{tmp_path}", image_size=16).augmentation is None
    data = load(tmp_path.name.join(["imagefolder:", ""]), data_dir=tmp_path.parent, image_size=16, augment=True)
    assert data.augmentation == Augmentation(padding=2, flip=True)
    whole = [x for x, _ in data.epoch(1)]
    ranks = [[x for x, _ in data.epoch(1, rank=rank, world=2)] for rank in range(2)]
    assert all(torch.equal(x, torch.cat(shares)) for x, *shares in zip(whole, *ranks, strict=True))


def test_fewer(tmp_path):
    write(tmp_path, {"a": 5, "b": 5})
    data = load(f"imagefolder:{tmp_path}", image_size=8, count=(4, 2))
    assert (data.train_count, data.test_count) == (4, 2)
    x, labels = next(data.epoch(0))
    assert ((((x[:, 0, 0, 0] * 0.229 + 0.485) * 255).round() // 10) == labels).all()


def test_refusals(tmp_path):
    with pytest.raises(DataError, match="has not the folders train and val"):
        load(f"imagefolder:{tmp_path}", image_size=8)
    with pytest.raises(DataError, match="is not there; it has to hold train and val"):
        load(f"imagefolder:{tmp_path / 'nowhere'}", image_size=8)
    with pytest.raises(DataError, match=r"needs the size .*--image-size 224"):
        load(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match="needs a folder; write imagefolder:DIR"):
        load("imagefolder")
    write(tmp_path, {"a": 1, "b": 1})
    with pytest.raises(DataError, match="image_size = 0 and channels = 3"):
        load(f"imagefolder:{tmp_path}", image_size=0)
    (tmp_path / "val" / "c").mkdir()
    with pytest.raises(DataError, match="no images, or a class without any"):
        load(f"imagefolder:{tmp_path}", image_size=8)
    Image.new("L", (4, 4)).save(tmp_path / "val" / "c" / "0.png")
    with pytest.raises(DataError, match="not the same classes; they differ in c"):
        load(f"imagefolder:{tmp_path}", image_size=8)
