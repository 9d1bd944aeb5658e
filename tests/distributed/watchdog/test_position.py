"""Where a thread stands is seen from another one: the line, who has called it, and whether it waits for other ranks."""

from __future__ import annotations

import threading
import time

import torch
import torch.distributed as dist

from pararealize.distributed.watchdog.position import Position
from tests.ranks import on_ranks


def looked_at(function, *args):
    """What is seen of a thread that runs a function, twice."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    position, texts = Position(), []
    until = time.monotonic() + 5
    while len(texts) < 2 and time.monotonic() < until:
        time.sleep(0.2)
        position.look(thread.ident)
        texts.append((position.text, position.seconds))
    return texts


def hangs(event):
    event.wait()  # within threading, of the standard library


def test_the_users_line_is_told_beside_the_innermost_one() -> None:
    event = threading.Event()
    (text, seconds), _ = looked_at(hangs, event)
    event.set()
    assert "/threading.py:" in text
    assert "called from watchdog/test_position.py:" in text
    assert text.endswith("in hangs")
    assert seconds == 0.0


def test_a_thread_that_is_gone_stands_nowhere() -> None:
    position = Position()
    position.look(-1)
    assert (position.text, position.seconds) == ("", 0.0)


def waits_for_the_other():
    if dist.get_rank() == 1:
        time.sleep(2)
        dist.recv(torch.empty(1), 0)
        dist.recv(torch.empty(1), 0)
        return None
    seen = looked_at(lambda: dist.barrier(async_op=False) if dist.get_rank() else dist.recv(torch.empty(1), 1))
    for _ in range(2):
        dist.send(torch.empty(1), 1)
    return seen


def test_a_wait_of_torch_is_seen_and_lasts() -> None:
    ((_, first), (text, second)), _ = on_ranks(2, waits_for_the_other)
    assert "distributed/distributed_c10d.py:" in text
    assert 0 < first < second
