"""A fact, some work or tensors of each rank -> the same outcome on all ranks that hold one network.

Functions for an ordinary module, which one process holds, and for a rank's part of a network: a module with ``group``,
the ranks that hold the network together, and ``mesh``, whose dimension ``dp`` says which ranks hold the same part.
"""

from __future__ import annotations

import contextlib
import hashlib
import zlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from pararealize.distributed.process_groups import check_existence
from pararealize.distributed.watchdog.samples import sample, sample_text
from pararealize.errors import AgreedError, CheckpointError, DistributedError, OutputError, PararealizeError

__all__ = [
    "called_together",
    "collect",
    "digest_of",
    "facts_of_all",
    "first_replica",
    "gather_objects",
    "group_of",
    "is_first",
    "known_to_all",
    "read_alike",
    "tensor_facts",
    "together",
]

_Error = TypeVar("_Error", bound=BaseException)
_Value = TypeVar("_Value")


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


def called_together(
    stage: nn.Module, call: str, *, copies: bool = True, **facts: object
) -> AbstractContextManager[None]:
    """Around a function that all ranks call: where some of them call another one, all raise.

    Args:
        stage: the rank's part; an ordinary module has no other ranks.
        call: its name.
        copies: whether the ranks of all copies call it, or those of one alone.
        **facts: what all ranks have to pass alike.
    """
    if "rank_setup" not in vars(stage):
        return contextlib.nullcontext()
    context: AbstractContextManager[None] = stage.collective_call(call, copies=copies, **facts)  # type: ignore[operator]
    return context


def known_to_all(error: _Error) -> _Error:
    """The error, marked as one that all ranks raise together: the watchdog need not tell them, and they may go on."""
    error.known_to_all = True  # type: ignore[attr-defined]
    return error


def together(stage: nn.Module, work: Callable[[], Any]) -> Any:
    """Do this rank's part of some work; where it fails on one rank, every rank raises.

    Without that, a rank whose disk is full would raise, and the others wait for it in the next collective call. Only
    the first replica works; the others wait for it.

    Returns:
        What the work gave here; ``None`` on other replicas.
    """
    result, fault = None, None
    if first_replica(stage):
        try:
            result = work()
        except (PararealizeError, OSError, RuntimeError) as error:
            fault = error
    reports = facts_of_all(stage, None if fault is None else (type(fault).__name__, str(fault)))
    if fault is not None:
        raise known_to_all(fault)
    for kind, text in filter(None, reports):
        known = {"CheckpointError": CheckpointError, "OutputError": OutputError}.get(kind, DistributedError)
        raise known_to_all(known(text))
    return result


def read_alike(stage: nn.Module, call: str, read: Callable[[], tuple[_Value, Mapping[str, tuple[str, str]]]]) -> _Value:
    """Read something on every rank; where one cannot, or others have something else, all raise, and nothing is changed.

    Args:
        stage: the rank's part; an ordinary module has no other ranks.
        call: the name of the function that all ranks call.
        read: gives what this rank is to take and, by name, what all ranks that name it have to have alike: a value to
            be compared, and one for the error.

    Raises:
        CheckpointError: a rank could not read its part; on every rank.
        AgreedError: ranks have different values.
    """
    setup = vars(stage).get("rank_setup")
    group: dist.ProcessGroup | None = group_of(stage) if setup is None else setup.groups.everyone
    if group is None or dist.get_world_size(group) == 1:
        return read()[0]
    value: _Value | None = None
    fault: Exception | None = None
    facts: Mapping[str, tuple[str, str]] = {}
    with called_together(stage, call):
        try:
            value, facts = read()
        except (PararealizeError, OSError, RuntimeError, ValueError, TypeError, KeyError) as error:
            fault = error
        report = None if fault is None else (type(fault).__name__, str(fault))
        reports = gather_objects((report, facts), group)
    if fault is not None:
        raise known_to_all(fault)
    ranks = dist.get_process_group_ranks(group)
    for rank, (report, _) in zip(ranks, reports, strict=True):
        if report is not None:
            kind = CheckpointError if report[0] == "CheckpointError" else DistributedError
            raise known_to_all(kind(f"rank {rank}: {report[1]}; no rank has loaded anything"))
    if differing := _differing(dict(zip(ranks, (facts for _, facts in reports), strict=True))):
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        raise AgreedError(
            f"the ranks do not agree on what to load ({call}): {'; '.join(differing[:4])}{more}; parts of two "
            "checkpoints are no network, pass the same one on every rank; no rank has loaded anything"
        )
    assert fault is None
    return value  # type: ignore[return-value]


def _differing(facts: Mapping[int, Mapping[str, tuple[str, str]]]) -> list[str]:
    """A sentence for each name whose values differ between the ranks that have it: facts of ranks, by name."""
    sentences = []
    for name in dict.fromkeys(name for its_facts in facts.values() for name in its_facts):
        values: dict[str, tuple[str, list[int]]] = {}
        for rank, its_facts in facts.items():
            if name in its_facts:
                value, shown = its_facts[name]
                values.setdefault(value, (shown, []))[1].append(rank)
        if len(values) > 1:
            listed = ", ".join(f"{shown} on rank {', '.join(map(str, ranks))}" for shown, ranks in values.values())
            sentences.append(f"{name} is {listed}")
    return sentences


def tensor_facts(tensors: Mapping[str, Any], what: str = "") -> dict[str, tuple[str, str]]:
    """Tensors by name -> what :func:`read_alike` compares: shapes, types, and some numbers of those on the CPU."""
    facts = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, torch.Tensor):
            shape = f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            readable = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized
            with contextlib.suppress(TypeError, RuntimeError, KeyError):  # a type that NumPy has not, a wrapper
                text = sample(tensor) if readable else ""
                shown = f"{shape}, {sample_text(text)}" if text.partition(":")[2] else shape
                facts[f"{what}{name}"] = f"{zlib.crc32(f'{shape}{text}'.encode()):08x}", shown
    return facts


def digest_of(tensor: torch.Tensor) -> str:
    """A digest of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data.tobytes(), digest_size=6).hexdigest()


def gather_objects(value: Any, group: dist.ProcessGroup | None) -> list[Any]:
    """The objects of all ranks of a group, on each of them; without a group, those of this process alone."""
    values = [value]
    if group is not None:
        check_existence(group)
        values = [None] * dist.get_world_size(group)
        dist.all_gather_object(values, value, group=group)
    return values


def facts_of_all(stage: nn.Module, fact: Any) -> list[Any]:
    """The facts of all ranks of the first replica, on the ranks of all replicas."""
    facts = gather_objects(fact, group_of(stage) if first_replica(stage) else None)
    if (replicas := _replicas(stage)) is not None:
        message: list[Any] = [facts]
        dist.broadcast_object_list(message, src=dist.get_global_rank(replicas, 0), group=replicas)
        facts = message[0]
    return facts


def collect(
    tensors: Mapping[Any, torch.Tensor], group: dist.ProcessGroup | None, *, everywhere: bool = False
) -> dict[Any, torch.Tensor]:
    """The tensors of all ranks of a group, those of one name once: on its first rank, or on every one.

    Every rank first learns the shapes of all. Then all go through the names in one order, the sender and the receivers
    of each being known to all, so that sends and receives meet without tags.
    """
    if group is None:
        packed = torch.contiguous_format  # files know no other order of elements, such as channels_last
        return {key: tensor.detach().cpu().clone(memory_format=packed) for key, tensor in tensors.items()}
    lists = gather_objects({key: (tuple(t.shape), t.dtype) for key, t in tensors.items()}, group)
    owners: dict[Any, int] = {}
    for rank, listed in enumerate(lists):
        for key, kind in listed.items():
            owner = owners.setdefault(key, rank)
            if lists[owner][key] != kind:
                text = f"ranks {owner} and {rank} hold {key} as {lists[owner][key]} and {kind}"
                raise known_to_all(CheckpointError(f"{text}; they are not parts of one network"))
    rank, device = dist.get_rank(group), _device_of(group)
    gathered: dict[Any, torch.Tensor] = {}
    for key, owner in owners.items():
        shape, dtype = lists[owner][key]
        if not (everywhere or rank in (0, owner)):
            continue
        if owner == rank:  # as bytes, so that every type can be sent
            data = tensors[key].detach().contiguous().reshape(-1).view(torch.uint8).to(device)
        else:
            data = torch.empty(torch.Size(shape).numel() * dtype.itemsize, dtype=torch.uint8, device=device)
        _move(data, owner, rank, group, everywhere=everywhere)
        if everywhere or rank == 0:
            gathered[key] = data.to("cpu", copy=True).view(dtype).reshape(shape)
    return gathered


def _move(data: torch.Tensor, owner: int, rank: int, group: dist.ProcessGroup, *, everywhere: bool) -> None:
    """Bring a tensor from its owner to the first rank, or to all; the others pass the memory for it."""
    if data.numel() == 0:
        return
    if everywhere:
        dist.broadcast(data, group=group, group_src=owner)
    elif owner == rank != 0:
        dist.send(data, group=group, group_dst=0)
    elif owner != rank:
        dist.recv(data, group=group, group_src=owner)


def _device_of(group: dist.ProcessGroup) -> torch.device:
    """Where tensors have to lie to be sent."""
    on_cpu = "cpu" in dist.get_backend_config(group) or dist.get_backend(group) == "gloo"
    return torch.device("cpu") if on_cpu else torch.device(torch.accelerator.current_accelerator() or "cuda")
