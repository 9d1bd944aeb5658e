"""Values that each are on one rank, and the program that all ranks run on them (SPMD: single program, multiple data).

Every rank runs the loop of ``multigrid/solver/solver.py`` from beginning to end. A step is computed on the rank that
owns its layer; on the other ranks its result is a :class:`RemoteValue` without a tensor. Where a value is needed on
another rank, both know it, because both are at the same line of the same program: the one sends, the other receives,
the rest pass by. No rank waits for anything but values that it computes with, so that relaxation runs at once on all,
and while a coarse march goes from rank to rank, those that it has left are relaxing already.

Order of messages. Between two ranks values are sent in the order in which the program first needs them there, and both
ranks run the same program; so one tag is enough for all of them. No chain of waits closes to a circle: a receive waits
for a value that an earlier line of the program computes, and lines are executed in one order on every rank.

Receives are posted ahead, so that values come in while this rank still computes. They can be: a step with the same
settings runs the same program, hence receives the same values in the same order as the last one. Few are posted at a
time, as each takes memory. None is posted over the border between the forward and the adjoint solve, nor before what
the stem gives has come: NCCL matches the messages from one rank to another by order of issue, and runs them in that
order, so that a receive of the adjoint solve would stand in front of what the forward solve sends.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pararealize.distributed.messages.message_order import PendingMessage, StepMessages

__all__ = ["ReceiveOrder", "RemoteDifference", "RemoteMaps", "RemoteValue", "SpmdContext"]

_POSTED_AHEAD = 3  # receives


@dataclasses.dataclass(slots=True)
class ReceiveOrder:
    """The values that a rank receives in one step of a program.

    Attributes:
        values: by name and sender, in order.
        ends: how many of them have come at the end of each solve; of none where the program has not been run yet.
    """

    values: list[tuple[str, int]] = dataclasses.field(default_factory=list)
    ends: list[int] = dataclasses.field(default_factory=list)


class RemoteValue:
    """A value on the rank that computed it, and on those that asked for it; a name on the others.

    Attributes:
        owner: the rank that computed it.
        place: what to call it in messages; values of one place have one shape and type.
        tensor: the value, on ranks that have it.
    """

    __slots__ = ("_context", "_holders", "owner", "place", "tensor")

    def __init__(self, context: SpmdContext, owner: int, place: str, tensor: Tensor | None) -> None:
        self._context, self.owner, self.place, self.tensor = context, owner, place, tensor
        self._holders = {owner}

    def on(self, rank: int) -> Tensor | None:
        """The value, after it has been sent to that rank if it was not there; ``None`` on ranks that have it not."""
        if rank not in self._holders:
            self._holders.add(rank)
            self._context.move(self, rank)
        return self.tensor

    def __sub__(self, other: RemoteValue) -> RemoteDifference:
        return RemoteDifference(self._context, self, other)

    def __add__(self, other: RemoteDifference) -> RemoteValue:
        """``a + (v - old)``, on the rank that owns a; with the same rounding as written."""
        here = self._context.rank == self.owner
        if other.owner == self.owner:
            difference = other.tensor()
            sums = None if difference is None or self.tensor is None else difference.add_(self.tensor)
        else:
            moved = RemoteValue(self._context, other.owner, other.v.place, other.tensor()).on(self.owner)
            sums = self.tensor + moved if here and moved is not None and self.tensor is not None else None
        return RemoteValue(self._context, self.owner, self.place, sums)


class RemoteDifference:
    """``v - old``, computed on the rank that owns v, when it is needed."""

    __slots__ = ("_context", "old", "owner", "v")

    def __init__(self, context: SpmdContext, v: RemoteValue, old: RemoteValue) -> None:
        self._context, self.v, self.old, self.owner = context, v, old, v.owner

    def tensor(self) -> Tensor | None:
        """A new tensor on the owner, which may be changed in place."""
        old = self.old.on(self.owner)
        if self._context.rank != self.owner or old is None or self.v.tensor is None:
            return None
        return self.v.tensor - old


class SpmdContext:
    """One step of the common program, as one rank runs it.

    Args:
        messages: of steps with inputs like these.
        order: what this rank received in the last step that ran the same program, whose receives are posted ahead; an
            empty one is filled in. ``None`` where programs may differ.
        tolerance: a residual norm at which the program ends early; all ranks must then know each norm at once.
    """

    def __init__(self, messages: StepMessages, order: ReceiveOrder | None, tolerance: float = 0.0) -> None:
        self._messages, self._channel, self._tolerance = messages, messages.channel, tolerance
        self.rank = messages.channel.rank
        known = order is not None and bool(order.ends)
        self._order = order if known and messages.formats_known else None
        self._new_order = None if known else order
        self._posted: collections.deque[PendingMessage] = collections.deque()
        self._next = self._limit = 0  # in the order of receives: which is posted next, and where this solve ends
        self._solves = 0
        self._unmeasured: list[list[tuple[Tensor, Tensor | None]]] = []
        self._scratch: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._squares: list[Tensor] = []

    def begin_solve(self) -> None:
        """A solve begins: what it will receive may be posted from now on."""
        if self._order is not None:
            self._limit = self._order.ends[self._solves]
            self._post()

    def end_solve(self) -> None:
        """The solve has ended, with all that it receives."""
        self._solves += 1
        if self._new_order is not None:
            self._new_order.ends.append(len(self._new_order.values))

    def move(self, value: RemoteValue, to: int) -> None:
        """Send a value or receive it, if this rank is one of the two."""
        if self.rank == value.owner:
            assert value.tensor is not None
            self._messages.send(value.place, value.tensor, to)
        elif self.rank == to:
            value.tensor = self._receive(value.place, value.owner)

    def norm(self, residuals: Sequence[RemoteDifference | RemoteValue]) -> float:
        """``sqrt(Σ_j ‖r_j‖²)`` over all ranks: at once with a tolerance, else by :meth:`norms`; infinite till then.

        A norm makes all ranks meet. Where nothing depends on it, the ranks meet once a step, after everything else.
        """
        pairs = [(r.v, r.old.on(r.owner)) if isinstance(r, RemoteDifference) else (r, None) for r in residuals]
        here = [(v.tensor, old) for v, old in pairs if v.owner == self.rank and v.tensor is not None]
        if self._tolerance > 0:
            return float(self._channel.all_reduce("the residual norms", self._square(here)).sqrt())
        self._unmeasured.append(here)
        return float("inf")

    def norms(self) -> list[float]:
        """All norms that were not known at once, in their order; the ranks meet here."""
        self._measure()
        if not self._squares:
            return []
        squares = self._channel.all_reduce("the residual norms", torch.stack(self._squares))
        norms: list[float] = squares.sqrt().tolist()
        self._squares.clear()
        return norms

    def _measure(self) -> None:
        """What waits for a moment in which nothing else is to be done."""
        self._squares += map(self._square, self._unmeasured)
        self._unmeasured.clear()

    def _square(self, pairs: Sequence[tuple[Tensor, Tensor | None]]) -> Tensor:
        """``Σ ‖v - old‖²`` of values that are here."""
        norms = []
        for v, old in pairs:
            if old is not None:
                key = v.shape, v.dtype
                v = self._scratch[key] = torch.sub(v, old, out=self._scratch.get(key))
            norms.append(torch.linalg.vector_norm(v).double())
        if not norms:
            return torch.zeros((), dtype=torch.float64, device=self._channel.device)
        return torch.stack(norms).square().sum()

    def _receive(self, name: str, peer: int) -> Tensor:
        if self._new_order is not None:
            self._new_order.values.append((name, peer))
        if self._order is None:
            pending = self._messages.expect(name, peer)
        else:
            pending = self._posted.popleft()
            assert (pending.name, pending.peer) == (name, peer)
        self._measure()
        tensor: Tensor = self._messages.receive(pending)
        self._post()
        return tensor

    def _post(self) -> None:
        """Post the receives of the next values."""
        while self._order is not None and self._next < self._limit and len(self._posted) < _POSTED_AHEAD:
            self._posted.append(self._messages.expect(*self._order.values[self._next]))
            self._next += 1


class RemoteMaps:
    """The maps of all layers on remote values, as :func:`~pararealize.multigrid.solver.solver.solve` takes them.

    Args:
        context: of the step.
        maps: of this rank's layers, called for these alone.
        owners: the rank of every layer.
        place: for a layer and a width, what to call the value behind such a step.
        begin: is told of each action that this rank begins, and of its layer.
    """

    def __init__(
        self,
        context: SpmdContext,
        maps: Any,
        owners: Sequence[int],
        place: Callable[[int, int], str],
        begin: Callable[[str, int], None],
    ) -> None:
        self._context, self._maps, self._owners, self._place, self._begin = context, maps, owners, place, begin
        self._hierarchy = maps.hierarchy

    def step(self, level: int, s: int, u: RemoteValue) -> RemoteValue:
        """Step s of a level, on the rank that owns its layer."""
        step = self._hierarchy.levels[level].steps[s]
        owner = self._owners[step.layer]
        value, result = u.on(owner), None
        if owner == self._context.rank:
            self._begin("coarse" if level else "relax", step.layer)
            result = self._maps.step(level, s, value)
        return RemoteValue(self._context, owner, self._place(step.layer, step.width), result)

    def announce(self, j: int, u: RemoteValue) -> None:
        """Bring the value from which interval j will be swept to the rank that owns its layers."""
        u.on(self._owners[self._hierarchy.layers_of(j)[0]])

    def sweep(self, j: int, u: RemoteValue) -> RemoteValue:
        """The last sweep of interval j, on the rank that owns its layers."""
        layers = self._hierarchy.layers_of(j)
        owner = self._owners[layers[0]]
        value, result = u.on(owner), None
        if owner == self._context.rank:
            self._begin("sweep", layers[0])
            result = self._maps.sweep(j, value)
        return RemoteValue(self._context, owner, self._place(layers[-1], 1), result)
