"""Strategies side by side -> a sentence or two: which to take, why, and what has not been measured yet."""

from __future__ import annotations

from collections.abc import Sequence

from pararealize.coarse.evidence_table import Choice
from pararealize.profiles.catalogue import PROFILES
from pararealize.table import count, quantity

from .strategy import Strategy

__all__ = ["advise", "known_quality"]

EVEN = 1.05  # an exact strategy that is this near to a faster one is the better buy


def advise(model: str, rows: Sequence[Strategy], *, devices: int, batch: int, memory: float) -> str:
    """What to do, in a sentence.

    Args:
        model: as the command line names it.
        rows: of one training step, the fastest that fits first.
        devices: how many there are.
        batch: samples a step.
        memory: bytes of a device.
    """
    fitting = [row for row in rows if row.fits]
    if not fitting:
        return _too_large(rows, memory, batch)
    best = min(fitting, key=lambda row: row.step)
    exact = min((row for row in fitting if row.exact), key=lambda row: row.step, default=None)
    if exact is not None and exact.step <= EVEN * best.step:
        return _exact(exact, fitting, devices=devices, batch=batch)
    return _another_network(model, best, exact)


def _exact(best: Strategy, fitting: Sequence[Strategy], *, devices: int, batch: int) -> str:
    other = min((row for row in fitting if not row.exact), key=lambda row: row.step, default=None)
    than = "" if other is None else f", against {other.speedup:.2f}× by {other.name} ({other.detail})"
    if best.devices == 1:
        why = "there is one device" if devices == 1 else "no division over these devices and links is faster"
        return f"run it on one device: {why}{than}."
    if best.name == "data parallel":
        each = quantity(batch // best.copies, "sample")
        return (
            f"data parallelism is the better buy: {best.speedup:.2f}× on {quantity(best.devices, 'device')}{than}. It "
            f"computes what the network computes, and {each} a device keep each of them busy enough; parallelism "
            "across layers pays where the batch is smaller than the devices, or the network deeper."
        )
    return (
        f"{best.name} ({best.detail}) is the better buy: {best.speedup:.2f}× on {quantity(best.devices, 'device')}"
        f"{than}. It computes what the network computes."
    )


def _another_network(model: str, best: Strategy, exact: Strategy | None) -> str:
    than = "" if exact is None else f" (against {exact.speedup:.2f}× by {exact.name}, the fastest that is exact)"
    text = f"{best.name} ({best.detail}) is predicted fastest, {best.speedup:.2f}× on "
    text += f"{quantity(best.devices, 'device')}{than}, but "
    if best.plan is None:
        return (
            f"{text}it trains with approximate gradients, and how well has not been measured: try "
            "pararealize.layer_parallel(model) on your data, with its Monitor, before you rely on it."
        )
    windows = f" --windows {len(best.plan.windows)}" if len(best.plan.windows) > 1 else ""
    return (
        f"{text}it is another network, whose quality on your data is unmeasured: measure it with pararealize tradeoff "
        f"{model} --n {best.n} --weights FILE --data NAME, or train one with pararealize train {model} --n {best.n} "
        f"--coarse {best.plan.coarse}{windows} --data NAME --out RUN."
    )


def known_quality(best: Strategy, evidence: Choice) -> str:
    """What learnt well on networks like that of the fastest parareal row."""
    cheaper = "" if best.plan is None or best.plan.coarse == evidence.kind else f"; {best.plan.coarse!r} is cheaper"
    return f"of coarse blocks on networks like this, {evidence.kind!r} was {evidence.why}{cheaper}"


def _too_large(rows: Sequence[Strategy], memory: float, batch: int) -> str:
    least = min(rows, key=lambda row: row.memory)
    larger = [profile for profile in PROFILES.values() if profile.memory >= least.memory]
    device = min(larger, key=lambda profile: profile.memory, default=None)
    would = f"devices with that much, such as {device.name}," if device is not None else "more devices"
    return (
        f"nothing fits into {count(memory)}B a device: the least is {count(least.memory)}B, by {least.name}"
        f"{f' ({least.detail})' if least.detail else ''}. {would[0].upper()}{would[1:]} would do; or more devices, a "
        f"smaller batch than {batch}, an optimiser with less state, or activation checkpointing, which is not "
        "counted here."
    )
