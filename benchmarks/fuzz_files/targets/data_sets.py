"""Files of data sets: images in folders of classes, MNIST's arrays, and the cache of tensors.

Images and arrays have no digests: a value that was changed is what the file says. The cache has; what it does not have
as it was written, it does not have.
"""

from __future__ import annotations

import struct
from pathlib import Path
from random import Random

import torch
from PIL import Image

from pararealize.data import load
from pararealize.data.cache import recall, store

from ..mutations import mutated
from ..trial import Trial, unreadable
from .folders import change_place

__all__ = ["DataSets"]

SIDE = 8
ENDINGS = ("png", "jpg", "bmp", "gif", "tif", "webp", "ppm")
TENSORS = {"images": torch.arange(96, dtype=torch.uint8).view(2, 3, 4, 4), "labels": torch.tensor([0, 1])}
ORIGIN = {"seed": "0"}


class DataSets:
    """Small ones, made anew for each case, of which one file is changed."""

    def __call__(self, random: Random, folder: Path) -> Trial:
        kind, make, attempt = random.choice((
            ("images", _images, _read_images), ("mnist", _mnist, _read_mnist), ("cache", _cache, _read_cache),
        ))  # fmt: skip
        make(folder)
        file = random.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
        if random.random() < 0.15:
            change = change_place(file, random)
        else:
            content, change = mutated(file.read_bytes(), random)
            file.write_bytes(content)
        return Trial(change=f"{kind}: {file.relative_to(folder)}: {change}", attempt=lambda: attempt(folder))


def _images(folder: Path) -> None:
    for part in ("train", "val"):
        for i, name in enumerate(("a", "b\x1b[2J")):
            (folder / part / name).mkdir(parents=True)
            for j, ending in enumerate(ENDINGS):
                image = Image.new("RGB", (SIDE + 3 * i, SIDE + j), (20 * j, 100 * i, 7))
                image.save(folder / part / name / f"{j}.{ending}")


def _read_images(folder: Path) -> str:
    data = load(f"imagefolder:{folder}", image_size=SIDE, batch_size=4)
    for x, labels in (*data.epoch(0), *data.test_batches()):
        if x.shape[1:] != (3, SIDE, SIDE) or not torch.isfinite(x).all() or labels.max() > 1:
            return f"images of {tuple(x.shape)}"
    return unreadable(str(data))


def _mnist(folder: Path) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 6), ("t10k", 3)):
        pixels = bytes(i % 256 for i in range(count * 28 * 28))
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + bytes(range(count)))


def _read_mnist(folder: Path) -> str:
    data = load("mnist", data_dir=folder, batch_size=3)
    shapes = {tuple(x.shape[1:]) for x, _ in (*data.epoch(0), *data.test_batches())}
    return f"images of {shapes}" if any(len(shape) != 3 for shape in shapes) else ""


def _cache(folder: Path) -> None:
    store(folder / "data.safetensors", TENSORS, ORIGIN)


def _read_cache(folder: Path) -> str:
    tensors = recall(folder / "data.safetensors", ORIGIN)
    if tensors is None:
        return ""
    same = tensors.keys() == TENSORS.keys() and all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)
    return "" if same else "the cache has other tensors than it was given"
