r"""A window, held-out samples -> maps folded into the last layers of its segments, in closed form.

Where segment j ends with ``y_j = s_j + e_j``, e_j what its last layer adds to the stream, the maps are those that come
closest to what the window's end lacks without them,

.. math:: \sum_j A_j e_j + b \approx u_{m,n} - w_m,

of the rank with the smallest error on the samples held out: rank costs nothing here. They go into the layers' weights,
b into the first bias; without any bias the maps are fitted without b. They stay where the window's end errs less with
these weights in the layers' own type: those of bfloat16 round by more than a small map repairs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from pararealize.coarse.folded_map import as_matrix
from pararealize.plan.corrections import correction_shapes
from pararealize.plan.spec import Window

from .channel_maps import PENALTIES, ChannelMap, Moments, Regressions
from .folded_layers import FoldableLayer
from .held_out import HeldOut
from .interfaces import Interfaces, InterfaceValues
from .rows import CorrectionChoice, Fit
from .sums import Columns, RowValues, row_sums
from .window_corrections import alternatives, relative

__all__ = ["fit_folds"]

KIND = "folded"


@torch.no_grad()
def fit_folds(
    interfaces: Interfaces, held_out: HeldOut, window: Window, *, ridge: float
) -> tuple[list[Fit], CorrectionChoice | None]:
    """Fit the maps of a window, of which none is folded as yet; none is where they help no sample held out.

    Args:
        interfaces: of the network.
        held_out: the samples to fit to and to choose by.
        window: whose maps.
        ridge: the penalty, where no samples are held out to choose it by.

    Returns:
        How each was fitted, and the errors of other kinds; ``None`` where there is nothing to fit.
    """
    layers = interfaces.folds.of(window)
    if not layers:
        return [], None
    if not all(layer.is_trained for layer in layers):
        return [Fit(part=one.row.name, kind=KIND, method="left: frozen", seconds=0.0) for one in layers], None
    start = time.perf_counter()
    first_bias = next((i for i, one in enumerate(layers) if one.layer.bias is not None), None)
    penalties, before = PENALTIES if held_out else (ridge,), interfaces.folds.state(window)
    folded, others = _sums(interfaces, held_out, window)
    found = Regressions(*folded, penalties, intercept=first_bias is not None).low_rank(folded[0].channels)
    nothing, whole, error = folded[1].nothing, folded[1].whole, found.error
    is_better = error < nothing
    if is_better:
        _fold(layers, found, first_bias)
        held_out.forget(window)
        error = _error(interfaces, held_out, window)  # with weights of the layers' own type, which round
        is_better = error < nothing
        if not is_better:
            interfaces.folds.restore(window, before)
            held_out.forget(window)
    errors = {"none": nothing, KIND: error, **alternatives(Regressions(*others, penalties), 0)}
    choice = CorrectionChoice(
        m=window.segments[0].m,
        kind=KIND,
        rank=0,
        used=is_better,
        errors={name: relative(error, whole) for name, error in errors.items()},
        error_fitted=relative(found.error_fitted, folded[0].whole) if held_out else None,
    )
    seconds = (time.perf_counter() - start) / len(layers)
    return [_fit(one, found if is_better else None, seconds) for one in layers], choice


def _fit(one: FoldableLayer, found: ChannelMap | None, seconds: float) -> Fit:
    method = "left: worse than none"
    if found is not None:
        method = f"least squares, ridge {found.penalty:g}, rank {found.rank}, folded into {one.row.layer}"
    return Fit(part=one.row.name, kind=KIND, method=method, seconds=seconds)


def _fold(layers: list[FoldableLayer], found: ChannelMap, first_bias: int | None) -> None:
    """Write each layer's part of the map, and the bias into the first layer that has one."""
    for i, (one, reads) in enumerate(zip(layers, found.reads, strict=True)):
        one.map.fold(one.layer, as_matrix(reads, found.gives), found.bias if i == first_bias else None)


def _sums(interfaces: Interfaces, held_out: HeldOut, window: Window) -> list[tuple[Moments, Moments]]:
    """Sums of what the layers give, and of what other kinds read."""
    last, layers = window.segments[-1].index, interfaces.folds.of(window)

    def values_of(values: InterfaceValues) -> list[RowValues]:
        values = interfaces.with_fine(values, window)
        w, true = interfaces.corrected(values, last), interfaces.at(last, values.true[last])
        of_layers = (interfaces.last_output(values, one) for one in layers)
        of_others = _read_by_others(interfaces, values, window)
        return [
            RowValues(features=[value.to(w.device) for value in features], given=w, true=true)
            for features in (of_layers, of_others)
        ]

    groups = len(layers), sum(2 if shape.reads_x else 1 for shape in correction_shapes("dense", window))
    device = next(layers[-1].layer.parameters()).device
    columns = [Columns(groups=count, space=window.corrections[0].y, device=device) for count in groups]
    return row_sums(held_out.all(), columns, values_of)


def _error(interfaces: Interfaces, held_out: HeldOut, window: Window) -> float:
    """The squared error of the window's end on the samples held out, as its layers are."""
    last = window.segments[-1].index

    def values_of(values: InterfaceValues) -> list[RowValues]:
        true = interfaces.at(last, values.true[last])
        return [RowValues(features=[], given=interfaces.end(values, window), true=true)]

    device = next(interfaces.folds.of(window)[-1].layer.parameters()).device
    columns = Columns(groups=0, space=window.corrections[0].y, device=device)
    return row_sums(held_out.held_out(), [columns], values_of)[0][1].nothing


def _read_by_others(interfaces: Interfaces, values: InterfaceValues, window: Window) -> Iterator[Tensor]:
    """What the corrections of other kinds would read: ``y - x`` or y, and what the window begins with."""
    for shape in correction_shapes("dense", window):
        index = shape.m, shape.j
        x, y = interfaces.input(values, index), values.y[index]
        yield y - x if shape.differs else y
        if shape.reads_x:
            yield x
