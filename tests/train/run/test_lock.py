"""The lock of a folder: one process at a time, whichever way it ends; who has it is told."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket

import pytest

from pararealize.errors import OutputError
from pararealize.train.run import lock
from pararealize.train.run.lock import FolderLock


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)


def without_locks(monkeypatch):
    def refuse(handle, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.parametrize("has_locks", [True, False])
def test_one_at_a_time(tmp_path, monkeypatch, has_locks):
    if not has_locks:
        without_locks(monkeypatch)
    first, second = FolderLock(tmp_path / "run.lock"), FolderLock(tmp_path / "run.lock")
    first.acquire()
    with pytest.raises(OutputError, match=rf"is in use: process {os.getpid()} on {socket.gethostname()} writes into"):
        second.acquire()
    second.release()  # nothing
    first.release()
    assert list(tmp_path.iterdir()) == []
    second.acquire()
    second.release()


def hold(path, pipe):
    FolderLock(path).acquire()
    child = os.fork()
    if child == 0:  # which outlives its parent, and shares nothing
        pipe.poll(60)
        os._exit(0)
    pipe.send(child)
    os._exit(1)


def test_a_process_that_ended_has_no_lock_and_its_children_neither(tmp_path):
    here, there = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=hold, args=(tmp_path / "run.lock", there))
    process.start()
    child = here.recv()
    process.join()
    try:
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == process.pid
        taken = FolderLock(tmp_path / "run.lock")
        taken.acquire()
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
        taken.release()
    finally:
        os.kill(child, 9)


@pytest.mark.parametrize("content, free", [
    ({"pid": 2**22 + 1, "host": socket.gethostname(), "began": "1"}, True),  # no such process
    ({"pid": os.getpid(), "host": socket.gethostname(), "began": "1"}, True),  # another one of this number
    ({"pid": 1, "host": "elsewhere", "began": "1"}, False),
    ({"pid": -1, "host": socket.gethostname()}, True),
    ([], True),
])  # fmt: skip
def test_where_no_locks_are_the_file_says_who_writes(tmp_path, monkeypatch, content, free):
    without_locks(monkeypatch)
    (tmp_path / "run.lock").write_text(json.dumps(content))
    taken = FolderLock(tmp_path / "run.lock")
    if free:
        taken.acquire()
        taken.release()
    else:
        with pytest.raises(OutputError, match="process 1 on elsewhere writes into it"):
            taken.acquire()


@pytest.mark.parametrize(
    "put, kind", [(os.mkfifo, "FIFO"), (os.mkdir, "folder"), (lambda path: path.symlink_to("x"), "link")]
)
def test_what_is_no_file_is_not_opened(tmp_path, put, kind):
    put(tmp_path / "run.lock")
    with pytest.raises(OSError, match=f"run.lock is a {kind} and no file"):
        FolderLock(tmp_path / "run.lock").acquire()
