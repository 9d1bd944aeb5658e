"""A name and a folder -> the pictures of CIFAR-10, CIFAR-100, SVHN or MNIST, read by torchvision's own classes.

Nothing is fetched. torchvision unpickles the CIFAR files, and a pickle can run any code, so every file's checksum is
compared with torchvision's list before it is opened; SVHN's are, too. MNIST's files are plain arrays without one.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pararealize.errors import DataError

from .images import Pictures

__all__ = ["NAMES", "expected_files", "read"]

NAMES = ("cifar10", "cifar100", "mnist", "svhn")
CALLS = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "mnist": "MNIST", "svhn": "SVHN"}
CLASSES = {"cifar10": 10, "cifar100": 100, "mnist": 10, "svhn": 10}
DAMAGE = (OSError, ValueError, RuntimeError, AssertionError, LookupError, TypeError, EOFError)  # what readers raise


def expected_files(name: str) -> dict[str, str | None]:
    """Every file of the set, below the data folder, and its MD5 checksum, or None where torchvision has none.

    Example:
        >>> list(expected_files("svhn"))
        ['train_32x32.mat', 'test_32x32.mat']
    """
    from torchvision import datasets

    if name == "svhn":
        return {file: md5 for _, file, md5 in (datasets.SVHN.split_list[part] for part in ("train", "test"))}
    if name == "mnist":
        return {f"MNIST/raw/{file.removesuffix('.gz')}": None for file, _ in datasets.MNIST.resources}
    cifar = getattr(datasets, CALLS[name])
    listed = [*cifar.train_list, *cifar.test_list, (cifar.meta["filename"], cifar.meta["md5"])]
    return {f"{cifar.base_folder}/{file}": md5 for file, md5 in listed}


def read(name: str, folder: Path) -> Pictures:
    """The training and the test part, as the parareal networks' paper has them.

    50,000 + 10,000 images of CIFAR; 73,257 + 26,032 of SVHN, without its extra part; 60,000 + 10,000 of MNIST, whose
    validation images are training images here.

    Raises:
        DataError: a file is missing, is another than torchvision's list says, or cannot be read; scipy, which reads
            SVHN's files, is not installed.

    Source: C.-O. Lee, Y. Lee and J. Park, "Parareal neural networks emulating a parallel-in-time algorithm", section 4.
    """
    from torchvision import datasets

    _check(name, folder)
    load = getattr(datasets, CALLS[name])
    try:
        with warnings.catch_warnings():
            # numpy 2.4.0 to 2.4.4, of how arrays were written into the CIFAR files; github.com/numpy/numpy/pull/31177
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            if name == "svhn":
                train, test = (load(folder, split=part) for part in ("train", "test"))
            else:
                train, test = (load(folder, train=part) for part in (True, False))
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name} is read by {error.name}, which is not installed; say pip install 'pararealize[data]'"
        ) from error
    except DAMAGE as error:
        raise DataError(f"{name} in {folder} cannot be read: {error}; {_how(name, folder)}") from error
    images, labels = _tensors(name, train)
    test_images, test_labels = _tensors(name, test)
    return Pictures(
        classes=CLASSES[name], images=images, labels=labels, test_images=test_images, test_labels=test_labels
    )


def _check(name: str, folder: Path) -> None:
    """All files there, and those that have a checksum with the right one."""
    from torchvision.datasets.utils import check_integrity

    files = expected_files(name)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise DataError(f"{name}: no file {', '.join(missing)} in {folder}; {_how(name, folder)}")
    wrong = [file for file, md5 in files.items() if md5 is not None and not check_integrity(folder / file, md5)]
    if wrong:
        raise DataError(
            f"{name}: {', '.join(wrong)} in {folder} has another checksum than torchvision lists and is not opened; "
            f"remove it, and {_how(name, folder)}"
        )


def _how(name: str, folder: Path) -> str:
    parts = ("split='train', ", "split='test', ") if name == "svhn" else ("",)
    calls = " and ".join(f"torchvision.datasets.{CALLS[name]}({str(folder)!r}, {part}download=True)" for part in parts)
    return f"name the folder that has it (data_dir=, --data-dir), or get the files once with {calls}"


def _tensors(name: str, part: Any) -> tuple[Tensor, Tensor]:
    """Bytes with channels first, and labels."""
    order: dict[str, Callable[[Any], Any]] = {
        "svhn": lambda data: data,  # (count, 3, 32, 32) already
        "mnist": lambda data: data[:, None],  # (count, 28, 28)
    }
    moved = order.get(name, lambda data: data.transpose(0, 3, 1, 2))(np.asarray(part.data))
    labels = torch.as_tensor(np.asarray(part.labels if name == "svhn" else part.targets)).long()
    images = torch.from_numpy(np.ascontiguousarray(moved))
    if len(images) != len(labels) or not len(labels) or labels.max() >= CLASSES[name] or labels.min() < 0:
        raise DataError(f"{name}: {len(images)} images and {len(labels)} labels from 0 to {CLASSES[name] - 1} disagree")
    return images, labels
