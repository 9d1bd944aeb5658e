"""A space, a kind -> linear maps that give back what the segments of a window miss of one another: K^{m,j} and C^{m,j}.

With linear coarse blocks and adapters that are identities, a window of residual blocks ends with

    w_m = w_{m-1} + Σ_j d_j,    d_j = y_j - x_j,

a sum in which no segment has seen what the others add. What it misses is, to a good part, a linear function of w_{m-1}
and of the d_j. K^{m,j} adds the part that depends on segment j to that segment's output, on its own device, before
anything else reads it:

    y_j ← y_j + b + A_j d_j            (+ A_0 x_j for the first segment, whose x_1 is w_{m-1})

    kind        A is                                   parameters for c channels      operations a position
    "scale"     diagonal, a factor a channel           c                              2c
    "low-rank"  U V, of rank r                         2rc                            4rc
    "dense"     a full matrix                          c²                             2c²
    "folded"    a full matrix, of the part of d_j that the segment's last layer adds; within that layer's weights
                (``folded_map.py``)                    0                              0

The same maps correct adapters that are identities: a segment j > 1 would get u_{j-1} in the original and gets w_{m-1},
and what that lacks is, to a good part, a linear function of w_{m-1} as well:

    x_j = w_{m-1} + b + A w_{m-1}

With ``"folded"`` there is none, and with ``"folded:16"`` one of rank 16.

They map channels alone, so that nothing crosses positions: what is causal stays causal. All weights that matter begin
with nought: the network begins as that of linear coarse blocks, and ``calibrate`` fits them in closed form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from pararealize.analysis.cost import BlockCost
from pararealize.analysis.space import Space
from pararealize.errors import CoarseError
from pararealize.random_state import seeded_weights

from .folded_map import FoldedMap
from .resampling import CONVOLUTIONS

__all__ = [
    "CORRECTIONS",
    "MAPS",
    "CorrectionKind",
    "CorrectionRequest",
    "InputCorrection",
    "MapKind",
    "OutputCorrection",
    "build_correction",
    "build_input_correction",
    "correction_cost",
    "correction_kind",
    "correction_parameters",
    "correction_rank",
    "correction_text",
]

MapKind: TypeAlias = Literal["scale", "low-rank", "dense"]  # of a module of its own
CorrectionKind: TypeAlias = MapKind | Literal["folded"]
MAPS: tuple[MapKind, ...] = ("scale", "low-rank", "dense")
CORRECTIONS: tuple[CorrectionKind, ...] = (*MAPS, "folded")
_SHARE = 8  # of the channels: the rank where none is given
_LEAST = 8
_RANKED = ("low-rank", "folded")
_NAME = re.compile(r"(scale|low-rank|dense|folded)(?::([0-9]{1,6}))?")


@dataclass(frozen=True, slots=True)
class CorrectionRequest:
    """What a name such as ``"low-rank:16"`` asks for; rank 0 where it names none."""

    kind: CorrectionKind
    rank: int

    @property
    def of_adapters(self) -> tuple[MapKind, int] | None:
        """Kind and rank of what stands beside adapters that are identities; ``None`` where nothing does."""
        if self.kind == "folded":  # an adapter has no layer to fold into
            return ("low-rank", self.rank) if self.rank else None
        return self.kind, self.rank


def correction_kind(coarse: object) -> CorrectionRequest | None:
    """The kind and rank of a coarse kind that has output corrections; ``None`` where it is another kind.

    Raises:
        CoarseError: it has a rank where none belongs, or a rank of 0.

    Example:
        >>> correction_kind("low-rank:16").rank, correction_kind("linear")
        (16, None)
    """
    match = _NAME.fullmatch(coarse) if isinstance(coarse, str) else None
    if match is None:
        return None
    kind, rank = match.groups()
    if rank is not None and (kind not in _RANKED or int(rank) < 1):
        raise CoarseError(
            f'coarse = {coarse!r}: only "low-rank" and "folded" have a rank, of 1 or more; pass "low-rank:16" or '
            f"{kind!r}"
        )
    return CorrectionRequest(kind, int(rank or 0))  # type: ignore[arg-type]


def correction_rank(kind: CorrectionKind, rank: int, space: Space) -> int:
    """The rank in a space: as asked for, an eighth of the channels where nothing is; 0 where the kind has none."""
    if kind != "low-rank":
        return 0
    return min(rank or max(_LEAST, -(-space.channels // _SHARE)), space.channels)


def correction_parameters(kind: CorrectionKind, rank: int, space: Space, *, differs: bool, reads_x: bool) -> int:
    """How many parameters it has."""
    if kind == "folded":
        return 0
    with torch.device("meta"):
        module = OutputCorrection(kind, rank, space, differs=differs, reads_x=reads_x)
    return sum(parameter.numel() for parameter in module.parameters())


def correction_cost(kind: CorrectionKind, rank: int, space: Space, *, differs: bool, reads_x: bool) -> BlockCost:
    """What it costs, a sample: two operations for each weight and position forward, and twice that backward."""
    if kind == "folded":
        return BlockCost()
    weights = {"scale": 1, "low-rank": rank, "dense": space.channels}[kind] * (1 + reads_x)
    weights += rank  # U
    flops = 2 * space.numel * weights if kind != "scale" else 0
    elements = space.numel * (1 + differs + (weights if kind == "scale" else 0))
    return BlockCost(
        flops_forward=flops, flops_backward=2 * flops, elements_forward=elements, elements_backward=2 * elements
    )


def build_correction(
    kind: CorrectionKind, rank: int, space: Space, *, differs: bool, reads_x: bool, seed: int, name: str
) -> OutputCorrection | FoldedMap:
    """A correction that is nought as yet.

    Args:
        kind: ``"scale"``, ``"low-rank"``, ``"dense"`` or ``"folded"``.
        rank: of the low-rank kind.
        space: of the segment's output.
        differs: whether it reads ``y - x``; otherwise y alone, where x is of another space.
        reads_x: whether it reads x besides.
        seed: with ``name``, fixes the weights.
        name: such as ``"K2_3"``.
    """
    if kind == "folded":
        return FoldedMap()
    with seeded_weights(seed, name):
        return OutputCorrection(kind, rank, space, differs=differs, reads_x=reads_x)


def build_input_correction(kind: MapKind, rank: int, space: Space, *, seed: int, name: str) -> InputCorrection:
    """An adapter from a space to itself that is the identity as yet; the arguments are :func:`build_correction`'s."""
    with seeded_weights(seed, name):
        return InputCorrection(kind, rank, space)


def correction_text(kind: str, rank: int) -> str:
    """``"low-rank of rank 16"``."""
    return f"{kind} of rank {rank}" if rank else kind


class OutputCorrection(nn.Module):
    """``(x, y) -> y + b + A (y - x) + A_0 x``; see the file's docstring."""

    gain: nn.Parameter | None
    gain_x: nn.Parameter | None
    bias: nn.Parameter | None
    reads_d: nn.Module | None
    reads_x: nn.Module | None
    gives: nn.Module | None

    def __init__(self, kind: MapKind, rank: int, space: Space, *, differs: bool, reads_x: bool) -> None:
        super().__init__()
        self.kind, self.rank, self.differs, self.channel = kind, rank, differs, space.channel
        c, dtype, axes = space.channels, space.torch_dtype, len(space.extent)
        self.gain = self.gain_x = self.bias = self.reads_d = self.reads_x = self.gives = None
        self.convolves = axes > 0 and space.channel == 0 and axes in CONVOLUTIONS
        if kind == "scale":
            self.gain = nn.Parameter(torch.zeros(c, dtype=dtype))
            self.gain_x = nn.Parameter(torch.zeros(c, dtype=dtype)) if reads_x else None
            self.bias = nn.Parameter(torch.zeros(c, dtype=dtype))
            return
        inner = rank if kind == "low-rank" else c
        self.reads_d = self._map(c, inner, axes, dtype, bias=kind == "dense")
        self.reads_x = self._map(c, inner, axes, dtype, bias=False) if reads_x else None
        self.gives = self._map(rank, c, axes, dtype, bias=True) if kind == "low-rank" else None
        for module in (self.gives,) if kind == "low-rank" else (self.reads_d, self.reads_x):
            for parameter in () if module is None else module.parameters():
                nn.init.zeros_(parameter)

    def _map(self, before: int, after: int, axes: int, dtype: torch.dtype, *, bias: bool) -> nn.Module:
        if not self.convolves:
            return nn.Linear(before, after, bias=bias, dtype=dtype)
        module: nn.Module = CONVOLUTIONS[axes](before, after, 1, bias=bias, dtype=dtype)
        return module

    def features(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        """What its maps read: ``y - x``, or y, and x where it reads that."""
        d = y - x if self.differs else y
        return (d, x) if (self.gain_x if self.kind == "scale" else self.reads_x) is not None else (d,)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """``(batch, *space), (batch, *space) -> (batch, *space)``; the first of any space where it is not read."""
        dtype = next(self.parameters()).dtype
        terms = [feature.to(dtype) for feature in self.features(x, y)]
        if self.kind == "scale":
            assert self.bias is not None
            gains = [self._along(gain, y) for gain in (self.gain, self.gain_x) if gain is not None]
            total = self._along(self.bias, y)
            for term, gain in zip(terms, gains, strict=True):
                total = total + term * gain
            return y + total.to(y.dtype)
        maps = [m for m in (self.reads_d, self.reads_x) if m is not None]
        result: Tensor | None = None
        for reads, term in zip(maps, terms, strict=True):
            mapped = reads(self._channels_last(term))
            result = mapped if result is None else result + mapped
        assert result is not None
        if self.gives is not None:
            result = self.gives(result)
        return y + self._back(result).to(y.dtype)

    def _along(self, gain: Tensor, y: Tensor) -> Tensor:
        """A value a channel, as a tensor that multiplies a batch."""
        shape = [1] * y.ndim
        shape[self.channel + 1] = -1
        return gain.view(shape)

    def _channels_last(self, value: Tensor) -> Tensor:
        return value if self.convolves else value.movedim(self.channel + 1, -1)

    def _back(self, value: Tensor) -> Tensor:
        return value if self.convolves else value.movedim(-1, self.channel + 1)

    def extra_repr(self) -> str:
        """The kind and what it reads."""
        return f"{correction_text(self.kind, self.rank)}, of {'y - x' if self.differs else 'y'}"


class InputCorrection(OutputCorrection):
    """``w -> w + b + A w``: an adapter that is the identity, with a correction beside it."""

    def __init__(self, kind: MapKind, rank: int, space: Space) -> None:
        super().__init__(kind, rank, space, differs=False, reads_x=False)

    def forward(self, w: Tensor) -> Tensor:  # type: ignore[override]
        """``(batch, *space) -> (batch, *space)``."""
        return super().forward(w, w)

    def extra_repr(self) -> str:
        """The kind."""
        return f"identity + {correction_text(self.kind, self.rank)}"
