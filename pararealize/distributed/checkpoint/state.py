"""The parts of a network that ranks hold -> one state dict with the original names, one file, and back.

A checkpoint does not know by how many ranks it was written: it is the state dict of the one-process network. Each rank
holds a part of it under the same names; what several ranks hold (replicas over dp, shared parameters) is in it once.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from pararealize.errors import CheckpointError, OutputError
from pararealize.files import whole_file
from pararealize.manifest import differences
from pararealize.table import shortened

from .collective import (
    called_together,
    collect,
    digest_of,
    gather_objects,
    group_of,
    is_first,
    known_to_all,
    read_alike,
    together,
)
from .tensor_file import file_fact, open_tensors, write_tensors
from .weights_plan import plan_facts, without_added

__all__ = [
    "check_copies",
    "check_tensors",
    "fitting_names",
    "gather_state_dict",
    "load_state",
    "own_tensors",
    "save_state",
    "tensor_misfit",
]

_OTHER_PLAN = "or take the original's part alone with load_original_state_dict, or strict=False"


def gather_state_dict(stage: nn.Module, *, everywhere: bool = False) -> dict[str, torch.Tensor]:
    """The state dict of the whole network, on the CPU.

    All ranks of the group call it. It takes the memory of the whole network on the ranks that get it, beside what is
    there already; :func:`~pararealize.distributed.checkpoint.sharded.save_sharded` does not.

    Args:
        stage: this rank's part; an ordinary module is the whole network.
        everywhere: give it to every rank.

    Returns:
        The state dict on the first rank of the group, an empty one elsewhere; or the state dict on every rank.

    Raises:
        CheckpointError: two ranks hold a tensor of one name and of different shapes or types, or copies of one tensor
            that are not alike any more; on every rank of the group.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.distributed.checkpoint import gather_state_dict
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=2)
        >>> gather_state_dict(net).keys() == net.state_dict().keys()
        True
    """
    with called_together(stage, "gather_state_dict", copies=False, everywhere=everywhere):
        tensors = own_tensors(stage)
        check_copies(stage)
        return collect(tensors, group_of(stage), everywhere=everywhere)


def save_state(stage: nn.Module, path: str | os.PathLike[str], *, once: bool = False) -> None:
    """Write the state dict of the whole network to one safetensors file, which appears complete or not at all.

    All ranks call it, those of all replicas; the first rank writes. A file that is there is replaced at the end, so
    that a crash or a full disk at any time leaves the old one. The digest of each tensor, and of which n, cuts and
    coarse blocks they are, stand in the file's metadata.

    Args:
        stage: this rank's part; an ordinary module is the whole network.
        path: of the file.
        once: leave out all but one of the names of a tensor that has several (tied embeddings), as
            ``safetensors.torch.save_model`` does; :func:`load_state` finds it under any of them.

    Raises:
        OutputError: the file cannot be written; on every rank.
        CheckpointError: a part cannot be saved, or copies of a tensor on several ranks are not alike; on every rank.
    """
    with called_together(stage, "save_state", once=once):
        tensors = together(stage, lambda: own_tensors(stage))
        together(stage, lambda: check_copies(stage))
        if tensors is not None and once:
            tensors = {names[0]: tensors[names[0]] for names in _same_memory(tensors)}
        whole = {} if tensors is None else collect(tensors, group_of(stage))
        together(stage, lambda: _write(whole, Path(path), plan_facts(stage)) if is_first(stage) else None)


def load_state(
    stage: nn.Module, source: str | os.PathLike[str] | Mapping[str, torch.Tensor], *, strict: bool = True
) -> None:
    """Take this rank's part of a checkpoint of the whole network; nothing else is read from the file.

    All ranks call it, those of all replicas, whatever the number of ranks that wrote the checkpoint. Where one of them
    cannot read its part, or names another checkpoint, all raise, and nothing is changed. Between different n, see
    :meth:`~pararealize.PararealModule.load_original_state_dict`.

    Args:
        stage: this rank's part, or the whole network in one process.
        source: a safetensors file, one of ``torch.save`` with a state dict in it, or a state dict.
        strict: refuse a checkpoint in which tensors are missing, which has others than the whole network, or which is
            of another plan (another n, other cuts or coarse blocks). Otherwise missing ones stay as they are, others
            are passed over, and of another plan's checkpoint, adapters and coarse blocks are.

    Raises:
        CheckpointError: it is no such file, does not fit, a tensor has another shape or is of another kind of numbers
            (floating-point, complex, whole, boolean), or one is not what :func:`save_state` wrote; on every rank.
            Nothing is changed then.
        AgreedError: ranks name different checkpoints.
    """
    tensors = read_alike(stage, "load_state", lambda: _read(stage, source, strict=strict))
    stage.load_state_dict(tensors, strict=False)


def _read(
    stage: nn.Module, source: str | os.PathLike[str] | Mapping[str, torch.Tensor], *, strict: bool
) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str, str]]]:
    """The part of this rank in a checkpoint, and what all ranks have to have alike of it: which file it is."""
    state = stage.state_dict()
    if isinstance(source, Mapping):
        fitting = fitting_names(stage, state, source, None, "the state dict", strict=strict)
        return {key: source[name] for key, name in fitting.items()}, {}
    with open_tensors(source) as file:
        fitting = fitting_names(stage, state, file.forms, file.facts, repr(os.fspath(source)), strict=strict)
        tensors = {key: file.tensor(name) for key, name in fitting.items()}
    return tensors, {"the file": file_fact(source)}


def fitting_names(
    stage: nn.Module,
    state: Mapping[str, torch.Tensor],
    forms: Mapping[str, Any],
    facts: Any,
    what: str,
    *,
    strict: bool,
) -> dict[str, str]:
    """For each key of a part's state dict the name of the tensor of a checkpoint that takes its place.

    Args:
        stage: the rank's part, or the whole network.
        state: its state dict.
        forms: the checkpoint's tensors by name, or tensors on the meta device like them.
        facts: of the plan that the checkpoint is of, see :func:`~.weights_plan.plan_facts`; ``None`` where unknown.
        what: the checkpoint, in errors.
        strict: see :func:`load_state`.

    Raises:
        CheckpointError: it does not fit.
    """
    names: Iterable[str] = forms
    plan_faults = [] if facts is None else differences(facts, plan_facts(stage), "plan")
    if plan_faults and strict:
        raise CheckpointError(f"{what} is of another plan: {'; '.join(plan_faults[:4])}; {_OTHER_PLAN}")
    if plan_faults:
        names = without_added(forms)
    fitting = _sources(stage, state, set(names))
    # a part of a network that does not know the whole one's names cannot tell which are of no rank
    whole: Collection[str] = getattr(stage, "tied_names", None) or (forms if hasattr(stage, "group") else state)
    misfits = {
        "missing": [key for key in state if key not in fitting] if strict else [],
        "unknown": [name for name in forms if name not in whole and name not in state] if strict else [],
        "of another shape or type": [
            f"{key}: {fault}" for key, name in fitting.items() if (fault := tensor_misfit(forms[name], state[key]))
        ],
    }
    faults = [
        f"{len(keys)} {fault} ({', '.join(map(_shown, keys[:3]))}{', …' if len(keys) > 3 else ''})"
        for fault, keys in misfits.items()
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{what} does not fit: of {len(state)} tensors here and {len(forms)} there, {', '.join(faults)}; load a "
            f"checkpoint of this network with the same n, {_OTHER_PLAN}"
        )
    return fitting


def tensor_misfit(value: Any, current: torch.Tensor) -> str:
    """Why a tensor of a checkpoint cannot take the place of another one, whatever their devices; nothing where it can.

    Another precision is no fault. Numbers of another kind are: torch would drop imaginary parts, and take whole numbers
    for weights.
    """
    if not isinstance(value, torch.Tensor):
        return f"a {type(value).__name__} there, a tensor here"
    if value.is_nested or value.shape != current.shape:
        return f"{'nested' if value.is_nested else tuple(value.shape)} there, {tuple(current.shape)} here"
    if _kind(value.dtype) != _kind(current.dtype):
        return f"{value.dtype} there, {current.dtype} here"
    if value.layout != current.layout or value.is_quantized != current.is_quantized:
        return f"{value.dtype}, {value.layout} there, {current.dtype}, {current.layout} here"
    return ""


def _kind(dtype: torch.dtype) -> str:
    kinds = (dtype.is_floating_point, "floating"), (dtype.is_complex, "complex"), (dtype is torch.bool, "boolean")
    return next((kind for is_one, kind in kinds if is_one), "whole")


def _shown(key: str) -> str:
    return shortened(key, 200)


def _sources(stage: nn.Module, state: Mapping[str, torch.Tensor], present: Collection[str]) -> dict[str, str]:
    """For each key of a state dict the name that its tensor has among those present, where it is there.

    A tensor of several names may be stored under one of them.
    """
    others = {key: names for names in _same_memory(state) for key in names}
    tied: Mapping[str, Sequence[str]] = getattr(stage, "tied_names", None) or {}
    sources = {key: [name for name in (key, *others[key], *tied.get(key, ())) if name in present] for key in state}
    return {key: names[0] for key, names in sources.items() if names}


def _same_memory(state: Mapping[str, torch.Tensor]) -> list[list[str]]:
    """The keys of a state dict, those of one tensor together."""
    groups: dict[object, list[str]] = {}
    for key, value in state.items():
        has_memory = not value.is_meta and value.numel() > 0
        place = (value.device, value.data_ptr(), value.shape, value.stride(), value.dtype) if has_memory else key
        groups.setdefault(place, []).append(key)
    return list(groups.values())


def _write(state: dict[str, torch.Tensor], path: Path, facts: Any) -> None:
    try:
        with whole_file(path) as part:
            write_tensors(part, state, facts)
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the checkpoint {str(path)!r}: {getattr(error, 'strerror', None) or error}; what was there "
            "before is as it was; free the disk, or name another file"
        ) from error


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state dict.

    Raises:
        CheckpointError: it holds something else than tensors, or tensors without values.
    """
    state = check_tensors(module)
    if empty := [key for key, value in state.items() if value.is_meta]:
        raise CheckpointError(
            f"cannot write a checkpoint: {', '.join(empty[:3])} on the meta device; only tensors with values can be "
            "saved"
        )
    return {key: value.detach() for key, value in state.items()}


def check_copies(stage: nn.Module) -> None:
    """Compare the copies of parameters and buffers that several ranks hold together: a checkpoint has one of them.

    All ranks of one network call it.

    Raises:
        CheckpointError: copies are not alike any more; on every rank.
    """
    setup, group = vars(stage).get("rank_setup"), group_of(stage)
    if setup is None or group is None:
        return
    held: dict[str, str] = {}
    for kind in ("parameters", "buffers"):
        for tensors in setup.sync.parameters.held_together(kind).values():
            held |= {
                name: digest_of(tensor)
                for name, tensor in tensors.items()
                if tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_quantized
            }
    digests: dict[str, dict[str, list[int]]] = {}
    for rank, theirs in enumerate(gather_objects(held, group)):
        for name, digest in theirs.items():
            digests.setdefault(name, {}).setdefault(digest, []).append(rank)
    apart = [
        f"{name} ({', '.join(f'digest {digest} on rank {str(ranks)[1:-1]}' for digest, ranks in its.items())})"
        for name, its in digests.items()
        if len(its) > 1
    ]
    if apart:
        more = f" and {len(apart) - 3} more" if len(apart) > 3 else ""
        raise known_to_all(
            CheckpointError(
                f"copies of {', '.join(apart[:3])}{more} are not alike any more, and a checkpoint has one of them: let "
                "every rank's optimiser treat its copies alike, clip by stage.clip_grad_norm_, and leave no modules "
                "whose forward writes buffers to several ranks; load a checkpoint on all ranks to make them alike"
            )
        )


def check_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """A module's state dict, with values or without.

    Raises:
        CheckpointError: it holds something else than tensors.
    """
    state: dict[str, torch.Tensor] = module.state_dict()
    if others := [key for key, value in state.items() if not isinstance(value, torch.Tensor)]:
        raise CheckpointError(
            f"cannot write a checkpoint: {', '.join(others[:3])} no tensors; only tensors with values can be saved"
        )
    return state
