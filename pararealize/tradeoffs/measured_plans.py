"""A trained model, batches -> Tradeoff: windows tried one by one, selections of them calibrated and measured.

block_values   the original, block by block                                    block_values.py
sensitivity    each possible window's cost, and the error that it alone makes   sensitivity.py, space_changes.py
selection      windows together: short steps at little error                    selection.py
calibrate      each of a few plans, as a user would                             calibration
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.finder import Granularity
from pararealize.analysis.last_layer import layers_at_ends
from pararealize.argument_types import typed_arguments
from pararealize.calibration.batch import Batches, one_pass
from pararealize.calibration.fitting import calibrate, calibration_mode
from pararealize.calibration.masks import AUTO, MaskChoice
from pararealize.coarse.kinds import coarse_name, is_summed
from pararealize.coarse.output_correction import correction_kind
from pararealize.compiler import pararealize
from pararealize.errors import CalibrationError, CoarseError, ExampleError, PlanError
from pararealize.network.module import PararealModule
from pararealize.plan.transfer import Transfer
from pararealize.planning.arguments import whole_number
from pararealize.tracing.front_end import capture

from .block_values import BlockByBlock, Say, network_output, output_error
from .report import Tradeoff, TradeoffRow
from .selection import Selection, selections
from .sensitivity import measure_windows
from .space_changes import AUTOMATIC, covers_half, measure_windows_across

__all__ = ["tradeoff"]

Agreement = Callable[[Any, Any], float]
Span: TypeAlias = tuple[int, int]  # the first block of a window, and the one behind its last
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
    the output of held-out batches is measured. Blocks that matter stay sequential: of the selections of windows with
    the least time :math:`t + \lambda \sum_m e_m^2`, a few from the exact original to the fastest are converted,
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
        points: how many plans are calibrated and measured for each n.
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
        CalibrationError: there are too few batches, or a kind without closed-form corrections was asked for.

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
    say = report or (lambda _: None)
    train, held_out = _split(batches, test)
    example = _inputs(train[0]) if example_inputs is None else example_inputs
    leaves = tuple(leaf_modules)
    chain = find_blocks(capture(model, example, leaf_modules=leaves), granularity=granularity)
    arguments: dict[str, Any] = {
        "example_inputs": example, "leaf_modules": leaves, "granularity": granularity, "cost": cost,
    }  # fmt: skip
    say("running the original block by block")
    folds = _folds_of(coarse, chain)
    original = pararealize(model, 1, windows=len(chain.blocks), **arguments, seed=seed).eval()
    names = [row.first_block for row in original.plan.segments]
    settings = {"coarse": coarse, "transfer": transfer, "seed": seed, **arguments}

    def convert(segments: int, windows: Sequence[Span], cuts: Sequence[int] | None = None) -> PararealModule:
        return _converted(model, names, segments, windows, cuts, settings)

    rows = [TradeoffRow(plan=original.plan, predicted=0.0, error=0.0, agreement=None)]
    with calibration_mode(original, seed):
        by_block = BlockByBlock(original, mask)
        fitted = [by_block.values(batch, i) for i, batch in enumerate(train[:sensitivity_batches], 1)]
        tested = [by_block.values(batch, i) for i, batch in enumerate(held_out[:sensitivity_batches], 1)]
        chosen = []
        for count in numbers:
            trials = measure_windows(by_block, fitted, tested, count, coarse=coarse, folds=folds, say=say)
            most = (0 if covers_half(by_block.rows) else AUTOMATIC) if across is None else across
            trials += measure_windows_across(
                by_block, convert, train[: len(fitted)], held_out[: len(tested)], tested, count, most=most, seed=seed,
                say=say,
            )  # fmt: skip
            chosen += [(count, s) for s in _spread(selections([row.cost for row in by_block.rows], trials), points)]
        if agreement is not None:  # with itself, which need not be 1
            itself = _agreement([(values.output, values.output) for values in tested], agreement)
            rows = [dataclasses.replace(rows[0], agreement=itself)]
    del fitted, tested
    plans = set()
    for i, (count, selection) in enumerate(chosen, 1):
        say(f"n = {count}: calibrating plan {i} of {len(chosen)}")
        # Where the space changes often no window has blocks for all devices; of one window alone n may not exceed them.
        segments = max(len(window.starts) for window in selection.windows)
        net = convert(
            min(count, segments),
            [(window.first, window.stop) for window in selection.windows],
            [start for window in selection.windows for start in window.starts],
        )
        if net.plan in plans:
            continue
        plans.add(net.plan)
        calibrate(net, train, seed=seed, mask=mask)
        rows.append(_measured(net, by_block, held_out, selection, agreement, seed))
    samples, others = (sum(map(_samples, some)) for some in (train, held_out))
    ordered = sorted(rows[1:], key=lambda row: (row.n, row.speedup))
    return Tradeoff(
        model=original.plan.model,
        coarse=coarse,
        samples=samples,
        tested=others,
        measure="" if agreement is None else agreement[0],
        rows=(rows[0], *ordered),
    )


def _converted(
    model: nn.Module,
    names: Sequence[str],
    n: int,
    windows: Sequence[Span],
    cuts: Sequence[int] | None,
    settings: dict[str, Any],
) -> PararealModule:
    """The network with windows of these blocks, the first and the one behind the last of each; sequential elsewhere.

    ``cuts`` are the blocks at which segments begin; where there are none, the planner chooses.
    Where maps are to be folded into layers, and no segment of these windows ends with one, it has none.
    """
    inside = {block for first, stop in windows for block in range(first, stop)}
    sequential = [name for block, name in enumerate(names) if block not in inside]
    convert = partial(
        pararealize, model, n, windows=[names[first] for first, _ in windows], sequential=sequential,
        cuts="cost" if cuts is None else [names[block] for block in cuts], **settings,
    )  # fmt: skip
    try:
        return convert().eval()
    except CoarseError:
        if not _folds(settings["coarse"]):
            raise
        return convert(coarse="linear").eval()


def _folds(coarse: str) -> bool:
    """Whether a kind has its maps within layers."""
    request = correction_kind(coarse)
    return request is not None and request.kind == "folded"


def _folds_of(coarse: str, chain: BlockChain) -> frozenset[int]:
    """The blocks that end with a layer into which maps are to be folded; none of other kinds.

    Raises:
        CoarseError: maps are to be folded, and there is no such block, or all such layers are frozen.
    """
    if not _folds(coarse):
        return frozenset()
    layers = {i: chain.capture.model.get_submodule(name) for i, name in enumerate(layers_at_ends(chain)) if name}
    if not layers:
        raise CoarseError(
            f"coarse = {coarse!r}, and no block ends with a linear layer or convolution whose output only adds to the "
            'stream, in which a map could stand; pass "low-rank", whose maps stand beside the segments'
        )
    trained = {i for i, layer in layers.items() if all(value.requires_grad for value in layer.parameters())}
    if not trained:
        raise CoarseError(
            f"coarse = {coarse!r} writes maps into the last layers of blocks, and all of these are frozen; call "
            'model.requires_grad_(True), or pass "low-rank", whose maps stand beside the segments'
        )
    return frozenset(trained)


def _measured(
    net: PararealModule,
    original: BlockByBlock,
    batches: Sequence[Any],
    selection: Selection,
    agreement: tuple[str, Agreement] | None,
    seed: int,
) -> TradeoffRow:
    with calibration_mode(net, seed), calibration_mode(original.net, seed):
        pairs, masks = [], []
        for batch in batches:
            true = original.values(batch)
            pairs.append((network_output(net, batch), true.output))
            masks.append(true.mask)
    figure = None if agreement is None else _agreement(pairs, agreement)
    return TradeoffRow(plan=net.plan, predicted=selection.error, error=output_error(pairs, masks), agreement=figure)


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


def _inputs(batch: Any) -> Any:
    """The inputs of a batch, as :func:`pararealize` takes examples."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name != "labels"}
    return batch[0] if isinstance(batch, list | tuple) else batch


def _samples(batch: Any) -> int:
    """How many samples a batch has."""
    sizes = [len(leaf) for leaf in tree_leaves(_inputs(batch)) if isinstance(leaf, torch.Tensor) and leaf.ndim]
    return sizes[0] if sizes else 0


def _spread(front: Sequence[Selection], points: int) -> list[Selection]:
    """Some of the selections that have windows, about evenly from the nearest to the fastest."""
    parallel = [selection for selection in front if selection.windows]
    if len(parallel) <= points:
        return parallel
    if points == 1:
        return parallel[-1:]
    places = [round(i * (len(parallel) - 1) / (points - 1)) for i in range(points)]
    return [parallel[place] for place in dict.fromkeys(places)]
