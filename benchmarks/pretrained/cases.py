"""The networks, how they are cut, and with which coarse kinds: plain data, and a name for every case."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any, Literal

__all__ = ["CASES", "GOALS", "NETWORKS", "Case", "Distillation", "Goal", "Schedule"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a network is cut.

    Attributes:
        n: segments of a window.
        windows: how many, or the numbers of the blocks at which they begin; None for what ``sequential`` leaves.
        sequential: numbers of blocks that stay as they are; ``"changing"`` for those that change the space.
        cuts: numbers of the blocks at which segments begin within windows; None to balance them.
        halves: whether blocks are halves of layers, attention and MLP in turn (``granularity="finest"``).
    """

    n: int
    windows: int | tuple[int, ...] | None = None
    sequential: tuple[int, ...] | str = ()
    cuts: tuple[int, ...] | None = None
    halves: bool = False

    def options(self, names: list[str], changing: list[str] | None = None) -> dict[str, Any]:
        """The options of ``pararealize``, given the names of all blocks, and of those that change the space."""
        options: dict[str, Any] = {"n": self.n}
        if self.windows is not None:
            options["windows"] = self.windows if isinstance(self.windows, int) else [names[i] for i in self.windows]
        if self.sequential == "changing":
            options["sequential"] = changing or []
        elif self.sequential:
            options["sequential"] = [names[int(i)] for i in self.sequential]
        if self.cuts is not None:
            options["cuts"] = [names[i] for i in self.cuts]
        return options


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Distillation:
    """How classes are distilled: options of ``fine_tune`` that differ from case to case.

    Attributes:
        lr: the largest rate.
        loss: ``"kl"``, or ``"cross_entropy"``: half of it the labels'.
        temperature: of the softmax.
        match: the weight of the windows' ends.
    """

    lr: float = 1e-3
    loss: Literal["kl", "cross_entropy"] = "kl"
    temperature: float = 1.0
    match: float = 0.0

    @property
    def text(self) -> str:
        """What differs from the usual, in words."""
        parts = (
            f"rate {self.lr:g}" if self.lr != USUAL.lr else "",
            "half labels" if self.loss == "cross_entropy" else "",
            f"temperature {self.temperature:g}" if self.temperature != USUAL.temperature else "",
            f"match {self.match:g}" if self.match else "",
        )
        return ", ".join(filter(None, parts))


USUAL = Distillation()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network, a schedule, a coarse kind, and how it is distilled.

    Attributes:
        network: a key of ``SCHEDULES``.
        schedule: a key of the network's schedules.
        coarse: the coarse kind.
        steps: of distillation; 0 for none.
        fitted: batches of sentences that MiniLM is fitted to in closed form.
        emphasis: weight of the sentences' embeddings beside the words' values in MiniLM's loss.
        distillation: of the networks that tell classes of Fashion-MNIST.
        seed: of the original's first weights, and of the order of the images; of the networks that are trained here.
    """

    network: str
    schedule: str
    coarse: str
    steps: int = 0
    fitted: int = 16
    emphasis: int = 1
    distillation: Distillation = USUAL
    seed: int = 0

    @property
    def name(self) -> str:
        """As it stands in results.json; the same with and without distillation but for its end."""
        return "; ".join(filter(None, (self.network, self.schedule, self.coarse, *self.how)))

    @property
    def how(self) -> list[str]:
        """What is not the usual, in words."""
        return list(filter(None, (self.fit, self.training, f"seed {self.seed}" if self.seed else "")))

    @property
    def fit(self) -> str:
        """What it is fitted to, in words; empty where that is the usual."""
        return f"fitted to {self.fitted} batches" if self.fitted != 16 else ""

    @property
    def training(self) -> str:
        """The distillation in words; empty without one."""
        emphasis = f"embeddings × {self.emphasis}" if self.emphasis > 1 else ""
        return ", ".join(filter(None, (f"{self.steps} steps", emphasis, self.distillation.text))) if self.steps else ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a figure should be, at which predicted speed-up or a higher one."""

    figure: str
    least: float
    speedup: float
    text: str


SCHEDULES = {
    "minilm": {
        "two pairs in the middle": Schedule(n=2, windows=(1, 3), sequential=(0, 5)),
        "two pairs in the middle, then attention and MLP at once": Schedule(
            n=2, windows=(2, 6, 10), sequential=(0, 1), cuts=(4, 8, 11), halves=True
        ),
        "attention and MLP at once, then two pairs": Schedule(
            n=2, windows=(0, 2, 6), sequential=(10, 11), cuts=(1, 4, 8), halves=True
        ),
        "three pairs": Schedule(n=2, windows=3),
        "3 + 2 + 1": Schedule(n=3, windows=(0, 3, 5)),
        "two triples": Schedule(n=3, windows=2),
        "two triples, the last MLP behind": Schedule(n=3, windows=(0, 6, 11), cuts=(2, 4, 8, 10), halves=True),
        "2 + 2½ layers, then the last three halves": Schedule(
            n=3, windows=(0, 4, 9), cuts=(2, 6, 8, 10, 11), halves=True
        ),
        "2 + 2 layers, then the last four halves": Schedule(
            n=4, windows=(0, 4, 8), cuts=(2, 6, 9, 10, 11), halves=True
        ),
        "4 + 2": Schedule(n=4, windows=(0, 4)),
        "first attention; MLP to attention, three at once; MLP beside attention; three halves": Schedule(
            n=3, windows=(1, 7), sequential=(0, 9, 10, 11), cuts=(3, 5, 8), halves=True
        ),
        "first attention; MLP to attention, 3½ at once; two layers": Schedule(
            n=4, windows=(1,), sequential=(0, 8, 9, 10, 11), cuts=(3, 5, 7), halves=True
        ),
        "first attention; MLP to attention, four at once; three halves": Schedule(
            n=4, windows=(1,), sequential=(0, 9, 10, 11), cuts=(3, 5, 7), halves=True
        ),
        "first attention; MLP to attention, 4½ at once; a layer": Schedule(
            n=5, windows=(1,), sequential=(0, 10, 11), cuts=(3, 5, 7, 9), halves=True
        ),
        "first attention; MLP to attention, five at once; last MLP": Schedule(
            n=5, windows=(1,), sequential=(0, 11), cuts=(3, 5, 7, 9), halves=True
        ),
        "one window of 2 × 3": Schedule(n=2, windows=1),
        "one window of 3 × 2": Schedule(n=3, windows=1),
    },
    "efficientnet-lite0": {
        "three pairs of one space": Schedule(n=2, sequential=(0, 1, 2, 3, 4, 5, 8, 11, 12, 15)),
        "runs of one space, n = 2": Schedule(n=2, sequential="changing"),
        "runs of one space, n = 3": Schedule(n=3, sequential="changing"),
        "one window, n = 2": Schedule(n=2, windows=1),
    },
    "efficientnet-lite2": {
        "five pairs of one space": Schedule(n=2, sequential=(0, 1, 4, 7, 8, 11, 12, 15, 16, 19, 20)),
        "pairs and triples of one space": Schedule(n=3, sequential=(0, 1, 4, 7, 11, 15, 16, 19, 20)),
        "pairs and triples, twice two in the last space": Schedule(
            n=3, windows=(2, 5, 8, 12, 16, 18), sequential=(0, 1, 4, 7, 11, 15, 20)
        ),
        "runs of one space, n = 2": Schedule(n=2, sequential="changing"),
        "runs of one space, n = 4": Schedule(n=4, sequential="changing"),
    },
    "fashion-mnist": {
        "runs of one space, n = 4": Schedule(n=4, sequential="changing"),
        "runs of one space, n = 6": Schedule(n=6, sequential="changing"),
        "three windows a stage, n = 4": Schedule(n=4, windows=(0, 4, 8, 13, 17, 21, 25, 29, 33), sequential=(12, 24)),
        "two windows a stage, n = 6": Schedule(n=6, windows=(0, 6, 13, 19, 25, 31), sequential=(12, 24)),
        "two blocks first, n = 5 and 4": Schedule(
            n=5, windows=(2, 7, 13, 17, 21, 25, 29, 33), sequential=(0, 1, 12, 24)
        ),
        "two blocks first, n = 5 and 6": Schedule(n=6, windows=(2, 7, 13, 19, 25, 31), sequential=(0, 1, 12, 24)),
        "four blocks first, n = 4 and 6": Schedule(
            n=6, windows=(4, 8, 13, 19, 25, 31), sequential=(0, 1, 2, 3, 12, 24)
        ),
        "two blocks first, n = 5 and 6, the last stage at once": Schedule(
            n=11, windows=(2, 7, 13, 19, 25), sequential=(0, 1, 12, 24)
        ),
        "two blocks first, n = 5 and 4, the last stage at once": Schedule(
            n=11, windows=(2, 7, 13, 17, 21, 25), sequential=(0, 1, 12, 24)
        ),
        "one block first, n = 6 and 4, the last stage at once": Schedule(
            n=11, windows=(1, 7, 13, 17, 21, 25), sequential=(0, 12, 24)
        ),
        "two blocks first, n = 10 and 4, the last stage at once": Schedule(
            n=11, windows=(2, 13, 17, 21, 25), sequential=(0, 1, 12, 24)
        ),
        "three blocks first, n = 9 and 6, the last stage at once": Schedule(
            n=11, windows=(3, 13, 19, 25), sequential=(0, 1, 2, 12, 24)
        ),
        "2 + 3 + 3 windows, n = 6 and 4": Schedule(n=6, windows=(0, 6, 13, 17, 21, 25, 29, 33), sequential=(12, 24)),
    },
    "fashion-resnet56": {
        "two windows a stage, n = 5": Schedule(n=5, windows=(0, 5, 10, 14, 19, 23), sequential=(9, 18)),
        "two windows a stage, all blocks, n = 5": Schedule(n=5, windows=(0, 5, 9, 14, 18, 23)),
    },
    "fashion-vit": {
        "pairs": Schedule(n=2, windows=6),
        "three windows of 4": Schedule(n=4, windows=3),
        "two windows of 6": Schedule(n=6, windows=2),
    },
}
NETWORKS = tuple(SCHEDULES)
GOALS = {
    "minilm": (
        Goal(figure="cosine", least=0.98, speedup=1.5, text="cosine of 0.98 at 1.5×"),
        Goal(figure="cosine", least=0.95, speedup=2.0, text="cosine of 0.95 at 2×"),
    ),
    "efficientnet-lite0": (Goal(figure="agreement", least=0.8, speedup=1.1, text="80% the same class at 1.1×"),),
    "efficientnet-lite2": (Goal(figure="agreement", least=0.8, speedup=1.4, text="80% the same class at 1.4×"),),
    **dict.fromkeys(
        ("fashion-mnist", "fashion-resnet56", "fashion-vit"),
        (Goal(figure="kept", least=-0.005, speedup=3.0, text="at most 0.5 points lost at 3×"),),
    ),
}


def _several(network: str, schedule: str, *kinds: str, steps: dict[str, int] | None = None) -> list[Case]:
    """Cases of coarse kinds, fitted in closed form, or distilled for so many steps."""
    several = dict.fromkeys(kinds, 0) | (steps or {})
    return [Case(network=network, schedule=schedule, coarse=kind, steps=many) for kind, many in several.items()]


def _recipes(
    network: str, schedule: str, kind: str, *ways: Distillation, steps: int = 94, seeds: tuple[int, ...] = (0,)
) -> list[Case]:
    """Cases that differ in how they are distilled, and in the original's seed."""
    return [
        Case(network=network, schedule=schedule, coarse=kind, steps=steps, distillation=way, seed=seed)
        for seed in seeds
        for way in ways
    ]


def _within_layers(rest: str, *steps: int) -> list[Case]:
    """MiniLM in windows that begin behind its first attention, for so many steps each."""
    schedule = f"first attention; MLP to attention, {rest}"
    return [
        Case(network="minilm", schedule=schedule, coarse="dense", steps=many, fitted=64, emphasis=3 if many else 1)
        for many in steps
    ]


CASES = [
    *_several("minilm", "three pairs", steps={"low-rank:96": 600}),
    *_several("minilm", "two triples, the last MLP behind", "dense"),
    *_several("minilm", "two triples, the last MLP behind", steps={"dense": 900}),
    Case(network="minilm", schedule="two triples, the last MLP behind", coarse="dense", steps=900, emphasis=3),
    Case(network="minilm", schedule="two triples, the last MLP behind", coarse="dense", steps=1500, emphasis=3),
    *_several("minilm", "two pairs in the middle, then attention and MLP at once", "low-rank:96"),
    *_several("minilm", "attention and MLP at once, then two pairs", "low-rank:96"),
    *_several("minilm", "2 + 2½ layers, then the last three halves", "dense"),
    *_several("minilm", "2 + 2 layers, then the last four halves", "dense"),
    *_several("minilm", "two pairs in the middle", "dense"),
    *_several("minilm", "two pairs in the middle", steps={"dense": 600}),
    Case(network="minilm", schedule="two pairs in the middle", coarse="dense", fitted=64),
    Case(network="minilm", schedule="two pairs in the middle", coarse="dense", fitted=64, steps=1000, emphasis=3),
    *_within_layers("4½ at once; a layer", 1500),
    *_within_layers("3½ at once; two layers", 0),
    *_within_layers("three at once; MLP beside attention; three halves", 0, 600),
    *_within_layers("four at once; three halves", 0),
    *_within_layers("five at once; last MLP", 0),
    *_several("minilm", "3 + 2 + 1", "dense"),
    *_several("minilm", "two triples", "dense"),
    *_several("efficientnet-lite0", "three pairs of one space", "linear", "dense"),
    *_several("efficientnet-lite0", "runs of one space, n = 3", "linear", "dense"),
    *_several("efficientnet-lite2", "pairs and triples of one space", "dense"),
    *_several("efficientnet-lite2", "pairs and triples of one space", steps={"dense": 100}),
    *_several("efficientnet-lite2", "five pairs of one space", "dense"),
    *_several("efficientnet-lite2", "pairs and triples, twice two in the last space", steps={"dense": 100}),
    *_several("efficientnet-lite0", "runs of one space, n = 3", steps={"dense": 100}),
    *_several("efficientnet-lite2", "runs of one space, n = 4", "linear", "dense"),
    *_several("efficientnet-lite0", "one window, n = 2", "linear"),
    *_several("efficientnet-lite2", "runs of one space, n = 2", "dense"),
    *_several("fashion-mnist", "three windows a stage, n = 4", steps={"folded": 94, "low-rank:8": 94}),
    *_several("fashion-mnist", "two blocks first, n = 5 and 4", steps={"folded": 94, "low-rank:8": 94}),
    *_several("fashion-mnist", "two blocks first, n = 5 and 6", steps={"folded": 94}),
    *_several("fashion-mnist", "four blocks first, n = 4 and 6", steps={"folded": 94}),
    *_several("fashion-mnist", "two windows a stage, n = 6", steps={"low-rank:8": 94}),
    *_several("fashion-mnist", "runs of one space, n = 4", steps={"low-rank:8": 94}),
    *_several("fashion-mnist", "runs of one space, n = 6", steps={"low-rank:8": 94}),
    *_several("fashion-vit", "three windows of 4", steps={"dense": 94}),
    *_several("fashion-vit", "two windows of 6", steps={"dense": 94}),
    *_recipes(
        "fashion-vit",
        "three windows of 4",
        "dense",
        Distillation(lr=3e-3, loss="cross_entropy"),
        Distillation(lr=3e-4, match=0.1),
    ),
    *_recipes(
        "fashion-mnist",
        "2 + 3 + 3 windows, n = 6 and 4",
        "dense",
        Distillation(lr=3e-3, loss="cross_entropy"),
        Distillation(lr=3e-3, temperature=2.0),
        Distillation(lr=3e-3),
    ),
    *_recipes(
        "fashion-mnist",
        "two blocks first, n = 5 and 6",
        "folded",
        Distillation(match=0.1),
        Distillation(loss="cross_entropy"),
    ),
    *_recipes(
        "fashion-mnist",
        "two blocks first, n = 5 and 6, the last stage at once",
        "folded",
        Distillation(loss="cross_entropy", match=0.1),
        seeds=(0, 1, 2),
    ),
    *_recipes(
        "fashion-mnist",
        "two blocks first, n = 5 and 4, the last stage at once",
        "folded",
        Distillation(loss="cross_entropy"),
        seeds=(0, 1, 2),
    ),
    *_recipes(
        "fashion-mnist",
        "two blocks first, n = 5 and 6, the last stage at once",
        "folded",
        Distillation(loss="cross_entropy"),
    ),
    *_recipes("fashion-mnist", "two blocks first, n = 5 and 4, the last stage at once", "folded", Distillation()),
    *itertools.chain.from_iterable(
        _recipes(
            "fashion-mnist",
            f"{first}, the last stage at once",
            "folded",
            Distillation(loss="cross_entropy"),
            seeds=(0, 1, 2),
        )
        for first in (
            "three blocks first, n = 9 and 6",
            "two blocks first, n = 10 and 4",
            "one block first, n = 6 and 4",
        )
    ),
    *_several("fashion-resnet56", "two windows a stage, all blocks, n = 5", steps={"dense": 94}),
    *_several("fashion-resnet56", "two windows a stage, n = 5", steps={"dense": 94}),
    *_several("minilm", "4 + 2", "dense"),
    *_several("minilm", "one window of 2 × 3", "dense"),
    *_several("minilm", "one window of 3 × 2", "dense"),
    *_several("minilm", "three pairs", "linear", "dense"),
    *_several("minilm", "two triples", "linear"),
]  # in the order in which they are run: what decides the goals first
