"""nn.Module, devices, batch, DeviceProfile -> StrategyComparison: what every way of dividing a step takes, predicted.

capture, find_blocks        the network's blocks                            tracing, analysis
Roofline or MeasuredBlocks  seconds of each, at any batch                   profiles, measured_blocks.py
one_device, data_parallel   the sum; copies that share the batch            replicas.py
pipelines                   GPipe, 1F1B, interleaved                        pipeline.py
PararealPlans               segments, windows, cuts, kinds, with copies     parareal.py
MultigridLayers             layers solved for in parallel                   multigrid_layers.py
advise                      which to take, and why                          advice.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.fields.field import receptive_fields
from pararealize.argument_types import typed_arguments
from pararealize.coarse.evidence_table import choose
from pararealize.coarse.kinds import coarse_name
from pararealize.errors import ModelError, PlanError
from pararealize.profiles.catalogue import device_profile
from pararealize.profiles.device import DeviceProfile, Link
from pararealize.profiles.roofline import Roofline
from pararealize.tracing.front_end import capture

from .advice import advise, known_quality
from .comparison import CurvePoint, StrategyComparison
from .measured_blocks import MeasuredBlocks
from .multigrid_layers import MultigridLayers
from .network_costs import NetworkCosts, Optimizer, Pricing
from .parareal import PararealPlans, segment_counts
from .pipeline import pipelines
from .replicas import data_parallel, one_device
from .strategy import Strategy

__all__ = ["plan_strategies"]

MOST_DEVICES = 1024
LARGER = 4  # times the batch that curves go to
MOST_SIZES = 8  # batches of a curve in powers of two; where there are more, it has powers of four


@typed_arguments(PlanError, "model")
def plan_strategies(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    devices: int,
    batch_size: int,
    profile: str | Path | DeviceProfile = "h100",
    link: str | Link | None = None,
    optimizer: Optimizer = "adam",
    captured: bool = False,
    measure: bool = False,
    coarse: str | None = None,
    curves: bool = True,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    name: str | None = None,
    report: Callable[[str], None] | None = None,
) -> StrategyComparison:
    r"""Predict what a training step, and one sample's forward pass, take by every strategy on so many devices.

    With f and b the seconds of the forward and backward pass of the whole network, :math:`T_1(B) = f(B) + b(B)`:

    - one device: :math:`T_1(B)`;
    - data parallel, r copies: :math:`T_1(B/r)` and what of the sums of gradients does not hide behind the backward
      pass;
    - pipelines: see :mod:`pararealize.strategies.pipeline`;
    - parareal, n segments: the step of the fastest plan, messages counted
      (:func:`~pararealize.plan.simulation.simulate`), with copies beside them, too;
    - layer-parallel multigrid: :func:`~pararealize.multigrid.simulation.simulate_multigrid`.

    Memory is parameters, gradients, the optimiser's state, and what the forward pass keeps for the backward pass. The
    optimiser's step and the loading of data are left out.

    Args:
        model: any feed-forward module, on the meta device as well; it is left as found.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; inferred where it can be.
        devices: how many there are, 1 to 1024.
        batch_size: samples a step, over all devices: a multiple of ``devices``, or fewer than these.
        profile: of a device: one of :data:`~pararealize.profiles.PROFILES`, a JSON file that ``pararealize profile``
            wrote, or a profile.
        link: between devices: the name of one of the profile's, or a link; the profile's first when left out.
        optimizer: whose state stands in memory: ``"sgd"``, ``"momentum"`` or ``"adam"``.
        captured: whether operations are replayed as captured graphs.
        measure: measure the network's blocks here and now in place of predicting them; the profile then says memory and
            links alone.
        coarse: the kind of coarse blocks; left out, the cheapest and the one that learnt best on networks like this.
        curves: compute speed-ups against devices and batch, too.
        leaf_modules: classes or qualified names of modules whose forward is not looked into.
        name: of the model, in advice.
        report: is told what is done next.

    Raises:
        PlanError: a number is out of range, or the batch does not divide.
        ProfileError: the profile is unknown, of another version, or has no such link or element type.
        ModelError: it is to be measured, and has no values.
        PararealizeError: the model cannot be read, as for :func:`pararealize.pararealize`.

    Example:
        >>> import torch
        >>> from pararealize import plan_strategies
        >>> from pararealize.models import resnet56
        >>> compared = plan_strategies(resnet56(), devices=4, batch_size=8, profile="a100", curves=False)
        >>> {"one device", "parareal"} <= {row.name for row in compared.training}, compared.fastest.speedup > 1
        (True, True)
    """
    shown = device_profile(profile)
    between = link if isinstance(link, Link) else shown.link(link) if devices > 1 or link else Link(
        name="none", latency=0.0, bandwidth=1e30
    )  # fmt: skip
    _check(devices, batch_size, coarse)
    say = report or _ignore
    say("reading the network")
    chain = find_blocks(capture(model, example_inputs, leaf_modules=leaf_modules)).on_twin()
    pricing: Pricing = Roofline(chain, shown, captured)
    if measure:
        pricing = _measured(model, chain, batch_size)
        say("measuring its blocks")
    costs = NetworkCosts(chain.remembering(), receptive_fields(chain), pricing, shown, between, optimizer)
    plans, layers = PararealPlans(costs, coarse), MultigridLayers(costs)
    say("comparing strategies")
    rows = sorted(_training(costs, plans, layers, devices, batch_size), key=_order)
    say("comparing latencies")
    latency = sorted(_latency(costs, plans, devices), key=_order)
    points: tuple[CurvePoint, ...] = ()
    if curves:
        say("drawing curves")
        points = tuple(_curves(costs, plans, devices, batch_size))
    best = next((row for row in rows if row.plan is not None), None)
    shown_name = name or type(model).__name__
    seconds = "measured here, block by block" if measure else (
        f"predicted from published or measured rates: {shown.source}{', graphs captured' if captured else ''}"
    )  # fmt: skip
    notes = [*costs.costs(1).notes]
    if isinstance(layers.structure, str) and devices > 1:
        notes.append(f"no layer-parallel multigrid: {layers.structure}")
    if best is not None:
        notes.append(known_quality(best, choose(chain, best.n)))
    notes += [f"no parareal network of some sort: {why}" for why in plans.refusals[:2]]
    return StrategyComparison(
        model=shown_name,
        devices=devices,
        batch=batch_size,
        device=shown.name,
        memory=shown.memory,
        link=str(between),
        basis=f"seconds are {seconds}",
        training=tuple(rows),
        latency=tuple(latency),
        curves=points,
        notes=tuple(notes),
        advice=advise(
            "MODEL" if name is None else name,
            rows,
            devices=devices,
            batch=batch_size,
            memory=shown.memory,
        ),
    )


def _check(devices: int, batch: int, coarse: str | None) -> None:
    """Every fault of the numbers at once, before any work."""
    faults = []
    if not 1 <= devices <= MOST_DEVICES:
        faults.append(f"devices is {devices}; pass 1 to {MOST_DEVICES}")
    if batch < 1:
        faults.append(f"batch_size is {batch}; pass 1 or more")
    if not faults and batch > devices and batch % devices:
        low = batch - batch % devices
        faults.append(
            f"batch_size is {batch}, which does not divide among {devices} devices; pass {low} or {low + devices}, or "
            "other devices"
        )
    if faults:
        raise PlanError("; and ".join(faults))
    if coarse is not None:
        coarse_name(coarse)


def _ignore(text: str) -> None:
    """Say nothing."""


def _order(strategy: Strategy) -> tuple[bool, float]:
    return not strategy.fits, strategy.step


def _measured(model: nn.Module, chain: BlockChain, batch: int) -> MeasuredBlocks:
    """The network's blocks, to be measured at one sample and at the whole batch."""
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            "measure=True runs the model, but its parameters are on the meta device; leave measure out, or give it "
            "memory first with model.to_empty(device=...)"
        )
    return MeasuredBlocks(chain, tuple(sorted({1, batch})))


def _training(
    costs: NetworkCosts, plans: PararealPlans, layers: MultigridLayers, devices: int, batch: int
) -> Iterator[Strategy]:
    yield one_device(costs, batch)
    if devices == 1:
        return
    if strategy := data_parallel(costs, devices, batch):
        yield strategy
    yield from pipelines(costs, devices, batch)
    yield from plans.strategies(devices, batch)
    if strategy := layers.fastest(devices, batch):
        yield strategy


def _latency(costs: NetworkCosts, plans: PararealPlans, devices: int) -> Iterator[Strategy]:
    """Of one sample, forward alone; copies and pipelines do not shorten it."""
    yield one_device(costs, 1, training=False)
    found = [
        strategy
        for kind in plans.kinds(2)
        for n in segment_counts(min(devices, len(costs.chain.blocks)))[:10]
        if (strategy := plans.strategy(n, 1, 1, kind, training=False)) is not None
    ]
    if found:
        yield min(found, key=_order)


def _curves(costs: NetworkCosts, plans: PararealPlans, devices: int, batch: int) -> Iterator[CurvePoint]:
    """Speed-ups against devices, in powers of two, and against batch; parareal by one coarse kind, and one window."""
    kind = plans.kinds(2)[0]

    def points(
        axis: Literal["devices", "batch"], value: int, devices: int, batch: int, parareal: Strategy | None
    ) -> Iterator[CurvePoint]:
        exact = [data_parallel(costs, devices, batch), *sorted(pipelines(costs, devices, batch), key=_order)[:1]]
        for row in filter(None, (*exact, parareal)):
            name = row.name.partition(",")[0]
            yield CurvePoint(axis=axis, value=value, name=name, speedup=row.speedup, fits=row.fits)

    for number in sorted({*(2**k for k in range(1, devices.bit_length())), devices} - {1}):
        if batch % number == 0 or batch < number:
            yield from points("devices", number, number, batch, plans.fastest(number, batch, 1, kinds=(kind,)))
    if devices > 1:
        sizes = [2**k for k in range((LARGER * batch).bit_length())]
        sizes = sizes if len(sizes) <= MOST_SIZES else sizes[::2]
        fastest = plans.along_batches(devices, batch, sizes, kind)
        for size in sizes:
            yield from points("batch", size, devices, size, fastest[size])
