"""The parts of a network that ranks hold -> one state dict with the original names, one file, and back.

A checkpoint does not know by how many ranks it was written: it is the state dict of the one-process network. Each rank
holds a part of it under the same names; what several ranks hold (replicas over dp, shared parameters) is in it once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from pararealize.errors import CheckpointError, DistributedError, OutputError, PararealizeError
from pararealize.files import whole_file

__all__ = ["collect", "gather_state_dict", "load_state", "save_state", "together"]


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
        CheckpointError: two ranks hold a tensor of one name and of different shapes or types.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.distributed.checkpoint.state import gather_state_dict
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=2)
        >>> gather_state_dict(net).keys() == net.state_dict().keys()
        True
    """
    return collect(own_tensors(stage), group_of(stage), everywhere=everywhere)


def save_state(stage: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state dict of the whole network to one safetensors file, which appears complete or not at all.

    All ranks call it, those of all replicas; the first rank writes. A file that is there is replaced at the end, so
    that a crash or a full disk at any time leaves the old one.

    Raises:
        OutputError: the file cannot be written; on every rank.
        CheckpointError: a part cannot be saved; on every rank.
    """
    own = together(stage, lambda: own_tensors(stage))
    whole = {} if own is None else collect(own, group_of(stage))
    together(stage, lambda: _write(whole, Path(path)) if is_first(stage) else None)


def load_state(
    stage: nn.Module, source: str | os.PathLike[str] | Mapping[str, torch.Tensor], *, strict: bool = True
) -> None:
    """Take this rank's part of a checkpoint of the whole network; nothing else is read from the file.

    Each rank calls it for itself, whatever the number of ranks that wrote the checkpoint. Between different n, see
    :meth:`~pararealize.PararealModule.load_original_state_dict`.

    Args:
        stage: this rank's part, or the whole network in one process.
        source: a safetensors file, or a state dict.
        strict: refuse a checkpoint in which tensors are missing; otherwise these stay as they are.

    Raises:
        CheckpointError: it is no such file, tensors are missing, or one has another shape. Nothing is changed then.
    """
    own = stage.state_dict()
    if isinstance(source, Mapping):
        shapes = {key: tuple(source[key].shape) for key in own if key in source}
        check_fit(own, shapes, "the state dict", strict=strict)
        stage.load_state_dict({key: source[key] for key in shapes}, strict=False)
        return
    with _opened(Path(source)) as file:
        there = set(file.keys())
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in own if key in there}
        check_fit(own, shapes, f"{str(source)!r}", strict=strict)
        stage.load_state_dict({key: file.get_tensor(key) for key in shapes}, strict=False)


def check_fit(
    own: Mapping[str, torch.Tensor], there: Mapping[str, Sequence[int]], what: str, *, strict: bool = True
) -> None:
    """Compare a part of a network with the shapes of what a checkpoint holds.

    Raises:
        CheckpointError: tensors are missing, or have another shape.
    """
    missing = [key for key in own if key not in there] if strict else []
    differing = [
        f"{key}: {tuple(shape)} there, {tuple(own[key].shape)} here"
        for key, shape in there.items()
        if key in own and tuple(shape) != tuple(own[key].shape)
    ]
    faults = [
        f"{len(keys)} {fault} ({', '.join(keys[:3])}{', …' if len(keys) > 3 else ''})"
        for fault, keys in (("missing", missing), ("of another shape", differing))
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{what} does not fit: of the {len(own)} tensors here {', '.join(faults)}; load a checkpoint of this "
            "network with the same n, or take the original's part alone with load_original_state_dict"
        )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        file = safe_open(str(path), framework="pt")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{str(path)!r} cannot be read as a safetensors file: {error}; name one that save_state wrote, or use "
            "load_sharded for a folder"
        ) from error
    with file as opened:
        yield opened


def _write(state: dict[str, torch.Tensor], path: Path) -> None:
    try:
        with whole_file(path) as part:
            save_file(state, str(part))
    except (OSError, SafetensorError) as error:
        raise OutputError(
            f"cannot write the checkpoint {str(path)!r}: {getattr(error, 'strerror', None) or error}; what was there "
            "before is as it was; free the disk, or name another file"
        ) from error


# --------------------------------------------------------------------------------------------------- between ranks


def group_of(stage: nn.Module) -> dist.ProcessGroup | None:
    """The ranks that hold one network together, or ``None`` where one process holds it."""
    group: dist.ProcessGroup | None = getattr(stage, "group", None)
    return group if group is not None and dist.get_world_size(group) > 1 else None


def _replicas(stage: nn.Module) -> dist.ProcessGroup | None:
    """The ranks that hold the same part."""
    mesh = getattr(stage, "mesh", None)
    if mesh is None or "dp" not in (mesh.mesh_dim_names or ()) or mesh["dp"].size() == 1:
        return None
    group: dist.ProcessGroup = mesh.get_group("dp")
    return group


def first_replica(stage: nn.Module) -> bool:
    """Whether this rank is of the replica that writes."""
    return _rank(_replicas(stage)) == 0


def is_first(stage: nn.Module) -> bool:
    """Whether this rank is the one that does what only one may do."""
    return first_replica(stage) and _rank(group_of(stage)) == 0


def _rank(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)


def together(stage: nn.Module, work: Callable[[], Any]) -> Any:
    """Do a part of a work that all ranks do; where one of them fails, all of them do.

    Only the first replica works; the others wait for it. Returns what the work gave here, and on other replicas
    ``None``.
    """
    result, fault = None, None
    if first_replica(stage):
        try:
            result = work()
        except (PararealizeError, OSError, RuntimeError) as error:
            fault = error
    found = everyone(stage, None if fault is None else f"{type(fault).__name__}: {fault}")
    if fault is not None:
        raise fault
    for other in filter(None, found):
        name, _, text = other.partition(": ")
        raise {"CheckpointError": CheckpointError, "OutputError": OutputError}.get(name, DistributedError)(text)
    return result


def everyone(stage: nn.Module, fact: Any) -> list[Any]:
    """What each rank of the first replica says, known to the ranks of all replicas."""
    found = [fact]
    if first_replica(stage) and (group := group_of(stage)) is not None:
        found = [None] * dist.get_world_size(group)
        dist.all_gather_object(found, fact, group=group)
    if (replicas := _replicas(stage)) is not None:
        told: list[Any] = [found]
        dist.broadcast_object_list(told, src=dist.get_global_rank(replicas, 0), group=replicas)
        found = told[0]
    return found


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


def collect(
    own: Mapping[Any, torch.Tensor], group: dist.ProcessGroup | None, *, everywhere: bool = False
) -> dict[Any, torch.Tensor]:
    """The tensors of all ranks of a group, those of one name once: on its first rank, or on every one."""
    if group is None:
        packed = torch.contiguous_format  # files know no other order of elements, such as channels_last
        return {key: tensor.detach().cpu().clone(memory_format=packed) for key, tensor in own.items()}
    lists: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(lists, {key: (tuple(t.shape), t.dtype) for key, t in own.items()}, group=group)
    owners: dict[Any, int] = {}
    for rank, listed in enumerate(lists):
        for key, kind in listed.items():
            owner = owners.setdefault(key, rank)
            if lists[owner][key] != kind:
                raise CheckpointError(
                    f"ranks {owner} and {rank} hold {key} as {lists[owner][key]} and {kind}; they are not parts of one "
                    "network"
                )
    me, place = dist.get_rank(group), _place(group)
    gathered: dict[Any, torch.Tensor] = {}
    for key, owner in owners.items():
        shape, dtype = lists[owner][key]
        data = _bytes(own[key]).to(place) if owner == me else None
        if everywhere or me in (0, owner):
            data = torch.empty(_size(shape, dtype), dtype=torch.uint8, device=place) if data is None else data
            _move(data, owner, me, group, everywhere=everywhere)
        if everywhere or me == 0:
            assert data is not None
            gathered[key] = data.to("cpu", copy=True).view(dtype).reshape(shape)
    return gathered


def _move(data: torch.Tensor, owner: int, me: int, group: dist.ProcessGroup, *, everywhere: bool) -> None:
    if data.numel() == 0:
        return
    if everywhere:
        dist.broadcast(data, group=group, group_src=owner)
    elif owner == me != 0:
        dist.send(data, group=group, group_dst=0)
    elif owner != me:
        dist.recv(data, group=group, group_src=owner)


def _place(group: dist.ProcessGroup) -> torch.device:
    """Where tensors have to lie to be sent."""
    on_cpu = "cpu" in dist.get_backend_config(group) or dist.get_backend(group) == "gloo"
    return torch.device("cpu") if on_cpu else torch.device(torch.accelerator.current_accelerator() or "cuda")


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as bytes, so that every type can be sent."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _size(shape: Sequence[int], dtype: torch.dtype) -> int:
    return torch.Size(shape).numel() * dtype.itemsize
