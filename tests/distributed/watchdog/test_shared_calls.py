"""Calls that ranks announce: alike, not alike, refused, in any order of arrival; three ranks in one process."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.distributed.watchdog.heartbeat import Announcement, Failure, decode, encode
from pararealize.distributed.watchdog.samples import sample
from pararealize.distributed.watchdog.shared_calls import CallsByName, SharedCalls, differences
from pararealize.errors import DistributedError

WHO = [f"rank {rank} (segment {rank + 1})" for rank in range(3)]


class OneRank:
    """What its calls see of a rank."""

    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.who = ranks, rank, WHO

    def waiting(self, what: str) -> None:
        self.raise_known()

    def raise_known(self) -> None:
        if self.rank in self.ranks.failures:
            raise self.ranks.failures[self.rank].error()


class Ranks:
    """Ranks whose announcements wait in a queue for each pair, until they are delivered."""

    def __init__(self, count: int = 3) -> None:
        self.failures: dict[int, Failure] = {}
        self.queues: dict[tuple[int, int], list[Announcement]] = {}
        self.rows = [self.row(rank) for rank in range(count)]
        self.calls = [self.add(row) for row in self.rows]

    def row(self, rank: int) -> CallsByName:
        def send(others: Sequence[int], call: Announcement) -> None:
            for other in others:
                self.queues.setdefault((rank, other), []).append(call)

        def fail(failure: Failure) -> None:
            self.failures.setdefault(rank, failure)

        return CallsByName(OneRank(self, rank), send, fail)

    def add(self, row: CallsByName) -> SharedCalls:
        return row.add("network", range(len(self.rows)), what="run a step", remedy="be alike")

    def deliver(self, sender: int, receiver: int) -> None:
        queue = self.queues.get((sender, receiver), [])
        if queue:
            self.rows[receiver].hear(sender, decode(encode(queue.pop(0)).strip()))

    def deliver_all(self) -> None:
        for pair in itertools.permutations(range(len(self.calls)), 2):
            while self.queues.get(pair):
                self.deliver(*pair)

    def confirm(self, rank: int) -> str:
        """What a confirmation says; every announcement has come."""
        try:
            self.calls[rank].confirm()
        except DistributedError as error:
            return f"{type(error).__name__}: {error}"
        return ""


STEP = {"call": "step", "mode": "train"}
X = torch.arange(12.0)
# what rank 2 announces instead of what the others do: (arguments, what every rank is told)
OTHERS = {
    "facts": ({"facts": {**STEP, "mode": "eval"}}, r"mode is train on rank \d .*, eval on rank 2"),
    "a fact more": ({"facts": {**STEP, "mask": "(2,)"}}, r"mask is nothing on rank \d .*, \(2,\) on rank 2"),
    "samples": ({"samples": {"x": sample(X + 1)}}, r"some values of x is 0, 1, 2 … \(digest .* 1, 2, 3 … \(digest"),
    "partial": ({"partial": {"tied": "1 of 2"}}, r"tied is 2 of 2 on rank \d .*, 1 of 2 on rank 2"),
    "new": ({"waits": True}, r"new to this rank is no on rank \d .*, yes on rank 2"),
    "refused": ({"fault": "a bad batch", "waits": True}, r"^rank 2 \(segment 3\): a bad batch; so rank \d .* its step"),
}


def announce(ranks: Ranks, other: dict, *, waits: bool, order: list[int]) -> None:
    usual = {"facts": STEP, "samples": {"x": sample(X)}, "partial": {"tied": "2 of 2"}, "waits": waits}
    for rank in order:
        ranks.calls[rank].begin(**{**usual, **(other if rank == 2 else {})})


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_what_is_not_alike_is_a_failure_where_one_may_have_sent_something(kind: str, order: list[int]) -> None:
    ranks = Ranks()
    other, text = OTHERS[kind]
    announce(ranks, {"facts": STEP}, waits=False, order=order)  # all alike, first
    ranks.deliver_all()
    assert not ranks.failures
    announce(ranks, other, waits=False, order=order)
    ranks.deliver_all()
    assert sorted(ranks.failures) == [0, 1, 2]
    for failure in ranks.failures.values():
        assert re.search(text, failure.message), failure.message
        assert failure.rank == (2 if kind == "refused" else None)
        assert "call 2" in failure.message or kind == "refused"
    for rank in range(3):
        assert (
            ranks.confirm(rank)
            == f"{'Rank' if kind == 'refused' else 'Disagreement'}Error: {ranks.failures[rank].message}"
        )


@pytest.mark.parametrize("kind", [kind for kind in OTHERS if kind != "new"])
def test_where_all_wait_all_raise_alike_and_go_on(kind: str) -> None:
    ranks = Ranks()
    other, text = OTHERS[kind]
    announce(ranks, other, waits=True, order=[1, 0, 2])
    ranks.deliver_all()
    told = [ranks.confirm(rank) for rank in range(3)]
    assert told[0] == told[1] == told[2]
    assert re.search(text.removeprefix("^"), told[0]), told[0]
    assert told[0].startswith("AgreedError: ")
    assert not ranks.failures
    announce(ranks, {}, waits=False, order=[0, 1, 2])
    ranks.deliver_all()
    assert [ranks.confirm(rank) for rank in range(3)] == ["", "", ""]


@settings(max_examples=30)
@given(st.data())
def test_any_order_of_arrival_tells_alike_from_not_alike(data: st.DataObject) -> None:
    """Ranks run ahead of each other; announcements of a pair keep their order, those of pairs do not."""
    ranks = Ranks()
    programs = [[STEP] * 4 for _ in range(3)]
    odd = data.draw(st.one_of(st.none(), st.tuples(st.integers(0, 2), st.integers(0, 3))))
    if odd is not None:
        programs[odd[0]][odd[1]] = {**STEP, "call": "inference"}
    done = [0, 0, 0]
    moves = [("begin", rank, 0) for rank in range(3)]
    moves += [("deliver", *pair) for pair in itertools.permutations(range(3), 2)]
    for move, a, b in data.draw(st.lists(st.sampled_from(moves), max_size=40)):
        if move == "deliver":
            ranks.deliver(a, b)
        elif done[a] < 4:
            ranks.calls[a].begin(programs[a][done[a]])
            done[a] += 1
    for rank in range(3):
        for facts in programs[rank][done[rank] :]:
            ranks.calls[rank].begin(facts)
    ranks.deliver_all()
    if odd is None:
        assert not ranks.failures
        assert [ranks.confirm(rank) for rank in range(3)] == [""] * 3
    else:
        assert all(f"call {odd[1] + 1}" in ranks.failures[rank].message for rank in range(3))


def test_one_that_left_before_a_call_is_named_whenever_that_is_heard() -> None:
    for late in (False, True):
        ranks = Ranks(2)
        for calls in ranks.calls:
            calls.begin(STEP)
        ranks.deliver_all()
        if late:
            ranks.calls[0].begin(STEP)
        ranks.rows[0].leave(1)
        assert (0 in ranks.failures) == late
        if not late:
            ranks.calls[0].begin(STEP)
        failure = ranks.failures[0]
        assert failure.rank == 1
        assert re.search(r"^rank 1 .* has left .* after 1 calls, and rank 0 .* is in call 2 \(step\)", failure.message)


def test_announcements_may_come_before_a_rank_has_such_calls() -> None:
    ranks = Ranks(2)
    late = ranks.rows[1] = ranks.row(1)
    ranks.calls[0].begin(STEP)
    ranks.deliver_all()
    ranks.add(late).begin({**STEP, "mode": "eval"})
    assert "mode is train on rank 0 (segment 1), eval on rank 1" in ranks.failures[1].message


def test_a_confirmation_waits_for_the_last_one() -> None:
    ranks = Ranks(2)
    ranks.calls[0].begin(STEP)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ranks.confirm, 0)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        ranks.calls[1].begin(STEP)
        ranks.deliver_all()
        assert waiting.result(20) == ""


def test_one_rank_alone_needs_nobody() -> None:
    ranks = Ranks(1)
    ranks.calls[0].begin(STEP, waits=True)
    assert ranks.confirm(0) == ""
    ranks.calls[0].begin(STEP, fault="a bad batch", waits=True)
    assert ranks.confirm(0) == "AgreedError: rank 0 (segment 1): a bad batch"


def test_differences_have_all_values() -> None:
    facts = {0: {"a": 1, "b": 2}, 1: {"a": 1, "b": 3}, 2: {"a": 1}}
    assert list(differences(facts, "r{}".format)) == ["b is 2 on rank r0, 3 on rank r1, nothing on rank r2"]
