"""Tensors of one rank -> the same tensors on another: messages within a group of ranks, every wait bounded.

Sizes and element types of a message are learnt once for each signature of the inputs: then a description goes ahead of
it through a group for objects. From the second step on, receives are posted before anything is computed, and no
description is sent.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch.utils import _pytree as pytree

from pararealize.errors import DistributedError

__all__ = ["Incoming", "Kind", "Kinds", "Watching", "Wire"]

_EXCHANGE = 1 << 20  # a tag that no message between segments has


class Watching(Protocol):
    """What is told of each action and each wait, so that a death or a hang can be named."""

    def step(self) -> contextlib.AbstractContextManager[Any]:
        """Around a whole step."""

    def doing(self, what: str) -> None:
        """Before an action, such as ``"g^3 forward"``."""

    def waiting(self, what: str, peer: int | None = None) -> None:
        """Before a wait for a message of a rank of the group, such as ``"z_2"``, or for all of them."""

    def sent(self, peer: int) -> None:
        """After a message to a rank of the group."""

    def took(self, peer: int) -> None:
        """After one of a rank of the group has come."""


@dataclasses.dataclass(frozen=True, slots=True)
class Kind:
    """One tensor's shape, strides and element type."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Kind:
        """That of a tensor; of one whose elements do not fill its memory, that of a contiguous copy."""
        stride = tensor.stride() if _is_dense(tensor) else torch.empty(tensor.shape, device="meta").stride()
        return cls(tuple(tensor.shape), tuple(stride), tensor.dtype)

    def empty(self, device: torch.device) -> torch.Tensor:
        """Memory for one."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=device)

    def packed(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor in this layout: itself where it has it already."""
        if tensor.stride() == self.stride and tensor.dtype == self.dtype:
            return tensor
        return self.empty(tensor.device).copy_(tensor)

    def __str__(self) -> str:
        return f"{self.shape} {str(self.dtype).removeprefix('torch.')}"


def _is_dense(tensor: torch.Tensor) -> bool:
    return tensor.is_contiguous() or any(
        tensor.ndim == ndim and tensor.is_contiguous(memory_format=layout)
        for ndim, layout in ((4, torch.channels_last), (5, torch.channels_last_3d))
    )


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """All elements in the order of memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


@dataclasses.dataclass(frozen=True, slots=True)
class _Plain:
    """What is no tensor within an output."""

    value: Any


@dataclasses.dataclass(slots=True)
class Kinds:
    """What messages of one signature look like, by name: the kinds of their tensors, and how these are nested."""

    learnt: dict[str, tuple[tuple[Kind | None, ...], list[Any], pytree.TreeSpec]] = dataclasses.field(
        default_factory=dict
    )
    complete: bool = False  # after the first step of this signature


@dataclasses.dataclass(slots=True)
class Incoming:
    """A message that is on its way."""

    name: str
    peer: int
    tag: int
    works: list[dist.Work] | None = None
    tensors: list[torch.Tensor] = dataclasses.field(default_factory=list)


class Wire:
    """Messages of one rank within its group.

    Args:
        group: of the ranks, for tensors.
        control: of the same ranks, for descriptions.
        device: where messages lie.
        timeout: of every wait.
        who: what to call a rank of the group in an error.
        watch: is told before every wait.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        control: dist.ProcessGroup,
        device: torch.device,
        timeout: timedelta,
        who: Callable[[int], str],
        watch: Watching,
    ) -> None:
        self.group, self.control, self.device, self.timeout = group, control, device, timeout
        self.who, self.watch = who, watch
        self.rank: int = dist.get_rank(group)
        self.globally = dist.get_process_group_ranks(group)
        self._waitable = device.type == "cpu"  # elsewhere the group's own time-out holds
        self._sent: list[tuple[str, int, dist.Work, torch.Tensor]] = []

    # Messages whose kinds are learnt ------------------------------------------------------------------------------

    def send(self, name: str, value: Any, to: int, tag: int, kinds: Kinds) -> None:
        """Begin to send a value; it must not change until :meth:`flush`."""
        if not kinds.complete:
            described = _described(value)
            kinds.learnt[name] = _read(described)
            with self._bounded(name, to, "sending"):
                dist.send_object_list([(name, described)], dst=self.globally[to], group=self.control)
        found = kinds.learnt[name][0]
        for leaf, kind in zip(pytree.tree_leaves(value), found, strict=True):
            if kind is None:
                continue
            if tuple(leaf.shape) != kind.shape or leaf.dtype != kind.dtype:
                raise DistributedError(
                    f"{self.who(self.rank)}: {name} is {Kind.of(leaf)}, and with inputs like these it was {kind} "
                    "before; the shape or the type of what crosses between segments must follow from the inputs' shapes"
                )
            self._send(name, kind.packed(leaf.detach()), to, tag)

    def expect(self, name: str, peer: int, tag: int, kinds: Kinds) -> Incoming:
        """Say that a message will come; memory is given at once where its kind is known."""
        incoming = Incoming(name, peer, tag)
        if kinds.complete:
            self._post(incoming, kinds)
        return incoming

    def take(self, incoming: Incoming, kinds: Kinds) -> Any:
        """Wait for a message."""
        if incoming.works is None:
            sent: list[Any] = [None]
            with self._bounded(incoming.name, incoming.peer, "waiting for"):
                dist.recv_object_list(sent, src=self.globally[incoming.peer], group=self.control)
            name, described = sent[0]
            kinds.learnt[incoming.name] = _read(described)
            if name != incoming.name:
                raise DistributedError(
                    f"{self.who(self.rank)} expected {incoming.name} from {self.who(incoming.peer)}, which sent {name}"
                )
            self._post(incoming, kinds)
        assert incoming.works is not None
        for work in incoming.works:
            self._wait(work, incoming.name, incoming.peer, "waiting for")
            self.watch.took(incoming.peer)
        found, rest, spec = kinds.learnt[incoming.name]
        arrived = iter(incoming.tensors)
        leaves = [leaf if kind is None else next(arrived) for kind, leaf in zip(found, rest, strict=True)]
        return pytree.tree_unflatten(leaves, spec)

    def _post(self, incoming: Incoming, kinds: Kinds) -> None:
        incoming.tensors = [kind.empty(self.device) for kind in kinds.learnt[incoming.name][0] if kind is not None]
        incoming.works = [self._receive(tensor, incoming.peer, incoming.tag) for tensor in incoming.tensors]

    # Gradients: tensors of the same kinds, back -------------------------------------------------------------------

    def send_back(self, name: str, gradients: list[torch.Tensor | None], to: int, tag: int, kinds: Kinds) -> None:
        """Begin to send the gradients of a message's tensors; ``None`` stands for zeros."""
        for gradient, kind in zip(gradients, _floating(kinds, name), strict=True):
            filled = kind.empty(self.device).zero_() if gradient is None else kind.packed(gradient)
            self._send(f"the gradient of {name}", filled, to, tag)

    def expect_back(self, name: str, peer: int, tag: int, kinds: Kinds) -> Incoming:
        """Post the receives of a message's gradients."""
        incoming = Incoming(f"the gradient of {name}", peer, tag, [])
        incoming.tensors = [kind.empty(self.device) for kind in _floating(kinds, name)]
        incoming.works = [self._receive(tensor, peer, tag) for tensor in incoming.tensors]
        return incoming

    def take_back(self, incoming: Incoming) -> list[torch.Tensor]:
        """Wait for gradients."""
        assert incoming.works is not None
        for work in incoming.works:
            self._wait(work, incoming.name, incoming.peer, "waiting for")
            self.watch.took(incoming.peer)
        return incoming.tensors

    # The loss ------------------------------------------------------------------------------------------------------

    def share(self, name: str, value: torch.Tensor | None, owner: int, kinds: Kinds) -> tuple[torch.Tensor, dist.Work]:
        """Begin to give a tensor of one rank to all others."""
        if not kinds.complete:
            described: list[Any] = [None if value is None else Kind.of(value)]
            with self._bounded(name, owner, "waiting for"):
                dist.broadcast_object_list(described, src=self.globally[owner], group=self.control)
            kinds.learnt[name] = (described[0],), [None], pytree.tree_structure(0)
        kind = kinds.learnt[name][0][0]
        assert kind is not None
        tensor = kind.empty(self.device) if value is None else value.detach().clone()
        work = dist.broadcast(tensor, src=self.globally[owner], group=self.group, async_op=True)
        assert work is not None
        return tensor, work

    def copied(self, value: Any, owner: int) -> Any:
        """A value of one rank, on all of them: tensors anywhere within it are copied to this device."""
        sent: list[Any] = [_described(value) if self.rank == owner else None]
        with self._bounded("the output", owner, "waiting for"):
            dist.broadcast_object_list(sent, src=self.globally[owner], group=self.control)
        found, rest, spec = _read(sent[0])
        leaves, here = pytree.tree_leaves(value), []
        for i, kind in enumerate(found):
            if kind is None:
                here.append(rest[i])
                continue
            tensor = kind.packed(leaves[i]) if self.rank == owner else kind.empty(self.device)
            work = dist.broadcast(_flat(tensor), src=self.globally[owner], group=self.group, async_op=True)
            assert work is not None
            self._wait(work, "the output", owner, "waiting for")
            here.append(tensor)
        return value if self.rank == owner else pytree.tree_unflatten(here, spec)

    def exchange(self, tensor: torch.Tensor, ranks: tuple[int, ...]) -> list[torch.Tensor]:
        """What each of these ranks has, in their order; this rank is one of them."""
        found = {rank: tensor if rank == self.rank else torch.empty_like(tensor) for rank in ranks}
        others = [rank for rank in ranks if rank != self.rank]
        ends = [
            dist.P2POp(action, value, self.globally[rank], self.group, tag=_EXCHANGE)
            for rank in others
            for action, value in ((dist.isend, tensor), (dist.irecv, found[rank]))
        ]
        for work in dist.batch_isend_irecv(ends):
            self._wait(work, "what ranks share", others[0], "waiting for")
        return [found[rank] for rank in ranks]

    def wait(self, work: dist.Work, name: str, peer: int) -> None:
        """Wait for what :meth:`share` began."""
        self._wait(work, name, peer, "waiting for")

    def flush(self) -> None:
        """Wait until everything that was sent has left, and let go of it."""
        while self._sent:
            name, peer, work, _ = self._sent[0]
            self._wait(work, name, peer, "sending")
            self._sent.pop(0)

    def forget(self) -> None:
        """Let go of what was sent by a step that failed."""
        self._sent.clear()

    # ----------------------------------------------------------------------------------------------------------------

    def _send(self, name: str, tensor: torch.Tensor, to: int, tag: int) -> None:
        work = dist.isend(_flat(tensor), dst=self.globally[to], group=self.group, tag=tag)
        assert work is not None
        self._sent.append((name, to, work, tensor))
        self.watch.sent(to)

    def _receive(self, tensor: torch.Tensor, peer: int, tag: int) -> dist.Work:
        work = dist.irecv(_flat(tensor), src=self.globally[peer], group=self.group, tag=tag)
        assert work is not None
        return work

    def _wait(self, work: dist.Work, name: str, peer: int, verb: str) -> None:
        with self._bounded(name, peer, verb):
            if self._waitable:
                work.wait(self.timeout)
            else:
                work.wait()

    @contextlib.contextmanager
    def _bounded(self, name: str, peer: int, verb: str) -> Iterator[None]:
        self.watch.waiting(name, peer)
        try:
            yield
        except RuntimeError as error:
            preposition = "to" if verb == "sending" else "from"
            raise DistributedError(
                f"{self.who(self.rank)} failed {verb} {name} {preposition} {self.who(peer)} within "
                f"{self.timeout.total_seconds():g} s: {str(error).splitlines()[0]}; look at that rank's own error, or "
                "pass distribute(..., timeout=) more seconds where a step takes longer"
            ) from error


def _described(value: Any) -> Any:
    """The value with each tensor's kind in its place: nested alike, and what of it can travel as an object."""
    return pytree.tree_map(lambda leaf: Kind.of(leaf) if isinstance(leaf, torch.Tensor) else _Plain(leaf), value)


def _read(described: Any) -> tuple[tuple[Kind | None, ...], list[Any], pytree.TreeSpec]:
    """What :func:`_described` gave, as kinds of tensors, other leaves, and how all are nested."""
    leaves, spec = pytree.tree_flatten(described)
    found = tuple(leaf if isinstance(leaf, Kind) else None for leaf in leaves)
    return found, [leaf.value if isinstance(leaf, _Plain) else None for leaf in leaves], spec


def _floating(kinds: Kinds, name: str) -> list[Kind]:
    """The kinds of those of a message's tensors that have gradients."""
    return [
        kind
        for kind in kinds.learnt[name][0]
        if kind is not None and (kind.dtype.is_floating_point or kind.dtype.is_complex)
    ]
