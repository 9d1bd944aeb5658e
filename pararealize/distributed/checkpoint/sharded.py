"""A rank's part of a network -> its file in a folder that all ranks write together, and back at any number of ranks.

The folder is one of torch.distributed.checkpoint with safetensors inside, a file a rank: each rank writes its own
tensors and reads only its own, so that nowhere more memory is needed than for the part itself. Nothing is pickled.

    step-1000/
        shard-00001-model-00001-of-00001.safetensors      rank 0: stem, g^1, …
        shard-00002-model-00001-of-00001.safetensors      rank 1: C^2, F^1, g^2, …

torch.distributed.checkpoint is imported where it is used: it takes a second, and brings hundreds of modules.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

from pararealize.errors import CheckpointError, OutputError
from pararealize.files import whole_folder

from .collective import facts_of_all, group_of, is_first, together
from .state import check_fit, own_tensors

__all__ = ["load_sharded", "save_sharded"]


def save_sharded(stage: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the network's state dict into a new folder, each rank its own part, on a disk that all of them see.

    All ranks call it, those of all replicas; one replica writes. The folder gets its name when everything is in it and
    on the disk, so that a crash at any time leaves earlier checkpoints as they are, and at most a folder
    ``.NAME.….part``.

    Raises:
        OutputError: the folder is there already or cannot be written; on every rank.
        CheckpointError: a part cannot be saved.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> from pararealize.distributed.checkpoint import save_sharded
        >>> net = pararealize(resnet20(), n=2)
        >>> save_sharded(net, Path(mkdtemp()) / "step-1000")
    """
    target = Path(folder)
    with contextlib.ExitStack() as writing:  # of the first rank; closing it gives the folder its name
        parts: list[str] = []

        def begin() -> dict[str, torch.Tensor]:
            tensors = own_tensors(stage)
            if is_first(stage):
                _check_free(target)
                with _refused(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    parts.append(str(writing.enter_context(whole_folder(target))))
            return tensors

        def finish() -> None:
            if is_first(stage):
                _check_free(target)
                with _refused(target):
                    writing.close()

        tensors = together(stage, begin)
        part = next(path for paths in facts_of_all(stage, parts) for path in paths)
        together(stage, lambda: _write(tensors, Path(part), group_of(stage)))
        together(stage, finish)


def load_sharded(stage: nn.Module, folder: str | os.PathLike[str], *, strict: bool = True) -> None:
    """Take this rank's part from a folder of :func:`save_sharded`; nothing else is read.

    Each rank calls it for itself, whatever the number of ranks that wrote the folder.

    Args:
        stage: this rank's part, or the whole network in one process.
        folder: of one checkpoint.
        strict: refuse a checkpoint in which tensors are missing; otherwise these stay as they are.

    Raises:
        CheckpointError: it is no such folder, tensors are missing, or one has another shape. Nothing is changed then.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    path = Path(folder)
    if not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{str(path)!r} holds no checkpoint: no safetensors file is in it; name a folder that save_sharded wrote, "
            "or use load_state for a single file"
        )
    try:
        stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}; it is damaged, take an earlier one") from error
    state = stage.state_dict()
    formats = {key: kind for key, kind in stored.items() if key in state and isinstance(kind, TensorStorageMetadata)}
    check_fit(state, {key: kind.size for key, kind in formats.items()}, f"{str(path)!r}", strict=strict)
    tensors = {key: torch.empty(kind.size, dtype=kind.properties.dtype) for key, kind in formats.items()}
    with _one_process():
        load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    stage.load_state_dict(tensors, strict=False)


def _write(own: dict[str, torch.Tensor], part: Path, group: dist.ProcessGroup | None) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _refused(part), _one_process():
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        packed = {key: tensor.contiguous() for key, tensor in own.items()}
        save(packed, storage_writer=writer, process_group=group, no_dist=group is None)


def _check_free(target: Path) -> None:
    if target.exists() or target.is_symlink():
        raise OutputError(f"{str(target)!r} is there already; name another folder, such as one with the step's number")


@contextlib.contextmanager
def _one_process() -> Iterator[None]:
    """Without the remark that a process which works alone does so."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """What the system refuses, as our own error."""
    from torch.distributed.checkpoint.api import CheckpointException

    try:
        yield
    except (OSError, SafetensorError, CheckpointException) as error:
        causes = error.failures.values() if isinstance(error, CheckpointException) else [(error, None)]
        reasons = {str(cause) for cause, _ in causes}
        raise OutputError(
            f"cannot write the checkpoint {str(path)!r}: {'; '.join(sorted(reasons))}; earlier checkpoints are as they "
            "were; free the disk, or name another folder"
        ) from error
