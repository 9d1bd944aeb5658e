"""Values that stand on one rank each, and the ranks that all run one program on them, in a line.

The loop of ``multigrid.py`` runs on every rank from beginning to end. A step is computed where its layer stands; on the
other ranks its result is a name. Where a value is needed on another rank, both know it, because both are at the same
line of the same program: the one sends, the other receives, the rest pass by. No rank waits for anything but values
that it computes with, so that relaxation runs at once on all, and while a march goes from rank to rank, those that it
has left are relaxing already.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pararealize.distributed.p2p import Incoming, Kinds, Wire

__all__ = ["Across", "Difference", "Held", "Line"]

TAG = 1  # of all values of a step: those of one rank for another arrive in the order in which they were sent
AHEAD = 3  # receives that are posted before they are needed


class Held:
    """A value on the rank that made it, and on those that asked for it; a name on the others.

    Attributes:
        owner: the rank that made it.
        place: what to call it in messages; values of one place have one shape and type.
        tensor: the value, where it is here.
    """

    __slots__ = ("_holders", "_line", "owner", "place", "tensor")

    def __init__(self, line: Line, owner: int, place: str, tensor: Tensor | None) -> None:
        self._line, self.owner, self.place, self.tensor = line, owner, place, tensor
        self._holders = {owner}

    def on(self, rank: int) -> Tensor | None:
        """The value, after it has been sent to that rank if it was not there; ``None`` on ranks that have it not."""
        if rank not in self._holders:
            self._holders.add(rank)
            self._line.move(self, rank)
        return self.tensor

    def __sub__(self, other: Held) -> Difference:
        return Difference(self, other)

    def __add__(self, other: Difference) -> Held:
        """``a + (v - old)``, where a stands; with the same rounding as written."""
        there = other if other.owner == self.owner else other.held()
        added: Tensor | None = None
        if isinstance(there, Difference):
            found = there.tensor()
            if found is not None and self.tensor is not None:
                added = found.add_(self.tensor)  # it is nobody else's
        else:
            found = there.on(self.owner)
            if self._line.rank == self.owner and found is not None and self.tensor is not None:
                added = self.tensor + found
        return Held(self._line, self.owner, self.place, added)


class Difference:
    """``v - old``, computed where v stands, when it is needed."""

    __slots__ = ("_line", "old", "v")

    def __init__(self, v: Held, old: Held) -> None:
        self.v, self.old = v, old
        self._line = v._line

    @property
    def owner(self) -> int:
        """The rank that computes it."""
        return self.v.owner

    def tensor(self) -> Tensor | None:
        """A tensor of its own on the owner."""
        old = self.old.on(self.owner)
        if self._line.rank != self.owner or old is None or self.v.tensor is None:
            return None
        return self.v.tensor - old

    def held(self) -> Held:
        """The difference as a value that may move."""
        return Held(self._line, self.owner, self.v.place, self.tensor())


class Line:
    """The ranks that run one program, as one of them sees them, for one step.

    Args:
        wire: messages.
        kinds: what they look like, for inputs like these.
        order: the values that this rank received in the last step that ran the same program, by name and sender, for
            whose receives to be posted ahead; an empty list is filled in. ``None`` where programs may differ.
        tolerance: a residual norm at which the program ends early; all ranks must then know each norm at once.
    """

    def __init__(self, wire: Wire, kinds: Kinds, order: list[tuple[str, int]] | None, tolerance: float = 0.0) -> None:
        self.wire, self.kinds, self.rank, self.tolerance = wire, kinds, wire.rank, tolerance
        self._order = order if order and kinds.complete else None
        self._learning = order if not order else None
        self._posted: collections.deque[Incoming] = collections.deque()
        self._next = 0
        self._unmeasured: list[list[tuple[Tensor, Tensor | None]]] = []
        self._scratch: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        self._squares: list[Tensor] = []
        self._post()

    def value(self, owner: int, place: str, tensor: Tensor | None) -> Held:
        """A value that a rank has from elsewhere."""
        return Held(self, owner, place, tensor)

    def move(self, value: Held, to: int) -> None:
        """Send a value or receive it, if this rank is one of the two."""
        if self.rank == value.owner:
            assert value.tensor is not None
            self.wire.send(value.place, value.tensor, to, TAG, self.kinds)
        elif self.rank == to:
            value.tensor = self._take(value.place, value.owner)

    def norm(self, residuals: Sequence[Difference | Held]) -> float:
        """``sqrt(Σ_j ‖r_j‖²)`` over all ranks: at once with a tolerance, else by :meth:`norms`; infinite till then."""
        pairs = [(r.v, r.old.on(r.owner)) if isinstance(r, Difference) else (r, None) for r in residuals]
        own = [(v.tensor, old) for v, old in pairs if v.owner == self.rank and v.tensor is not None]
        if self.tolerance > 0:
            return float(self._summed(self._square(own)).sqrt())
        self._unmeasured.append(own)
        return float("inf")

    def norms(self) -> list[float]:
        """All norms that were not known at once, in their order; the ranks meet here."""
        self._measure()
        if not self._squares:
            return []
        found: list[float] = self._summed(torch.stack(self._squares)).sqrt().tolist()
        self._squares.clear()
        return found

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
            return torch.zeros((), dtype=torch.float64, device=self.wire.device)
        return torch.stack(norms).square().sum()

    def _summed(self, value: Tensor) -> Tensor:
        work = dist.all_reduce(value, group=self.wire.group, async_op=True)
        assert work is not None
        self.wire.wait(work, "the residual norms", self.rank)
        return value

    def _take(self, name: str, peer: int) -> Tensor:
        if self._learning is not None:
            self._learning.append((name, peer))
        if self._order is None:
            incoming = self.wire.expect(name, peer, TAG, self.kinds)
        else:
            incoming = self._posted.popleft()
            assert (incoming.name, incoming.peer) == (name, peer)
        self._measure()
        taken: Tensor = self.wire.take(incoming, self.kinds)
        self._post()
        return taken

    def _post(self) -> None:
        """Ask for the next values, so that they come while this rank computes."""
        while self._order is not None and self._next < len(self._order) and len(self._posted) < AHEAD:
            name, peer = self._order[self._next]
            self._posted.append(self.wire.expect(name, peer, TAG, self.kinds))
            self._next += 1


class Across:
    """Maps of layers, some of which stand here, as maps of held values: what :func:`pararealize.multigrid.solver.solver.solve` takes.

    Args:
        line: the ranks.
        maps: of the layers that stand here, called for these alone.
        owners: the rank of every layer.
        names: for a layer and a width, what to call the value behind such a step.
        doing: is told of each action that this rank begins.
    """

    def __init__(
        self,
        line: Line,
        maps: Any,
        owners: Sequence[int],
        names: Callable[[int, int], str],
        doing: Callable[[str, int], None],
    ) -> None:
        self.line, self.maps, self.hierarchy = line, maps, maps.hierarchy
        self._owners, self._names, self._doing = owners, names, doing

    def step(self, level: int, s: int, u: Held) -> Held:
        """Step s of a level, where its layer stands."""
        step = self.hierarchy.levels[level].steps[s]
        owner = self._owners[step.layer]
        value, result = u.on(owner), None
        if owner == self.line.rank:
            self._doing("coarse" if level else "relax", step.layer)
            result = self.maps.step(level, s, value)
        return Held(self.line, owner, self._names(step.layer, step.width), result)

    def announce(self, j: int, u: Held) -> None:
        """Bring the value from which interval j will be swept to where its layers stand."""
        level = self.hierarchy.levels[0]
        u.on(self._owners[level.steps[level.intervals[j][0]].layer])

    def sweep(self, j: int, u: Held) -> Held:
        """The last sweep of interval j, where its layers stand."""
        first, end = self.hierarchy.levels[0].intervals[j]
        steps = self.hierarchy.levels[0].steps
        owner = self._owners[steps[first].layer]
        value, result = u.on(owner), None
        if owner == self.line.rank:
            self._doing("sweep", steps[first].layer)
            result = self.maps.sweep(j, value)
        return Held(self.line, owner, self._names(steps[end - 1].layer, 1), result)
