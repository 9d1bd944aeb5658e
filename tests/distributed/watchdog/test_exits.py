"""How a script ends: with an error, with a status and after which error, or well; ``sys.exit`` is put back."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator

import pytest

from pararealize.distributed.watchdog.exits import SCRIPT


@pytest.fixture
def original() -> Iterator[object]:
    before = sys.exit
    SCRIPT.record()
    SCRIPT.record()
    SCRIPT.goes_on()
    yield before
    SCRIPT.stop_recording()
    SCRIPT.stop_recording()
    SCRIPT.goes_on()
    assert sys.exit is before


@pytest.mark.parametrize("status, text", [
    (3, "left with exit status 3"), ("no data", "left with exit status 1: no data"), (0, None), (None, None)
])  # fmt: skip
def test_a_status_is_written_down(original: object, status: object, text: str | None) -> None:
    assert sys.exit is not original
    with pytest.raises(SystemExit) as caught:
        sys.exit(status)
    assert caught.value.code == status
    assert SCRIPT.bad_exit() == text


def catch_and_exit() -> None:
    try:
        raise ValueError("a bad batch")
    except ValueError:
        sys.exit(2)


def test_the_error_that_was_being_handled_is_told(original: object) -> None:
    with pytest.raises(SystemExit):
        catch_and_exit()
    assert SCRIPT.bad_exit() == "left with exit status 2, after ValueError: a bad batch"
    SCRIPT.goes_on()
    assert SCRIPT.bad_exit() is None


def test_an_exit_on_its_way_out_needs_no_record() -> None:
    """As multiprocessing lets it be seen."""
    try:
        raise SystemExit(4)
    except SystemExit:
        assert SCRIPT.bad_exit() == "left with exit status 4"
        assert SCRIPT.uncaught_error() is None
    bad, seen = ValueError("a bad batch"), None
    try:
        raise bad
    except ValueError:
        seen = SCRIPT.uncaught_error()
    assert seen is bad


def test_another_thread_ends_itself_alone(original: object) -> None:
    def ends() -> None:
        with contextlib.suppress(SystemExit):
            sys.exit(3)

    thread = threading.Thread(target=ends)
    thread.start()
    thread.join()
    assert SCRIPT.bad_exit() is None
