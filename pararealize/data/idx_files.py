"""A name and folders -> the images of MNIST or Fashion-MNIST, out of their IDX files, packed or not.

Both sets have files of the same names, sizes and form. Which set it is, only the bytes tell: every file's MD5 checksum,
of what is in it when it is unpacked, is compared before anything is read from it. Nothing is fetched.
"""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError
from pararealize.files import kind_of, open_file

from .dataset import Split

__all__ = ["IDX_SETS", "IdxSet", "read"]

IMAGES, LABELS = 2051, 2049  # magic numbers: bytes in three dimensions, and in one
MOST_BYTES = 1 << 27  # of an unpacked file; the largest has 47,040,016


@dataclass(frozen=True, slots=True, kw_only=True)
class IdxSet:
    """A set of that form.

    Attributes:
        reader: torchvision's class, which downloads it.
        folder: below ``data_dir``, where that class puts it.
        system: where a package of the system puts it, and the package's name; ``None`` where there is none.
        md5: of each file, unpacked, by its name.
    """

    reader: str
    folder: str
    system: tuple[str, str] | None
    md5: dict[str, str]

    def places(self, data_dir: Path | None, default: Path) -> list[Path]:
        """Folders that the files may lie in, the first that has one counts."""
        root = default if data_dir is None else data_dir
        places = [root / self.folder, root]
        return [*places, Path(self.system[0])] if data_dir is None and self.system else places


IDX_SETS = {
    "mnist": IdxSet(
        reader="MNIST",
        folder="MNIST/raw",
        system=None,
        md5={
            "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
            "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
            "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
            "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
        },
    ),
    "fashion_mnist": IdxSet(
        reader="FashionMNIST",
        folder="FashionMNIST/raw",
        system=("/usr/share/datasets/fashion-mnist", "dataset-fashion-mnist"),
        md5={
            "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
            "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
            "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
        },
    ),
}


def read(name: str, data_dir: Path | None, default: Path) -> Split[Tensor]:
    """The 60,000 training and 10,000 test images ``(count, 1, 28, 28)`` of bytes, and their labels.

    Args:
        name: of ``IDX_SETS``.
        data_dir: the folder that holds the set as torchvision lays it out, or the files themselves; ``None`` for
            ``default``, and where there is none, for what a package of the system has installed.
        default: see there.

    Raises:
        DataError: a file is missing, is not this set's, or cannot be read.

    Source: Y. LeCun, L. Bottou, Y. Bengio and P. Haffner, "Gradient-based learning applied to document recognition",
    1998. H. Xiao, K. Rasul and R. Vollgraf, "Fashion-MNIST: a novel image dataset for benchmarking machine learning
    algorithms", 2017.
    """
    known = IDX_SETS[name]
    places = known.places(data_dir, default)
    folder = next((place for place in places if any(_file(place, file) is not None for file in known.md5)), places[0])
    files = {file: _file(folder, file) for file in known.md5}
    remedy = _remedy(known, default if data_dir is None else data_dir)
    if missing := [file for file, path in files.items() if path is None]:
        raise DataError(f"{name}: no file {', '.join(missing)} in {folder}; {remedy}")
    contents = {file: _content(name, path, remedy) for file, path in files.items() if path is not None}
    wrong = {file: md5 for file, content in contents.items() if (md5 := _md5(content)) != known.md5[file]}
    if wrong:
        others = {other for other, row in IDX_SETS.items() for file, md5 in wrong.items() if row.md5[file] == md5}
        origin = f", which is that of {' and of '.join(sorted(others))}" if others else ""
        raise DataError(
            f"{name}: {', '.join(wrong)} in {folder} has another MD5 checksum than the set's{origin}; take the set by "
            f"its own name, or remove the files, and {remedy}"
        )
    parts = [
        (_images(contents[f"{part}-images-idx3-ubyte"], name), _labels(contents[f"{part}-labels-idx1-ubyte"], name))
        for part in ("train", "t10k")
    ]
    for images, labels in parts:
        if len(images) != len(labels) or not len(labels) or int(labels.max()) >= 10:
            raise DataError(f"{name}: {len(images)} images and {len(labels)} labels from 0 to 9 disagree; {remedy}")
    (images, labels), (test_images, test_labels) = parts
    return Split(classes=10, images=images, labels=labels, test_images=test_images, test_labels=test_labels)


def _file(folder: Path, name: str) -> Path | None:
    return next((path for path in (folder / name, folder / f"{name}.gz") if kind_of(path, follow=True) == "file"), None)


def _remedy(known: IdxSet, root: Path) -> str:
    ways = (
        f"name the folder that has it (data_dir=, --data-dir), or get it once with torchvision.datasets.{known.reader}"
    )
    ways += f"({str(root)!r}, download=True)"
    return f"{ways}, or apt-get install {known.system[1]}" if known.system else ways


def _content(name: str, path: Path, remedy: str) -> bytes:
    try:
        with open_file(path, follow=True) as file:
            if path.suffix != ".gz":
                return file.read(MOST_BYTES)
            with gzip.open(file) as unpacked:
                return unpacked.read(MOST_BYTES)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: {path} cannot be read: {error}; {remedy}") from error


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _images(content: bytes, name: str) -> Tensor:
    if len(content) < 16 or struct.unpack(">I", content[:4])[0] != IMAGES:
        raise DataError(f"{name}: a file of images is none: it begins with {content[:4].hex()}")
    count, height, width = struct.unpack(">III", content[4:16])
    if len(content) != 16 + count * height * width:
        raise DataError(f"{name}: a file of {count} images of {height}×{width} pixels has {len(content)} bytes")
    pixels = np.frombuffer(content, dtype=np.uint8, offset=16)
    return torch.from_numpy(pixels.copy()).view(count, 1, height, width)


def _labels(content: bytes, name: str) -> Tensor:
    if len(content) < 8 or struct.unpack(">I", content[:4])[0] != LABELS:
        raise DataError(f"{name}: a file of labels is none: it begins with {content[:4].hex()}")
    if len(content) != 8 + struct.unpack(">I", content[4:8])[0]:
        raise DataError(f"{name}: a file of labels has {len(content)} bytes, and says otherwise")
    return torch.from_numpy(np.frombuffer(content, dtype=np.uint8, offset=8).copy()).long()
