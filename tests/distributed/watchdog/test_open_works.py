"""What a device waits for: the first that has not come, since it became the first; what has come counts once."""

from __future__ import annotations

import time
from typing import Any, cast

from pararealize.distributed.watchdog.open_works import OpenWorks


class Work:
    """A message or a sum that comes when a test says so."""

    def __init__(self) -> None:
        self.has_come = False

    def is_completed(self) -> bool:
        return self.has_come


def made(*names: str) -> tuple[OpenWorks, list[Work], list[str]]:
    works, here, counted = [Work() for _ in names], OpenWorks(), []
    for peer, (name, work) in enumerate(zip(names, works, strict=True)):
        here.add(cast("Any", work), name, peer, lambda name=name: counted.append(name))
    return here, works, counted


def test_the_first_that_has_not_come_is_what_is_waited_for() -> None:
    here, (a, b, c), counted = made("a", "b", "c")
    begun = time.monotonic()
    first = here.first()
    assert first is not None
    assert (first.name, first.peer) == ("a", 0)
    assert begun <= first.since <= time.monotonic()
    since = first.since
    b.has_come = True  # the stream has not got so far
    assert here.first() is first
    assert (first.since, counted) == (since, [])
    a.has_come = True
    first = here.first()
    assert first is not None
    assert (first.name, counted) == ("c", ["a", "b"])
    assert first.since >= since
    c.has_come = True
    assert here.first() is None
    assert here.first() is None
    assert counted == ["a", "b", "c"]


def test_what_has_come_counts_even_when_all_are_let_go_of() -> None:
    here, (a, _), counted = made("a", "b")
    a.has_come = True
    here.clear()
    assert counted == ["a"]
    assert here.first() is None
