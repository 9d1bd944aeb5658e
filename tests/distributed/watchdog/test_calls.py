"""Calls that some ranks make and others do not are found, by their numbers; those that all refused are not."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.distributed.watchdog.calls import CallHistory, Calls
from pararealize.distributed.watchdog.heartbeat import Failure, Heartbeat

WHO = ["rank 0", "rank 1", "rank 2"]


def failure_of(ranks: list[Calls], me: int = 0, now: float = 1.0) -> Failure | None:
    """What rank ``me`` finds, a second after it has heard all others."""
    heard = {rank: Heartbeat(**calls.told()) for rank, calls in enumerate(ranks) if rank != me}
    for rank, heartbeat in heard.items():
        ranks[me].compare(rank, heartbeat, now - 1)
    return ranks[me].failure(me, heard, WHO, now)


def called(*names: str, peers: tuple[int, ...] = (0, 1, 2), everyone: bool = True) -> Calls:
    calls = Calls(peers)
    for name in names:
        calls.begin(name, everyone=everyone)
    return calls


def test_the_odd_one_is_named_with_both_calls() -> None:
    ranks = [called("step", "step"), called("step", "save_sharded"), called("step", "step")]
    for me in range(3):
        failure = failure_of(ranks, me)
        assert failure is not None
        assert failure.rank == 1
        assert failure.message.startswith(
            "the ranks made different calls (call 2): rank 1 called save_sharded, and rank 0 and rank 2 called step; "
        )


def test_of_two_calls_the_rarer_kind_is_odd() -> None:
    failure = failure_of([called("load_state_dict", "step"), called("step")])
    assert failure is not None
    assert failure.rank == 0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["step", "inference", "save", "clip"]), min_size=1, max_size=30), st.data()
)  # fmt: skip
def test_any_call_too_many_is_found_and_equal_calls_are_none(names: list[str], data: st.DataObject) -> None:
    """Whatever the pattern, and however far the ranks are apart."""
    ahead = data.draw(st.integers(0, len(names)))
    assert failure_of([called(*names), called(*names[:ahead])]) is None
    assert failure_of([called(*names[:ahead]), called(*names)]) is None
    place = data.draw(st.integers(0, len(names)))
    more = [*names[:place], "load", *names[place:]]
    assert (failure_of([called(*names), called(*more)]) is None) == (place == len(names))


def test_a_difference_has_to_last() -> None:
    """Ranks that refuse calls together do so at about the same time."""
    first, second = called("step", "step"), called("step", "inference")
    heard = {1: Heartbeat(**second.told())}
    assert first.next_look() == float("inf")
    first.compare(1, heard[1], 10.0)
    assert first.failure(0, heard, WHO, 10.1) is None
    first.withdraw((2, 2))
    assert first.failure(0, heard, WHO, first.next_look()) is None
    assert first.next_look() == float("inf")
    second.withdraw((2, 2))
    for calls in (first, second):
        calls.begin("step", everyone=True)
    assert failure_of([first, second]) is None


def test_copies_are_compared_in_what_all_of_them_do() -> None:
    """Rank 1 is of another copy, and evaluates more batches."""
    ranks = [called("step", peers=(0,)), called("step", peers=(1,))]
    for _ in range(3):
        ranks[1].begin("inference", everyone=False)
    for calls in ranks:
        calls.begin("step", everyone=True)
    assert failure_of(ranks) is None
    ranks[0].begin("save_sharded", everyone=True)
    ranks[1].begin("step", everyone=True)
    assert failure_of(ranks) is not None


def test_a_history_forgets_what_is_long_ago() -> None:
    history = CallHistory()
    for number, name in zip(range(1, 2001), itertools.cycle(["a", "b"]), strict=False):
        assert history.add(name) == number
    assert history.name_of(1) is None
    assert history.name_of(2000) == "b"
    assert history.name_of(2001) is None
    assert history.last_of_each() == {1999: "a", 2000: "b"}
