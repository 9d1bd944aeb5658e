"""Files of tensors: whole and from the right source, or absent."""

import os

import pytest
import torch

from pararealize.data.cache import cache_folder, recall, store
from pararealize.errors import DataError

TENSORS = {"a": torch.arange(6, dtype=torch.uint8).view(2, 3), "b": torch.arange(4)}


def test_there_and_back(tmp_path):
    path = tmp_path / "deep" / "file.safetensors"
    assert recall(path, {"seed": "0"}) is None
    store(path, TENSORS, {"seed": "0"})
    found = recall(path, {"seed": "0"})
    assert found is not None
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert recall(path, {"seed": "1"}) is None
    assert recall(path, {"seed": "0", "fonts": "x"}) is None
    assert [entry.name for entry in path.parent.iterdir()] == ["file.safetensors"]


def test_every_damaged_byte_is_noticed(tmp_path):
    """One bit of any byte of the file, or its end cut off: absent, or (in padding) the very same tensors."""
    path = tmp_path / "file.safetensors"
    store(path, TENSORS, {"seed": "0"})
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        found = recall(path, {"seed": "0"})
        assert found is None or all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert recall(path, {"seed": "0"}) is None


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file.safetensors"
    store(path, TENSORS, {"seed": "0"})

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("pararealize.data.cache.save_file", full)
    with pytest.raises(DataError, match=r"cannot keep data in .*No space left.*name a folder"):
        store(path, {"a": torch.zeros(1)}, {"seed": "0"})
    assert recall(path, {"seed": "0"}) is not None
    assert [entry.name for entry in tmp_path.iterdir()] == ["file.safetensors"]


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(DataError, match="cannot keep data in"):
        store(tmp_path / "taken" / "file", TENSORS, {})


def test_the_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "pararealize"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, as its specification says
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "pararealize"
