"""Causal networks of every make, their twins that see both sides, and how to see what reads the future."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

LENGTH = 12


class Convolution(nn.Module):
    """x + conv(x), padded in front; with ``both``, on both sides."""

    def __init__(self, width: int, kernel: int, dilation: int, how: str, both: bool) -> None:
        super().__init__()
        self.span, self.how, self.both = dilation * (kernel - 1), how, both
        padding = self.span if how == "chomp" else 0
        self.conv = nn.Conv1d(width, width, kernel, dilation=dilation, padding=padding)
        self.register_buffer("mask", (torch.arange(2 * kernel - 1) < kernel).float())
        self.weight = nn.Parameter(torch.randn(width, width, 2 * kernel - 1) / width)
        self.dilation = dilation

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "masked":
            weight = self.weight if self.both else self.weight * self.mask
            y = F.conv1d(x, weight, padding=self.span, dilation=self.dilation)
        elif self.how == "chomp":
            y = self.conv(x)
            y = y[..., (self.span + 1) // 2 if self.both else 0 :][..., : x.shape[-1]]
        else:
            ahead = (self.span + 1) // 2 if self.both else 0
            y = self.conv(
                F.pad(x, (self.span - ahead, ahead), mode="replicate" if self.how == "replicate" else "constant")
            )
        return x + torch.tanh(y)


class Tokens(nn.Module):
    """x + mix(norm(x)), x + mlp(x) on (batch, tokens, channels); ``how`` they are mixed."""

    def __init__(self, width: int, how: str, both: bool) -> None:
        super().__init__()
        self.how, self.both = how, both
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.register_buffer("mask", torch.ones(LENGTH, LENGTH).tril().bool())
        if how in ("lstm", "gru"):
            make = nn.LSTM if how == "lstm" else nn.GRU
            self.rnn = make(width, width // 2 if both else width, batch_first=True, bidirectional=both)
        self.matrix = nn.Parameter(torch.randn(LENGTH, LENGTH) / 4)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if self.how == "flag":
            return F.scaled_dot_product_attention(q, k, v, is_causal=not self.both)
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if not self.both and self.how == "buffer":
            scores = scores.masked_fill(~self.mask, float("-inf"))
        elif not self.both and self.how == "computed":
            places = torch.arange(x.shape[1], device=x.device)
            scores = scores + torch.where(places[:, None] >= places, 0.0, -1e9)
        return scores.softmax(-1) @ v

    def mix(self, y: Tensor) -> Tensor:
        if self.how in ("lstm", "gru"):
            return self.rnn(y)[0]
        if self.how == "shift":
            zero = torch.zeros_like(y[:, :1])
            before, behind = torch.cat([zero, y[:, :-1]], 1), torch.cat([y[:, 1:], zero], 1)
            return y - before + behind if self.both else y - before
        if self.how == "cumsum":
            y = y.cumsum(1) / LENGTH
            return y + y.flip(1).cumsum(1).flip(1) if self.both else y
        if self.how == "matrix":
            return (self.matrix if self.both else self.matrix.tril()) @ y
        if self.how == "fft":
            kernel = self.matrix[0] * torch.arange(LENGTH, device=y.device).neg().exp()
            n = LENGTH if self.both else 2 * LENGTH
            spectrum = torch.fft.rfft(y, n=n, dim=1) * torch.fft.rfft(kernel, n=n)[:, None]
            return torch.fft.irfft(spectrum, n=n, dim=1)[:, :LENGTH]
        return self.attend(y)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mix(self.norm(x))
        return x + self.mlp(x)


class Map(nn.Module):
    """x + conv(x) on (batch, channels, time, frequency): time is causal."""

    def __init__(self, width: int, both: bool) -> None:
        super().__init__()
        self.conv, self.ahead = nn.Conv2d(width, width, 3), 1 if both else 0

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.conv(F.pad(x, (1, 1, 2 - self.ahead, self.ahead))))


class Network(nn.Module):
    """A stem, blocks and a head, none of which mixes positions but the blocks."""

    def __init__(self, stem: nn.Module, blocks: list[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = stem, nn.ModuleList(blocks), head

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


CONVOLUTIONS = ("front", "chomp", "masked", "replicate")
MIXES = ("flag", "buffer", "computed", "lstm", "gru", "shift", "cumsum", "matrix", "fft")
MAKES = (*CONVOLUTIONS, *MIXES, "map", "ids")


def network(make: str, *, both: bool = False, depth: int = 4, width: int = 8, dilations=(1, 2, 1, 4), kernel: int = 3):
    """A network, an input of two samples, and the axis of its input along which it is causal."""
    if make in CONVOLUTIONS:
        blocks = [Convolution(width, kernel, dilations[i % len(dilations)], make, both) for i in range(depth)]
        return Network(nn.Conv1d(3, width, 1), blocks, nn.Conv1d(width, 2, 1)), torch.randn(2, 3, LENGTH), 2
    if make == "map":
        blocks = [Map(width, both) for _ in range(depth)]
        return Network(nn.Conv2d(1, width, 1), blocks, nn.Conv2d(width, 2, 1)), torch.randn(2, 1, LENGTH, 6), 2
    mix, ids = ("flag", True) if make == "ids" else (make, False)
    blocks = [Tokens(width, mix, both) for _ in range(depth)]
    stem = nn.Embedding(11, width) if ids else nn.Linear(3, width)
    x = torch.randint(11, (2, LENGTH)) if ids else torch.randn(2, LENGTH, 3)
    return Network(stem, blocks, nn.Linear(width, 2)), x, 1


@st.composite
def networks(draw):
    """Random causal networks."""
    torch.manual_seed(draw(st.integers(0, 1000)))
    dilations = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    make, depth, kernel = draw(st.sampled_from(MAKES)), draw(st.integers(2, 5)), draw(st.integers(2, 4))
    return network(make, depth=depth, dilations=dilations, kernel=kernel)


def disturb(net: nn.Module) -> None:
    """Move every parameter of the adapters and coarse blocks, as training would."""
    with torch.no_grad():
        for part in (net.adapters, net.coarse):
            for parameter in part.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def leak(net: nn.Module, x: Tensor, axis: int, t: int) -> float:
    """How much outputs before position t change when inputs from t on do, of the largest change."""
    later = torch.arange(x.shape[axis]).view(-1, *[1] * (x.ndim - axis - 1)) >= t
    other = 5 * torch.randn(x.shape) if x.is_floating_point() else torch.randint(11, x.shape)
    change = (net(torch.where(later, other, x)) - net(x)).abs()
    return change.narrow(axis, 0, t).max().item() / max(change.max().item(), 1e-9)
