"""Files and folders that appear whole or not at all: killed at every call, refused by the system, at any umask."""

import errno
import hashlib
import os
import socket
import stat
from pathlib import Path

import pytest

from pararealize import files
from pararealize.files import (
    discard,
    file_digest,
    kind_of,
    open_file,
    read_file,
    remove,
    unfinished,
    whole_file,
    whole_folder,
)

CALLS = ((files, "sync"), (Path, "chmod"), (Path, "rename"), (Path, "replace"), (Path, "mkdir"), (Path, "touch"))


class Killed(BaseException):
    """In place of the process's end."""


def tree(folder):
    """The content of all files below a folder, by path."""
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def write_file(path):
    with whole_file(path) as part:
        part.write_text("new")


def write_folder(path):
    with whole_folder(path, replace=True) as part:
        (part / "inner").mkdir()
        (part / "inner" / "file").write_text("new")
        (part / "file").write_text("new")


def old_file(path):
    path.write_text("old")


def old_folder(path):
    path.mkdir()
    (path / "file").write_text("old")


OLD_FILE, NEW_FILE = {"out": "old"}, {"out": "new"}
OLD_FOLDER, NEW_FOLDER = {"out/file": "old"}, {"out/file": "new", "out/inner/file": "new"}
KINDS = [(write_file, old_file, OLD_FILE, NEW_FILE), (write_folder, old_folder, OLD_FOLDER, NEW_FOLDER)]
KIND = pytest.mark.parametrize("write, old, before, after", KINDS, ids=["file", "folder"])


def interrupt(patch, fault, number):
    """Have the call of this number, of all that touch the disk, raise; the list of calls made until then."""
    made = []

    def interrupted(work, name):
        def call(*args, **more):
            made.append(name)
            if len(made) == number:
                raise fault
            return work(*args, **more)

        return call

    for place, name in CALLS:
        patch.setattr(place, name, interrupted(getattr(place, name), name))
    return made


@KIND
@pytest.mark.parametrize("exists", [False, True])
def test_written_and_replaced(tmp_path, write, old, before, after, exists):
    if exists:
        old(tmp_path / "out")
        assert tree(tmp_path) == before
    write(tmp_path / "out")
    assert tree(tmp_path) == after
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@KIND
@pytest.mark.parametrize("exists", [False, True])
def test_a_fault_of_the_system_at_any_call_leaves_the_old_content_alone(
    tmp_path, monkeypatch, write, old, before, after, exists
):
    """After the last renaming the new content is there; only its parent's names may not be on the disk yet."""
    calls = 0
    while True:
        place = tmp_path / f"{calls}"
        place.mkdir()
        if exists:
            old(place / "out")
        with monkeypatch.context() as patch:
            made = interrupt(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), calls + 1)
            try:
                write(place / "out")
            except OSError:
                pass
            else:
                break
        renamed = made[-1] == "sync" and set(made[:-1]) & {"rename", "replace"}
        assert tree(place) == (after if renamed else before if exists else {}), made
        assert unfinished(place) == []
        calls += 1
    assert calls >= 4


@KIND
def test_killed_at_any_call(tmp_path, monkeypatch, write, old, before, after):
    """Nothing is cleaned up: what is at the path is old or new, and all else is listed as unfinished."""
    calls = 0
    while True:
        place = tmp_path / f"{calls}"
        place.mkdir()
        old(place / "out")
        with monkeypatch.context() as patch:
            made = interrupt(patch, Killed, calls + 1)
            patch.setattr(files, "remove", lambda path: None)
            patch.setattr(Path, "unlink", lambda path, **_: None)
            try:
                write(place / "out")
            except Killed:
                pass
            else:
                break
        for part in unfinished(place):
            if not (place / "out").exists() and tree(part) == {"file": "old"}:
                assert made[-2:] == ["rename", "rename"]  # between them the old folder has a temporary name
                part.rename(place / "out")
            else:
                remove(part)
        assert tree(place) in (before, after)
        assert [entry.name for entry in place.iterdir()] == ["out"]
        calls += 1
    assert calls >= 4


@KIND
def test_a_fault_of_the_writer(tmp_path, write, old, before, after):
    old(tmp_path / "out")
    manager = whole_file if write is write_file else whole_folder

    def fail_half_way():
        with manager(tmp_path / "out") as part:
            (part if part.is_file() else part / "file").write_text("half")
            raise KeyError

    with pytest.raises(KeyError):
        fail_half_way()
    assert tree(tmp_path) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_folder_is_replaced_only_on_request(tmp_path):
    """Another process may have made it in the meantime."""
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "out"):
        old_folder(tmp_path / "out")
    assert tree(tmp_path) == OLD_FOLDER
    assert unfinished(tmp_path) == []


def test_an_old_folder_that_cannot_come_back_is_not_removed(tmp_path, monkeypatch):
    old_folder(tmp_path / "out")
    rename = Path.rename

    def once(path, target):
        if path.name != "out":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", once)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_folder(tmp_path / "out")
    assert [tree(part) for part in unfinished(tmp_path)] == [{"file": "old"}]


def test_a_link_to_a_folder_is_replaced_and_its_target_stays(tmp_path):
    old_folder(tmp_path / "target")
    (tmp_path / "out").symlink_to(tmp_path / "target")
    write_folder(tmp_path / "out")
    assert not (tmp_path / "out").is_symlink()
    assert tree(tmp_path / "target") == {"file": "old"}
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out", "target"]


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_permissions_are_those_of_the_umask(tmp_path, mask):
    """Also where the writer makes its file private, as safetensors does."""
    before = os.umask(mask)
    try:
        with whole_file(tmp_path / "file") as part:
            part.unlink()
            part.touch(0o600)
        with whole_folder(tmp_path / "folder") as part:
            (part / "file").touch(0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("file", "folder", "folder/file")]
    assert modes == [0o666 & ~mask, 0o777 & ~mask, 0o666 & ~mask]


def test_everything_is_put_on_the_disk_before_it_is_renamed(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files, "sync", lambda path: order.append(path.name.partition(".part")[0].rpartition(".")[0]))
    for name in ("rename", "replace"):
        work = getattr(Path, name)
        monkeypatch.setattr(Path, name, lambda path, target, work=work: (order.append("renamed"), work(path, target)))
    write_file(tmp_path / "one")
    assert order == [".one", "renamed", ""]
    order.clear()
    monkeypatch.setattr(files, "sync", lambda path: order.append(path.name))
    write_folder(tmp_path / "many")
    assert order[:3] == ["file", "inner", "file"]
    assert order[3].startswith(".many.")
    assert order[4:] == ["renamed", tmp_path.name]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    with whole_file(tmp_path / "out") as first, whole_file(tmp_path / "out") as second:
        first.write_text("first")
        second.write_text("second")
    assert tree(tmp_path) == {"out": "first"}


def test_no_folder_to_write_in(tmp_path):
    for manager in (whole_file, whole_folder):
        with pytest.raises(FileNotFoundError), manager(tmp_path / "no" / "out"):
            pass


def test_remove(tmp_path):
    old_folder(tmp_path / "out")
    (tmp_path / "link").symlink_to(tmp_path / "out")
    remove(tmp_path / "link")
    assert tree(tmp_path) == OLD_FOLDER
    remove(tmp_path / "out")
    remove(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_is_discarded_has_its_name_until_it_is_gone(tmp_path, monkeypatch):
    old_folder(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(files, "remove", lambda path: None)
        discard(tmp_path / "out")
    assert [tree(part) for part in unfinished(tmp_path)] == [{"file": "old"}]
    assert not (tmp_path / "out").exists()


def put_socket(path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))


@pytest.mark.parametrize("put, kind", [
    (old_file, "file"), (old_folder, "folder"), (os.mkfifo, "FIFO"), (put_socket, "socket"),
    (lambda path: path.symlink_to("/dev/null"), "link"), (lambda path: None, None),
])  # fmt: skip
def test_only_files_are_opened(tmp_path, put, kind):
    path = tmp_path / "out"
    put(path)
    assert kind_of(path) == kind
    assert kind_of(path / "below") is None
    if kind == "file":
        assert read_file(path, most=3) == b"old"
        assert file_digest(path) == (3, hashlib.sha256(b"old").hexdigest())
        assert file_digest(path, 2) == (2, hashlib.sha256(b"ol").hexdigest())
        with pytest.raises(OSError, match="more than 2 bytes"):
            read_file(path, most=2)
    else:
        with pytest.raises(OSError, match="No such file" if kind is None else f"it is a {kind} and no file"):
            open_file(path)
    if kind == "link":
        assert kind_of(path, follow=True) == "device"
        with pytest.raises(OSError, match="it is a device and no file"):
            open_file(path, follow=True)


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "\ud800", os.fsdecode(b"\xff")])
def test_names_that_no_file_has(tmp_path, name):
    for work in (kind_of, open_file, lambda path: whole_file(path).__enter__(),
                 lambda path: whole_folder(path).__enter__()):  # fmt: skip
        with pytest.raises(OSError, match=r"NUL|too long|not UTF-8"):
            work(tmp_path / name)
