"""A rank's heartbeats say what it does, which call it is in, and whether it waits where nobody said so."""

from __future__ import annotations

import time

from pararealize.distributed.watchdog.current_call import CurrentCall, RankState


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
