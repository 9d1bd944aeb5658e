"""BlockChain, n -> what learnt well on networks of the same family: ``coarse="auto"`` and ``sequential="auto"``.

The evidence is a table, ``coarse_evidence.json``, that the accuracy benchmark writes: for each family of networks,
number of segments and kind, the mean error over some seeds, the original's, and what the coarse blocks cost.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from pararealize.analysis.blocks import BlockChain

from .family import family_of

__all__ = [
    "DEFAULT",
    "Choice",
    "Evidence",
    "Front",
    "choose",
    "choose_from",
    "choose_front",
    "evidence",
    "front_from",
]

DEFAULT = "bottleneck"  # where no network of the kind was tried: it learnt in all families that were
ROUNDING = 1e-4  # of shares, which stand in the table with five digits


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one kind of coarse block was seen to do in one family at one n.

    Attributes:
        family: one of :data:`~pararealize.coarse.family.FAMILIES`.
        data: the data set.
        n: segments.
        kind: of the coarse blocks.
        source: what the adapters read.
        error: mean test error over the seeds, from 0 to 1.
        deviation: its standard deviation.
        original: the original's mean test error after equally many epochs.
        original_deviation: its standard deviation.
        seeds: how many.
        coarse_share: FLOPs of all coarse blocks, of the original's.
        stem_share: how many of the network's blocks were in the stem, from 0 to 1.
    """

    family: str
    data: str
    n: int
    kind: str
    source: str
    error: float
    deviation: float
    original: float
    original_deviation: float
    seeds: int
    coarse_share: float
    stem_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """A coarse kind, what adapters read (None: as without evidence), and why."""

    kind: str
    source: str | None
    why: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """How many of the first blocks stay sequential, and why."""

    blocks: int
    why: str


@cache
def evidence() -> tuple[Evidence, ...]:
    """The rows of the table that comes with the package."""
    table = json.loads(resources.files(__package__).joinpath("coarse_evidence.json").read_text(encoding="utf-8"))
    return tuple(Evidence(**row) for row in table["rows"])


def choose(chain: BlockChain, n: int, *, sequential: int = 0) -> Choice:
    """The coarse kind for a network cut into n segments: see :func:`choose_from`.

    Args:
        chain: the network's blocks.
        n: the number of segments.
        sequential: how many of the first blocks run as in the original, as if they belonged to the stem.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> choice = choose(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3)
        >>> choice.kind in ("linear", "bottleneck", "depthwise"), choice.source
        (True, 'stem')
    """
    share = sequential / len(chain.blocks)
    return choose_from(evidence(), family_of(chain), n, stem_share=share)


def choose_from(rows: Iterable[Evidence], family: str | None, n: int, *, stem_share: float = 0.0) -> Choice:
    """The cheapest kind of a family whose mean error was not above the original's, on every data set tried at that n.

    More segments are harder, so what counts is the smallest n tried that is no smaller than this one, or else the
    largest. Where no kind did as well as the original, the one with the smallest excess is taken, and ``why`` says so;
    where the family is unknown or was not tried, ``DEFAULT``. A deeper stem makes it easier: of networks with some of
    their blocks in it, those count that had no larger share there; and where another had, and learnt, ``why`` says so.
    """
    rows = [row for row in rows if row.family == family]
    comparable = [row for row in rows if row.stem_share <= stem_share + ROUNDING]
    if not comparable:
        what = f"no network of {family} was tried" if family else "its blocks are of no family that was tried"
        return Choice(kind=DEFAULT, source=None, why=f"the default, since {what}")
    tried = sorted({row.n for row in comparable})
    at = next((m for m in tried if m >= n), tried[-1])
    trials = _trials([row for row in comparable if row.n == at])
    equals = {key: trial for key, trial in trials.items() if _excess(trial) <= 0}
    if equals:
        (kind, source, _), trial = min(equals.items(), key=lambda item: (_share(item[1]), item[0]))
        verdict, advice = "the cheapest that learnt as well as the original", ""
    else:
        (kind, source, _), trial = min(trials.items(), key=lambda item: (_excess(item[1]), item[0]))
        verdict = "the nearest to the original, which none reached,"
        advice = _advice([row for row in rows if row.n == at], stem_share)
    results = "; ".join(_result(row) for row in trial)
    return Choice(kind=kind, source=source, why=f"{verdict} for {family} at n = {at} ({results}){advice}")


def choose_front(chain: BlockChain, n: int) -> Front:
    """How many of the first blocks of a network in n segments stay sequential: see :func:`front_from`.

    Args:
        chain: the network's blocks.
        n: the number of segments.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> front = choose_front(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3)
        >>> front.blocks
        2
    """
    return front_from(evidence(), family_of(chain), n, len(chain.blocks))


def front_from(rows: Iterable[Evidence], family: str | None, n: int, blocks: int) -> Front:
    """The smallest share of first blocks with which a family learnt as well as the original, with some coarse kind.

    Of a share, a kind and a data set what counts is the smallest n tried that is no smaller than this one, or else the
    largest; shares and kinds that were tried on fewer data sets than others do not count. Where no share did as well,
    the one that came nearest is taken, and ``why`` says so; none, where the family is unknown or was not tried.

    Args:
        rows: the evidence.
        family: of the network; None where it is of none.
        n: the number of segments.
        blocks: how many the network has.
    """
    nearest: dict[tuple[float, str, str, str], Evidence] = {}  # by share, kind, source and data set
    for row in rows:
        key = row.stem_share, row.kind, row.source, row.data
        if row.family == family and (key not in nearest or _rank(row, n) < _rank(nearest[key], n)):
            nearest[key] = row
    if not nearest:
        return Front(
            blocks=0, why=f"no network of {family} was tried" if family else "its blocks are of no family known"
        )
    trials = [(trial, key[-1]) for key, trial in _trials(list(nearest.values())).items()]
    reached = [(share, _excess(trial), trial) for trial, share in trials if _excess(trial) <= 0]
    if reached:
        share, _, trial = min(reached, key=lambda one: one[:2])
        verdict = "the smallest share that learnt as well as the original"
    else:
        trial, share = min(trials, key=lambda one: (_excess(one[0]), one[1]))
        verdict = "the share that came nearest to the original, which none reached,"
    results = "; ".join(f"n = {row.n}, {_result(row)}" for row in trial)
    return Front(blocks=round(share * blocks), why=f"{verdict} for {family}, with {trial[0].kind} ({results})")


def _rank(row: Evidence, n: int) -> tuple[bool, int]:
    """Less for evidence that says more of n segments: of as many or few more, and otherwise of the most."""
    return row.n < n, row.n if row.n >= n else -row.n


def _trials(rows: Sequence[Evidence]) -> dict[tuple[str, str, float], list[Evidence]]:
    """Rows by kind, source and share of the stem; of these trials, those on the most data sets."""
    trials: dict[tuple[str, str, float], list[Evidence]] = {}
    for row in rows:
        trials.setdefault((row.kind, row.source, row.stem_share), []).append(row)
    most = max(map(len, trials.values()))
    return {key: trial for key, trial in trials.items() if len(trial) == most}


def _advice(rows: Sequence[Evidence], stem_share: float) -> str:
    """The shallowest of the deeper stems with which a kind learnt as well as the original, if any did."""
    deeper = [
        (share, _share(trial), kind)
        for (kind, _, share), trial in _trials(rows).items()
        if share > stem_share + ROUNDING and _excess(trial) <= 0
    ]
    if not deeper:
        return ""
    share, _, kind = min(deeper)
    return f'; with {share:.0%} of the blocks sequential in front (sequential=...), "{kind}" reached it'


def _excess(trial: Iterable[Evidence]) -> float:
    """By how much the error exceeds the original's, on the data set where it does so most."""
    return max(row.error - row.original for row in trial)


def _share(trial: Sequence[Evidence]) -> float:
    """The cost of the coarse blocks, of the original's, averaged over data sets."""
    return sum(row.coarse_share for row in trial) / len(trial)


def _result(row: Evidence) -> str:
    error, original = (
        f"{100 * mean:.1f} ± {100 * deviation:.1f}%"
        for mean, deviation in ((row.error, row.deviation), (row.original, row.original_deviation))
    )
    return f"{row.data}: {error} against {original}, {row.seeds} seeds"
