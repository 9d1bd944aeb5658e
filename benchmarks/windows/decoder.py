"""A small decoder, trained on text here: pre-norm layers of causal attention and an MLP, over bytes."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from pararealize.files import whole_file

from .text import batches, docstrings

__all__ = ["LENGTH", "Decoder", "cross_entropy", "perplexity", "trained_decoder"]

LENGTH = 128
BATCH = 16


class Layer(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x))."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.norm2(x))))


class Decoder(nn.Module):
    """Bytes -> logits of the next byte."""

    def __init__(self, layers: int = 12, width: int = 128, heads: int = 4, length: int = LENGTH) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(256, width), nn.Parameter(torch.zeros(length, width))
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for layer in self.layers:
            for end in (layer.out, layer.down):
                nn.init.normal_(end.weight, std=0.02 / math.sqrt(2 * layers))
        nn.init.normal_(self.place, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place[: tokens.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Mean over all positions."""
    return functional.cross_entropy(logits.flatten(0, 1), target.flatten())


def perplexity(model: Callable[[Tensor], Tensor], text: str, *, steps: int = 32) -> float:
    """Of the bytes of a held-out text."""
    with torch.no_grad():
        losses = [cross_entropy(model(x), y) for x, y in batches(text, batch=BATCH, length=LENGTH, steps=steps, seed=1)]
    return float(torch.stack(losses).mean().exp())


def trained_decoder(folder: Path, *, steps: int = 920, seed: int = 0, say: Callable[[str], None] = print) -> Decoder:
    """The decoder after so many steps of AdamW; kept in the folder, and read from there where it is there already."""
    torch.manual_seed(seed)
    model, path = Decoder(), folder / f"decoder-{steps}-{seed}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    train(model, docstrings(held_out=False), steps=steps, lr=2e-3, seed=seed, say=say)
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as part:
        save_file(model.state_dict(), part)
    return model.eval()


def train(model: nn.Module, text: str, *, steps: int, lr: float, seed: int, say: Callable[[str], None] = print) -> None:
    """Steps of AdamW on random pieces of a text; the rate rises for a tenth of them and falls as a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.05, betas=(0.9, 0.95))
    warm = max(1, steps // 10)
    for i, (x, y) in enumerate(batches(text, batch=BATCH, length=LENGTH, steps=steps, seed=seed)):
        rate = min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * i / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * rate
        loss = cross_entropy(model(x), y)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if i % 100 == 0 or i + 1 == steps:
            say(f"step {i + 1} of {steps}: loss {loss.item():.3f}")
