"""Networks whose blocks hand on several values: WaveNet's skips, reversible halves, pre-norm pairs, streams, towers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

__all__ = ["PAIRS", "Mamba", "PairChain", "RevNet", "ScoreResidual", "TwoTower", "WaveNet", "pair_chains"]


class WaveBlock(nn.Module):
    def __init__(self, channels: int, skips: int, dilation: int) -> None:
        super().__init__()
        self.filter, self.gate = (nn.Conv1d(channels, channels, 2, dilation=dilation) for _ in range(2))
        self.out, self.skip, self.dilation = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skips, 1), dilation

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (self.dilation, 0))
        h = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.out(h), self.skip(h)


class WaveNet(nn.Module):
    """Skips that only add up: from 0, from the first on, in place, or all at the end."""

    def __init__(self, start: str = "zero", depth: int = 6) -> None:
        super().__init__()
        self.start, self.front = start, nn.Conv1d(1, 6, 1)
        self.blocks = nn.ModuleList(WaveBlock(6, 4, 2 ** (i % 3)) for i in range(depth))
        self.mix, self.last = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(x)
        total: Any = {"zero": 0, "zeros": torch.zeros(x.shape[0], 4, x.shape[2])}.get(self.start)
        skips = []
        for block in self.blocks:
            x, skip = block(x)
            skips.append(skip)
            if self.start == "in place" and total is not None:
                total += skip
            elif self.start != "sum":
                total = skip if total is None else total + skip
        if self.start == "sum":
            total = sum(skips)
        return self.last(F.relu(self.mix(F.relu(total))))


class ConditionedBlock(WaveBlock):
    def __init__(self, channels: int, skips: int, dilation: int) -> None:
        super().__init__(channels, skips, dilation)
        self.shift = nn.Linear(5, channels)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x + self.shift(condition)[:, :, None])


class ConditionedWaveNet(nn.Module):
    """Every block reads what is computed of the speaker, with parameters: a third value, alive throughout."""

    def __init__(self, depth: int = 6) -> None:
        super().__init__()
        self.speaker, self.front = nn.Embedding(3, 5), nn.Conv1d(1, 6, 1)
        self.blocks = nn.ModuleList(ConditionedBlock(6, 4, 2 ** (i % 3)) for i in range(depth))
        self.last = nn.Conv1d(4, 3, 1)

    def forward(self, x: Tensor, speaker: Tensor) -> Tensor:
        condition, x, total = torch.tanh(self.speaker(speaker)), self.front(x), 0
        for block in self.blocks:
            x, skip = block(x, condition)
            total = total + skip
        return self.last(F.relu(total))


class RevBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = (nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.Tanh()) for _ in range(2))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a = a + self.f(b)
        return a, b + self.g(a)


class RevNet(nn.Module):
    def __init__(self, depth: int = 5, width: int = 6) -> None:
        super().__init__()
        self.front, self.last = nn.Linear(5, 2 * width), nn.Linear(2 * width, 3)
        self.blocks = nn.ModuleList(RevBlock(width) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.front(x).chunk(2, -1)
        for block in self.blocks:
            a, b = block(a, b)
        return self.last(torch.cat([a, b], -1))


class MambaBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mixer = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, hidden: Tensor, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
        residual = hidden if residual is None else hidden + residual
        return self.mixer(self.norm(residual)), residual


class Mamba(nn.Module):
    def __init__(self, depth: int = 5, width: int = 8) -> None:
        super().__init__()
        self.embed, self.norm, self.last = nn.Embedding(10, width), nn.LayerNorm(width), nn.Linear(width, 10)
        self.layers = nn.ModuleList(MambaBlock(width) for _ in range(depth))

    def forward(self, ids: Tensor) -> Tensor:
        hidden, residual = self.embed(ids), None
        for layer in self.layers:
            hidden, residual = layer(hidden, residual)
        return self.last(self.norm(hidden + residual))


class Streams(nn.Module):
    """Two streams, of 5 and 3 channels, that read each other, with batch norms, dropout and work in place."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.a0, self.b0 = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.a = nn.ModuleList(
            nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(8, 5, 3, padding=1), nn.BatchNorm2d(5)) for _ in range(depth)
        )
        self.b = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 3, 1), nn.Dropout(0.2)) for _ in range(depth))
        self.last = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a0(x), self.b0(x)
        for f, g in zip(self.a, self.b, strict=True):
            a, b = a + f(torch.cat([a, b], 1)), g(torch.cat([b, a], 1)).relu_()
        return self.last(torch.cat([a, b], 1).mean((2, 3)))


class Tower(nn.Module):
    def __init__(self, inputs: int, width: int, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, width)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU()) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + layer(x)
        return x


class TwoTower(nn.Module):
    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.user, self.item = Tower(5, 8, depth), Tower(3, 8, depth)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.user(user) * self.item(item)).sum(-1)


class ScoreLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.heads = nn.Linear(width, 3 * width), heads

    def forward(self, x: Tensor, scores: Tensor | int) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT + scores
        return x + (scores.softmax(-1) @ v).transpose(1, 2).flatten(2), scores


class ScoreResidual(nn.Module):
    """Attention that hands on its scores, (heads, tokens, tokens): no axis is common with (tokens, channels)."""

    def __init__(self, depth: int = 5) -> None:
        super().__init__()
        self.embed, self.layers = nn.Linear(3, 8), nn.ModuleList(ScoreLayer(8, 2) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        x, scores = self.embed(x), 0
        for layer in self.layers:
            x, scores = layer(x, scores)
        return x.mean(1)


SOUND = (torch.randn(2, 1, 12),)
PAIRS: dict[str, tuple[Any, tuple[Tensor, ...], int]] = {  # a network, inputs, values between its blocks
    **{
        f"WaveNet {start}": (partial(WaveNet, start), SOUND, 2)
        for start in ("zero", "zeros", "none", "in place", "sum")
    },
    "WaveNet of speakers": (ConditionedWaveNet, (torch.randn(3, 1, 12), torch.tensor([0, 2, 1])), 2),
    "RevNet": (RevNet, (torch.randn(3, 5),), 2),
    "RevNet of tokens": (RevNet, (torch.randn(3, 4, 5),), 2),
    "Mamba": (Mamba, (torch.randint(0, 10, (2, 7)),), 1),
    "streams": (Streams, (torch.randn(3, 2, 6, 6),), 2),
    "two towers": (TwoTower, (torch.randn(3, 5), torch.randn(3, 3)), 2),
}


class PairBlock(nn.Module):
    """k values, of which each is replaced by a sum with what a layer makes of others, or handed on as it is."""

    def __init__(self, widths: list[int], moves: list[tuple[int, int, str]], tokens: bool) -> None:
        super().__init__()
        self.moves, self.tokens = moves, tokens
        self.maps = nn.ModuleList(
            nn.Linear(widths[source], widths[target]) if tokens else nn.Conv1d(widths[source], widths[target], 1)
            for source, target, _ in moves
        )

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        state = list(values)
        for layer, (source, target, how) in zip(self.maps, self.moves, strict=True):
            change = torch.tanh(layer(state[source]))
            if how == "in place":
                state[target] = state[target].clone().add_(change)
            elif how == "view":
                state[target] = state[target] + change.view(*change.shape)
            elif how == "other layout":
                state[target] = (state[target].transpose(1, 2) + change.transpose(1, 2)).transpose(1, 2)
            else:
                state[target] = state[target] + change
        return tuple(state)


class PairChain(nn.Module):
    def __init__(self, widths: list[int], blocks: list[list[tuple[int, int, str]]], tokens: bool) -> None:
        super().__init__()
        self.tokens = tokens
        self.firsts = nn.ModuleList(nn.Linear(3, w) if tokens else nn.Conv1d(3, w, 1) for w in widths)
        self.blocks = nn.ModuleList(PairBlock(widths, moves, tokens) for moves in blocks)
        self.last = nn.Linear(sum(widths), 2)

    def forward(self, x: Tensor) -> Tensor:
        values = tuple(first(x) for first in self.firsts)
        for block in self.blocks:
            values = block(*values)
        return self.last(torch.cat(values, -1 if self.tokens else 1).mean(1 if self.tokens else 2))


@st.composite
def pair_chains(draw: st.DrawFn) -> tuple[PairChain, Tensor]:
    """A random chain of blocks that hand on two to four values, and inputs."""
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    place = st.integers(0, len(widths) - 1)
    move = st.tuples(place, place, st.sampled_from(["", "", "in place", "view", "other layout"]))
    around = [(i, (i + 1) % len(widths), "") for i in range(len(widths))]  # so that every value matters throughout
    blocks = draw(st.lists(st.lists(move, max_size=2).map(lambda moves: [*moves, *around]), min_size=3, max_size=5))
    tokens = draw(st.booleans())
    return PairChain(widths, blocks, tokens), torch.randn(2, 4, 3) if tokens else torch.randn(2, 3, 4)
