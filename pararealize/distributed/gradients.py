"""Gradients of several copies of a parameter -> the same gradient at each copy, after every step.

ReplicaAverage     averages over the dp ranks, which hold the same parts of the network's copies
TiedSum            sums over the ranks of one network that hold a parameter together
GradientSync       both of them around the backward calls of a step

Both travel in buckets: flat tensors of several gradients, since one message of a megabyte is faster than a thousand of
a kilobyte. Averages leave while backward still runs, each bucket as soon as its last gradient is complete.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from .rank_modules import RankModules
from .rank_parameters import RankParameters

__all__ = [
    "Bucket",
    "GradientSync",
    "ReplicaAverage",
    "TiedSum",
    "broadcast_tensors",
    "is_of_averages",
    "make_buckets",
]


class Bucket:
    """Gradients of one element type, packed into one tensor and taken out of it again.

    Behind the gradients stands one number a parameter, 1 where this rank has a gradient, so that a parameter which no
    rank used keeps none.

    Attributes:
        parameters: in the order in which their gradients are packed.
        missing: how many of their gradients are not complete yet.
        flat: the packed gradients while they are averaged.
        work: the all-reduce that averages them.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.missing = len(self.parameters)
        self.flat: torch.Tensor | None = None
        self.work: dist.Work | None = None
        self._sizes = [parameter.numel() for parameter in self.parameters]
        self._flags: torch.Tensor | None = None  # zeros and ones where the gradients are, made once

    def pack(self) -> torch.Tensor:
        """All gradients, and which there are."""
        first, count = self.parameters[0], len(self.parameters)
        if self._flags is None or (self._flags.dtype, self._flags.device) != (first.dtype, first.device):
            zeros = first.detach().new_zeros(count)
            self._flags = torch.stack([zeros, zeros + 1])
        zeros, ones = self._flags
        if all(parameter.grad is not None for parameter in self.parameters):
            used = [ones]
        else:  # of views: numbers of the host would be copied to the device within backward, which holds up the host
            used = [(zeros if parameter.grad is None else ones)[:1] for parameter in self.parameters]
        parts = [
            first.new_zeros(parameter.numel()) if parameter.grad is None else _dense(parameter.grad).reshape(-1)
            for parameter in self.parameters
        ]
        with torch.no_grad():
            return torch.cat([*parts, *used])

    def unpack(self, flat: torch.Tensor) -> None:
        """Put sums of such tensors where the gradients are."""
        *sums, used = flat.split([*self._sizes, len(self.parameters)])
        counts = used.tolist() if any(parameter.grad is None for parameter in self.parameters) else []
        for i, (parameter, value) in enumerate(zip(self.parameters, sums, strict=True)):
            if parameter.grad is None and counts[i] > 0:
                parameter.grad = torch.empty_like(parameter, requires_grad=False)
            if parameter.grad is not None:
                parameter.grad = _dense(parameter.grad)
                parameter.grad.copy_(value.view(parameter.shape))


def _dense(gradient: torch.Tensor) -> torch.Tensor:
    return gradient.to_dense() if gradient.is_sparse else gradient


def make_buckets(parameters: Sequence[nn.Parameter], size: int) -> list[Bucket]:
    """Consecutive parameters of one type in buckets of about ``size`` bytes."""
    full: list[Bucket] = []
    filling: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        run = filling.setdefault(parameter.dtype, [])
        run.append(parameter)
        if sum(p.numel() * p.element_size() for p in run) >= size:
            full.append(Bucket(filling.pop(parameter.dtype)))
    return [*full, *(Bucket(run) for run in filling.values())]


class ReplicaAverage:
    """Averages over the ranks of ``dp`` that own the same parts, as all-reduces begun while backward runs.

    A rank differentiates its parts in several backward calls, numbered phases. A gradient is complete after the last
    phase that reaches its parameter, and not before, though autograd's hook fires in each: where F^{j-1} is g^j itself,
    g^j's parameters are reached in phase 0 and again in its own.

    All dp ranks have to begin their all-reduces in one order, or a bucket of one rank would be added to another bucket
    of the other. So buckets are filled in the order of phases, the same on all, and a bucket that is complete waits for
    those before it.

    Args:
        group: of the dp ranks.
        phases: every parameter with the number of the last phase that reaches it.
        size: bytes of a bucket.
        wait: waits for a work, bounded.

    Attributes:
        phases: as above; between steps others may take their place.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        phases: Sequence[tuple[nn.Parameter, int]],
        size: int,
        wait: Callable[[dist.Work], None],
    ) -> None:
        self.group, self.size, self.wait = group, size, wait
        self.phases = phases
        self._arranged: tuple[Any, tuple[bool, ...]] = None, ()
        self._buckets: list[Bucket] = []
        self._place: dict[nn.Parameter, tuple[Bucket, int]] = {}
        self._ready: set[nn.Parameter] = set()
        self._next, self._phase = 0, -1
        self._hooked: set[nn.Parameter] = set()

    def over(self, phases: Sequence[tuple[nn.Parameter, int]]) -> ReplicaAverage:
        """The same averages of other parameters."""
        return ReplicaAverage(self.group, phases, self.size, self.wait)

    def begin(self) -> None:
        """Get ready for the backward calls of a step; which parameters are trained may have changed."""
        trained = tuple(parameter.requires_grad for parameter, _ in self.phases)
        if self._arranged[0] is not self.phases or self._arranged[1] != trained:
            self._arranged = self.phases, trained
            self._arrange()
        self._ready.clear()
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    @contextlib.contextmanager
    def phase(self, number: int) -> Iterator[None]:
        """Around a backward call: what it did not reach, such as an unused branch, is as complete as it will be."""
        self._phase = number
        yield
        for parameter in self._place:
            self._accumulated(parameter)
        self._phase = -1

    def finish(self) -> None:
        """Wait for all averages: on GPUs the current stream does, so that what follows sees them."""
        for bucket in self._buckets:
            assert bucket.work is not None
            assert bucket.flat is not None
            self.wait(bucket.work)
            bucket.unpack(bucket.flat)
            bucket.work = bucket.flat = None

    def _arrange(self) -> None:
        last = {parameter: phase for parameter, phase in self.phases if parameter.requires_grad}
        for parameter in last.keys() - self._hooked:
            parameter.register_post_accumulate_grad_hook(self._accumulated)
        self._hooked |= last.keys()
        order = list(reversed(last))  # within a phase gradients come about in the reverse order of the forward pass,
        order.sort(key=last.__getitem__)  # which this leaves as it is: sorting is stable
        self._buckets = make_buckets(order, self.size)
        self._place = {p: (bucket, last[p]) for bucket in self._buckets for p in bucket.parameters}

    def _accumulated(self, parameter: torch.Tensor) -> None:
        """Autograd's hook: a gradient was added to ``grad``, and is complete in the parameter's last phase."""
        assert isinstance(parameter, nn.Parameter)
        filling, phase = self._place.get(parameter, (None, -1))
        if filling is None or phase != self._phase or parameter in self._ready:
            return
        self._ready.add(parameter)
        filling.missing -= 1
        while self._next < len(self._buckets) and self._buckets[self._next].missing == 0:
            bucket = self._buckets[self._next]
            # kept until its work is done: over NCCL the all-reduce runs on a stream of its own, beside backward
            bucket.flat = bucket.pack().div_(dist.get_world_size(self.group))
            bucket.work = dist.all_reduce(bucket.flat, group=self.group, async_op=True)
            self._next += 1


def is_of_averages(hook: Callable[..., Any]) -> bool:
    """Whether a hook of a parameter is one of a :class:`ReplicaAverage`.

    Where nothing calls it, as in a graph, the average takes the gradient at the end of its phase.
    """
    return getattr(hook, "__func__", None) is ReplicaAverage._accumulated


class TiedSum:
    """Sums over the ranks that hold a parameter together; each adds all up in the order of ranks: all get the same.

    Gradients that were summed before are divided by the number of sharers before new ones are added to them, so that
    the next sum leaves them as they were.

    Args:
        shared: for each set of ranks that this one belongs to, the parameters that exactly these share.
        exchange: gives a tensor to other ranks, and all of theirs with it, in the order of the ranks.

    Attributes:
        shared: as above; between steps others may take their place.
    """

    def __init__(
        self,
        shared: Mapping[tuple[int, ...], Sequence[nn.Parameter]],
        exchange: Callable[[torch.Tensor, tuple[int, ...]], list[torch.Tensor]],
    ) -> None:
        self.shared, self._exchange = shared, exchange
        self._summed = False

    def over(self, shared: Mapping[tuple[int, ...], Sequence[nn.Parameter]]) -> TiedSum:
        """The same sums of other parameters."""
        return TiedSum(shared, self._exchange)

    def begin(self) -> None:
        """Before the backward calls of a step."""
        if self._summed:
            for ranks, parameters in self.shared.items():
                for parameter in parameters:
                    if parameter.grad is not None:
                        parameter.grad.div_(len(ranks))
        self._summed = False

    def finish(self) -> None:
        """Sum what was accumulated."""
        for ranks, parameters in self.shared.items():
            for bucket in make_buckets([parameter for parameter in parameters if parameter.requires_grad], 1 << 62):
                first, *others = self._exchange(bucket.pack(), ranks)
                bucket.unpack(sum(others, first))
        self._summed = True

    def equalise(self) -> None:
        """Take the values of the first rank of each set."""
        for ranks, parameters in self.shared.items():
            for parameter in parameters:
                value = self._exchange(parameter.detach().contiguous(), ranks)[0]
                with torch.no_grad():
                    parameter.detach().copy_(value)


class GradientSync:
    """What is done to gradients around the backward calls of one rank's step.

    Args:
        parameters: of the rank.
        tied: sums over the ranks that share parameters.
        average: averages over the dp ranks, where there are several.
    """

    def __init__(self, parameters: RankParameters, tied: TiedSum, average: ReplicaAverage | None) -> None:
        self.parameters, self._tied, self._average = parameters, tied, average
        self._active = True

    def over(self, modules: RankModules) -> GradientSync:
        """The same for copies of the rank's modules."""
        parameters = self.parameters.over(modules)
        average = None if self._average is None else self._average.over(parameters.phases)
        return GradientSync(parameters, self._tied.over(parameters.shared), average)

    def follow(self) -> None:
        """Before a step: go on with the parameters that stand in the place of the old ones now.

        Raises:
            DistributedError: they cannot stand there.
        """
        if self.parameters.follow():
            self._tied.shared = self.parameters.shared
            if self._average is not None:
                self._average.phases = self.parameters.phases

    def begin(self, *, active: bool) -> None:
        """Before the backward calls of a step; one that is not active leaves gradients on their ranks."""
        self._active = active
        if self._average is not None and active:
            self._average.begin()
        self._tied.begin()

    def phase(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Around one backward call."""
        average = self._average if self._active else None
        return contextlib.nullcontext() if average is None else average.phase(number)

    def finish(self) -> None:
        """After the last backward call: wait for all averages, and sum over those who share."""
        if self._active:
            if self._average is not None:
                self._average.finish()
            self._tied.finish()


def broadcast_tensors(group: dist.ProcessGroup, tensors: Sequence[torch.Tensor]) -> None:
    """Give every tensor the value that it has on the first rank of a group."""
    source = dist.get_process_group_ranks(group)[0]
    for tensor in tensors:
        flat = tensor.detach().contiguous()
        dist.broadcast(flat, src=source, group=group)
        with torch.no_grad():
            tensor.detach().copy_(flat)
