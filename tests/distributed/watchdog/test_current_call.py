"""A rank's heartbeats say what it does, which call it is in, and whether it waits where nobody said so."""

from __future__ import annotations

import time
from typing import Any, cast

from pararealize.distributed.watchdog.current_call import CurrentCall, RankState
from pararealize.distributed.watchdog.open_works import OpenWork


def test_heartbeats_follow_the_calls() -> None:
    current = CurrentCall()
    now = time.monotonic() + 10
    assert current.heartbeat(now, place="").latest == ""
    with current.during("a step"):
        with current.during("a sum"):
            current.state = RankState("the sum", 1, waits=True)
            beat = current.heartbeat(now, place="a.py:1 in f", waits_for=3.0)
            assert (beat.doing, beat.peer, beat.waits, beat.step) == ("the sum", 1, True, 1)
            assert beat.place == "a.py:1 in f"
            assert beat.seconds > 9
        assert current.heartbeat(now, place="").doing == "the start of a step"
        assert current.depth == 1
    beat = current.heartbeat(now, place="", waits_for=3.0)
    assert (beat.doing, beat.waits, beat.seconds) == ("a collective call of torch.distributed", True, 3.0)
    assert (beat.latest, current.depth) == ("a step (call 1)", 0)


def test_a_rank_whose_device_waits_waits_unless_its_host_does() -> None:
    """As in ``loss.item()`` of a loss function: the host says what it does, and the stream waits for another rank."""
    current, now = CurrentCall(), time.monotonic()
    work = OpenWork(cast("Any", None), "z_1", 0, lambda: None, since=now - 7)
    current.state = RankState("head forward")
    beat = current.heartbeat(now, place="", waits_for=3.0, open_work=work)
    assert (beat.doing, beat.peer, beat.waits, round(beat.seconds)) == ("z_1", 0, True, 7)
    current.state = RankState("a description", 2, waits=True)
    assert current.heartbeat(now, place="", open_work=work).peer == 2
