"""Networks over tokens and series as public repositories write them, each in its author's manner."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

__all__ = ["GPT", "TCN", "AdditiveGRU", "DeepAR", "PatchTST", "TokenShift", "WaveNet"]


# nanoGPT --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class GPTConfig:
    block_size: int = 64
    vocab_size: int = 100
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 32
    dropout: float = 0.1
    bias: bool = True


class LayerNorm(nn.Module):
    """With an optional bias."""

    def __init__(self, ndim: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(ndim))
        self.bias = nn.Parameter(torch.zeros(ndim)) if bias else None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
        return F.layer_norm(input, self.weight.shape, self.weight, self.bias, 1e-5)


class CausalSelfAttention(nn.Module):
    def __init__(self, config: GPTConfig, flash: bool) -> None:
        super().__init__()
        assert config.n_embd % config.n_head == 0
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout, self.resid_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)
        self.n_head, self.n_embd, self.dropout, self.flash = config.n_head, config.n_embd, config.dropout, flash
        if not flash:
            ones = torch.ones(config.block_size, config.block_size)
            self.register_buffer("bias", torch.tril(ones).view(1, 1, config.block_size, config.block_size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        if self.flash:
            dropout = self.dropout if self.training else 0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=dropout, is_causal=True)
        else:
            att = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
            att = att.masked_fill(self.bias[:, :, :T, :T] == 0, float("-inf"))
            y = self.attn_dropout(F.softmax(att, dim=-1)) @ v
        y = y.transpose(1, 2).contiguous().view(B, T, C)
        return self.resid_dropout(self.c_proj(y))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, flash: bool) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = LayerNorm(config.n_embd, config.bias), LayerNorm(config.n_embd, config.bias)
        self.attn = CausalSelfAttention(config, flash)
        self.mlp = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
            nn.Dropout(config.dropout),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """Tied embedding, position table, loss where there are targets, and only the last position's logits where not."""

    def __init__(self, flash: bool = True) -> None:
        super().__init__()
        self.config = config = GPTConfig()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([Block(config, flash) for _ in range(config.n_layer)]),
                "ln_f": LayerNorm(config.n_embd, config.bias),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: torch.Tensor, targets: torch.Tensor | None = None) -> Any:
        _, t = idx.size()
        assert t <= self.config.block_size, f"Cannot forward sequence of length {t}"
        pos = torch.arange(0, t, dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        x = self.transformer.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)


# Convolutions in time -------------------------------------------------------------------------------------------------


class WaveNetLayer(nn.Module):
    def __init__(self, channels: int, skip: int, dilation: int) -> None:
        super().__init__()
        self.dilated = weight_norm(nn.Conv1d(channels, 2 * channels, 2, dilation=dilation))
        self.res, self.skip = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, skip, 1)
        self.pad = dilation

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a, b = self.dilated(F.pad(x, (self.pad, 0))).chunk(2, dim=1)
        h = torch.tanh(a) * torch.sigmoid(b)
        return x + self.res(h), self.skip(h)


class WaveNet(nn.Module):
    """Every layer gives a second value, and these are summed."""

    def __init__(self, channels: int = 16, layers: int = 8) -> None:
        super().__init__()
        self.front = nn.Conv1d(1, channels, 1)
        self.layers = nn.ModuleList(WaveNetLayer(channels, channels, 2 ** (i % 4)) for i in range(layers))
        self.post = nn.Sequential(nn.ReLU(), nn.Conv1d(channels, channels, 1), nn.ReLU(), nn.Conv1d(channels, 32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.front(x)
        skips: Any = 0
        for layer in self.layers:
            x, skip = layer(x)
            skips = skips + skip
        return self.post(skips)


class Chomp1d(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, : -self.size].contiguous()


class TemporalBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, kernel: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel - 1) * dilation
        layers: list[nn.Module] = []
        for size in (n_in, n_out):
            convolution = weight_norm(nn.Conv1d(size, n_out, kernel, padding=padding, dilation=dilation))
            layers += [convolution, Chomp1d(padding), nn.ReLU(), nn.Dropout(0.2)]
        self.net = nn.Sequential(*layers)
        self.downsample = nn.Conv1d(n_in, n_out, 1) if n_in != n_out else None
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        res = x if self.downsample is None else self.downsample(x)
        return self.relu(self.net(x) + res)


class TCN(nn.Module):
    def __init__(self, inputs: int = 3, channels: tuple[int, ...] = (16, 16, 16, 16, 16)) -> None:
        super().__init__()
        sizes = (inputs, *channels)
        blocks = (TemporalBlock(a, b, 3, 2**i) for i, (a, b) in enumerate(itertools.pairwise(sizes)))
        self.network = nn.Sequential(*blocks)
        self.linear = nn.Linear(channels[-1], 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.network(x.transpose(1, 2)).transpose(1, 2))


class TokenShift(nn.Module):
    """RWKV's way to the past: half of the channels come from the position before."""

    class Mix(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.norm, self.time_shift = nn.LayerNorm(d), nn.ZeroPad2d((0, 0, 1, -1))
            self.mix = nn.Parameter(torch.rand(1, 1, d))
            self.key, self.value = nn.Linear(d, 2 * d, bias=False), nn.Linear(2 * d, d, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.norm(x)
            y = y * self.mix + self.time_shift(y) * (1 - self.mix)
            return x + self.value(torch.square(torch.relu(self.key(y))))

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, d)
        self.blocks = nn.Sequential(*(self.Mix(d) for _ in range(6)))
        self.head = nn.Linear(d, 50)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(self.emb(ids)))


# Series ---------------------------------------------------------------------------------------------------------------


class PatchTST(nn.Module):
    """Channel independence, instance normalisation that is undone at the end, patches by unfold."""

    def __init__(self, length: int = 48, patch: int = 8, stride: int = 4, d: int = 32, horizon: int = 12) -> None:
        super().__init__()
        self.patch, self.stride = patch, stride
        count = (length - patch) // stride + 2
        self.pad = nn.ReplicationPad1d((0, stride))
        self.embed = nn.Linear(patch, d)
        self.position = nn.Parameter(torch.randn(1, count, d) * 0.02)
        layer = nn.TransformerEncoderLayer(d, 4, 2 * d, 0.1, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.ModuleList(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False) for _ in range(4))
        self.head = nn.Linear(d * count, horizon)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True).detach()
        std = torch.sqrt(torch.var(x, dim=1, keepdim=True, unbiased=False) + 1e-5).detach()
        z = self.pad(((x - mean) / std).permute(0, 2, 1)).unfold(-1, self.patch, self.stride)
        batch, channels = z.shape[:2]
        z = self.embed(z).reshape(batch * channels, z.shape[2], -1) + self.position
        for layer in self.layers:
            z = layer(z)
        z = self.head(z.reshape(batch, channels, -1))
        return z.permute(0, 2, 1) * std + mean


class DeepAR(nn.Module):
    """Scaled by the mean of what was seen, an LSTM over all steps, two numbers of a distribution for each."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 8)
        self.inputs = nn.Linear(1 + 3 + 8, hidden)
        self.lstms = nn.ModuleList(nn.LSTM(hidden, hidden, batch_first=True) for _ in range(4))
        self.mu, self.sigma = nn.Linear(hidden, 1), nn.Linear(hidden, 1)

    def forward(self, target: torch.Tensor, features: torch.Tensor, series: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scale = target.abs().mean(1, keepdim=True).clamp(min=1e-3)
        static = self.embedding(series).unsqueeze(1).expand(-1, target.size(1), -1)
        x = self.inputs(torch.cat([(target / scale).unsqueeze(-1), features, static], dim=-1))
        for lstm in self.lstms:
            out, _ = lstm(x)
            x = x + out
        return self.mu(x).squeeze(-1) * scale, F.softplus(self.sigma(x)).squeeze(-1) * scale


class AdditiveGRU(nn.Module):
    """Residual GRU layers, the last state pooled by attention."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, d, padding_idx=0)
        self.layers = nn.ModuleList(nn.GRU(d, d // 2, batch_first=True, bidirectional=True) for _ in range(5))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(5))
        self.score, self.out = nn.Linear(d, 1), nn.Linear(d, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for gru, norm in zip(self.layers, self.norms, strict=True):
            x = x + gru(norm(x))[0]
        weights = self.score(x).masked_fill((ids == 0).unsqueeze(-1), -1e4).softmax(1)
        return self.out((weights * x).sum(1))
