import dataclasses

import pytest

from pararealize.distributed.watchdog.diagnosis import RankStatus, fault_of, find_culprit, silent
from pararealize.distributed.watchdog.heartbeat import Heartbeat


def busy(rank: int, doing: str = "g forward", seconds: float = 31, quiet: float = 0.1) -> RankStatus:
    return RankStatus(who=f"rank {rank}", doing=doing, seconds=seconds, quiet=quiet)


def waits(rank: int, peer: int | None, seconds: float = 30, quiet: float = 0.1, what: str = "z") -> RankStatus:
    return RankStatus(who=f"rank {rank}", doing=what, seconds=seconds, waits=True, peer=peer, quiet=quiet)


@pytest.mark.parametrize(
    "statuses, me, culprit",
    [
        ([waits(0, 1), busy(1)], 0, 1),
        ([busy(0), waits(1, 0), waits(2, 1)], 2, 0),  # not rank 1, which waits itself
        ([busy(0), waits(1, 0, quiet=20), waits(2, 1)], 2, 1),  # silent: what it waited for says nothing
        ([waits(0, None), waits(1, 0), busy(2)], 0, 2),  # a sum over all
        ([waits(0, None), busy(1, seconds=5), busy(2, seconds=40)], 0, 2),
        ([waits(0, None), busy(1), waits(2, None, quiet=9)], 0, 2),
        ([waits(0, None), waits(1, 2), busy(2)], 0, 2),
        ([waits(0, None), waits(1, 0), waits(2, 1)], 2, 0),  # everyone waits
    ],
)
def test_the_chain_of_waits_ends_at_the_culprit(statuses: list[RankStatus], me: int, culprit: int) -> None:
    failure = find_culprit(dict(enumerate(statuses)), me, quiet=2)
    assert failure.rank == culprit
    assert f"rank {culprit} " in failure.message


def test_the_message_says_what_how_long_and_what_to_do() -> None:
    statuses = {0: waits(0, 1), 1: RankStatus(who="rank 1 (segment 2)", doing="g^2 forward", seconds=31.4)}
    assert find_culprit(statuses, 0, quiet=2).message == (
        "rank 1 (segment 2) has not answered for 30 s: it was last seen in 'g^2 forward', started 31 s ago; "
        "raise timeout= if a step really takes so long"
    )


def test_ranks_that_wait_for_each_other() -> None:
    statuses = {0: waits(0, 1, what="dz_1"), 1: waits(1, 0, what="z_1"), 2: waits(2, 1, what="z_2")}
    failure = find_culprit(statuses, 2, quiet=2)
    assert failure.rank == 0
    expected = (
        "waited for each other for 30 s: rank 0 is waiting for dz_1 of rank 1, rank 1 is waiting for z_1 of rank 0"
    )
    assert expected in failure.message
    assert "rank 2" not in failure.message


def test_everyone_in_a_sum_but_not_in_the_same() -> None:
    failure = find_culprit({0: waits(0, None), 1: waits(1, None)}, 1, quiet=2)
    assert "waited for each other" in failure.message


def test_one_that_hangs_where_its_wait_was_over_is_a_step_behind() -> None:
    """It still says that it waits, for the last thing of a step that the others have ended."""
    statuses = {
        0: RankStatus(who="rank 0", doing="dz_1", seconds=30, waits=True, peer=1, step=8),
        1: RankStatus(who="rank 1", doing="dz_2", seconds=30, waits=True, peer=2, step=8),
        2: RankStatus(who="rank 2", doing="the loss", seconds=30.4, waits=True, step=7),
    }
    for me in (0, 1):
        failure = find_culprit(statuses, me, quiet=2)
        assert failure.rank == 2
        assert "rank 2 has not answered for 30 s: it was last seen waiting for the loss" in failure.message
    level = {rank: dataclasses.replace(sight, step=8) for rank, sight in statuses.items()}
    assert "waited for each other" in find_culprit(level, 0, quiet=2).message


def test_one_that_hangs_where_its_wait_was_over_has_been_sent_what_it_waits_for() -> None:
    statuses = {
        0: waits(0, 1, what="dz_1"),
        1: dataclasses.replace(waits(1, 2, what="dz_2"), took={2: 4}),
        2: dataclasses.replace(waits(2, None, what="the loss"), sent={1: 5}),
    }
    for me in (0, 2):
        assert find_culprit(statuses, me, quiet=2).rank == 1
    statuses[2] = dataclasses.replace(statuses[2], sent={1: 4})
    assert "waited for each other" in find_culprit(statuses, 0, quiet=2).message


def test_one_that_left() -> None:
    left = RankStatus(who="rank 1", doing="", seconds=3, left=True)
    failure = find_culprit({0: waits(0, 1, what="z_2"), 1: left}, 0, quiet=2)
    assert failure.rank == 1
    assert failure.message.startswith("rank 1 has left")
    assert "while rank 0 is waiting for z_2 of rank 1" in failure.message


def test_silence_alone() -> None:
    failure = silent(1, busy(1, quiet=30))
    assert failure.rank == 1
    assert failure.message.startswith("rank 1 has given no sign of life for 30 s")


def test_a_rank_is_taken_to_do_still_what_its_last_heartbeat_said() -> None:
    heartbeat = Heartbeat(doing="z_1", seconds=2.0, waits=True, peer=3, step=5, sent={0: 1})
    status = RankStatus.of(heartbeat, "rank 1", quiet=0.5, left=True)
    assert (status.seconds, status.quiet, status.left, status.sent, status.step) == (2.5, 0.5, True, {0: 1}, 5)
    assert str(status) == "waiting for z_1 of rank 3"


def test_a_fault_says_where_it_began_and_what_it_was() -> None:
    failed = fault_of(1, busy(1), ValueError("a bad batch"))
    assert (failed.rank, failed.message) == (1, "rank 1 failed in 'g forward': ValueError: a bad batch")
    assert fault_of(1, busy(1), KeyError()).message == "rank 1 failed in 'g forward': KeyError"
    left = fault_of(2, busy(2, doing=""), "left with exit status 3")
    assert left.message == "rank 2 left with exit status 3; it was last seen outside every step"
