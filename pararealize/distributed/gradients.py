"""Gradients of several copies of a parameter -> the same gradient at each: averages over dp ranks, sums over sharers.

Both travel in buckets, flat tensors of several gradients. Averages leave while backward still runs, each bucket as soon
as its last gradient is there, in an order that all ranks keep.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["Bucket", "Replicas", "Sharers", "broadcast_tensors"]


class Bucket:
    """Gradients of one element type, packed into one tensor and taken out of it again.

    Behind the gradients stands one number a parameter, 1 where this rank has a gradient, so that a parameter which no
    rank used keeps none.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.missing = len(self.parameters)
        self.flat: torch.Tensor | None = None
        self.work: dist.Work | None = None
        self._sizes = [parameter.numel() for parameter in self.parameters]

    def pack(self) -> torch.Tensor:
        """All gradients, and which there are."""
        first = self.parameters[0]
        used = [0.0 if parameter.grad is None else 1.0 for parameter in self.parameters]
        parts = [
            first.new_zeros(parameter.numel()) if parameter.grad is None else _dense(parameter.grad).reshape(-1)
            for parameter in self.parameters
        ]
        with torch.no_grad():
            return torch.cat([*parts, torch.tensor(used, dtype=first.dtype, device=first.device)])

    def unpack(self, flat: torch.Tensor) -> None:
        """Put sums of such tensors where the gradients are."""
        *sums, used = flat.split([*self._sizes, len(self.parameters)])
        counts = used.tolist() if any(parameter.grad is None for parameter in self.parameters) else []
        for i, (parameter, value) in enumerate(zip(self.parameters, sums, strict=True)):
            if parameter.grad is None and counts[i] > 0:
                parameter.grad = torch.empty_like(parameter, requires_grad=False)
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
                parameter.grad.copy_(value.view(parameter.shape))


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def _buckets(parameters: Sequence[nn.Parameter], size: int) -> list[Bucket]:
    """Consecutive parameters of one type in buckets of about ``size`` bytes."""
    made: list[Bucket] = []
    waiting: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        run = waiting.setdefault(parameter.dtype, [])
        run.append(parameter)
        if sum(p.numel() * p.element_size() for p in run) >= size:
            made.append(Bucket(waiting.pop(parameter.dtype)))
    return [*made, *(Bucket(run) for run in waiting.values())]


class Replicas:
    """Averages over the ranks of ``dp`` that own the same segments, as all-reduces begun while backward runs.

    A parameter's gradient is whole after the last of the backward calls that reach it: g^j where F^{j-1} is g^j itself,
    for instance, is reached twice. ``phases`` says which call that is; :meth:`begin_phase` and :meth:`end_phase` stand
    around each.

    Args:
        group: of the dp ranks.
        phases: every parameter with the number of the last backward call that reaches it.
        size: bytes of a bucket.
        wait: waits for a work, bounded.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        phases: Sequence[tuple[nn.Parameter, int]],
        size: int,
        wait: Callable[[dist.Work], None],
    ) -> None:
        self.group, self.size, self.wait = group, size, wait
        self._phases = sorted(phases, key=lambda item: item[1])
        self._trained: tuple[bool, ...] = ()
        self._buckets: list[Bucket] = []
        self._place: dict[nn.Parameter, tuple[Bucket, int]] = {}
        self._ready: set[nn.Parameter] = set()
        self._next, self._phase = 0, -1
        self._hooked: set[nn.Parameter] = set()

    def begin(self) -> None:
        """Get ready for the backward calls of a step; which parameters are trained may have changed."""
        trained = tuple(parameter.requires_grad for parameter, _ in self._phases)
        if trained != self._trained:
            self._trained = trained
            self._arrange()
        self._ready.clear()
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def begin_phase(self, phase: int) -> None:
        """Backward call number ``phase`` begins."""
        self._phase = phase

    def end_phase(self) -> None:
        """It is over: what it did not reach is as ready as it will be."""
        for parameter, (_, phase) in self._place.items():
            if phase == self._phase and parameter not in self._ready:
                self._mark(parameter)
        self._phase = -1

    def finish(self) -> None:
        """Wait for all averages."""
        for bucket in self._buckets:
            assert bucket.work is not None
            assert bucket.flat is not None
            self.wait(bucket.work)
            bucket.unpack(bucket.flat)
            bucket.work = bucket.flat = None

    def _arrange(self) -> None:
        inner: dict[int, list[nn.Parameter]] = {}
        for parameter, phase in self._phases:
            if parameter.requires_grad:
                inner.setdefault(phase, []).append(parameter)
                if parameter not in self._hooked:
                    self._hooked.add(parameter)
                    parameter.register_post_accumulate_grad_hook(self._arrived)
        order = [parameter for phase in sorted(inner) for parameter in reversed(inner[phase])]
        self._buckets = _buckets(order, self.size)
        last = dict(self._phases)
        self._place = {p: (bucket, last[p]) for bucket in self._buckets for p in bucket.parameters}

    def _arrived(self, parameter: torch.Tensor) -> None:
        """A gradient was accumulated."""
        assert isinstance(parameter, nn.Parameter)
        found = self._place.get(parameter)
        if found is not None and found[1] == self._phase and parameter not in self._ready:
            self._mark(parameter)

    def _mark(self, parameter: nn.Parameter) -> None:
        self._ready.add(parameter)
        self._place[parameter][0].missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            bucket = self._buckets[self._next]
            bucket.flat = bucket.pack().div_(dist.get_world_size(self.group))
            bucket.work = dist.all_reduce(bucket.flat, group=self.group, async_op=True)
            self._next += 1


class Sharers:
    """Sums over the ranks whose parts share a parameter: each holds a copy, and adds up all in the order of the ranks.

    Gradients that were summed before are divided by the number of sharers before new ones are added to them, so that
    the next sum leaves them as they were.

    Args:
        shared: for each set of ranks that this one belongs to, the parameters that exactly these share.
        exchange: gives a tensor to other ranks, and all of theirs with it, in the order of the ranks.
    """

    def __init__(
        self,
        shared: Mapping[tuple[int, ...], Sequence[nn.Parameter]],
        exchange: Callable[[torch.Tensor, tuple[int, ...]], list[torch.Tensor]],
    ) -> None:
        self._shared, self._exchange = dict(shared), exchange
        self._summed = False

    def begin(self) -> None:
        """Before the backward calls of a step."""
        if self._summed:
            for ranks, parameters in self._shared.items():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.div_(len(ranks))
        self._summed = False

    def finish(self) -> None:
        """Sum what was accumulated."""
        for ranks, parameters in self._shared.items():
            for bucket in _buckets([parameter for parameter in parameters if parameter.requires_grad], 1 << 62):
                first, *others = self._exchange(bucket.pack(), ranks)
                total = first.clone()
                for other in others:
                    total += other
                bucket.unpack(total)
        self._summed = True

    def equalise(self) -> None:
        """Take the values of the first rank of each set."""
        for ranks, parameters in self._shared.items():
            for parameter in parameters:
                value = self._exchange(parameter.detach().contiguous(), ranks)[0]
                with torch.no_grad():
                    parameter.detach().copy_(value)


def broadcast_tensors(group: dist.ProcessGroup, tensors: Sequence[torch.Tensor]) -> None:
    """Give every tensor the value that it has on the first rank of a group."""
    source = dist.get_process_group_ranks(group)[0]
    for tensor in tensors:
        flat = tensor.detach().contiguous()
        dist.broadcast(flat, src=source, group=group)
        with torch.no_grad():
            tensor.detach().copy_(flat)
