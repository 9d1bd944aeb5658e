r"""A window, held-out samples -> its output corrections K^{m,j}, in closed form, and what other kinds would give.

Behind the first segment with a correction a window has identities as coarse blocks alone: corrections add up in w_m.
They are the linear map that comes closest to what w_m lacks without them,

.. math:: \sum_j A_j d_j + A_0 x + b \approx u_{m,n} - w_m,

on the values that really arrive, from the windows before it as they are. Positions are rows: channels are mapped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from pararealize.coarse.output_correction import InputCorrection, OutputCorrection, correction_text
from pararealize.coarse.spec import AdapterPlan
from pararealize.plan.spec import Window

from .channel_maps import PENALTIES, ChannelMap, Moments, Regressions
from .held_out import HeldOut
from .interfaces import Interfaces, InterfaceValues
from .rows import CorrectionChoice, Fit
from .sums import Columns, RowValues, row_sums

__all__ = [
    "alternatives",
    "corrections_of",
    "fit_corrections",
    "fit_input_corrections",
    "relative",
    "set_to_nought",
]

RANKS = (8, 16, 32, 64, 128, 256)  # that are compared


def corrections_of(interfaces: Interfaces, window: Window) -> list[OutputCorrection]:
    """The modules K^{m,j} of a window, in order; not those that are folded into layers."""
    modules = (interfaces.correction(row.index) for row in window.corrections)
    return [module for module in modules if isinstance(module, OutputCorrection)]


def are_trained(modules: Sequence[nn.Module]) -> bool:
    """Whether all parameters may change."""
    return all(parameter.requires_grad for module in modules for parameter in module.parameters())


@torch.no_grad()
def set_to_nought(modules: Sequence[OutputCorrection]) -> None:
    """Let corrections add nothing, where they may change; what maps of low rank read stays drawn."""
    for module in modules if are_trained(modules) else ():
        for name, parameter in module.named_parameters():
            if module.gives is None or not name.startswith("reads"):
                parameter.zero_()


@torch.no_grad()
def fit_corrections(
    interfaces: Interfaces, held_out: HeldOut, window: Window, *, ridge: float
) -> tuple[list[Fit], CorrectionChoice | None]:
    """Fit the corrections of a window, which are nought as yet; they stay so where they help no sample held out.

    Args:
        interfaces: of the network.
        held_out: the samples to fit to and to choose by.
        window: whose corrections.
        ridge: the penalty, where no samples are held out to choose it by.

    Returns:
        How each was fitted, and the errors of other kinds; ``None`` where there is nothing to fit.
    """
    modules, rows = corrections_of(interfaces, window), window.corrections
    if not rows:
        return [], None
    kind = f"{rows[0].kind} of rank {rows[0].rank}" if rows[0].rank else rows[0].kind
    if not are_trained(modules):
        return [Fit(part=row.name, kind=kind, method="left: frozen", seconds=0.0) for row in rows], None
    start = time.perf_counter()
    sums = _sums(interfaces, held_out, window)
    regressions = Regressions(*sums, PENALTIES if held_out else (ridge,))
    of_kind = {"scale": regressions.scale, "dense": regressions.dense}
    found = of_kind[rows[0].kind]() if rows[0].kind in of_kind else regressions.low_rank(rows[0].rank)
    nothing = sums[1].nothing
    is_better = found.error < nothing
    if is_better:
        _write(modules, found)
    method = f"least squares, ridge {found.penalty:g}" if is_better else "left: worse than none"
    if is_better and rows[0].rank:
        method += f", rank {found.rank} of {rows[0].rank}"
    seconds = (time.perf_counter() - start) / len(rows)
    errors = {"none": nothing, **alternatives(regressions, rows[0].rank)}
    choice = CorrectionChoice(
        m=window.segments[0].m,
        kind=rows[0].kind,
        rank=rows[0].rank,
        used=is_better,
        errors={name: relative(error, sums[1].whole) for name, error in errors.items()},
        error_fitted=relative(found.error_fitted, sums[0].whole) if held_out else None,
    )
    return [Fit(part=row.name, kind=kind, method=method, seconds=seconds) for row in rows], choice


@torch.no_grad()
def fit_input_corrections(interfaces: Interfaces, held_out: HeldOut, window: Window, ridge: float) -> list[Fit]:
    """Fit the corrections of adapters that are identities: to what segment j's input lacks, u_{j-1} - w.

    They stay, or become, nought where they help no sample held out. The arguments are those of :func:`fit_corrections`.
    """
    modules = {row.index: interfaces.adapter(row.index) for row in window.adapters}
    corrected = {index: module for index, module in modules.items() if isinstance(module, InputCorrection)}
    rows = [row for row in window.adapters if row.index in corrected]
    trained = [row for row in rows if are_trained([corrected[row.index]])]
    fits = [
        Fit(part=row.name, kind=correction_text(row.kind, row.rank), method="left: frozen", seconds=0.0)
        for row in rows
        if row not in trained
    ]
    if not trained:
        return fits
    start = time.perf_counter()
    set_to_nought([corrected[row.index] for row in trained])
    devices = [next(corrected[row.index].parameters()).device for row in trained]
    columns = [Columns(groups=1, space=row.y, device=device) for row, device in zip(trained, devices, strict=True)]
    sums = row_sums(held_out.all(), columns, partial(_values_of_adapters, interfaces, window, trained))
    methods = []
    for row, (fitted, held) in zip(trained, sums, strict=True):
        regressions = Regressions(fitted, held, PENALTIES if held_out else (ridge,))
        of_kind = {"scale": regressions.scale, "dense": regressions.dense}
        found = of_kind[row.kind]() if row.kind in of_kind else regressions.low_rank(row.rank)
        is_better = found.error < held.nothing
        if is_better:
            _write([corrected[row.index]], found)
        methods.append(f"least squares, ridge {found.penalty:g}" if is_better else "left: worse than none")
    seconds = (time.perf_counter() - start) / len(trained)
    return fits + [
        Fit(part=row.name, kind=correction_text(row.kind, row.rank), method=method, seconds=seconds)
        for row, method in zip(trained, methods, strict=True)
    ]


def alternatives(regressions: Regressions, planned: int) -> dict[str, float]:
    """The squared errors on the samples held out of every kind, by what ``coarse=`` calls it."""
    ranks = sorted({*(rank for rank in RANKS if rank < regressions.channels), *filter(None, (planned,))})
    errors = {"scale": regressions.scale().error}
    errors |= {f"low-rank:{rank}": regressions.low_rank_error(rank) for rank in ranks}
    return errors | {"dense": regressions.dense().error}


def relative(error: float, whole: float) -> float:
    """The relative error of squares; infinite of nothing."""
    if not error:
        return 0.0
    return math.sqrt(error / whole) if whole else math.inf


def _sums(interfaces: Interfaces, held_out: HeldOut, window: Window) -> tuple[Moments, Moments]:
    """Sums of what the corrections read, and of what the window's end lacks without them."""
    last = window.segments[-1].index

    def values_of(values: InterfaceValues) -> list[RowValues]:
        values = interfaces.with_fine(values, window)
        w, true = interfaces.corrected(values, last), interfaces.at(last, values.true[last])
        return [RowValues(features=[f.to(w.device) for f in _features(interfaces, values, window)], given=w, true=true)]

    groups = sum(2 if row.reads_x else 1 for row in window.corrections)
    device = next(corrections_of(interfaces, window)[-1].parameters()).device
    columns = Columns(groups=groups, space=window.corrections[0].y, device=device)
    return row_sums(held_out.all(), [columns], values_of)[0]


def _values_of_adapters(
    interfaces: Interfaces, window: Window, rows: Sequence[AdapterPlan], values: InterfaceValues
) -> list[RowValues]:
    """What adapters that are the identity read, and give without a correction: w; and what they should give."""
    found = []
    for row in rows:
        w = interfaces.at(row.index, interfaces.begin(values, window))
        true = interfaces.at(row.index, values.true[row.m, row.j - 1])
        found.append(RowValues(features=[w], given=w, true=true))
    return found


def _features(interfaces: Interfaces, values: InterfaceValues, window: Window) -> Iterator[Tensor]:
    """What the corrections read, each its own: ``y - x`` or y, and x where it reads that."""
    for row in window.corrections:
        module = interfaces.correction(row.index)
        assert isinstance(module, OutputCorrection)
        yield from module.features(interfaces.input(values, row.index), values.y[row.index])


def _write(modules: Sequence[OutputCorrection], found: ChannelMap) -> None:
    """Give each correction its part of the map, and the bias to the first of them."""
    groups = iter(found.reads)
    for number, module in enumerate(modules):
        bias = found.bias if number == 0 else torch.zeros_like(found.bias)
        if module.gain is not None:
            assert module.bias is not None
            module.gain.copy_(next(groups))
            module.bias.copy_(bias)
            if module.gain_x is not None:
                module.gain_x.copy_(next(groups))
            continue
        for reads in filter(None, (module.reads_d, module.reads_x)):
            group = next(groups).T  # inner, channels
            weight: Tensor = reads.weight  # type: ignore[assignment]
            weight[: len(group)] = group.reshape(-1, *weight.shape[1:]).to(weight)
        ends = module.reads_d if module.gives is None else module.gives
        assert ends is not None
        ends.bias.copy_(bias)  # type: ignore[operator]
        if found.gives is not None:
            weight = ends.weight  # type: ignore[assignment]
            weight.zero_()  # directions beyond the rank found add nothing until they are trained
            weight[:, : len(found.gives)] = found.gives.T.reshape(len(weight), -1, *weight.shape[2:]).to(weight)
