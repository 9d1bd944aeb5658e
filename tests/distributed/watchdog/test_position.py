"""Where a thread stands is seen from another one: the line, who has called it, and whether it waits for other ranks."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import torch
import torch.distributed as dist

from pararealize.distributed.watchdog.position import Position, ThreadId
from tests.ranks import on_ranks


def looked_at(function, *args):
    """What is seen of a thread that runs a function, twice."""
    thread = threading.Thread(target=function, args=args, daemon=True)
    thread.start()
    number = ThreadId(thread.ident, thread.native_id)
    position, texts = Position(), []
    until = time.monotonic() + 5
    while len(texts) < 2 and time.monotonic() < until:
        time.sleep(0.2)
        position.look(number)
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
    position.look(ThreadId(1, -1))
    assert (position.text, position.seconds) == ("", 0.0)


def barriers(count):
    for _ in range(count):
        dist.barrier()
        time.sleep(0.02)


def waits_for_the_other():
    if dist.get_rank() == 1:
        barriers(50)
        dist.send(torch.empty(1), 0)
        time.sleep(2)
        dist.recv(torch.empty(1), 0)
        dist.recv(torch.empty(1), 0)
        return None
    seen = looked_at(barriers, 50)
    dist.recv(torch.empty(1), 1)
    seen += looked_at(lambda: dist.barrier(async_op=False) if dist.get_rank() else dist.recv(torch.empty(1), 1))
    for _ in range(2):
        dist.send(torch.empty(1), 1)
    return seen


def test_a_wait_of_torch_is_seen_and_lasts() -> None:
    """Barriers one after the other are no wait that lasts, though each is called in the same line."""
    ((_, early), (_, late), (_, first), (text, second)), _ = on_ranks(2, waits_for_the_other)
    assert max(early, late) < 0.1
    assert "distributed/distributed_c10d.py:" in text
    assert 0 < first < second


GARBAGE = """
import gc, threading, time
from pararealize.distributed.watchdog.position import Position, ThreadId

class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        time.sleep(0)  # another thread runs

def go_on(n):
    return 1 + go_on(n - 1) if n else 0

def look():
    position = Position()
    while not over.is_set():
        Cycle()
        position.look(main)

main, over = ThreadId.current(), threading.Event()
gc.set_threshold(2)
thread = threading.Thread(target=look)
thread.start()
until = time.monotonic() + 4
while time.monotonic() < until:
    go_on(40)
over.set()
thread.join()
"""


def test_a_look_at_a_thread_that_goes_on_is_safe_when_garbage_is_collected_meanwhile() -> None:
    """A rank died of it: frames of another thread were read, and a collection in between let that thread go on."""
    done = subprocess.run([sys.executable, "-c", GARBAGE], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
