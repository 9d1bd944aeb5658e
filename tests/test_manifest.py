"""Manifests: of what was written, damaged, of something else; JSON files with a schema; digests of tensors."""

import json
import os

import pytest
import torch
from pydantic import TypeAdapter

from pararealize.errors import CheckpointError
from pararealize.manifest import (
    MANIFEST,
    FileFact,
    differences,
    faults_of_files,
    read_document,
    read_manifest,
    tensors_digest,
    write_manifest,
)

HOLDS = "numbers"
NUMBERS = TypeAdapter(dict[str, str | int])


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "one"
    folder.mkdir()
    (folder / "a").write_text("1 2 3")
    (folder / "b").write_text("4 5 6")
    write_manifest(folder, HOLDS, {"step": 1})
    return folder


def test_what_was_written(folder):
    manifest = read_manifest(folder, HOLDS)
    assert manifest.facts == {"step": 1}
    assert manifest.files["a"] == FileFact.of(folder / "a")
    assert manifest.files.keys() == {"a", "b"}
    assert faults_of_files(folder, manifest) == []
    with pytest.raises(CheckpointError, match="holds numbers and no letters"):
        read_manifest(folder, "letters")


def test_what_is_not_as_it_was_written(folder):
    other = folder.parent / "two\x1b"
    other.mkdir()
    (other / "c").write_text("7 8 9")
    write_manifest(other, HOLDS, {})
    manifest = read_manifest(folder, HOLDS)

    def fault(name):
        (fault,) = faults_of_files(folder, manifest, [name])
        return fault

    (folder / "a").write_text("7 8 9")
    assert fault("a").startswith("a is not what was written: its SHA-256 was ")
    assert fault("a").endswith(r", which is c of 'two\x1b'")
    (folder / "a").write_text("4 5 6")
    assert fault("a").endswith(", which is b")
    for name in ("zero", "four", "three"):  # where several files have that content, no one of them is the origin
        (folder.parent / name).mkdir()
        (folder.parent / name / "d").write_text("4 5 6")
        write_manifest(folder.parent / name, HOLDS, {})
    assert fault("a").endswith(", which is b, d of four, d of three, and 1 more")
    (folder / "a").write_text("")
    assert fault("a").endswith("it had 5 bytes and has 0")
    (folder / "a").unlink()
    assert fault("a") == "a is missing"
    os.mkfifo(folder / "a")
    assert fault("a") == "a: it is a FIFO and no file"
    assert fault("c") == "c is not in the manifest"
    assert fault("../two") == "../two: this is no name of a file"


@pytest.mark.parametrize("text, told", [
    ("{", "it is not JSON"),
    ("\0", "it is not JSON"),
    ("[" * 100_000, "it is not JSON"),
    ("[]", "there is no schema and no version in it"),
    ('{"schema": "\\u001b[2J", "version": 1}', r"is of schema '\\x1b\[2J', version 1, and this is"),
    ('{"schema": "numbers", "version": 2}', "version 2, and this is 'numbers', version 1"),
    ('{"schema": "numbers", "version": true}', "True"),
    ('{"schema": "numbers", "version": 1, "\\u001b": [1]}', r"cannot be read: '\\x1b.*valid"),
])  # fmt: skip
def test_documents_that_are_none(tmp_path, text, told):
    (tmp_path / "file").write_text(text)
    with pytest.raises(CheckpointError, match=told) as raised:
        read_document(tmp_path / "file", NUMBERS, schema="numbers", version=1)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("make, told", [
    (lambda path: None, "No such file"),
    (os.mkdir, "it is a folder and no file"),
    (os.mkfifo, "it is a FIFO and no file"),
    (lambda path: path.symlink_to("/dev/zero"), "it is a link and no file"),
    (lambda path: path.write_bytes(b"\xff\xfe"), "it is not JSON"),
])  # fmt: skip
def test_what_is_no_file_is_not_opened(tmp_path, make, told):
    make(tmp_path / MANIFEST)
    with pytest.raises(CheckpointError, match=told):
        read_manifest(tmp_path, HOLDS)


@pytest.mark.parametrize("change, told", [
    ({"files": {"a": {"size": -1, "sha256": "0" * 64}}}, "files.a.size: "),
    ({"files": {"a": {"size": 1, "sha256": "x"}}}, "files.a.sha256: "),
    ({"files": {"a": {"size": "1", "sha256": "0" * 64}}}, "files.a.size: "),
    ({"more": 1}, "more: "),
    ({"facts": None}, "facts: "),
    ({"files": {}}, "is not what was written: the SHA-256 of its entries"),
    ({"facts": {"step": 2}}, "is not what was written: the SHA-256 of its entries"),
])  # fmt: skip
def test_a_manifest_of_another_form(folder, change, told):
    values = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(values | change))
    with pytest.raises(CheckpointError, match=told):
        read_manifest(folder, HOLDS)


def test_a_digest_of_tensors_is_of_all_that_they_are():
    base = {"a": torch.zeros(2, 3)}
    others = [{"b": torch.zeros(2, 3)}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(2, 3).int()}, {"a": -base["a"]}]
    assert len({tensors_digest(tensors) for tensors in (base, *others, {"a": torch.zeros(3, 2).mT})}) == 5


def test_differences():
    assert differences({"a": [1]}, {"a": [1]}) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} there, None here"]
    (text,) = differences({"\x1b[2J": "\x07" * 500}, {})
    assert text.isprintable()
    assert len(text) < 300
