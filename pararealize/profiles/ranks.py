"""The ranks of a process group -> Link: latency and bandwidth of messages between two, and of sums over all."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from pararealize.errors import DistributedError

from .device import Link

__all__ = ["measure_link"]

SIZES = (64, 2**18, 2**22)  # bytes: the first for the latency, the others for the bandwidth
SUMS = (64, 2**20, 2**24)  # of sums, which buckets of gradients make larger than caches
SIDE = 256  # of matrices that are multiplied beside a sum
NOISE = 0.1  # of the largest message's time: a difference of less is none
ROUNDS = 12  # of each size, after two that do not count


def measure_link(*, name: str = "measured", device: torch.device | str = "cpu") -> Link:
    r"""Measure what lies between the ranks of the default process group; every rank calls it, and gets the same.

    Ranks 0 and 1 send a message to and fro: latency is half of the smallest round, bandwidth the slope between the two
    larger ones. A sum over all p ranks is taken for a ring of :math:`2(p-1)` rounds of :math:`1/p` of the bytes each,

    .. math:: T = 2(p-1) \Bigl( \ell + \frac{\text{bytes}}{p \, b} \Bigr) ,

    which gives :math:`\ell` and :math:`b` likewise. Products of matrices take c seconds alone, and both together t: the
    sum overlaps with computing by :math:`(c + T - t) / \min(c, T)`. Medians of some rounds are taken. What ranks do on
    their hosts besides is measured by :func:`~pararealize.strategies.measure_ranks`.

    Args:
        name: of the link.
        device: where messages lie: each rank's own GPU for NCCL.

    Raises:
        DistributedError: there is no process group, or one rank alone.
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() < 2:
        raise DistributedError(
            "a link lies between two ranks, and there are no two; start with torchrun --nproc-per-node 2 "
            "--no-python pararealize profile"
        )
    p = dist.get_world_size()
    values = {size: torch.zeros(size // 4, device=device) for size in sorted({*SIZES, *SUMS})}
    pings = {size: _median(_ping, values[size]) / 2 for size in SIZES}
    sums = {size: _median(dist.all_reduce, values[size]) for size in SUMS}
    rounds = {size: seconds / (2 * (p - 1)) for size, seconds in sums.items()}
    found = [*_line(pings), *_line(rounds), _overlap(values[SUMS[-1]], sums[SUMS[-1]])]
    agreed = torch.tensor(found, dtype=torch.float64, device=device)
    dist.broadcast(agreed, 0)
    latency, bandwidth, reduce_latency, slope, overlap = agreed.tolist()
    return Link(
        name=name,
        latency=latency,
        bandwidth=bandwidth,
        reduce_latency=reduce_latency,
        reduce_bandwidth=slope / p,
        overlap=overlap,
    )


def _ping(value: torch.Tensor) -> None:
    """From rank 0 to rank 1 and back."""
    rank = dist.get_rank()
    if rank == 0:
        dist.send(value, 1)
        dist.recv(value, 1)
    elif rank == 1:
        dist.recv(value, 0)
        dist.send(value, 0)


def _overlap(value: torch.Tensor, alone: float) -> float:
    """The share of a sum that products of matrices do not notice, which take about as long as it does alone."""
    a = torch.ones(SIDE, SIDE, device=value.device)

    def products(count: int) -> None:
        for _ in range(count):
            a @ a

    count = max(round(alone / _median(lambda _: products(1), value)), 1)
    dist.broadcast(counted := torch.tensor(count, device=value.device), 0)
    count = int(counted)

    def both(summed: torch.Tensor) -> None:
        work = dist.all_reduce(summed, async_op=True)
        products(count)
        assert work is not None
        work.wait()

    computing, together = _median(lambda _: products(count), value), _median(both, value)
    return min(max((computing + alone - together) / min(computing, alone), 0.0), 1.0)


def _median(work: Callable[[torch.Tensor], object], value: torch.Tensor) -> float:
    seconds = []
    for i in range(ROUNDS + 2):
        dist.barrier()
        _finish(value)
        start = time.perf_counter()
        work(value)
        _finish(value)
        if i >= 2:
            seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def _finish(value: torch.Tensor) -> None:
    if value.is_cuda:
        torch.cuda.synchronize(value.device)


def _line(seconds: dict[int, float]) -> tuple[float, float]:
    """Latency, and bytes a second, of messages of these sizes.

    Where the largest takes about as long as the middle one, the machine's noise hides the slope: all of its time counts
    then, which is the least that the link can do.
    """
    small, middle, large = sorted(seconds)
    beyond = seconds[large] - seconds[middle]
    slope = (large - middle) / beyond if beyond > NOISE * seconds[large] else large / max(seconds[large], 1e-9)
    return max(seconds[small], 1e-9), slope
