"""English text that is on every machine with this project's environment: the docstrings of installed packages.

Bytes of printable ASCII. A file of a package is training text or held-out text, by the digest of its name, so that no
sentence of one file stands in both.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

__all__ = ["PACKAGES", "batches", "docstrings", "sentences"]

PACKAGES = ("torch", "numpy", "scipy", "sklearn", "networkx", "sympy", "matplotlib", "transformers")
HELD_OUT = 8  # one file in so many


@functools.cache
def docstrings(*, held_out: bool, most: int = 12_000_000) -> str:
    """The docstrings of all files of the packages, in the order of their names, up to so many letters."""
    texts: list[str] = []
    size = 0
    for path, name in _files():
        if (int(hashlib.sha256(name.encode()).hexdigest(), 16) % HELD_OUT == 0) != held_out:
            continue
        for text in _of_file(path):
            texts.append(text)
            size += len(text)
        if size > most:
            break
    return "\n\n".join(texts)


def _files() -> Iterator[tuple[Path, str]]:
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        root = Path(spec.origin).parent
        for path in sorted(root.rglob("*.py")):
            yield path, str(path.relative_to(root.parent))


def _of_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text and len(text) > 80:
                yield "".join(letter for letter in text if letter in "\n" or " " <= letter <= "~")


def batches(text: str, *, batch: int, length: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random pieces of a text, as bytes, and the same one byte further on."""
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(data) - length - 1, (batch,), generator=generator)
        pieces = torch.stack([data[start : start + length + 1] for start in starts.tolist()]).long()
        yield pieces[:, :-1].contiguous(), pieces[:, 1:].contiguous()


def sentences(text: str, *, least: int = 40, most: int = 240) -> list[str]:
    """Sentences of a text, each once, in its order."""
    found = dict.fromkeys(" ".join(part.split()) for block in text.split("\n\n") for part in block.split(". "))
    return [
        s for s in found if least <= len(s) <= most and s[0].isupper() and sum(c.isalpha() for c in s) > 0.7 * len(s)
    ]
