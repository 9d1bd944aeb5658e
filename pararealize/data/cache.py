"""Tensors and what they were made from -> a file that is there whole or not at all; and back.

What is kept can always be made again, so a file that is damaged, or was made from something else, counts as absent.
Nothing is ever unpickled: the format is safetensors.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pararealize.errors import DataError
from pararealize.files import whole_file

__all__ = ["folder", "keep", "recall"]

DIGEST = "sha256"


def folder(given: str | Path | None = None) -> Path:
    """Where to keep what was made: ``given``, or ``pararealize`` in ``$XDG_CACHE_HOME`` or ~/.cache."""
    if given is not None:
        return Path(given)
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "pararealize"


def keep(path: Path, tensors: Mapping[str, Tensor], made_from: Mapping[str, str]) -> None:
    """Write the tensors into ``path`` by renaming a finished file, so that no reader ever sees half of it.

    Raises:
        DataError: the folder cannot be written.
    """
    metadata = dict(made_from) | {DIGEST: _digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            save_file(dict(tensors), str(part), metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot keep data in {path.parent}: {error}; name a folder that can be written") from error


def recall(path: Path, made_from: Mapping[str, str]) -> dict[str, Tensor] | None:
    """What :func:`keep` wrote, or None where it is not there, not whole, or made from something else."""
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if any(metadata.get(key) != value for key, value in made_from.items()):
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return tensors if metadata.get(DIGEST) == _digest(tensors) else None


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
