"""Small CIFAR, SVHN and MNIST in their own formats, byte for byte as the large ones are laid out.

Checksums are compared before a file is read; :func:`listed` puts those of the small files into torchvision's lists, and
into ours of MNIST.
"""

import dataclasses
import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from pararealize.data import idx_files

CIFAR = {
    "cifar10": {
        "CIFAR10": "cifar-10-batches-py",
        "train": [f"data_batch_{number}" for number in range(1, 6)],
        "test": ["test_batch"],
        "meta": "batches.meta",
        "names": "label_names",
        "labels": "labels",
    },
    "cifar100": {
        "CIFAR100": "cifar-100-python",
        "train": ["train"],
        "test": ["test"],
        "meta": "meta",
        "names": "fine_label_names",
        "labels": "fine_labels",
    },
}


def python2_pickle(entries: dict) -> bytes:
    """As Python 2's cPickle and the numpy of then wrote dictionaries of strings, lists and arrays of bytes."""

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)

    def array(value: np.ndarray) -> bytes:
        assert value.dtype == np.uint8
        made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        kind = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN" + (b"J\xff\xff\xff\xff" * 2) + b"K\x00tb"
        shape = b"(" + b"".join(map(integer, value.shape)) + b"t"
        return made + b"(K\x01" + shape + kind + b"\x89" + text(value.tobytes()) + b"tb"

    def anything(value: object) -> bytes:
        if isinstance(value, np.ndarray):
            return array(value)
        if isinstance(value, list):
            return b"](" + b"".join(map(anything, value)) + b"e"
        return integer(value) if isinstance(value, int) else text(str(value).encode())

    return b"\x80\x02}(" + b"".join(text(key.encode()) + anything(value) for key, value in entries.items()) + b"u."


def write_cifar(name: str, folder: Path, count: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, list[int]]:
    """Write the set; gives its training images ``(count, 3, 32, 32)`` and labels."""
    layout, random = CIFAR[name], np.random.default_rng(seed)
    base = folder / next(iter(layout.values()))
    base.mkdir(parents=True)
    classes = 10 if name == "cifar10" else 100
    kept_images, kept_labels = [], []
    for part, files in (("train", layout["train"]), ("test", layout["test"])):
        for file in files:
            images = random.integers(0, 256, (count[part == "test"] // len(files), 3072), dtype=np.uint8)
            labels = random.integers(0, classes, len(images)).tolist()
            entries = {"batch_label": file, layout["labels"]: labels, "data": images}
            if name == "cifar100":
                entries["coarse_labels"] = [label // 5 for label in labels]
            entries["filenames"] = [f"{number}.png" for number in range(len(images))]
            (base / file).write_bytes(python2_pickle(entries))
            if part == "train":
                kept_images.append(images)
                kept_labels += labels
    meta = {layout["names"]: [f"class {number}" for number in range(classes)]}
    (base / layout["meta"]).write_bytes(python2_pickle(meta))
    return np.concatenate(kept_images).reshape(-1, 3, 32, 32), kept_labels


def write_svhn(folder: Path, count: tuple[int, int]) -> tuple[np.ndarray, list[int]]:
    """MATLAB files ``X`` (32, 32, 3, count) and ``y`` (count, 1), in which 10 is the digit 0."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    kept = []
    for part, number in zip(("train", "test"), count, strict=True):
        images = random.integers(0, 256, (32, 32, 3, number), dtype=np.uint8)
        labels = (np.arange(number) % 10 + 1).astype(np.uint8)[:, None]
        savemat(folder / f"{part}_32x32.mat", {"X": images, "y": labels})
        kept.append((images.transpose(3, 2, 0, 1), (labels[:, 0] % 10).tolist()))
    return kept[0]


def write_mnist(folder: Path, count: tuple[int, int], name: str = "MNIST") -> tuple[np.ndarray, list[int]]:
    """The idx files: a magic number with type and dimensions, big-endian sizes, bytes."""
    raw = folder / name / "raw"
    raw.mkdir(parents=True)
    random = np.random.default_rng(0)
    kept = []
    for part, number in zip(("train", "t10k"), count, strict=True):
        images = random.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        labels = (np.arange(number) % 10).astype(np.uint8)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, *images.shape) + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, number) + labels.tobytes())
        kept.append((images[:, None], labels.tolist()))
    return kept[0]


def listed(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torchvision's lists have the checksums of the files that lie in ``folder``."""
    from torchvision import datasets

    def md5(path: Path) -> str:
        return hashlib.md5(path.read_bytes()).hexdigest()

    if name in idx_files.IDX_SETS:
        row = idx_files.IDX_SETS[name]
        sums = {file: md5(folder / row.folder / file) for file in row.md5}
        monkeypatch.setitem(idx_files.IDX_SETS, name, dataclasses.replace(row, md5=sums))
        return
    if name == "svhn":
        lists = {part: ["", f"{part}_32x32.mat", md5(folder / f"{part}_32x32.mat")] for part in ("train", "test")} | {
            "extra": datasets.SVHN.split_list["extra"]
        }
        monkeypatch.setattr(datasets.SVHN, "split_list", lists)
        return
    layout = CIFAR[name]
    title, base = next(iter(layout.items()))
    which = getattr(datasets, title)
    for part in ("train", "test"):
        monkeypatch.setattr(which, f"{part}_list", [[file, md5(folder / base / file)] for file in layout[part]])
    monkeypatch.setattr(which, "meta", which.meta | {"md5": md5(folder / base / layout["meta"])})
