"""Small networks that the tests cut: of every kind that has made trouble, and random ones."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn


class Residual(nn.Module):
    """x + conv(relu(conv(x))), with the stride and projection of a new stage where asked for."""

    def __init__(self, channels: int, out: int | None = None, stride: int = 1, inplace: bool = True) -> None:
        super().__init__()
        out = out or channels
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=inplace)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.skip = nn.Identity() if (out, stride) == (channels, 1) else nn.Conv2d(channels, out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.conv2(self.relu(self.bn1(self.conv1(x)))) + self.skip(x))


class SmallResNet(nn.Module):
    """Two stages of residual blocks; the blocks begin with an operation in place on their input."""

    def __init__(self, depth: int = 3, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        first = [Residual(width) for _ in range(depth)]
        second = [Residual(width, 2 * width, 2), *(Residual(2 * width) for _ in range(depth - 1))]
        self.layer1, self.layer2 = nn.Sequential(*first), nn.Sequential(*second)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(self.conv(x)))
        return self.fc(x.mean((2, 3)))


class Perceptron(nn.Sequential):
    """A flat chain of linear layers: the first one reads the raw input."""

    def __init__(self, depth: int = 6, width: int = 8) -> None:
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Linear(width, width), nn.Tanh()]
        super().__init__(*layers, nn.Linear(width, 2))


class MaskedLayer(nn.Module):
    """Self-attention by hand, with a functional dropout and a mask that every layer reads."""

    def __init__(self, width: int = 8, heads: int = 2, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-1, -2)).masked_fill(mask[:, None, None], -1e4).softmax(-1)
        attention = F.dropout(attention, self.dropout, training=self.training)
        return x + self.scale * self.out((attention @ v).transpose(1, 2).reshape(batch, length, width))


class MaskedTransformer(nn.Module):
    """Token ids in; a mask made from them is context of every layer; positions come from a table."""

    def __init__(self, depth: int = 4, width: int = 8, vocabulary: int = 11) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(vocabulary, width), nn.Embedding(16, width)
        self.layers = nn.ModuleList(MaskedLayer(width) for _ in range(depth))
        self.classify = nn.Linear(width, 3)

    def forward(self, ids: Tensor) -> Tensor:
        mask = ids == 0
        x = self.embed(ids) + self.position(torch.arange(ids.size(1), device=ids.device))
        for layer in self.layers:
            x = layer(x, mask)
        return self.classify(x[:, 0])


class SharedBias(nn.Module):
    """Layers that all read one table computed from a parameter alone, and the conditioning of the stem."""

    def __init__(self, depth: int = 4, width: int = 6) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(width, width))
        self.first, self.condition = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        bias, condition = self.table.softmax(0), self.condition(x)
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x) @ bias + condition)
        return self.last(x)


class InPlaceLayer(nn.Module):
    """Begins in place on its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        return self.linear(x.sin_()) * 2 + condition


class InPlace(nn.Module):
    """What begins and ends the layers works in place, on what the stem gives and on what the head is given."""

    def __init__(self, depth: int = 4, width: int = 6) -> None:
        super().__init__()
        self.first, self.condition = nn.Linear(width, width), nn.Linear(width, width)
        self.layers = nn.ModuleList(InPlaceLayer(width) for _ in range(depth))
        self.last = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        condition = self.condition(x)
        x = self.first(x)
        for layer in self.layers:
            x = layer(x, condition)
        return self.last(x.tanh_())


class OverwritesInput(nn.Sequential):
    """A chain that halves its input where it is."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*(layers or Perceptron(3)))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5))


class SkipInPlace(nn.Module):
    """Layers that begin in place, and a skip around all of them, to which the head adds in place what they give."""

    def __init__(self, depth: int = 6, width: int = 6) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(width, width), nn.Linear(width, 2)
        self.layers = nn.ModuleList(nn.Sequential(nn.ELU(inplace=True), nn.Linear(width, width)) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        skip = x = self.first(x)
        x = 1.5 * x
        for layer in self.layers:
            x = layer(x)
        skip += x
        return self.last(skip)


class StochasticDepth(nn.Module):
    """A block whose structure depends on the mode."""

    def __init__(self, width: int = 6, drop: float = 0.5) -> None:
        super().__init__()
        self.linear, self.drop = nn.Linear(width, width), DropPath(drop)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(torch.relu(self.linear(x)))


class DropPath(nn.Module):
    def __init__(self, drop: float) -> None:
        super().__init__()
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(x.shape[0], 1).bernoulli_(1 - self.drop) / (1 - self.drop)


class CausalLayer(nn.Module):
    """Pre-norm causal attention with rotary tables that every layer reads, and an MLP."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor, cos: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (self.qkv(self.norm(x)) * cos.repeat(1, 3)).chunk(3, -1)
        attention = (q @ k.transpose(-1, -2)).masked_fill(mask, -1e4).softmax(-1)
        x = x + self.out(attention @ v)
        return x + self.mlp(x)


class LanguageModel(nn.Module):
    """Token ids in and out: embedding tied to the head, tables from a buffer and a parameter, layers perhaps shared."""

    def __init__(self, depth: int = 4, width: int = 8, vocabulary: int = 11, shared: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.gain = nn.Parameter(torch.ones(width))
        self.register_buffer("causal", torch.ones(16, 16).triu(1).bool(), persistent=False)
        self.register_buffer("angles", torch.linspace(0, 1, 16 * width).view(16, width))
        layers = [CausalLayer(width)] * depth if shared else [CausalLayer(width) for _ in range(depth)]
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        length = ids.size(1)
        x = self.embed(ids)
        table = self.angles[:length].to(x.dtype).cos() * self.gain
        mask = self.causal[:length, :length]
        for layer in self.layers:
            x = layer(x, table, mask)
        return {"logits": self.head(self.norm(x))}


class UNet(nn.Module):
    """Skips across every cut: no chain of blocks."""

    def __init__(self, depth: int = 4, width: int = 4) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(3 if i == 0 else width, width, 3, padding=1) for i in range(depth))
        self.up = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for conv in self.down:
            x = torch.relu(conv(x))
            skips.append(x)
        for conv in self.up:
            x = torch.relu(conv(torch.cat([x, skips.pop()], 1)))
        return x


class Branching(nn.Module):
    """Control flow that depends on the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return self.a(x)
        return self.b(x)


class Auxiliary(nn.Module):
    """A second output from the middle, in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.a(x)
        return (self.b(x), self.aux(x)) if self.training else self.b(x)


class SeveralDepths(nn.Module):
    """Outputs that leave after every layer."""

    def __init__(self, depth: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for layer in self.layers:
            x = torch.tanh(layer(x))
            outputs.append(x)
        return outputs


class Growing(nn.Module):
    """Every layer reads all that came before: the carry grows, as within a dense block."""

    def __init__(self, depth: int = 12) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.layers[0](x), self.layers[1](x)
        values = [first, second]
        for layer in self.layers[2:]:
            values.append(torch.tanh(layer(torch.stack(values).sum(0))))
        return torch.stack(values).sum((0, 2))


# Random networks ----------------------------------------------------------------------------------------------------


class LinearBlock(nn.Module):
    """A linear map of images: convolution with stride, dilation and groups, pooling, or a skip addition."""

    def __init__(self, kind: str, channels: int, out: int, stride: int, dilation: int, groups: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "skip":
            out, stride = channels, 1
        padding = dilation
        self.conv = nn.Conv2d(channels, out, 3, stride, padding, dilation, groups, bias=False)
        self.pool = nn.AvgPool2d(2, ceil_mode=True) if kind == "pool" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv(x))
        return x + y if self.kind == "skip" else y


@st.composite
def linear_networks(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A random linear network without biases, in double precision, and an input for it."""
    if draw(st.booleans()):
        widths = draw(st.lists(st.integers(1, 6), min_size=3, max_size=7))
        layers = [nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)]
        return nn.Sequential(*layers).double(), torch.randn(3, widths[0], dtype=torch.float64)
    groups = draw(st.sampled_from([1, 2]))
    channels = groups * draw(st.integers(1, 2))
    side = draw(st.integers(5, 12))
    blocks: list[nn.Module] = []
    first = channels
    for _ in range(draw(st.integers(2, 5))):
        kind = draw(st.sampled_from(["conv", "pool", "skip"]))
        out = groups * draw(st.integers(1, 3))
        block = LinearBlock(kind, channels, out, draw(st.sampled_from([1, 2])), draw(st.sampled_from([1, 2])), groups)
        channels = channels if kind == "skip" else out
        blocks.append(block)
    network = nn.Sequential(
        nn.Sequential(*blocks), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 2, bias=False)
    )
    return network.double(), torch.randn(3, first, side, side, dtype=torch.float64)


class RandomGraph(nn.Module):
    """A random program over feature vectors: branches, joins, reshapes, functions, in-place changes, shared modules."""

    def __init__(self, program: list[tuple[str, int, int]], width: int) -> None:
        super().__init__()
        self.program, self.width = program, width
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(len(program) + 1))
        self.shared, self.norm, self.drop = nn.Linear(width, width), nn.BatchNorm1d(width), nn.Dropout(0.3)
        self.gain = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        values = [self.linears[-1](x)]
        for i, (operation, a, b) in enumerate(self.program):
            values.append(self._step(operation, values[-1 - a % len(values)], values[-1 - b % len(values)], i))
        return values[-1]

    def _step(self, operation: str, a: Tensor, b: Tensor, i: int) -> Tensor:
        match operation:
            case "linear":
                return torch.relu(self.linears[i](a))
            case "add":
                return a + b
            case "residual":
                return a + torch.tanh(self.linears[i](a))
            case "shared":
                return self.shared(a)
            case "inplace":
                return F.relu(self.linears[i](a).add_(self.gain), inplace=True)
            case "reshape":
                return a.view(a.shape[0], 2, -1).transpose(1, 2).reshape(a.size(0), self.width)
            case "halves":
                first, second = a.chunk(2, dim=-1)
                return torch.cat([second.sigmoid(), first], dim=-1)
            case "norm":
                return self.norm(a)
            case "dropout":
                return F.dropout(self.drop(a), 0.2, training=self.training)
            case _:
                return torch.where(b > 0, a, 0.5 * a)


@st.composite
def random_graphs(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A random feed-forward network and an input for it."""
    operations = ["linear", "add", "residual", "shared", "inplace", "reshape", "halves", "norm", "dropout", "where"]
    steps = st.tuples(st.sampled_from(operations), st.integers(0, 1), st.integers(0, 3))
    program = draw(st.lists(steps, min_size=1, max_size=10))
    width = 2 * draw(st.integers(1, 3))
    return RandomGraph(program, width), torch.randn(4, width)
