"""MNIST and Fashion-MNIST: told apart by their bytes, read packed or not, where torchvision or a package puts them."""

import gzip
import shutil
from pathlib import Path

import pytest
import torch

from pararealize.data import idx_files, load
from pararealize.errors import DataError
from tests.archive_files import listed, write_mnist

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def test_no_set_passes_for_another(tmp_path, monkeypatch):
    """Files of one set under the names, or in the folder, of the other are refused, and called what they are."""
    write_mnist(tmp_path, (20, 10))
    write_mnist(tmp_path, (30, 10), "FashionMNIST")
    for name in ("mnist", "fashion_mnist"):
        listed(name, tmp_path, monkeypatch)
    assert (load("mnist", data_dir=tmp_path).train_count, load("fashion_mnist", data_dir=tmp_path).train_count) == (
        20,
        30,
    )
    shutil.rmtree(tmp_path / "MNIST")
    shutil.copytree(tmp_path / "FashionMNIST", tmp_path / "MNIST")
    with pytest.raises(DataError, match="another MD5 checksum than the set's, which is that of fashion_mnist; take"):
        load("mnist", data_dir=tmp_path)


def test_packed_files_in_the_folder_itself(tmp_path, monkeypatch):
    images, labels = write_mnist(tmp_path, (20, 10), "FashionMNIST")
    listed("fashion_mnist", tmp_path, monkeypatch)
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (tmp_path / "FashionMNIST" / "raw").iterdir():
        (flat / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    data = load("fashion_mnist", data_dir=flat, channels=3, image_size=32)
    assert (data.shape, data.labels.tolist()) == ((3, 32, 32), labels)
    assert torch.equal(load("fashion_mnist", data_dir=flat).images, torch.from_numpy(images))
    (flat / "t10k-labels-idx1-ubyte.gz").write_bytes(b"nothing packed")
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte.gz cannot be read: Not a gzipped file"):
        load("fashion_mnist", data_dir=flat)
    (flat / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataError, match="no file t10k-labels-idx1-ubyte in") as caught:
        load("fashion_mnist", data_dir=flat)
    assert "torchvision.datasets.FashionMNIST(" in str(caught.value)
    assert "apt-get install dataset-fashion-mnist" in str(caught.value)


@pytest.mark.parametrize("damage", [b"", b"\x00\x00\x08\x03", b"\x00\x00\x08\x03" + bytes(40), b"x" * 50])
def test_damage_is_told(damage, tmp_path, monkeypatch):
    """Where the checksum is right and the content is not, as in nothing but a test."""
    write_mnist(tmp_path, (20, 10))
    (tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(damage)
    with pytest.raises(DataError, match="another MD5 checksum"):
        load("mnist", data_dir=tmp_path)
    listed("mnist", tmp_path, monkeypatch)
    with pytest.raises(DataError, match="mnist: a file of"):
        load("mnist", data_dir=tmp_path)


def test_images_and_labels_that_disagree(tmp_path, monkeypatch):
    write_mnist(tmp_path, (20, 10))
    other = tmp_path / "other"
    write_mnist(other, (21, 10))
    raw = "MNIST/raw/train-labels-idx1-ubyte"
    (tmp_path / raw).write_bytes((other / raw).read_bytes())
    listed("mnist", tmp_path, monkeypatch)
    with pytest.raises(DataError, match="20 images and 21 labels"):
        load("mnist", data_dir=tmp_path)


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs apt-get install dataset-fashion-mnist (MIT, 30 MB)")
def test_the_real_set_of_the_systems_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = load("fashion_mnist", count=(1000, 200))
    assert str(data).startswith("fashion_mnist: 1000 training and 200 test images of 1×28×28, 10 classes")
    whole = idx_files.read("fashion_mnist", None, Path("data"))
    assert whole.labels.bincount().tolist() == [6000] * 10
    with pytest.raises(DataError, match=r"mnist: .* which is that of fashion_mnist"):
        load("mnist", data_dir=DEBIAN)
