"""A rank's part of a network -> its file in a folder that all ranks write together, and back at any number of ranks.

The folder is one of torch.distributed.checkpoint with safetensors inside, a file a rank: each rank writes its own
tensors and reads only its own, so that nowhere more memory is needed than for the part itself. Nothing is pickled.

    step-1000/
        shard-00001-model-00001-of-00001.safetensors      rank 0: stem, g^1, …
        shard-00002-model-00001-of-00001.safetensors      rank 1: C^2, F^1, g^2, …
        manifest.json                                     the digest of each file, written last

torch.distributed.checkpoint is imported where it is used: it takes a second, and brings hundreds of modules. It is not
used for reading: a file is looked at as a whole, to compare its digest, before anything is taken from it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import nn

from pararealize.errors import CheckpointError, OutputError
from pararealize.files import kind_of, whole_folder
from pararealize.manifest import MANIFEST, FileFact, Manifest, faults_of_files, read_manifest, write_manifest

from .collective import called_together, facts_of_all, group_of, is_first, read_alike, together
from .state import check_copies, fitting_names, own_tensors
from .tensor_file import open_tensors
from .weights_plan import plan_facts

__all__ = ["load_sharded", "save_sharded"]

HOLDS = "the shards of a network"
PLAN = "plan"  # in the manifest: JSON of plan_facts


def save_sharded(stage: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Write the network's state dict into a new folder, each rank its own part, on a disk that all of them see.

    All ranks call it, those of all replicas; one replica writes. The folder gets its name when everything is in it and
    on the disk, so that a crash at any time leaves earlier checkpoints as they are, and at most a folder
    ``.NAME.….part``.

    Raises:
        OutputError: the folder is there already or cannot be written; on every rank.
        CheckpointError: a part cannot be saved, or copies of a tensor on several ranks are not alike; on every rank.

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
    with (
        called_together(stage, "save_sharded"),
        contextlib.ExitStack() as writing,
    ):  # of the first rank; closing it gives the folder its name
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
                    write_manifest(Path(part), HOLDS, {PLAN: json.dumps(plan_facts(stage))}, files)
                    writing.close()

        tensors = together(stage, begin)
        together(stage, lambda: check_copies(stage))
        part = next(path for paths in facts_of_all(stage, parts) for path in paths)
        together(stage, lambda: _write(tensors, Path(part), group_of(stage)))
        described = together(stage, lambda: _describe(Path(part), group_of(stage)))
        files = {name: fact for facts in facts_of_all(stage, described or {}) for name, fact in facts.items()}
        together(stage, finish)


def load_sharded(stage: nn.Module, folder: str | os.PathLike[str], *, strict: bool = True) -> None:
    """Take this rank's part from a folder of :func:`save_sharded`; nothing else is read.

    All ranks call it, those of all replicas, whatever the number of ranks that wrote the folder. Where one of them
    cannot read its part, or names another checkpoint, all raise, and nothing is changed.

    Args:
        stage: this rank's part, or the whole network in one process.
        folder: of one checkpoint.
        strict: see :func:`~pararealize.distributed.checkpoint.state.load_state`.

    Raises:
        CheckpointError: it is no such folder, a file that is read is not what was written (of which other step or run
            it is, where that stands beside it), or tensors do not fit. Nothing is changed then.
    """
    tensors = read_alike(stage, "load_sharded", lambda: _read(stage, Path(folder), strict=strict))
    stage.load_state_dict(tensors, strict=False)


def _read(stage: nn.Module, path: Path, *, strict: bool) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, str]]]:
    """The part of this rank in a folder, and what all ranks have to have alike of it: the digests of all files."""
    manifest = _manifest(path)
    state = stage.state_dict()
    owners: dict[str, str] = {}  # the file that each tensor stands in
    forms: dict[str, torch.Tensor] = {}
    faults: list[str] = []
    for name in sorted(manifest.files):
        try:
            with open_tensors(path / name) as file:
                found = file.forms
        except CheckpointError:
            found = {}
            faults += faults_of_files(path, manifest, [name]) or [f"{name} holds no tensors"]
        faults += [] if state.keys().isdisjoint(found) else faults_of_files(path, manifest, [name])
        forms |= found
        owners |= dict.fromkeys(found, name)
    if not faults and not state.keys() <= forms.keys():  # are they missing, or in a file that no longer says so?
        faults = faults_of_files(
            path, manifest, sorted(manifest.files.keys() - {owners[key] for key in state if key in owners})
        )
    if faults:
        raise CheckpointError(
            f"{str(path)!r} is damaged: {'; '.join(dict.fromkeys(faults))}; put the files back from a copy, or take an "
            "earlier checkpoint"
        )
    facts = json.loads(str(manifest.facts.get(PLAN, "null")))
    fitting = fitting_names(stage, state, forms, facts, f"{str(path)!r}", strict=strict)
    tensors: dict[str, torch.Tensor] = {}
    for owner in sorted({owners[name] for name in fitting.values()}):
        with open_tensors(path / owner) as file:
            tensors |= {key: file.tensor(name) for key, name in fitting.items() if owners[name] == owner}
    digest = hashlib.sha256(repr(sorted(manifest.files.items())).encode()).hexdigest()
    return tensors, {"the folder": (digest, f"{str(path)!r} (digest {digest[:8]})")}


def _manifest(path: Path) -> Manifest:
    try:
        return read_manifest(path, HOLDS)
    except CheckpointError as error:
        remedy = "name a folder that save_sharded wrote, or use load_state for a single file"
        with contextlib.suppress(OSError):
            if kind_of(path / MANIFEST) is None and any(path.glob("*.safetensors")):
                remedy = (
                    "put it back from a copy, or take an earlier checkpoint; the files of another program, or of a "
                    "version without manifests, are taken unchecked one by one with load_state(stage, file, "
                    "strict=False)"
                )
        raise CheckpointError(f"{error}; {remedy}") from error


def _describe(part: Path, group: dist.ProcessGroup | None) -> dict[str, FileFact]:
    """What some of the files are: every rank looks at its share, whoever wrote them."""
    rank, ranks = (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))
    with _refused(part):
        names = sorted(entry.name for entry in part.iterdir())[rank::ranks]
        return {name: FileFact.of(part / name) for name in names}


def _write(own: dict[str, torch.Tensor], part: Path, group: dist.ProcessGroup | None) -> None:
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    with _refused(part), _one_process():
        writer = HuggingFaceStorageWriter(str(part), save_distributed=True)
        packed = {key: tensor.contiguous() for key, tensor in own.items()}
        save(packed, storage_writer=writer, process_group=group, no_dist=group is None)


def _check_free(target: Path) -> None:
    with _refused(target):
        kind = kind_of(target)
    if kind is not None:
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
        reasons = {getattr(cause, "strerror", None) or str(cause) for cause, _ in causes}
        raise OutputError(
            f"cannot write the checkpoint {str(path)!r}: {'; '.join(sorted(reasons))}; earlier checkpoints are as they "
            "were; free the disk, or name another folder"
        ) from error
