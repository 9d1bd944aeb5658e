"""DeviceMesh -> ProcessGroups: those of one network's ranks and of its copies, with a time-out of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh

from pararealize.distributed.watchdog.watchdog import Watch
from pararealize.errors import DistributedError, PararealizeError

from .meeting import leave_fault, meet
from .messages.point_to_point import matches_by_tag

__all__ = ["ProcessGroups", "check_bucket_bytes", "check_existence", "end_groups", "new_group"]

_FALLBACK = timedelta(seconds=600)  # for a rank to tell the others that its own time-out is none
_NCCL_FACTOR, _NCCL_LEAST = 10, timedelta(minutes=30)
_LONGEST = 10 * 365 * 86400.0  # seconds; what is longer overflows in clocks of torch's
_naming = threading.Lock()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProcessGroups:
    """The process groups that this rank is in.

    Attributes:
        everyone: all ranks of the mesh, for objects (gloo).
        parareal: the ranks of one network, for collective calls on tensors (the mesh's backend).
        up: the same ranks, for tensors that go to a rank of a higher number; ``parareal`` where messages have tags.
        down: the same, to a rank of a lower number.
        control: the same ranks, for objects (gloo).
        dp: the ranks that hold the same parts of the network's copies, where there are several copies.
        rank: this one's number in ``parareal``.
        device: of this rank.
        limit: the time-out of every wait; groups of NCCL have a longer one, see :func:`new_group`.
        mesh: what they were made from.
        watch: ends all ranks of the mesh when one fails.
    """

    everyone: dist.ProcessGroup
    parareal: dist.ProcessGroup
    up: dist.ProcessGroup
    down: dist.ProcessGroup
    control: dist.ProcessGroup
    dp: dist.ProcessGroup | None
    rank: int
    device: torch.device
    limit: timedelta
    mesh: DeviceMesh
    watch: Watch

    @classmethod
    @contextlib.contextmanager
    def joined(
        cls, mesh: DeviceMesh, timeout: timedelta | float, check: Callable[[], None] = lambda: None
    ) -> Iterator[ProcessGroups]:
        """Around all that ranks do to distribute a network: the groups, and a watch that begins before they are made.

        A rank that fails, dies or hangs within it ends the others, with an error that names it, and then nothing is
        left open.

        Args:
            mesh: the ranks.
            timeout: of every wait; a number is seconds.
            check: raises what is wrong with this rank's other arguments.

        Raises:
            AgreedError: a rank came with arguments that are none, or with another mesh; on every rank.
            DistributedError: the mesh cannot be used; a rank of it did not come, or failed.
        """
        limit, meeting = _meet(mesh, timeout, check)
        every = sorted(int(rank) for rank in mesh.mesh.flatten())
        row = dist.get_process_group_ranks(mesh.get_group("parareal") if mesh.ndim > 1 else mesh.get_group())
        watch = Watch(
            c10d._get_default_store(),
            rank=every.index(dist.get_rank()),
            who=[f"rank {rank}" for rank in every],
            timeout=limit.total_seconds(),
            peers=[every.index(rank) for rank in row],
            meeting=f"{meeting}/watch",
        )
        groups = None
        try:
            with watch.step("distribute"):
                watch.doing("making process groups")
                groups = cls._of(mesh, meeting, limit, watch)
                yield groups
        except BaseException:
            watch.close()
            if groups is not None:
                groups.end(everyone_does=False)
            raise

    @classmethod
    def _of(cls, mesh: DeviceMesh, meeting: str, limit: timedelta, watch: Watch) -> ProcessGroups:
        names = mesh.mesh_dim_names or ("parareal",)
        row = dist.get_process_group_ranks(mesh.get_group("parareal") if mesh.ndim > 1 else mesh.get_group())
        every = sorted(int(rank) for rank in mesh.mesh.flatten())
        everyone = new_group(f"{meeting}/everyone", every, limit, "gloo")
        control = everyone if len(row) == len(every) else new_group(f"{meeting}/control", row, limit, "gloo")
        parareal = new_group(f"{meeting}/parareal", row, limit)
        dp = None
        if "dp" in names and mesh.size(names.index("dp")) > 1:
            dp = new_group(f"{meeting}/dp", dist.get_process_group_ranks(mesh.get_group("dp")), limit)
        kind = mesh.device_type
        device = (
            torch.device("cpu") if kind == "cpu" else torch.device(kind, torch.get_device_module(kind).current_device())
        )
        up = down = parareal
        if not matches_by_tag(parareal, device):
            # NCCL runs all messages of two ranks in a group in one queue, both directions in it: a receive that is
            # issued first on both sides would hold up both sends for ever. With a group a direction, a queue has the
            # sends of one rank and the receives of the other.
            up, down = (new_group(f"{meeting}/{way}", row, limit) for way in ("up", "down"))
        watch.waiting("the first sum of all ranks")
        for group in (parareal, dp):
            if group is not None:
                _connect(group, device, limit)
        return cls(
            everyone=everyone,
            parareal=parareal,
            up=up,
            down=down,
            control=control,
            dp=dp,
            rank=dist.get_rank(parareal),
            device=device,
            limit=limit,
            mesh=mesh,
            watch=watch,
        )

    @contextlib.contextmanager
    def needed(self) -> Iterator[None]:
        """Around a call that sends something.

        Raises:
            DistributedError: torch's groups have been destroyed, before the call or in it.
        """
        every = (self.everyone, self.parareal, self.up, self.down, self.control, self.dp)
        groups = [group for group in every if group is not None]
        check_existence(*groups)
        try:
            yield
        except (ValueError, RuntimeError) as error:  # what torch says of a group that is gone
            if not isinstance(error, PararealizeError):
                check_existence(*groups, cause=error)
            raise

    def end(self, *, everyone_does: bool) -> None:
        """Close the watch, and let go of the threads and sockets of the groups, which torch would keep till the end.

        Args:
            everyone_does: whether all ranks do it at about the same time, which NCCL needs and gloo does not.
        """
        self.watch.close()
        groups = (self.dp, self.up, self.down, self.parareal, self.control, self.everyone)
        end_groups(*groups, everyone_does=everyone_does)


def check_existence(*groups: dist.ProcessGroup, cause: BaseException | None = None) -> None:
    """Refuse groups that have been destroyed; ``cause`` is what came of it.

    Raises:
        DistributedError: one of them has been.
    """
    if any(group not in c10d._world.pg_map for group in groups):
        raise DistributedError(
            "the process groups of the network have been destroyed (torch.distributed.destroy_process_group()), so "
            "that its ranks cannot send each other anything; destroy them after the last call, or initialise "
            "torch.distributed again and distribute the network anew, on all ranks"
        ) from cause


def end_groups(*groups: dist.ProcessGroup | None, everyone_does: bool) -> None:
    """Let go of the threads and sockets of groups of :func:`new_group`; see :meth:`ProcessGroups.end`."""
    for group in groups:
        if group is None or group not in c10d._world.pg_map:  # ended already, alone or with all others
            continue
        if everyone_does or "nccl" not in dist.get_backend_config(group):
            with contextlib.suppress(RuntimeError, ValueError):  # a group that has failed
                dist.destroy_process_group(group)


def _meet(mesh: DeviceMesh, timeout: timedelta | float, check: Callable[[], None]) -> tuple[timedelta, str]:
    """Meet the other ranks of a mesh, with the same mesh and time-out; the time-out, and the meeting's name."""
    if not dist.is_available() or not dist.is_initialized():
        raise DistributedError(
            "torch.distributed is not initialised; start with torchrun --nproc-per-node N script.py, and call "
            "init_device_mesh(...) or torch.distributed.init_process_group() first"
        )
    faults = [] if (fault := _timeout_fault(timeout)) is None else [fault]
    try:
        check()
    except PararealizeError as error:
        faults.append(str(error))
    try:
        _check_mesh(mesh)
    except DistributedError as error:
        faults.append(str(error))
        leave_fault("; and ".join(faults))
        raise DistributedError("; and ".join(faults)) from None
    limit = _FALLBACK if fault else timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    facts = {
        "mesh": f"{mesh.mesh.tolist()} {mesh.mesh_dim_names or ''} of {mesh.device_type}",
        "timeout": f"{limit.total_seconds():g} s",
    }
    every = sorted(int(rank) for rank in mesh.mesh.flatten())
    return limit, meet(every, limit, "; and ".join(faults) or None, facts=facts)


def new_group(name: str, ranks: Sequence[int], limit: timedelta, backend: str | None = None) -> dist.ProcessGroup:
    """A group that its own ranks alone have to ask for.

    Args:
        name: the same on all of these ranks, and no other group's of the same ranks, such as a meeting's.
        ranks: its ranks.
        limit: the time-out of every message. Over NCCL the group's own is longer: its clock starts when a receive is
            posted, long before anybody waits for it, and its watchdog would end the processes of ranks that are not at
            fault. There the watch judges, which knows who is waited for; NCCL's time-out is for the case that it fails.
        backend: that of the default group when left out.

    Raises:
        DistributedError: not all of them asked for it in time.
    """
    try:
        with _group_name(name):
            group = dist.new_group(
                ranks=list(ranks), timeout=_own_limit(backend, limit), backend=backend, use_local_synchronization=True
            )
    except RuntimeError as error:
        raise DistributedError(
            f"rank {dist.get_rank()} waited for the ranks {list(ranks)} to distribute the network, and not all of them "
            f"did within {limit.total_seconds():g} s: {str(error).splitlines()[0]}; every rank of the mesh has to call "
            "distribute equally often"
        ) from error
    assert isinstance(group, dist.ProcessGroup)
    return group


def _own_limit(backend: str | None, limit: timedelta) -> timedelta:
    """The time-out that a group itself gets."""
    if "nccl" not in (dist.get_backend_config() if backend is None else backend):
        return limit
    return max(_NCCL_FACTOR * limit, _NCCL_LEAST)


def _connect(group: dist.ProcessGroup, device: torch.device, limit: timedelta) -> None:
    """Let all ranks of a group sum one number: its first call has to be one that all of them make.

    NCCL makes a group's communicator in its first call, for which all ranks have to come; a later batch of messages is
    issued by those ranks alone that share parameters.
    """
    work = dist.all_reduce(torch.zeros(1, device=device), group=group, async_op=True)
    assert work is not None
    _ = work.wait(limit) if device.type == "cpu" else work.wait()


@contextlib.contextmanager
def _group_name(name: str) -> Iterator[None]:
    """Let groups that are made meanwhile have a name that depends on nothing but this one and their ranks.

    torch names a group that its own ranks alone ask for by its ranks and by how many groups the *process* has made: on
    a rank that has made one more, on another mesh, it gets another name, and all wait for each other until the time-out
    (see the comment in torch's ``_hash_ranks_to_str``). That count stays as it is here: the user's next groups and
    meshes have it for a name, on ranks of this group and on others.
    """

    def named(ranks: Sequence[int]) -> str:
        return hashlib.sha256(f"{name} {list(ranks)}".encode()).hexdigest()

    with _naming:
        by_count, count = c10d._hash_ranks_to_str, c10d._world.group_count
        c10d._hash_ranks_to_str = named
        try:
            yield
        finally:
            c10d._hash_ranks_to_str, c10d._world.group_count = by_count, count


def check_bucket_bytes(size: int) -> None:
    """Refuse buckets that hold nothing."""
    if size < 1:
        raise DistributedError(f"bucket_bytes is {size}; pass 1 or more")


def _timeout_fault(timeout: Any) -> str | None:
    """Why this is no time-out; ``None`` where it is one."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    if isinstance(seconds, int | float) and not isinstance(seconds, bool) and 0 < seconds < _LONGEST:
        return None
    return f"timeout is {timeout!r}; pass seconds above 0, or a datetime.timedelta"


def _check_mesh(mesh: DeviceMesh) -> None:
    """Refuse what is no mesh of one network's ranks, perhaps in several copies."""
    if not isinstance(mesh, DeviceMesh):
        raise DistributedError(
            f"mesh is {type(mesh).__name__}; pass torch.distributed.device_mesh.init_device_mesh('cpu' or 'cuda', "
            "(ranks,), mesh_dim_names=('parareal',))"
        )
    names = mesh.mesh_dim_names
    fits = mesh.ndim == 1 if names is None else sorted(names) in (["parareal"], ["dp", "parareal"])
    if not fits:
        shape = "×".join(map(str, mesh.mesh.shape))
        raise DistributedError(
            f"the mesh has shape {shape} and dimensions {names or 'without names'}; pass one with "
            "mesh_dim_names=('parareal',) or ('dp', 'parareal')"
        )
    if mesh.get_coordinate() is None:
        raise DistributedError(
            f"rank {dist.get_rank()} is not in the mesh {mesh.mesh.tolist()}; call distribute in it only"
        )
    if mesh.device_type != "cpu" and not torch.get_device_module(mesh.device_type).is_available():
        raise DistributedError(f"the mesh is of {mesh.device_type!r} devices, and this rank has none")
    group = mesh.get_group("parareal") if mesh.ndim > 1 else mesh.get_group()
    backend = dist.get_backend(group)
    if mesh.device_type != "cpu" and backend == "gloo":
        raise DistributedError(
            f"the mesh is of {mesh.device_type!r} devices, and its backend is gloo, which sends between CPUs only; "
            "call torch.distributed.init_process_group() without a backend, or with 'nccl'"
        )
