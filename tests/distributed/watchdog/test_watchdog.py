import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed as dist

from pararealize import PararealizeError
from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError, RankError
from tests import failing_ranks

SECONDS = 20.0  # what the launcher gives a run; the watch's own time-out is longer where none is to be waited for


def check(ends: list[dict], culprit: int, cause: str) -> None:
    """Every survivor has ended by itself, and names the rank, its segment and the cause."""
    for rank, end in enumerate(ends):
        if rank != culprit:
            assert end["code"] == 0, (rank, end)
            assert (end["type"], end["rank"]) == ("RankError", culprit), (rank, end)
            assert end["error"].startswith(f"{failing_ranks.WHO[culprit]} "), (rank, end)
            assert cause in end["error"], (rank, end)


def store(i: int) -> str:
    return str(failing_ranks.free_port()) if i % 2 else "file"  # a TCPStore that rank 0 hosts, or a file


@pytest.mark.parametrize("i, point", list(enumerate(failing_ranks.POINTS)))
@pytest.mark.parametrize("n", [2, 3])
def test_a_death_ends_every_rank(tmp_path: Path, i: int, point: str, n: int) -> None:
    culprit = {"send": 0, "receive": n - 1}.get(point, i % n)
    ends = failing_ranks.launch(n, tmp_path, "kill", culprit, point, 60.0, store(i + n), seconds=SECONDS)
    assert ends[culprit]["code"] == -signal.SIGKILL
    check(ends, culprit, "died (its process is gone")


@pytest.mark.parametrize("i, point", list(enumerate(failing_ranks.POINTS[:-1])))
def test_an_exception_ends_every_rank(tmp_path: Path, i: int, point: str) -> None:
    n, culprit = 3, {"send": 0}.get(point, 1 + i % 2)
    ends = failing_ranks.launch(n, tmp_path, "raise", culprit, point, 60.0, store(i), seconds=SECONDS)
    assert (ends[culprit]["type"], ends[culprit]["error"]) == ("ValueError", "a bad batch")
    check(ends, culprit, "failed ")
    check(ends, culprit, "ValueError: a bad batch")


@pytest.mark.parametrize("point", ["forward", "sum"])
def test_nobody_waits_for_one_that_raised_and_lives_on(tmp_path: Path, point: str) -> None:
    """As in a user's except clause, or a debugger: only the watch ends the others' waits then."""
    ends = failing_ranks.launch(3, tmp_path, "linger", 1, point, 60.0, "file", seconds=SECONDS)
    assert (ends[1]["code"], ends[1]["type"]) == (None, "ValueError")
    check(ends, 1, "ValueError: a bad batch")


@pytest.mark.parametrize(
    "kind, culprit, point, n, cause",
    [
        ("sleep", 0, "forward", 3, "it was last seen in 'g^1 forward', started"),
        ("sleep", 1, "between", 2, "it was last seen outside every step, after a step (call 3), started"),
        ("sleep", 1, "barrier", 3, "it was last seen outside every step, after a step (call 3), started"),
        ("stop", 2, "backward", 3, "no sign of life"),
        ("hold", 0, "sum", 2, "no sign of life"),
    ],
)
def test_a_hang_ends_every_rank(tmp_path: Path, kind: str, culprit: int, point: str, n: int, cause: str) -> None:
    ends = failing_ranks.launch(n, tmp_path, kind, culprit, point, 3.0, store(culprit), seconds=SECONDS)
    assert ends[culprit]["code"] is None
    check(ends, culprit, cause)
    check(ends, culprit, "raise timeout= if a step really takes so long")


@pytest.mark.parametrize("kind", ["stop", "stop the watch"])
def test_a_rank_that_comes_out_of_its_hang_finds_its_own_name(tmp_path: Path, kind: str) -> None:
    def go_on(pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may be at its end by now
            os.kill(pid, signal.SIGCONT)

    ends = failing_ranks.launch(2, tmp_path, kind, 1, "forward", 3.0, "file", seconds=SECONDS, after=go_on)
    assert [end["code"] for end in ends] == [0, 0]
    assert [(end["type"], end["rank"]) for end in ends] == [("RankError", 1)] * 2


@pytest.mark.parametrize("point, place", [("forward", "in 'g^2 forward'"), ("between", "outside every step, after")])
def test_a_rank_that_stays_in_its_hang_ends_in_the_end(tmp_path: Path, point: str, place: str) -> None:
    ends = failing_ranks.launch(2, tmp_path, "sleep", 1, point, 2.0, "file", seconds=SECONDS, after=lambda pid: None)
    assert ends[1]["code"] == 1
    check(ends, 1, f"it was last seen {place}")
    check(ends, 1, "ago, and stands at tests/failing_ranks.py:")


def test_a_rank_that_leaves_early_is_named(tmp_path: Path) -> None:
    ends = failing_ranks.launch(2, tmp_path, "close", 1, "between", 60.0, "file", seconds=SECONDS)
    check(ends, 1, "has left")


@pytest.mark.parametrize("culprit", [1, 2])
def test_replicas_that_never_speak_to_the_culprit_end_too(tmp_path: Path, culprit: int) -> None:
    ends = failing_ranks.launch(3, tmp_path, "raise", culprit, "", 60.0, "", seconds=SECONDS, target=failing_ranks.grid)
    check(ends, culprit, "failed in 'g forward': ValueError: a bad batch")


@pytest.mark.parametrize("kind, cause", [
    ("exit", "died (its process is gone"),
    ("status", "left with exit status 3, after ValueError: a bad batch; it was last seen outside every step, after a"),
    ("SystemExit", "left with exit status 1: no data; it was last seen outside every step"),
])  # fmt: skip
def test_a_status_is_no_good_order(tmp_path: Path, kind: str, cause: str) -> None:
    ends = failing_ranks.launch(3, tmp_path, kind, 1, "between", 60.0, "file", seconds=SECONDS)
    assert ends[1]["code"] == (1 if kind == "SystemExit" else 3)
    check(ends, 1, cause)


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import datetime as dt, torch.distributed as dist
from tests import failing_ranks
from pararealize.distributed.watchdog.watchdog import Watch
dist.init_process_group("gloo")
rank = dist.get_rank()
watch = Watch(dist.group.WORLD, who=failing_ranks.WHO[:2], timeout=3.0)
for step in range(100):
    with watch.step():
        fails = (1, "backward", 3)
        reach = lambda place, step: failing_ranks.strike({kind!r}) if (rank, place, step) == fails else None
        failing_ranks.pass_through(watch, rank, 2, step, dt.timedelta(seconds=60), reach)
"""


@pytest.mark.parametrize(
    "kind, told",
    [
        ("sleep", "RankError: rank 1 (segment 2) has not answered"),
        ("raise", "a bad"),
    ],
)
def test_under_torchrun_interpreters_end_by_themselves(tmp_path: Path, kind: str, told: str) -> None:
    """An exception that nobody catches runs through the interpreter's exit, with the groups' destructors."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parents[3]), kind=kind))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert told in done.stderr


def test_one_rank_needs_nobody() -> None:
    watch = Watch(dist.HashStore(), rank=0, who=["rank 0"], timeout=1.0)
    with pytest.raises(ValueError, match="mine"), watch.step():
        raise ValueError("mine")
    with watch.step():
        watch.doing("g^1 forward")
        watch.waiting("nothing")
    watch.close()
    watch.close()
    with pytest.raises(DistributedError, match="rank 0 has closed its connections"), watch.step():
        pass


@pytest.mark.parametrize("rank, timeout", [(None, 1.0), (1, 1.0), (-1, 1.0), (0, 0.0), (0, float("nan"))])
def test_arguments_that_make_no_sense(rank: int | None, timeout: float) -> None:
    with pytest.raises(DistributedError, match="pass a rank from 0"):
        Watch(dist.HashStore(), rank=rank, who=["rank 0"], timeout=timeout)


def test_the_error_is_one_of_ours_and_can_be_copied() -> None:
    import pickle

    error = pickle.loads(pickle.dumps(RankError("rank 1 died", 1)))
    assert isinstance(error, PararealizeError)
    assert (str(error), error.rank) == ("rank 1 died", 1)
