"""A trained model, batches -> Tradeoff: windows tried one by one, selections of them calibrated and measured.

block_values   the original, block by block                                    block_values.py
sensitivity    each possible window's cost, and the error that it alone makes   sensitivity.py, space_changes.py
selection      windows together: short steps at little error                    selection.py
calibrate      each of a few plans, as a user would                             calibration
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.bulk import bulk_of
from pararealize.analysis.finder import Granularity
from pararealize.argument_types import typed_arguments
from pararealize.calibration.batch import Batches, labels_of, one_pass
from pararealize.calibration.fitting import calibrate, calibration_mode
from pararealize.calibration.masks import AUTO, MaskChoice
from pararealize.coarse.kinds import coarse_name, is_summed
from pararealize.compiler import pararealize
from pararealize.errors import CalibrationError, ExampleError, PlanError
from pararealize.network.module import PararealModule
from pararealize.plan.plan import Plan
from pararealize.plan.transfer import Transfer
from pararealize.planning.arguments import whole_number
from pararealize.tracing.front_end import capture

from .block_values import BlockByBlock, Say, network_output, output_error
from .conversion import Span, converted_with, foldable_blocks
from .report import Tradeoff, TradeoffRow, check_tolerance
from .selection import Selection, fastest_within, selections, spread
from .sensitivity import measure_windows
from .space_changes import AUTOMATIC, covers_half, measure_windows_across

__all__ = ["tradeoff"]

Agreement = Callable[[Any, Any], float]
HELD_OUT = 5  # of the batches every fifth is held out where no others are given


@typed_arguments(CalibrationError, "model")
def tradeoff(
    model: nn.Module,
    batches: Batches,
    *,
    n: int | Sequence[int] = (2, 4),
    test: Batches | None = None,
    coarse: str = "low-rank",
    points: int = 6,
    tolerance: float | None = None,
    sensitivity_batches: int = 8,
    across: int | None = None,
    example_inputs: Any = None,
    cost: str = "flops",
    transfer: Transfer | None = None,
    agreement: tuple[str, Agreement] | None = None,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    granularity: Granularity = "repeated",
    mask: MaskChoice = AUTO,
    seed: int = 0,
    report: Say | None = None,
) -> Tradeoff:
    r"""How fast a trained network can be made, and how near to itself it then stays.

    For every n, each window of blocks is made parallel by itself, with a correction in closed form, and what it does to
    the output of held-out batches is measured. Blocks that matter stay sequential: of the selections of windows that no
    other beats in both time and :math:`\sum_m e_m^2`, a few from the exact original to the fastest are converted,
    calibrated on ``batches`` and measured. Windows in which the space changes are tried where there are few others: see
    ``across``.

    It costs, for every n, about as much as running the network on ``sensitivity_batches`` once for each possible window
    (some tens to some hundreds), and ``points`` calibrations.

    Args:
        model: with its trained weights; it is left as found.
        batches: inputs, as :func:`calibrate` takes them. Labels are not needed.
        n: numbers of devices.
        test: other batches, to measure on; every fifth of ``batches`` where it is left out.
        coarse: ``"low-rank"``, ``"low-rank:16"``, ``"scale"``, ``"dense"``, ``"folded"``, ``"folded:16"`` or
            ``"linear"``. Plans whose segments have no layer to fold maps into have none.
        points: how many plans are calibrated and measured for each n, at most.
        tolerance: of the output's relative error: plans are looked for, by bisection, of which the last are about the
            fastest whose measured error is within it. Left out: plans at about equal ratios of their times.
        sensitivity_batches: how many of the batches windows are tried on, at most; as many are tested on.
        across: how many windows in which the space changes are tried for each n, at most; each is a conversion and a
            calibration. Left out: 8, where windows of one space can hold less than half of the work; otherwise none,
            as they err more for the same time.
        example_inputs: to record the model with; the first batch's inputs where it is left out.
        cost: ``"flops"`` (counted) or ``"seconds"`` (measured here and now).
        transfer: what messages between devices take, in the cut; free when left out.
        agreement: a name and a function of the network's and the original's outputs of a batch, such as
            ``("cosine", lambda a, b: cosine_similarity(a, b).mean().item())``; its mean over batches is shown.
        leaf_modules: as :func:`pararealize` takes them.
        granularity: what blocks are, as :func:`pararealize` has it: with ``"finest"``, windows may begin within a
            transformer's layer.
        mask: which positions count in fits and errors, as :func:`calibrate` has it.
        seed: of all that is drawn.
        report: called with a line of text as the work goes on.

    Returns:
        The measured plans; ``print`` shows the table, :meth:`Tradeoff.within` gives the fastest within a tolerance,
        whose ``plan`` :func:`pararealize` takes.

    Raises:
        PlanError: a number is out of range.
        ExampleError: there are too few batches, or what stands behind their inputs may be another input.
        CalibrationError: a kind without closed-form corrections was asked for.

    Example:
        >>> import torch
        >>> from pararealize import tradeoff
        >>> from pararealize.models import resnet20
        >>> batches = [torch.randn(4, 3, 32, 32) for _ in range(5)]
        >>> front = tradeoff(resnet20().eval(), batches, n=2, points=2)
        >>> front.rows[0].error, front.rows[0].speedup
        (0.0, 1.0)
    """
    numbers = _numbers(n, points, sensitivity_batches, across)
    _check_agreement(agreement)
    _check_coarse(coarse)
    if tolerance is not None:
        check_tolerance(tolerance)
    say = report or (lambda _: None)
    train, held_out = _split(batches, test)
    example = _example(model, train[0]) if example_inputs is None else example_inputs
    leaves = tuple(leaf_modules)
    chain = find_blocks(capture(model, example, leaf_modules=leaves), granularity=granularity)
    arguments: dict[str, Any] = {
        "example_inputs": example, "leaf_modules": leaves, "granularity": granularity, "cost": cost,
    }  # fmt: skip
    say("running the original block by block")
    folds = foldable_blocks(coarse, chain)
    original = pararealize(model, 1, windows=len(chain.blocks), **arguments, seed=seed).eval()
    names = [row.first_block for row in original.plan.segments]
    settings = {"coarse": coarse, "transfer": transfer, "seed": seed, **arguments}

    def convert(segments: int, windows: Sequence[Span], cuts: Sequence[int] | None = None) -> PararealModule:
        return converted_with(model, names, segments, windows, cuts, settings)

    rows = [TradeoffRow(plan=original.plan, predicted=0.0, error=0.0, agreement=None)]
    with calibration_mode(original, seed):
        by_block = BlockByBlock(original, mask)
        fitted = [by_block.values(batch, i) for i, batch in enumerate(train[:sensitivity_batches], 1)]
        tested = [by_block.values(batch, i) for i, batch in enumerate(held_out[:sensitivity_batches], 1)]
        fronts = []
        for count in numbers:
            trials = measure_windows(by_block, fitted, tested, count, coarse=coarse, folds=folds, say=say)
            most = (0 if covers_half(by_block.rows) else AUTOMATIC) if across is None else across
            trials += measure_windows_across(
                by_block, convert, train[: len(fitted)], held_out[: len(tested)], tested, count, most=most, seed=seed,
                say=say,
            )  # fmt: skip
            fronts.append((count, selections([row.cost for row in by_block.rows], trials)))
        if agreement is not None:  # with itself, which need not be 1
            itself = _agreement([(values.output, values.output) for values in tested], agreement)
            rows = [dataclasses.replace(rows[0], agreement=itself)]
    del fitted, tested
    measured = _Measurements(convert, by_block, train, held_out, agreement, seed, say)
    for count, front in fronts:
        if tolerance is None:
            for selection in spread(front, points):
                measured.error(count, selection)
        else:
            fastest_within(front, points, tolerance, partial(measured.error, count))
    samples, others = (sum(map(_samples, some)) for some in (train, held_out))
    ordered = sorted(measured.rows.values(), key=lambda row: (row.n, row.speedup))
    if not ordered and (bulk := bulk_of(chain)):
        rows = [dataclasses.replace(rows[0], plan=dataclasses.replace(original.plan, notes=(bulk,)))]
    return Tradeoff(
        model=original.plan.model,
        coarse=coarse,
        samples=samples,
        tested=others,
        measure="" if agreement is None else agreement[0],
        rows=(rows[0], *ordered),
    )


class _Measurements:
    """Selections of windows, converted, calibrated and compared with the original; each plan once."""

    def __init__(
        self,
        convert: Callable[[int, Sequence[Span], Sequence[int]], PararealModule],
        original: BlockByBlock,
        train: Sequence[Any],
        held_out: Sequence[Any],
        agreement: tuple[str, Agreement] | None,
        seed: int,
        say: Say,
    ) -> None:
        self._convert, self._original, self._seed, self._say = convert, original, seed, say
        self._train, self._held_out, self._agreement = train, held_out, agreement
        self.rows: dict[Plan, TradeoffRow] = {}

    def error(self, n: int, selection: Selection) -> float:
        """The output's error of windows on n devices, which becomes a row; nought where they turn out no faster."""
        # Where the space changes often no window has blocks for all devices; of one window alone n may not exceed them.
        segments = max(len(window.starts) for window in selection.windows)
        net = self._convert(
            min(n, segments),
            [(window.first, window.stop) for window in selection.windows],
            [start for window in selection.windows for start in window.starts],
        )
        if net.plan.speedup <= 1:
            return 0.0
        if net.plan not in self.rows:
            self._say(f"n = {n}: calibrating plan {len(self.rows) + 1}, {net.plan.speedup:.2f}×")
            calibrate(net, self._train, seed=self._seed, mask=self._original.mask)
            self.rows[net.plan] = self._row(net, selection)
        return self.rows[net.plan].error

    def _row(self, net: PararealModule, selection: Selection) -> TradeoffRow:
        with calibration_mode(net, self._seed), calibration_mode(self._original.net, self._seed):
            pairs, masks = [], []
            for batch in self._held_out:
                true = self._original.values(batch)
                pairs.append((network_output(net, batch), true.output))
                masks.append(true.mask)
        figure = None if self._agreement is None else _agreement(pairs, self._agreement)
        error = output_error(pairs, masks, self._original.by_position)
        return TradeoffRow(plan=net.plan, predicted=selection.error, error=error, agreement=figure)


def _check_coarse(coarse: Any) -> None:
    """Raises a CalibrationError where it has no correction that could be fitted, nor is a sum without one."""
    if not is_summed(coarse_name(coarse)):
        raise CalibrationError(
            f"coarse = {coarse!r} has no correction in closed form; pass 'low-rank', 'scale', 'dense', 'folded' or "
            "'linear'"
        )


def _check_agreement(agreement: Any) -> None:
    """Raises a CalibrationError where it is no name and function."""
    if agreement is None or (
        len(agreement) == 2 and isinstance(agreement[0], str) and callable(agreement[1])  # a tuple by its annotation
    ):
        return
    raise CalibrationError(
        f"agreement is {agreement!r}; pass a name and a function of two outputs, such as "
        '("cosine", lambda a, b: cosine_similarity(a, b).mean().item())'
    )


def _agreement(pairs: Sequence[tuple[Any, Any]], agreement: tuple[str, Agreement]) -> float:
    """The mean over batches of what the caller's function gives.

    Raises:
        CalibrationError: it gives something else than a number.
    """
    name, function = agreement
    figures = []
    for a, b in pairs:
        figure = function(a, b)
        try:
            figures.append(float(figure))  # of a tensor with one element, too
        except (TypeError, ValueError, RuntimeError):
            raise CalibrationError(
                f"agreement {name!r} gives {type(figure).__name__} {str(figure)[:60]!r} for a batch; return a number, "
                "such as tensor.mean().item()"
            ) from None
    return sum(figures) / len(figures)


def _numbers(n: Any, points: Any, sensitivity_batches: Any, across: Any) -> tuple[int, ...]:
    """The numbers of devices, checked with the other numbers."""
    numbers = [n] if whole_number(n) is not None or isinstance(n, str) else list(n)
    wrong = [value for value in numbers if (whole_number(value) or 0) < 2]
    faults = [f"n is {value!r}; pass numbers of devices, 2 or more" for value in wrong]
    if not numbers:
        faults.append("n is empty; pass numbers of devices, 2 or more")
    for name, value in (("points", points), ("sensitivity_batches", sensitivity_batches)):
        if (whole_number(value) or 0) < 1:
            faults.append(f"{name} is {value!r}; pass 1 or more")
    if across is not None and (whole_number(across) is None or across < 0):
        faults.append(f"across is {across!r}; pass 0 or more, or None")
    if faults:
        raise PlanError("; and ".join(faults))
    return tuple(dict.fromkeys(int(value) for value in numbers))


def _split(batches: Batches, test: Batches | None) -> tuple[list[Any], list[Any]]:
    """Batches to fit to, and others to measure on."""
    train = list(one_pass(batches))
    if test is not None:
        held_out = list(one_pass(test))
    else:
        places = range(HELD_OUT - 1, len(train), HELD_OUT) or range(max(1, len(train) - 1), len(train))
        held_out = [train[i] for i in places]
        train = [batch for i, batch in enumerate(train) if i not in places]
    if not train or not held_out:
        raise ExampleError(
            f"there are {len(train)} batches to fit to and {len(held_out)} to measure on; pass some tens of batches, "
            "or others as test="
        )
    return train, held_out


def _example(model: nn.Module, batch: Any) -> Any:
    """The example inputs of a batch.

    Raises:
        ExampleError: what stands behind them may be labels as well as another input.
    """
    is_pair = (
        isinstance(batch, list | tuple) and len(batch) > 1 and all(isinstance(of, torch.Tensor) for of in batch[:2])
    )
    if is_pair and labels_of(batch) is None and isinstance(model, nn.Module):
        parameters = inspect.signature(model.forward).parameters.values()
        if name := next((p.name for p in parameters if p.default is None or p.kind is p.VAR_POSITIONAL), None):
            raise ExampleError(
                f"the batches have a second tensor {tuple(batch[1].shape)}, which is no label a sample, and "
                f"{type(model).__name__} may take it as {name!r}; pass ((x, {name}), labels), or dicts of inputs by "
                "name, where it is an input, and example_inputs=x where it is none"
            )
    return _inputs(batch)


def _inputs(batch: Any) -> Any:
    """The inputs of a batch, as :func:`pararealize` takes examples."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, list | tuple) else batch


def _samples(batch: Any) -> int:
    """How many samples a batch has."""
    sizes = [len(leaf) for leaf in tree_leaves(_inputs(batch)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    return sizes[0] if sizes else 0
