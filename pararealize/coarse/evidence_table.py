"""BlockChain and n in, a coarse kind and a source of adapters out: ``coarse="auto"``, the cheapest seen to learn well.

The evidence is a table, ``coarse_evidence.json``, that the accuracy benchmark writes: for each family of networks,
number of segments and kind, the mean error over some seeds, the original's, and what the coarse blocks cost.
"""

from __future__ import annotations

import json
import operator
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.nn import functional

from pararealize.analysis.residual import Residual, residual_of

if TYPE_CHECKING:
    from pararealize.analysis.blocks import Block, BlockChain

__all__ = ["DEFAULT", "FAMILIES", "Choice", "Evidence", "choose", "choose_from", "evidence", "family_of"]

FAMILIES = ("residual convolutions", "plain convolutions", "attention", "residual mixing")
DEFAULT = "bottleneck"  # where no network of the kind was tried: it learnt in all families that were

ROUNDING = 1e-4  # of shares, which stand in the table with five digits

_ATTENTION = {functional.scaled_dot_product_attention, torch._C._nn.scaled_dot_product_attention}
_SOFTMAX = {torch.softmax, functional.softmax}
_PRODUCTS = {torch.matmul, torch.bmm, torch.einsum, operator.matmul}
_CONVOLUTIONS = {functional.conv1d, functional.conv2d, functional.conv3d, torch.conv1d, torch.conv2d, torch.conv3d}


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one kind of coarse block was seen to do in one family at one n.

    Attributes:
        family: one of ``FAMILIES``.
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


@cache
def evidence() -> tuple[Evidence, ...]:
    """The rows of the table that comes with the package."""
    table = json.loads(resources.files(__package__).joinpath("coarse_evidence.json").read_text(encoding="utf-8"))
    return tuple(Evidence(**row) for row in table["rows"])


def choose(chain: BlockChain, n: int) -> Choice:
    """The coarse kind for a network cut into n segments: see :func:`choose_from`.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> choice = choose(find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32))), 3)
        >>> choice.kind in ("linear", "bottleneck", "depthwise"), choice.source
        (True, 'stem')
    """
    share = chain.stem_blocks / (chain.stem_blocks + len(chain.blocks))
    return choose_from(evidence(), family_of(chain), n, stem_share=share)


def choose_from(rows: Iterable[Evidence], family: str | None, n: int, *, stem_share: float = 0.0) -> Choice:
    """The cheapest kind of a family whose mean error was not above the original's, on every data set tried at that n.

    More segments are harder, so what counts is the smallest n tried that is no smaller than this one, or else the
    largest. Where no kind did as well as the original, the one with the smallest excess is taken, and ``why`` says so;
    where the family is unknown or was not tried, ``DEFAULT``. A deeper stem makes it easier: of networks with some of
    their blocks in it, those count that had no larger share there; and where another had, and learnt, ``why`` says so.
    """
    every = [row for row in rows if row.family == family]
    known = [row for row in every if row.stem_share <= stem_share + ROUNDING]
    if not known:
        what = f"no network of {family} was tried" if family else "its blocks are of no family that was tried"
        return Choice(kind=DEFAULT, source=None, why=f"the default, since {what}")
    tried = sorted({row.n for row in known})
    at = next((m for m in tried if m >= n), tried[-1])
    kinds = _by_kind([row for row in known if row.n == at])
    enough = {key: found for key, found in kinds.items() if _excess(found) <= 0}
    if enough:
        (kind, source, _), found = min(enough.items(), key=lambda item: (_share(item[1]), item[0]))
        verdict, advice = "the cheapest that learnt as well as the original", ""
    else:
        (kind, source, _), found = min(kinds.items(), key=lambda item: (_excess(item[1]), item[0]))
        verdict = "the nearest to the original, which none reached,"
        advice = _advice([row for row in every if row.n == at], stem_share)
    seen = "; ".join(_seen(row) for row in found)
    return Choice(kind=kind, source=source, why=f"{verdict} for {family} at n = {at} ({seen}){advice}")


def _by_kind(rows: Sequence[Evidence]) -> dict[tuple[str, str, float], list[Evidence]]:
    """Rows of one kind, source and stem, of those that were tried on the most data sets."""
    found: dict[tuple[str, str, float], list[Evidence]] = {}
    for row in rows:
        found.setdefault((row.kind, row.source, row.stem_share), []).append(row)
    most = max(map(len, found.values()))
    return {key: own for key, own in found.items() if len(own) == most}


def _advice(rows: Sequence[Evidence], stem_share: float) -> str:
    """The shallowest of the deeper stems with which a kind learnt as well as the original, if any did."""
    enough = [own for own in _by_kind(rows).values() if own[0].stem_share > stem_share + ROUNDING and _excess(own) <= 0]
    if not enough:
        return ""
    best = min((found[0].stem_share, _share(found), found[0].kind) for found in enough)
    return f'; with {best[0]:.0%} of the blocks in the stem (stem_blocks), "{best[2]}" reached it'


def _excess(rows: Iterable[Evidence]) -> float:
    """By how much the error exceeds the original's, where it does so most."""
    return max(row.error - row.original for row in rows)


def _share(rows: list[Evidence]) -> float:
    return sum(row.coarse_share for row in rows) / len(rows)


def _seen(row: Evidence) -> str:
    own, original = (
        f"{100 * error:.1f} ± {100 * deviation:.1f}%"
        for error, deviation in ((row.error, row.deviation), (row.original, row.original_deviation))
    )
    return f"{row.data}: {own} against {original}, {row.seeds} seeds"


# ------------------------------------------------------------------------------------------------------------ families


def family_of(chain: BlockChain) -> str | None:
    """Which of ``FAMILIES`` the blocks belong to, by the commonest of those that keep their space; None for others.

    - ``"attention"``: a product, a softmax and another product, or torch's own attention.
    - ``"residual convolutions"`` and ``"plain convolutions"``: maps, with and without x + f(x).
    - ``"residual mixing"``: x + f(x) on tokens without attention, as in MLP-Mixer.
    """
    kept = [block for block in chain.blocks if block.x == block.y] or list(chain.blocks)
    commonest = Counter(block.exact_signature for block in kept).most_common(1)[0][0]
    block = next(block for block in kept if block.exact_signature == commonest)
    if _attends(chain, block):
        return "attention"
    residual = isinstance(residual_of(chain, block), Residual)
    if _convolves(chain, block):
        return "residual convolutions" if residual else "plain convolutions"
    tokens = len(block.x.extent) == 1 and block.x.channels_last
    return "residual mixing" if residual and tokens else None


def _attends(chain: BlockChain, block: Block) -> bool:
    modules = list(_modules(chain, block))
    if any(isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in modules):
        return True
    called = {node.target for node in block.nodes if node.op in ("call_function", "call_method")}
    if called & _ATTENTION or "scaled_dot_product_attention" in called:
        return True
    softened = bool(called & _SOFTMAX or "softmax" in called or any(isinstance(m, nn.Softmax) for m in modules))
    return softened and bool(called & _PRODUCTS or called & {"matmul", "bmm"})


def _convolves(chain: BlockChain, block: Block) -> bool:
    called = {node.target for node in block.nodes if node.op == "call_function"}
    return bool(called & _CONVOLUTIONS) or any(
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) for module in _modules(chain, block)
    )


def _modules(chain: BlockChain, block: Block) -> Iterable[Any]:
    """All modules that a block calls, and those within them."""
    called = [node for node in block.nodes if isinstance(node, fx.Node) and node.op == "call_module"]
    for node in called:
        yield from chain.capture.graph_module.get_submodule(str(node.target)).modules()
