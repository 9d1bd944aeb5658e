"""The composition of the compiler's stages: nn.Module -> PararealModule.

capture           the network as one graph                                         tracing
find_blocks       stem C^1, the repeated blocks, head h                            analysis
receptive_fields  what each block sees of its input                                analysis.fields
count_costs       what each block costs                                            analysis
plan_segments     where to cut, which adapters and coarse blocks                   planning
build_adapter     adapters C^j, j = 2..n: segment j's input, from its window's     coarse
build_coarse      coarse blocks F^j, j = 1..n-1: stand-ins for segment g^{j+1}     coarse
emit              the parareal network                                             network
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from pararealize.analysis.blocks import GRANULARITIES, BlockChain, find_blocks
from pararealize.analysis.cost import count_costs, measure_costs
from pararealize.analysis.fields.field import receptive_fields
from pararealize.analysis.finder import Granularity
from pararealize.coarse.adapter import build_planned_adapter
from pararealize.coarse.coarse_block import build_coarse
from pararealize.coarse.kinds import Coarse, coarse_name
from pararealize.coarse.output_correction import build_correction
from pararealize.network.emitter import emit
from pararealize.network.module import PararealModule
from pararealize.network.refitting import refit
from pararealize.plan.fingerprints import fingerprint
from pararealize.plan.plan import Plan
from pararealize.plan.times import RATE
from pararealize.plan.transfer import Transfer
from pararealize.planning.agreement import argument_faults, check_plan, window_faults
from pararealize.planning.arguments import device_fault, whole_number
from pararealize.planning.search import plan_segments
from pararealize.planning.window_arguments import Sequential, Windows
from pararealize.tracing.front_end import capture

from .argument_types import typed_arguments
from .errors import CutError, DeviceError, GuardError, PararealizeError, PlanError, SourceError
from .restore import ordinary_mode

__all__ = ["build_modules", "make_plan", "pararealize"]

Device = torch.device | str | int


@typed_arguments(
    PlanError, "model", "n", "devices", "coarse", "source", "cost", "plan", "granularity", "leaf_modules", cuts=CutError
)
def pararealize(
    model: nn.Module,
    n: int | None = None,
    *,
    devices: Sequence[Device] | None = None,
    example_inputs: Any = None,
    coarse: Coarse | None = None,
    cuts: Literal["cost", "paper"] | Sequence[str] | None = None,
    source: Literal["input", "stem"] | None = None,
    windows: Windows | None = None,
    sequential: Sequential | None = None,
    granularity: Granularity | None = None,
    seed: int = 0,
    cost: Literal["flops", "seconds"] | None = None,
    transfer: Transfer | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    plan: Plan | None = None,
) -> PararealModule:
    r"""Convert a feed-forward network into a parareal network of ``n`` segments that can run at the same time.

    The network :math:`f = h \circ g^n \circ \dots \circ g^1 \circ C^1` is a stem :math:`C^1`, segments :math:`g^j` of
    repeated blocks, and a head :math:`h`. The result computes

    .. math::

        x_j = C^j(x), \quad y_j = g^j(x_j), \quad z_1 = y_1, \quad
        z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1}), \quad \bar f(x) = h(z_n).

    With several ``windows``, each one does this with what the window before it gives in the place of the stem's output;
    within short windows, segments start from nearly what they would get in the original.

    An adapter :math:`C^j` guesses segment j's input from the network's own input, so that no :math:`y_j` waits for
    another. One correction then passes the jumps :math:`z_j - x_{j+1}` through the coarse blocks :math:`F^j`, cheap
    stand-ins for :math:`g^{j+1}`; :math:`z_j` is the corrected output of segment j. It is one iteration of parareal,
    whose coarse parts are learnt: the result is another function than the original and is to be trained, except for
    n = 1, and for linear networks without biases with ``coarse="exact"`` (:math:`F^j = g^{j+1}`):
    there the correction is exact.

    Args:
        model: any feed-forward module; it is left as found, and the result holds copies of its parameters.
        n: segments of a window, between 1 and the number of blocks; not needed where ``plan`` is given. A window with
            fewer blocks has fewer.
        devices: where the segments of a window run, in order, wrapping round when there are fewer than ``n``; ``None``
            for where the model is.
        example_inputs: a tensor, a tuple of positional or a dict of keyword arguments; inferred where it can be.
        coarse: ``"paper"``, ``"depthwise"``, ``"bottleneck"``, ``"linear"``, ``"block"``, ``"exact"``; ``"scale"``,
            ``"low-rank"`` (``"low-rank:16"`` for rank 16) or ``"dense"``, linear ones with corrections that
            :func:`calibrate` fits; a callable ``(segment, x_shape, y_shape) -> nn.Module``; or ``"auto"``: the cheapest
            kind that learnt as well as networks like this one; the plan's notes say which, and why. Left out:
            ``"paper"``.
        cuts: ``"cost"`` for the shortest step, ``"paper"`` for equally many blocks in each run of blocks of one shape,
            or the names of the blocks at which segments begin. Left out: ``"cost"``.
        source: what adapters :math:`C^j` of the first window read: the raw ``"input"`` (images) or the ``"stem"``'s
            output; chosen when left out. Those of later windows read what the window before gives.
        windows: how many windows, one after the other, each of n segments: 1 is the paper's network, as many as blocks
            the original; the names of the blocks at which windows begin; or ``"auto"``, the most that cost nothing.
            Left out: 1.
        sequential: how many of the first blocks, or the names of those, that run as in the original: slower, and nearer
            to it; or ``"auto"``, as few of the first as networks of the same family were seen to need to learn as well
            as the original. Left out: none.
        granularity: what blocks are: ``"repeated"``, the repeated ones that a person would name, or ``"finest"``, every
            stretch between two points at which the network can be cut, such as the attention and the MLP of a
            transformer's layer, so that windows and segments may begin within it. Left out: ``"repeated"``.
        seed: of the new weights. The caller's random state stays as found.
        cost: balance ``"flops"`` (counted) or ``"seconds"`` (measured here and now). Left out: ``"flops"``.
        transfer: what a message between segments takes, for the cut; messages are free when left out. Counted work is
            compared with it at 10¹² operations a second; :func:`make_plan` takes another rate. With linear coarse
            blocks, the cut is then for sums over ranks (:meth:`PararealModule.distribute`), where those are faster.
        leaf_modules: classes or qualified names of modules whose forward is not looked into; each becomes one call.
        plan: a plan made before, for this same model; at other sizes of the example, too, where adapters and coarse
            blocks can follow them. It says what ``n``, ``coarse``, ``cuts``, ``source``, windows, ``granularity``
            and ``cost`` are: those that are given as well have to say the same, and a callable that built coarse blocks
            is given.

    Returns:
        An ``fx.GraphModule``; ``print(net.code)`` reads as the equation above, ``print(net.plan)`` as a table.

    Raises:
        PararealizeError: one of its subclasses, each of which names the fact, the values and the remedy.

    Source:
        Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural Network", equations (2)-(4).

    Example:
        >>> import torch
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3)
        >>> net(torch.randn(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """
    asked = {
        "coarse": coarse, "cuts": cuts, "source": source, "windows": windows, "sequential": sequential, "cost": cost,
        "transfer": transfer, "granularity": granularity,
    }  # fmt: skip
    n = _check_arguments(n, devices, asked, plan)
    places = _devices(devices)
    with _without_garbage_collection(), ordinary_mode():
        recorded = capture(model, example_inputs, leaf_modules=leaf_modules)
        chain = find_blocks(recorded, granularity=granularity or ("repeated" if plan is None else plan.granularity))
        trial = chain.on_twin()
        if plan is None:
            plan = make_plan(
                trial,
                n,
                coarse="paper" if coarse is None else coarse,
                cuts="cost" if cuts is None else cuts,
                source=source,
                windows=1 if windows is None else windows,
                sequential=0 if sequential is None else sequential,
                devices=places,
                cost="flops" if cost is None else cost,
                transfer=transfer,
            )
        else:
            check_plan(chain, plan)
            if faults := window_faults(chain, plan, windows, sequential):
                raise PlanError(faults[0])
        adapters, blocks = _at_sizes_of(chain, plan, *build_modules(trial, plan, coarse=coarse, seed=seed))
        wrapped = None if places is None else [places[i % len(places)] for i in range(plan.n)]
        return emit(chain, plan, adapters, blocks, devices=wrapped)


def build_modules(
    chain: BlockChain, plan: Plan, *, coarse: Coarse | None = None, seed: int = 0
) -> tuple[dict[str, nn.Module], dict[str, nn.Module | None]]:
    """The adapters C^{m,j}, and the coarse blocks F^{m,j} and corrections K^{m,j} of a plan, where the model is.

    They are drawn on the CPU, so that one seed gives the same weights wherever the model is; on the meta device,
    nothing is drawn. ``None`` stands for a coarse block that is g^{m,j+1} itself.
    """
    device = next(chain.capture.model.parameters()).device
    spans = {segment.index: (segment.first, segment.last) for segment in plan.segments}
    chain = chain.on_twin()
    with torch.device("meta" if device.type == "meta" else "cpu"):
        adapters: dict[str, nn.Module] = {row.name: build_planned_adapter(row, seed=seed) for row in plan.adapters}
        blocks: dict[str, nn.Module | None] = {}
        for c in plan.coarse_blocks:
            first, last = spans[c.m, c.j + 1]
            blocks[c.name] = build_coarse(c, chain, first=first, last=last, seed=seed, coarse=coarse)
        for k in plan.corrections:
            blocks[k.name] = build_correction(
                k.kind, k.rank, k.y, differs=k.differs, reads_x=k.reads_x, seed=seed, name=k.name
            )
    for module in (*adapters.values(), *filter(None, blocks.values())):
        module.to(device)
    return adapters, blocks


def _at_sizes_of(
    chain: BlockChain, plan: Plan, adapters: dict[str, nn.Module], coarse: dict[str, nn.Module | None]
) -> tuple[dict[str, nn.Module], dict[str, nn.Module | None]]:
    """The modules of a plan that may have been made at other sizes, or in another element type, than the chain's."""
    if fingerprint(chain) == plan.fingerprint:
        return adapters, coarse
    dtype = chain.blocks[0].x.torch_dtype
    for module in (*adapters.values(), *filter(None, coarse.values())):
        module.to(dtype)
    try:
        return refit(chain, plan, adapters, coarse)
    except GuardError as error:
        raise PlanError(
            f"this plan was made at other sizes than those of the example, and {error}; leave plan= out to make one "
            "for these"
        ) from error


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Without cyclic garbage collection, which would walk over the growing graph again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@typed_arguments(PlanError, "n", "coarse", "source", cuts=CutError, devices=DeviceError)
def make_plan(
    chain: BlockChain,
    n: int,
    *,
    coarse: Coarse = "paper",
    cuts: Literal["cost", "paper"] | Sequence[str] = "cost",
    source: Literal["input", "stem"] | None = None,
    windows: Windows = 1,
    sequential: Sequential = 0,
    devices: Sequence[torch.device] | None = None,
    cost: Literal["flops", "seconds"] = "flops",
    transfer: Transfer | None = None,
    rate: float = RATE,
) -> Plan:
    """Decide where a chain of blocks is cut: the stages between :func:`find_blocks` and the building of modules.

    The arguments are those of :func:`pararealize`, and ``rate``: the operations a second of a device, with which
    counted work and ``transfer`` are compared.

    Returns:
        The plan: plain data that prints as a table and survives JSON.

    Raises:
        PararealizeError: as :func:`pararealize` does for n, cuts, sources, devices and coarse kinds.

    Example:
        >>> import torch
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> plan = make_plan(chain, 3, coarse="linear")
        >>> [segment.first_block for segment in plan.segments], round(plan.virtual_speedup, 2)
        (['stage1.0', 'stage1.2', 'stage2.2'], 2.44)
        >>> Plan.from_json(plan.to_json()) == plan
        True
    """
    twin = chain.on_twin()
    fields = receptive_fields(twin)
    costs = measure_costs(twin) if cost == "seconds" else count_costs(twin)
    names = None if devices is None else [str(device) for device in devices]
    return plan_segments(
        chain,
        fields,
        costs,
        n,
        coarse=coarse,
        cuts=cuts,
        source=source,
        windows=windows,
        sequential=sequential,
        devices=names,
        transfer=transfer,
        rate=rate,
    )


def _check_arguments(n: Any, devices: Sequence[Device] | None, asked: Mapping[str, Any], plan: Any) -> int:
    """The number of segments, after every fault that can be seen without the model is reported at once.

    Args:
        n: as it was given, as are the others.
        devices: where segments run.
        asked: the arguments that a plan is made of, by their names; ``None`` where one was left out.
        plan: a plan that was made before, where there is one.
    """
    faults: list[PararealizeError] = []
    if plan is not None and not isinstance(plan, Plan):
        faults.append(
            PlanError(
                f"plan is a {type(plan).__name__}; pass a Plan: net.plan, or Plan.from_json(text) of the text that "
                "plan.to_json() wrote"
            )
        )
        n, plan = 1 if n is None else n, None
    if n is None:
        if plan is None:
            faults.append(
                PlanError("n is None and there is no plan; pass an integer from 1 to the number of blocks, or a plan")
            )
        n = 1 if plan is None else plan.n
    count = whole_number(n)
    if count is None or count < 1:
        faults.append(
            PlanError(f"n is {n!r}; it is the number of segments: pass an integer from 1 to the number of blocks")
        )
    source, cost, coarse = asked["source"], asked["cost"], asked["coarse"]
    if source not in (None, "input", "stem"):
        faults.append(SourceError(f"source is {source!r}; pass 'input', 'stem' or None"))
    if (granularity := asked["granularity"]) not in (None, *GRANULARITIES):
        faults.append(PlanError(f"granularity is {granularity!r}; pass {' or '.join(map(repr, GRANULARITIES))}"))
    if cost not in (None, "flops", "seconds"):
        faults.append(PlanError(f"cost is {cost!r}; pass 'flops' or 'seconds'"))
    for check in (lambda: None if coarse is None else coarse_name(coarse), lambda: _devices(devices)):
        try:
            check()
        except PararealizeError as fault:
            faults.append(fault)
    if plan is not None and not faults:
        faults += map(PlanError, argument_faults(plan, {"n": n, **asked}))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise type(faults[0])("; and ".join(str(fault) for fault in faults))
    assert count is not None
    return count


def _devices(devices: Sequence[Device] | None) -> tuple[torch.device, ...] | None:
    """The devices, or ``None`` where the model is to stay where it is."""
    if devices is None:
        return None
    if isinstance(devices, str | torch.device) or not isinstance(devices, Sequence) or not devices:
        raise DeviceError(f"devices is {devices!r}; pass a list such as ['cuda:0', 'cuda:1'], or None")
    faults = [fault for device in devices if (fault := device_fault(device))]
    if faults:
        raise DeviceError("; and ".join(faults))
    return tuple(map(torch.device, devices))
