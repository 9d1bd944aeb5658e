"""A name and a folder -> the images of CIFAR-10, CIFAR-100 or SVHN, read by torchvision's own classes.

Nothing is fetched. torchvision unpickles the CIFAR files, and a pickle can run any code, so every file's checksum is
compared with torchvision's list before it is opened; SVHN's are, too.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError

from .dataset import Split

__all__ = ["ARCHIVES", "Archive", "expected_files", "read"]

DAMAGE = (OSError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, EOFError)  # what readers raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Archive:
    """How a set is read.

    Attributes:
        reader: torchvision's class.
        classes: how many there are.
        files: from that class to each file, below the data folder, and its MD5 checksum, or None where it has none.
        parts: what the class takes for the training and for the test part.
        labels: its attribute with the labels.
        channels_first: from its array of images to ``(count, channels, height, width)``.
    """

    reader: str
    classes: int
    files: Callable[[Any], dict[str, str | None]]
    parts: tuple[Mapping[str, Any], Mapping[str, Any]] = ({"train": True}, {"train": False})
    labels: str = "targets"
    channels_first: Callable[[Any], Any]

    @property
    def dataset(self) -> Any:
        """The class itself; torchvision is imported here."""
        from torchvision import datasets

        return getattr(datasets, self.reader)


def _cifar_files(reader: Any) -> dict[str, str | None]:
    files = [*reader.train_list, *reader.test_list, (reader.meta["filename"], reader.meta["md5"])]
    return {f"{reader.base_folder}/{file}": md5 for file, md5 in files}


def _svhn_files(reader: Any) -> dict[str, str | None]:
    return {file: md5 for _, file, md5 in (reader.split_list[part] for part in ("train", "test"))}


def _cifar_images(images: Any) -> Any:
    return images.transpose(0, 3, 1, 2)


ARCHIVES = {
    "cifar10": Archive(reader="CIFAR10", classes=10, files=_cifar_files, channels_first=_cifar_images),
    "cifar100": Archive(reader="CIFAR100", classes=100, files=_cifar_files, channels_first=_cifar_images),
    "svhn": Archive(
        reader="SVHN",
        classes=10,
        files=_svhn_files,
        parts=({"split": "train"}, {"split": "test"}),
        labels="labels",
        channels_first=lambda images: images,
    ),
}


def expected_files(name: str) -> dict[str, str | None]:
    """Every file of the set, below the data folder, and its MD5 checksum, or None where torchvision has none.

    Example:
        >>> list(expected_files("svhn"))
        ['train_32x32.mat', 'test_32x32.mat']
    """
    return ARCHIVES[name].files(ARCHIVES[name].dataset)


def read(name: str, folder: Path) -> Split[Tensor]:
    """The training and the test part, as the parareal networks' paper has them.

    50,000 + 10,000 images of CIFAR; 73,257 + 26,032 of SVHN, without its extra part.

    Raises:
        DataError: a file is missing, is another than torchvision's list says, or cannot be read; scipy, which reads
            SVHN's files, is not installed.

    Source: C.-O. Lee, Y. Lee and J. Park, "Parareal neural networks emulating a parallel-in-time algorithm", section 4.
    """
    archive = ARCHIVES[name]
    _check(name, folder)
    try:
        with warnings.catch_warnings():
            # numpy 2.4.0 to 2.4.4, of how arrays were written into the CIFAR files; github.com/numpy/numpy/pull/31177
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            train, test = (archive.dataset(folder, **part) for part in archive.parts)
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} is read by {error.name}, which is not installed; say pip install 'pararealize[data]'"
        ) from error
    except DAMAGE as error:
        raise DataError(f"{name} in {folder} cannot be read: {error}; {_remedy(name, folder)}") from error
    (images, labels), (test_images, test_labels) = _tensors(name, train), _tensors(name, test)
    classes = archive.classes
    return Split(classes=classes, images=images, labels=labels, test_images=test_images, test_labels=test_labels)


def _check(name: str, folder: Path) -> None:
    """Compare the files with torchvision's list: all have to exist, and to have their checksum where it lists one."""
    from torchvision.datasets.utils import check_integrity

    files = expected_files(name)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{name}: no file {', '.join(missing)} in {folder}; {_remedy(name, folder)}")
    wrong = [file for file, md5 in files.items() if md5 is not None and not check_integrity(folder / file, md5)]
    if wrong:
        raise DataError(
            f"{name}: {', '.join(wrong)} in {folder} has another checksum than torchvision lists and is not opened; "
            f"remove it, and {_remedy(name, folder)}"
        )


def _remedy(name: str, folder: Path) -> str:
    archive = ARCHIVES[name]
    # SVHN's class fetches the file of one part alone, the others all files at once
    options = [f"split={part['split']!r}, " for part in archive.parts if "split" in part] or [""]
    calls = (f"torchvision.datasets.{archive.reader}({str(folder)!r}, {option}download=True)" for option in options)
    return f"name the folder that has it (data_dir=, --data-dir), or get the files once with {' and '.join(calls)}"


def _tensors(name: str, part: Any) -> tuple[Tensor, Tensor]:
    """Images as bytes with channels first, and labels."""
    archive = ARCHIVES[name]
    labels = torch.as_tensor(np.asarray(getattr(part, archive.labels))).long()
    images = torch.from_numpy(np.ascontiguousarray(archive.channels_first(np.asarray(part.data))))
    if len(images) != len(labels) or not len(labels) or labels.max() >= archive.classes or labels.min() < 0:
        raise DataError(
            f"{name}: {len(images)} images and {len(labels)} labels from 0 to {archive.classes - 1} disagree"
        )
    return images, labels
