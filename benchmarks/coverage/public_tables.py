"""Networks over graphs, sets, tables and vectors as public repositories write them, and transformers of other kinds."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .hugging_face import LoRALinear

__all__ = [
    "KAN", "Conformer", "DeepSets", "DenseGCN", "Highway", "LoRATransformer", "ODENet", "Perceiver", "SparseGIN",
    "Tabular",
]  # fmt: skip


# Graphs, sets and tables ----------------------------------------------------------------------------------------------


class DenseGCN(nn.Module):
    """Kipf's layers with residuals; the adjacency is normalised once and read by all."""

    class Layer(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.weight, self.norm = nn.Linear(d, d), nn.LayerNorm(d)

        def forward(self, h: torch.Tensor, adjacency: torch.Tensor) -> torch.Tensor:
            return h + F.relu(torch.bmm(adjacency, self.weight(self.norm(h))))

    def __init__(self, features: int = 6, d: int = 24) -> None:
        super().__init__()
        self.encode = nn.Linear(features, d)
        self.layers = nn.ModuleList(self.Layer(d) for _ in range(6))
        self.decode = nn.Linear(d, 3)

    def forward(self, x: torch.Tensor, adj: torch.Tensor) -> torch.Tensor:
        adj = adj + torch.eye(adj.size(-1), device=adj.device, dtype=adj.dtype)
        degree = adj.sum(-1).clamp(min=1).pow(-0.5)
        adj = degree.unsqueeze(-1) * adj * degree.unsqueeze(-2)
        h = self.encode(x)
        for layer in self.layers:
            h = layer(h, adj)
        return self.decode(h)


class SparseGIN(nn.Module):
    """Message passing over an edge list by index_add, as without PyTorch Geometric."""

    def __init__(self, features: int = 6, d: int = 24) -> None:
        super().__init__()
        self.encode = nn.Linear(features, d)
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.BatchNorm1d(2 * d), nn.ReLU(), nn.Linear(2 * d, d)) for _ in range(5)
        )
        self.eps = nn.Parameter(torch.zeros(5))
        self.out = nn.Linear(d, 3)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        source, target = edge_index
        h = self.encode(x)
        for i, mlp in enumerate(self.mlps):
            messages = torch.zeros_like(h).index_add(0, target, h[source])
            h = h + mlp((1 + self.eps[i]) * h + messages)
        return self.out(h)


class DeepSets(nn.Module):
    class Equivariant(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.own, self.mean = nn.Linear(d, d), nn.Linear(d, d, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + F.elu(self.own(x) - self.mean(x.max(1, keepdim=True)[0]))

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.inputs = nn.Linear(3, d)
        self.phi = nn.Sequential(*(self.Equivariant(d) for _ in range(5)))
        self.rho = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 4))

    def forward(self, points: torch.Tensor) -> torch.Tensor:
        return self.rho(self.phi(self.inputs(points)).sum(dim=1) / points.shape[1])


class Tabular(nn.Module):
    """A batch is one dictionary, as data loaders give it: columns of categories and of numbers."""

    def __init__(self, cardinalities: tuple[int, ...] = (5, 7, 3), numbers: int = 4, d: int = 32) -> None:
        super().__init__()
        self.embeds = nn.ModuleList(nn.Embedding(size, 8) for size in cardinalities)
        self.bn_num = nn.BatchNorm1d(numbers)
        self.first = nn.Linear(8 * len(cardinalities) + numbers, d)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(d), nn.Linear(d, 2 * d), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * d, d))
            for _ in range(6)
        )
        self.head = nn.Linear(d, 1)

    def forward(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        cats = [embed(batch["cat"][:, i]) for i, embed in enumerate(self.embeds)]
        x = self.first(torch.cat([*cats, self.bn_num(batch["num"])], dim=1))
        for block in self.blocks:
            x = x + block(x)
        return {"logits": self.head(x).squeeze(-1), "embedding": x}


# Other transformers, and residual networks ---------------------------------------------------------------------------


class Perceiver(nn.Module):
    """Latents that read the input by cross-attention in every block."""

    class Layer(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.cross = nn.MultiheadAttention(d, 4, batch_first=True)
            self.own = nn.MultiheadAttention(d, 4, batch_first=True)
            self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))
            self.ff = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

        def forward(self, latents: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
            latents = latents + self.cross(self.norms[0](latents), data, data, need_weights=False)[0]
            y = self.norms[1](latents)
            latents = latents + self.own(y, y, y, need_weights=False)[0]
            return latents + self.ff(self.norms[2](latents))

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, d))
        self.embed = nn.Linear(5, d)
        self.layers = nn.ModuleList(self.Layer(d) for _ in range(4))
        self.out = nn.Linear(d, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        data = self.embed(x)
        latents = self.latents.unsqueeze(0).repeat(x.shape[0], 1, 1)
        for layer in self.layers:
            latents = layer(latents, data)
        return self.out(latents.mean(dim=1))


class Conformer(nn.Module):
    class Layer(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.ff1 = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
            self.norm, self.attn = nn.LayerNorm(d), nn.MultiheadAttention(d, 4, dropout=0.1, batch_first=True)
            self.conv_norm, self.pointwise = nn.LayerNorm(d), nn.Conv1d(d, 2 * d, 1)
            self.depthwise = nn.Conv1d(d, d, 7, padding=3, groups=d)
            self.bn, self.pointwise2 = nn.BatchNorm1d(d), nn.Conv1d(d, d, 1)
            self.ff2 = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.SiLU(), nn.Linear(2 * d, d))
            self.final = nn.LayerNorm(d)

        def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            x = x + 0.5 * self.ff1(x)
            y = self.norm(x)
            x = x + self.attn(y, y, y, key_padding_mask=mask, need_weights=False)[0]
            y = F.glu(self.pointwise(self.conv_norm(x).transpose(1, 2)), dim=1)
            x = x + self.pointwise2(F.silu(self.bn(self.depthwise(y)))).transpose(1, 2)
            return self.final(x + 0.5 * self.ff2(x))

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv1d(8, d, 3, stride=2, padding=1), nn.ReLU())
        self.layers = nn.ModuleList(self.Layer(d) for _ in range(4))
        self.out = nn.Linear(d, 20)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        x = self.subsample(x.transpose(1, 2)).transpose(1, 2)
        mask = torch.arange(x.size(1), device=x.device)[None, :] >= (lengths[:, None] + 1) // 2
        for layer in self.layers:
            x = layer(x, mask)
        return F.log_softmax(self.out(x), dim=-1)


class LoRATransformer(nn.Module):
    """A frozen encoder under low-rank adapters, with a head that learns."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(6, d)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(d),
                    "up": LoRALinear(nn.Linear(d, 2 * d), (d, 2 * d)),
                    "down": LoRALinear(nn.Linear(2 * d, d), (2 * d, d)),
                }
            )
            for _ in range(5)
        )
        for name, parameter in self.named_parameters():
            parameter.requires_grad = "lora_" in name
        self.head = nn.Linear(d, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer["down"](F.gelu(layer["up"](layer["norm"](x))))
        return self.head(x)


class Highway(nn.Module):
    def __init__(self, d: int = 24, layers: int = 8) -> None:
        super().__init__()
        self.first = nn.Linear(10, d)
        self.nonlinear = nn.ModuleList([nn.Linear(d, d) for _ in range(layers)])
        self.linear = nn.ModuleList([nn.Linear(d, d) for _ in range(layers)])
        self.gate = nn.ModuleList([nn.Linear(d, d) for _ in range(layers)])
        self.last = nn.Linear(d, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        for i in range(len(self.gate)):
            gate = torch.sigmoid(self.gate[i](x))
            x = gate * F.relu(self.nonlinear[i](x)) + (1 - gate) * self.linear[i](x)
        return self.last(x)


class ODENet(nn.Module):
    """Explicit Euler steps of one width; time goes in as a channel."""

    def __init__(self, d: int = 16, steps: int = 8) -> None:
        super().__init__()
        self.lift, self.steps = nn.Linear(4, d), steps
        self.fields = nn.ModuleList(
            nn.Sequential(nn.Linear(d + 1, d), nn.Tanh(), nn.Linear(d, d)) for _ in range(steps)
        )
        self.project = nn.Linear(d, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, h = self.lift(x), 1.0 / self.steps
        for i, field in enumerate(self.fields):
            t = torch.full_like(z[:, :1], i * h)
            z = z + h * field(torch.cat([z, t], dim=-1))
        return self.project(z)


class KAN(nn.Module):
    """Layers of radial basis functions on every edge, and a base map (efficient-kan, FastKAN)."""

    class Layer(nn.Module):
        def __init__(self, n_in: int, n_out: int, grid: int = 5) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(n_in)
            self.register_buffer("grid", torch.linspace(-2, 2, grid))
            self.spline = nn.Parameter(torch.randn(n_out, n_in * grid) * 0.1)
            self.base = nn.Linear(n_in, n_out)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            basis = torch.exp(-(((self.norm(x)[..., None] - self.grid) / 1.0) ** 2))
            return self.base(F.silu(x)) + F.linear(basis.view(*basis.shape[:-2], -1), self.spline)

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.layers = nn.ModuleList([self.Layer(4, d), *(self.Layer(d, d) for _ in range(5)), self.Layer(d, 2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
