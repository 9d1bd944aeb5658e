r"""NetworkCosts, devices, batch -> pipelines: stages in a row, through which microbatches follow one another.

With f_s and b_s the seconds of stage s for one of m microbatches, w the messages from the first stage to the last, each
way, and all m microbatches alike, a flow shop ends at

    GPipe        Σ f + w + (m-1) max f  +  Σ b + w + (m-1) max b
    1F1B         max over s of  Σ before s + max{ m (f + b) + what the first trips behind s are longer than the forward
                 passes that hide them, round trip of s · (1 + (m-1) / (p - s)) where m > p - s }
    interleaved  m max t + (p-1) max t_c + 2 w_c, with v chunks a device: t of a device, t_c of a chunk

GPipe: Huang et al. (2019). 1F1B: Narayanan et al., PipeDream (2019); it keeps p - s microbatches of activations on
stage s in the place of m, and no more are on their way behind it. Interleaved: Narayanan et al., Megatron-LM (2021).
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pararealize.planning.window_cuts import longest_segment

from .network_costs import NetworkCosts, all_reduce
from .replicas import copies_of
from .strategy import Strategy

__all__ = ["Stages", "pipelines", "stage_ends", "stages_of"]

CHUNKS = (2, 4)  # a device, of interleaved schedules
MOST_MICROBATCHES = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """A network in stages, for one microbatch."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    messages: tuple[float, ...]  # between stages, one fewer

    @property
    def both(self) -> list[float]:
        """Seconds of each stage, both ways."""
        return [a + b for a, b in zip(self.forward, self.backward, strict=True)]

    def gpipe(self, m: int) -> float:
        """All forward, then all backward."""
        way = sum(self.messages)
        ways = (self.forward, self.backward)
        return sum(sum(times) + way + (m - 1) * max(times) for times in ways)

    def one_forward_one_backward(self, m: int) -> float:
        """1F1B: the longest over stages, each with what comes before it, its own work and what it waits for."""
        both, p, longest, before = self.both, len(self.forward), 0.0, 0.0
        trips = [sum(both[s + 1 :]) + 2 * sum(self.messages[s:]) for s in range(p)]  # behind the stage, and back to it
        for s, (work, trip) in enumerate(zip(both, trips, strict=True)):
            ahead = p - s  # forward passes before the first backward pass, of which all but one hide the trip
            own = m * work + max(trip - (min(m, ahead) - 1) * self.forward[s], 0.0)
            if m > ahead:
                own = max(own, (work + trip) * (1 + (m - 1) / ahead))
            longest = max(longest, before + own)
            before += work + (2 * self.messages[s] if s < p - 1 else 0.0)
        return longest

    def interleaved(self, m: int, p: int) -> float:
        """``p`` devices; stage s is a chunk of device s mod p."""
        both = self.both
        devices = [sum(both[device::p]) for device in range(p)]
        return m * max(devices) + (p - 1) * max(both) + 2 * sum(self.messages)


def pipelines(costs: NetworkCosts, devices: int, batch: int) -> Iterator[Strategy]:
    """The fastest pipeline of each schedule, over numbers of stages, copies and microbatches; those that fit first."""
    best: dict[str, Strategy] = {}
    for p in _numbers(min(devices, len(costs.chain.blocks))):
        copies = copies_of(batch, devices // p)
        share = batch // copies
        for m in _numbers(min(share, MOST_MICROBATCHES)):
            if share % m:
                continue
            for strategy in _of(costs, p, m, copies, batch):
                before = best.get(strategy.name)
                if before is None or (not strategy.fits, strategy.step) < (not before.fits, before.step):
                    best[strategy.name] = strategy
    yield from best.values()


def _of(costs: NetworkCosts, p: int, m: int, copies: int, batch: int) -> Iterator[Strategy]:
    """The schedules with p devices and m microbatches."""
    micro = batch // copies // m
    one = stages_of(costs, p, micro)
    if one is None:
        return
    ends, stages = one
    devices = list(itertools.pairwise((0, *ends)))
    of_devices = [costs.gradients[a:b] for a, b in devices]
    sums = max(all_reduce(costs.link, sum(some), copies) + costs.bucketing(some, copies) for some in of_devices)
    sent = max((costs.interfaces[end - 1] for end in ends[:-1]), default=0) * micro * m * 2

    def made(name: str, step: float, memory: float, detail: str, sent: float) -> Strategy:
        several = f", {copies} copies" if copies > 1 else ""
        return Strategy(
            name=f"pipeline, {name}",
            detail=f"{p} stages{detail}, {m} microbatch{'es' * (m > 1)}{several}",
            devices=p * copies,
            exact=True,
            step=step + sums,
            work=costs.step(batch),
            memory=memory,
            sent=sent,
            fits=memory <= costs.profile.memory,
            n=p,
            copies=copies,
        )

    full = max(costs.memory(a, b, micro * m) for a, b in devices)
    yield made("GPipe", stages.gpipe(m), full, "", sent)
    few = max(costs.memory(a, b, micro * min(m, p - s)) for s, (a, b) in enumerate(devices))
    yield made("1F1B", stages.one_forward_one_backward(m), few, "", sent)
    for v in CHUNKS:
        if m % p or p * v > len(costs.chain.blocks):
            continue
        several = stages_of(costs, p * v, micro)
        if several is None:
            continue
        ends_v, stages_v = several
        chunks = list(itertools.pairwise((0, *ends_v)))
        in_flight = p * (1 + (p - 1) / (p * v))  # microbatches that the first device keeps (Megatron-LM)
        held = max(
            sum(costs.memory(a, b, micro * min(m, in_flight)) for a, b in chunks[device::p]) for device in range(p)
        )
        yield made("interleaved", stages_v.interleaved(m, p), held, f" × {v}", sent * v)


def stages_of(costs: NetworkCosts, p: int, micro: int) -> tuple[tuple[int, ...], Stages] | None:
    """Where p stages end and what they take; nothing where the blocks make fewer."""
    parts = costs.parts(micro)
    ends = stage_ends([forward + backward for forward, backward in parts], p)
    if len(ends) != p or p < 2:
        return None
    spans = list(itertools.pairwise((0, *ends)))
    transfer = costs.link.transfer
    sizes = [costs.interfaces[end - 1] * micro for end in ends[:-1]]
    host = costs.link.host.microbatch / 2  # of each way
    return ends, Stages(
        forward=tuple(host + sum(part[0] for part in parts[a:b]) for a, b in spans),
        backward=tuple(host + sum(part[1] for part in parts[a:b]) for a, b in spans),
        messages=tuple(map(transfer.seconds, sizes)),
    )


def stage_ends(work: Sequence[float], p: int) -> tuple[int, ...]:
    """Where p runs of blocks end (behind their last), the longest of which is as short as can be, to within 0.1%.

    Example:
        >>> stage_ends([1.0] * 6, 3), stage_ends([4.0, 1.0, 1.0, 1.0], 2)
        ((2, 4, 6), (1, 4))
    """
    prefix = list(itertools.accumulate(work, initial=0.0))
    count = len(work)
    limit = longest_segment(prefix, 0, count, p) * (1 + 1e-9)
    ends, a = list[int](), 0
    for left in range(p - 1, -1, -1):  # every run has a block, and leaves one to each behind it
        if a >= count:
            break
        furthest = bisect.bisect_right(prefix, prefix[a] + limit) - 1
        a = count if left == 0 else max(a + 1, min(furthest, count - left))
        ends.append(a)
    return tuple(ends)


def _numbers(most: int) -> list[int]:
    """1, 2, 4, … and three halves of each, up to ``most``, and that itself."""
    powers = [2**k for k in range(most.bit_length())]
    return sorted({number for power in powers for number in (power, power * 3 // 2) if number <= most} | {most})
