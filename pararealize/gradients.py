"""Gradients of several copies of a parameter -> the same gradient at each: averages over dp ranks, sums over sharers.

Both travel in buckets, flat tensors of several gradients. Averages leave while backward still runs, each bucket as soon
as its last gradient is there, in an order that all ranks keep.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import nn

__all__ = ["Bucket", "Replicas", "Sharers", "broadcast_tensors"]


class Bucket:
    """Gradients of one element type that are summed over a group in one piece.

    Behind the gradients stands one number a parameter, 1 where this rank has a gradient, so that a parameter which no
    rank used keeps none.
    """

    def __init__(self, group: dist.ProcessGroup, parameters: Sequence[nn.Parameter], *, mean: bool) -> None:
        self.group, self.parameters, self.mean = group, list(parameters), mean
        self.missing = len(self.parameters)
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._flat: torch.Tensor | None = None
        self._work: dist.Work | None = None

    def start(self) -> None:
        """Begin to sum."""
        first = self.parameters[0]
        used = [0.0 if parameter.grad is None else 1.0 for parameter in self.parameters]
        parts = [
            first.new_zeros(parameter.numel()) if parameter.grad is None else _dense(parameter.grad).reshape(-1)
            for parameter in self.parameters
        ]
        with torch.no_grad():
            self._flat = torch.cat([*parts, torch.tensor(used, dtype=first.dtype, device=first.device)])
            if self.mean:
                self._flat[: sum(self._sizes)].div_(dist.get_world_size(self.group))
        self._work = dist.all_reduce(self._flat, group=self.group, async_op=True)

    def finish(self, wait: Callable[[dist.Work], None]) -> None:
        """Wait for the sums and write them into the gradients."""
        assert self._work is not None
        assert self._flat is not None
        wait(self._work)
        *sums, used = self._flat.split([*self._sizes, len(self.parameters)])
        unused = [i for i, parameter in enumerate(self.parameters) if parameter.grad is None]
        counts = used.tolist() if unused else []
        for i, (parameter, value) in enumerate(zip(self.parameters, sums, strict=True)):
            if parameter.grad is None and counts[i] > 0:
                parameter.grad = torch.empty_like(parameter, requires_grad=False)
            if parameter.grad is not None:
                if parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
                parameter.grad.copy_(value.view(parameter.shape))
        self._flat = self._work = None


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def buckets(group: dist.ProcessGroup, parameters: Sequence[nn.Parameter], size: int, *, mean: bool) -> list[Bucket]:
    """Consecutive parameters of one type in buckets of about ``size`` bytes."""
    made: list[Bucket] = []
    waiting: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        run = waiting.setdefault(parameter.dtype, [])
        run.append(parameter)
        if sum(p.numel() * p.element_size() for p in run) >= size:
            made.append(Bucket(group, waiting.pop(parameter.dtype), mean=mean))
    return [*made, *(Bucket(group, run, mean=mean) for run in waiting.values())]


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
            bucket.finish(self.wait)

    def _arrange(self) -> None:
        inner: dict[int, list[nn.Parameter]] = {}
        for parameter, phase in self._phases:
            if parameter.requires_grad:
                inner.setdefault(phase, []).append(parameter)
                if parameter not in self._hooked:
                    self._hooked.add(parameter)
                    parameter.register_post_accumulate_grad_hook(self._arrived)
        order = [parameter for phase in sorted(inner) for parameter in reversed(inner[phase])]
        self._buckets = buckets(self.group, order, self.size, mean=True)
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
            self._buckets[self._next].start()
            self._next += 1


class Sharers:
    """Sums over the ranks whose parts share a parameter: each holds a copy.

    Gradients that were summed before are divided by the number of sharers before new ones are added to them, so that
    the next sum leaves them as they were.
    """

    def __init__(self, shared: Sequence[tuple[dist.ProcessGroup, Sequence[nn.Parameter]]]) -> None:
        self._shared = [(group, list(parameters)) for group, parameters in shared]
        self._summed = False

    def begin(self) -> None:
        """Before the backward calls of a step."""
        if self._summed:
            for group, parameters in self._shared:
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.div_(dist.get_world_size(group))
        self._summed = False

    def finish(self, wait: Callable[[dist.Work], None]) -> None:
        """Sum what was accumulated."""
        made = []
        for group, parameters in self._shared:
            trained = [parameter for parameter in parameters if parameter.requires_grad]
            made += buckets(group, trained, 1 << 62, mean=False)
        for bucket in made:
            bucket.start()
        for bucket in made:
            bucket.finish(wait)
        self._summed = True


def broadcast_tensors(group: dist.ProcessGroup, tensors: Sequence[torch.Tensor]) -> None:
    """Give every tensor the value that it has on the first rank of a group."""
    source = dist.get_process_group_ranks(group)[0]
    for tensor in tensors:
        flat = tensor.detach().contiguous()
        dist.broadcast(flat, src=source, group=group)
        with torch.no_grad():
            tensor.detach().copy_(flat)
