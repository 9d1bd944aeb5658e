"""CIFAR, SVHN and MNIST out of small files in their own formats, read by torchvision's own classes."""

import pickle
import sys

import numpy as np
import pytest
import torch

from pararealize.data import archives
from pararealize.data.augmentation import Augmentation
from pararealize.data.catalogue import load
from pararealize.errors import DataError
from tests.archive_files import listed, write_cifar, write_mnist, write_svhn

MARK = []


def write(name, folder, count):
    if name == "svhn":
        return write_svhn(folder, count)
    return write_mnist(folder, count) if name == "mnist" else write_cifar(name, folder, count)


@pytest.mark.parametrize(
    "name, classes, shape",
    [
        ("cifar10", 10, (3, 32, 32)),
        ("cifar100", 100, (3, 32, 32)),
        ("svhn", 10, (3, 32, 32)),
        ("mnist", 10, (1, 28, 28)),
    ],
)
def test_the_images_and_labels_of_the_files(name, classes, shape, tmp_path, monkeypatch):
    """Pixel for pixel what was written, and batches of it normalised by the training part."""
    images, labels = write(name, tmp_path, (50, 20))
    listed(name, tmp_path, monkeypatch)
    data = load(name, data_dir=tmp_path, batch_size=16, augment=False)
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == labels
    assert (data.train_count, data.test_count, data.classes, data.shape) == (50, 20, classes, shape)
    x = torch.cat([x for x, _ in data.epoch(0)])
    assert x.mean((0, 2, 3)).abs().max() < 1e-4
    assert (x.std((0, 2, 3)) - 1).abs().max() < 1e-3
    small = load(name, data_dir=tmp_path, count=(10, 5), image_size=16, channels=1)
    assert (small.train_count, small.test_count, small.shape) == (10, 5, (1, 16, 16))


def test_the_papers_augmentation(tmp_path, monkeypatch):
    """Crops and mirror images of CIFAR, neither of SVHN and MNIST; and never a mirror image of a digit."""
    for name in ("cifar10", "svhn", "mnist"):
        write(name, tmp_path, (50, 20))
        listed(name, tmp_path, monkeypatch)
    assert load("cifar10", data_dir=tmp_path).augmentation == Augmentation(padding=4, flip=True)
    assert load("svhn", data_dir=tmp_path).augmentation is None
    assert load("mnist", data_dir=tmp_path).augmentation is None
    assert load("svhn", data_dir=tmp_path, augment=True).augmentation == Augmentation(padding=4, flip=False)


@pytest.mark.parametrize("name", archives.ARCHIVES)
def test_what_is_missing_is_named(name, tmp_path):
    """File, folder and the line of Python that gets it."""
    with pytest.raises(DataError) as caught:
        load(name, data_dir=tmp_path)
    for file in archives.expected_files(name):
        assert file in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert f"torchvision.datasets.{archives.ARCHIVES[name].reader}({str(tmp_path)!r}, " in str(caught.value)
    assert "download=True)" in str(caught.value)


class Bomb:
    """A pickle that does something when it is opened."""

    def __reduce__(self):
        return MARK.append, ("opened",)


def test_a_strange_pickle_is_not_opened(tmp_path, monkeypatch):
    write_cifar("cifar10", tmp_path, (50, 20))
    listed("cifar10", tmp_path, monkeypatch)
    bomb = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    bomb.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        DataError, match=r"data_batch_3 in .* another checksum than torchvision lists and is not opened"
    ):
        load("cifar10", data_dir=tmp_path)
    assert MARK == []


def test_scipy_missing(tmp_path, monkeypatch):
    write_svhn(tmp_path, (20, 10))
    listed("svhn", tmp_path, monkeypatch)
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(DataError, match=r"scipy.io, which is not installed; say pip install 'pararealize\[data\]'"):
        load("svhn", data_dir=tmp_path)
