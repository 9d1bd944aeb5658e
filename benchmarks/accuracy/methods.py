"""The name of a method and a family -> the network to train, and what it costs beside the original.

``original`` is the family's own network; ``12-linear`` a parareal network of twelve segments with coarse blocks of that
kind, whose adapters read the stem; ``12-linear@input`` one whose adapters read the images, as the paper's do;
``6-linear~4`` one with the first four blocks sequential, and so in front of the adapters, ``6-linear~auto`` one with as
many as the planner takes. ``12x3-linear`` has three windows of up to twelve segments each, ``12xauto-linear`` as many
windows as the planner finds free. Ablations have a word behind a plus sign: see :data:`ABLATIONS`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pararealize import Plan, pararealize

from .networks import FAMILIES, build

__all__ = ["ABLATIONS", "Method", "count", "make", "method_of", "shares"]

ABLATIONS = {
    "none": "no coarse network: z_{j+1} = y_{j+1}, so that only the last segment is heard",
    "adapters": "adapters stay as they were drawn",
    "coarse": "coarse blocks stay as they were drawn",
    "wide": "the original, widened to as many parameters",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """How a network is made from an original.

    Attributes:
        n: segments of a window, at most; 0 for the original itself.
        kind: of the coarse blocks.
        source: what adapters of the first window read.
        ablation: what is taken away, one of ``ABLATIONS``; empty for nothing.
        stem_blocks: how many of the first blocks are sequential, or ``"auto"`` for what the planner takes.
        windows: how many, or ``"auto"`` for the most that the planner finds free.
    """

    n: int
    kind: str
    source: str
    ablation: str
    stem_blocks: int | Literal["auto"] = 0
    windows: int | Literal["auto"] = 1

    @property
    def windowed(self) -> bool:
        """Whether there may be several windows."""
        return self.windows != 1

    @property
    def reads(self) -> str:
        """What adapters read, in words."""
        return f"{self.source}, {self.stem_blocks} blocks" if self.stem_blocks else self.source

    @property
    def order(self) -> int:
        """By which methods are listed: by how many blocks are sequential, where the name says it."""
        return 0 if self.stem_blocks == "auto" else self.stem_blocks


def method_of(name: str) -> Method:
    """The method of a name such as ``original``, ``12-linear@input``, ``12x3-linear`` or ``6-bottleneck+adapters``."""
    if name == "original":
        return Method(n=0, kind="", source="", ablation="")
    name, _, ablation = name.partition("+")
    name, _, source = name.partition("@")
    name, _, stem = name.partition("~")
    size, _, kind = name.partition("-")
    n, _, windows = size.partition("x")
    if ablation and ablation not in ABLATIONS:
        raise SystemExit(f"{ablation}: no such ablation; there are {', '.join(ABLATIONS)}")
    return Method(
        n=int(n), kind=kind, source=source or "stem", ablation=ablation,
        stem_blocks="auto" if stem == "auto" else int(stem or 0),
        windows="auto" if windows == "auto" else int(windows or 1),
    )  # fmt: skip


class Silence(nn.Module):
    """``r ↦ 0``, of the next interface's shape."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, *any) -> (batch, *shape)``, zeros."""
        return r.new_zeros(len(r), *self.shape)


def _silence(_segment: nn.Module, _x: tuple[int, ...], y: tuple[int, ...]) -> nn.Module:
    return Silence(y)


def make(method: Method, family: str, shape: tuple[int, int, int], classes: int, *, seed: int) -> nn.Module:
    """The network, drawn from the seed: the original's weights are the same for every method of one seed."""
    torch.manual_seed(seed)
    original = build(family, shape, classes)
    if not method.n:
        return original
    coarse: Any = method.kind
    if method.ablation == "none":
        coarse = _silence
    images = torch.randn(2, *shape)
    net = pararealize(
        original, method.n, example_inputs=images, coarse=coarse, source=method.source, windows=method.windows,
        sequential=method.stem_blocks, seed=seed,
    )  # fmt: skip
    if method.ablation == "wide":
        return _widened(family, shape, classes, count(net), seed)
    if method.ablation in ("adapters", "coarse"):
        getattr(net, method.ablation).requires_grad_(False)
    return net


def count(net: nn.Module) -> int:
    """Parameters."""
    return sum(parameter.numel() for parameter in net.parameters())


def _widened(family: str, shape: tuple[int, int, int], classes: int, least: int, seed: int) -> nn.Module:
    """The narrowest original of at least so many parameters, in steps that the heads of attention divide."""
    step = 4 if FAMILIES[family].tokens else 1
    for width in range(step, 1024, step):
        torch.manual_seed(seed)
        net = build(family, shape, classes, width=width)
        if count(net) >= least:
            return net
    raise AssertionError(f"no {family} has {least} parameters")


def shares(plan: Plan) -> dict[str, float]:
    """Coarse blocks' and adapters' FLOPs, of the original's; the share of blocks in front of them; speed-ups.

    ``speedup`` takes coarse blocks in a row, ``summed_speedup`` adds linear ones up over ranks where that is faster.
    """
    whole = [plan.stem, *plan.segments, plan.head]
    flops = {
        name: sum(row.flops_forward + row.flops_backward for row in rows)  # type: ignore[attr-defined]
        for name, rows in (("original", whole), ("coarse", plan.coarse_blocks), ("adapters", plan.adapters))
    }
    front = itertools.takewhile(lambda window: window.sequential, plan.windows if plan.n > 1 else ())
    sequential = sum(segment.blocks for window in front for segment in window.segments)
    return {
        "coarse_share": flops["coarse"] / flops["original"],
        "adapter_share": flops["adapters"] / flops["original"],
        "stem_share": sequential / sum(segment.blocks for segment in plan.segments),
        "speedup": plan.virtual_speedup,
        "summed_speedup": plan.speedup,
        "windows": len(plan.windows),
        "segments": max(window.n for window in plan.windows) if plan.windows else 1,
    }
