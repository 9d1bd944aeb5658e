"""Tensors that can be computed again, and their origin -> a file that is there whole or not at all; and back.

A file that is damaged, or whose tensors have another origin, counts as absent. Nothing is ever unpickled: the format is
safetensors.
"""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pararealize.errors import DataError
from pararealize.files import open_file, whole_file
from pararealize.manifest import tensors_digest

__all__ = ["cache_folder", "recall", "store"]

DIGEST = "sha256"


def cache_folder() -> Path:
    """The folder ``pararealize`` in ``$XDG_CACHE_HOME``, or in ~/.cache.

    A relative path in the variable is ignored, as its specification has it:
    https://specifications.freedesktop.org/basedir-spec/latest/
    """
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache") / "pararealize"


def store(path: Path, tensors: Mapping[str, Tensor], origin: Mapping[str, str]) -> None:
    """Write the tensors into a file, with a checksum and with what they are computed from.

    Raises:
        DataError: the folder cannot be written.
    """
    metadata = dict(origin) | {DIGEST: tensors_digest(tensors)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as part:
            save_file(dict(tensors), str(part), metadata=metadata)
    except (OSError, SafetensorError) as error:
        raise DataError(f"cannot keep data in {path.parent}: {error}; name a folder that can be written") from error


def recall(path: Path, origin: Mapping[str, str]) -> dict[str, Tensor] | None:
    """The tensors that :func:`store` wrote, or None where the file is missing, damaged or of another origin."""
    try:
        open_file(path, follow=True).close()  # what is no file must not be opened
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            if any(metadata.get(key) != value for key, value in origin.items()):
                return None
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return tensors if metadata.get(DIGEST) == tensors_digest(tensors) else None
