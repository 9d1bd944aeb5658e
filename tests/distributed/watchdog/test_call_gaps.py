"""What garbage collection lets go of ends in the thread that it belongs to, and not within a call of it."""

from __future__ import annotations

import os
import threading

from pararealize.distributed.watchdog.call_gaps import in_call, when_in_no_call


def in_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_work_waits_for_its_thread_to_be_in_no_call() -> None:
    done: list[tuple[str, int]] = []
    here = threading.get_ident()

    def work(name, thread=here):
        when_in_no_call(thread, lambda: done.append((name, threading.get_ident())))

    work("at once")
    with in_call():
        with in_call():
            work("within")
        assert done == [("at once", here)]
    in_thread(lambda: work("elsewhere"))
    others: list[int] = []
    in_thread(lambda: (others.append(threading.get_ident()), work("its thread has ended", others[0] + 1)))
    assert done[1:] == [("within", here)]
    with in_call():
        assert done[2:] == [("elsewhere", here), ("its thread has ended", here)]


def test_a_forked_process_has_no_part_in_it(monkeypatch) -> None:
    done: list[bool] = []
    here = threading.get_ident()
    in_thread(lambda: when_in_no_call(here, lambda: done.append(True)))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    with in_call():
        pass
    monkeypatch.undo()
    with in_call():
        pass
    assert not done
