"""A window, the batches -> its adapters, coarse blocks, corrections and running statistics, fitted.

Windows come in order. Each is fitted on what the windows before it give, as they are by then, to the values of the
network in sequence. Running statistics are renewed where that makes the error of the output on the samples held out
smaller, with all windows behind run in sequence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pararealize.coarse.spec import CoarsePlan
from pararealize.errors import CalibrationError
from pararealize.plan.spec import Window

from .distillation import Pair, distil, measure_norms, solve_last
from .held_out import HeldOut
from .interface_errors import SquareSums
from .interfaces import InterfaceRecord, InterfaceValues
from .least_squares import Regression, is_trained, linear_part
from .output_kind import OutputKind, named_leaves
from .rows import CorrectionChoice, Fit
from .window_corrections import corrections_of, fit_corrections, fit_input_corrections, set_to_nought
from .window_folds import fit_folds

__all__ = ["FitSettings", "WindowFit", "WindowFitting"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitSettings:
    """How to fit; the arguments of :func:`~pararealize.calibration.fitting.calibrate` of the same names.

    Raises:
        CalibrationError: a value is out of range; names all that are.
    """

    steps: int
    lr: float
    ridge: float
    keep: int
    seed: int

    def __post_init__(self) -> None:
        checks = (
            ("steps", "0 or more steps", isinstance(self.steps, int) and self.steps >= 0),
            ("lr", "a positive number", 0 < self.lr < float("inf")),
            ("ridge", "0 or a positive number", 0 <= self.ridge < float("inf")),
            ("keep", "0 or more bytes", self.keep >= 0),
        )
        if faults := [f"{name} is {getattr(self, name)!r}; pass {text}" for name, text, fits in checks if not fits]:
            raise CalibrationError("; and ".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowFit:
    """How a window was fitted.

    Attributes:
        fits: part by part.
        correction: what corrections of each kind give, where the window has any.
    """

    fits: tuple[Fit, ...]
    correction: CorrectionChoice | None = None


class WindowFitting:
    """Fits the windows of a network, one after the other, in order.

    Args:
        record: the batches to fit to.
        held_out: which samples choose between fits.
        settings: how to fit.
        kind: what the outputs are.
        say: called with a line of text as the work goes on.
    """

    def __init__(
        self,
        record: InterfaceRecord,
        held_out: HeldOut,
        settings: FitSettings,
        kind: OutputKind,
        say: Callable[[str], None],
    ) -> None:
        self.record, self.held_out, self.settings, self.kind, self.say = record, held_out, settings, kind, say
        self.interfaces, self.statistics = record.interfaces, record.interfaces.statistics
        self._fitted: set[int] = set()  # ids of the parameters of coarse blocks that were fitted
        self._unmeasured: dict[str, None] = {}  # parts with batch norms that no batch has a variance for

    @property
    def has_norms(self) -> bool:
        """Whether there are running statistics that could be renewed."""
        return any(map(self._norms_of, self.interfaces.windows)) or bool(self.statistics.of("head"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """Which batch norms could not be measured."""
        fact = "every batch has one value a channel there, which has no variance; pass larger batches"
        names = ", ".join(self._unmeasured)
        return (f"batch norms of {names} keep their running statistics: {fact}",) if names else ()

    def fit(self, window: Window, *, renews: bool) -> WindowFit:
        """Fit what the window has, with running statistics as they are or as they are renewed, whichever is better."""
        self._without_corrections(window)
        adapters = list(self._fit_adapters(window))
        names = self._norms_of(window) if renews else []
        parts = self._fitted.copy()
        first = self._fit_corrected(window, adapters)
        if not names:
            return first
        error, state = self._error(window), _state_of(self._modules(window))
        folds = self.interfaces.folds.state(window)
        if not self._renew(window, names):
            return first
        self._fitted = parts
        self._without_corrections(window)
        second = self._fit_corrected(window, adapters)
        if self._error(window) < error:
            return second
        self.statistics.restore(names)
        for module, values in zip(self._modules(window), state, strict=True):
            module.load_state_dict(values)
        self.interfaces.folds.restore(window, folds)
        self.held_out.forget(window)
        return first

    @torch.no_grad()
    def renew_head(self) -> None:
        """Renew the statistics of the head's batch norms, where the output comes nearer to the true one so."""
        if not self.statistics.of("head"):
            return
        self.say("renewing the statistics of the head")
        result = self.interfaces.result
        error = self._output_error(result)
        if self._renewed(["head"], result) and not self._output_error(result) < error:
            self.statistics.restore(["head"])

    def _norms_of(self, window: Window) -> list[str]:
        """The segments of a window with running statistics, and other inputs than they were trained on."""
        later = window.segments[1 if window.m == 1 else 0 :]
        return [row.name for row in later if self.statistics.of(row.name)]

    def _modules(self, window: Window) -> list[nn.Module]:
        """The coarse blocks and corrections of a window that have weights."""
        blocks = (self.interfaces.coarse(row.index) for row in window.coarse_blocks)
        return [*filter(None, blocks), *corrections_of(self.interfaces, window)]

    def _without_corrections(self, window: Window) -> None:
        """Let the corrections of a window add nothing, where they may change."""
        set_to_nought(corrections_of(self.interfaces, window))
        folds = self.interfaces.folds.of(window)
        for one in folds if all(one.is_trained for one in folds) else ():  # the maps of a window belong together
            one.map.unfold(one.layer)
        self.held_out.forget(window, corrected_only=not folds)

    def _renew(self, window: Window, names: list[str]) -> bool:
        """Measure the statistics of segments on their inputs as they are; False where the batches are too small."""
        self.say(f"renewing the statistics of {', '.join(names)}")

        def run(values: InterfaceValues) -> None:
            values.forget(window)
            self.interfaces.with_fine(values, window)

        renewed = self._renewed(names, run)
        self.held_out.forget(window)
        return renewed

    def _renewed(self, names: list[str], run: Callable[[InterfaceValues], object]) -> bool:
        calls = (partial(run, parts.values) for parts in self.held_out.fitted())
        renewed = self.statistics.renew(names, calls)
        self._unmeasured |= dict.fromkeys(() if renewed else names)
        return renewed

    def _error(self, window: Window) -> float:
        """The relative error of the output on the samples held out, the windows behind this one run in sequence."""
        return self._output_error(lambda values: self.interfaces.rest_in_sequence(values, window))

    def _output_error(self, output_of: Callable[[InterfaceValues], Any]) -> float:
        sums = SquareSums()
        for parts in self.held_out.held_out():
            output, wanted = output_of(parts.values), dict(named_leaves(parts.values.output))
            for path, value in named_leaves(output):
                whole = value.ndim == 0 or len(value) != parts.values.samples  # no number a sample
                samples = slice(None) if whole or parts.held_out is None else parts.held_out
                mask = None if whole or parts.values.mask is None else parts.values.mask[samples]
                pair = (value, wanted[path]) if whole else (value[samples], wanted[path][samples])
                sums.add(*(self.kind.counted(path, of, mask) for of in pair))
        return sums.relative

    def _fit_corrected(self, window: Window, adapters: list[Fit]) -> WindowFit:
        """Fit coarse blocks, then corrections."""
        coarse = list(self._fit_coarse(window))
        if window.corrections:
            self.say(f"fitting {window.corrections[0].name} to {window.corrections[-1].name}")
        ridge = self.settings.ridge
        folds = self.interfaces.folds.of(window)
        fit = fit_folds if folds else fit_corrections
        fits, choice = fit(self.interfaces, self.held_out, window, ridge=ridge)
        if fits and not folds:
            self.held_out.forget(window, corrected_only=True)
        return WindowFit(fits=(*adapters, *coarse, *fits), correction=choice)

    def _fit_adapters(self, window: Window) -> Iterator[Fit]:
        """Solve for all adapters of a window in one pass over the batches: none depends on another."""
        interfaces, plans = self.interfaces, window.adapters
        start = time.perf_counter()
        modules = {plan.index: interfaces.adapter(plan.index) for plan in plans}
        layers = {index: linear_part(module) for index, module in modules.items()}
        linear = {index: layer for index, layer in layers.items() if layer is not None and is_trained(layer[0])}
        regressions = {index: Regression(modules[index], *layer) for index, layer in linear.items()}
        if plans:
            self.say(f"fitting {len(regressions)} adapters{_of(window)}")
        for values in self.record if regressions else ():
            for index, regression in regressions.items():
                m, j = index
                source = values.sources.get(index)
                if source is None:
                    source = interfaces.at(index, interfaces.begin(values, window))
                regression.take(source, (), interfaces.at(index, values.true[m, j - 1]), values.mask)
        for regression in regressions.values():
            regression.solve(ridge=self.settings.ridge)
        if regressions:
            self.held_out.forget(window)
        share = (time.perf_counter() - start) / max(len(regressions), 1)
        corrected = {
            fit.part: fit for fit in fit_input_corrections(interfaces, self.held_out, window, self.settings.ridge)
        }
        if corrected:
            self.held_out.forget(window)
        for plan in plans:
            if plan.name in corrected:
                yield corrected[plan.name]
                continue
            fitted = plan.index in regressions
            method = "least squares" if fitted else _why_left(modules[plan.index], layers[plan.index] is not None)
            yield Fit(part=plan.name, kind=plan.recipe, method=method, seconds=share if fitted else 0.0)

    def _fit_coarse(self, window: Window) -> Iterator[Fit]:
        """One coarse block after the other, each on the residuals that those before it leave."""
        for plan in window.coarse_blocks:
            start = time.perf_counter()
            module = self.interfaces.coarse(plan.index)
            if module is None:
                method = "left: the segment itself"
            elif not any(parameter.requires_grad for parameter in module.parameters()):
                method = _why_left(module, True)
            elif self._fitted.intersection(map(id, module.parameters())):
                method = "left: shared with one before"
            else:
                self.say(f"fitting {plan.name} of {len(window.coarse_blocks)} ({plan.kind})")
                method = self._fit_one(module, window, plan)
                self._fitted.update(map(id, module.parameters()))
            yield Fit(part=plan.name, kind=plan.kind, method=method, seconds=time.perf_counter() - start)

    def _fit_one(self, module: nn.Module, window: Window, plan: CoarsePlan) -> str:
        """Fit F^{m,j} to what z_{j+1} still lacks, u_{j+1} - y_{j+1}; says by which method."""
        interfaces, record, settings = self.interfaces, self.record, self.settings
        following = plan.m, plan.j + 1

        def pair(values: InterfaceValues) -> Pair:
            target = interfaces.at(following, values.true[following]) - interfaces.fine(values, following)
            return Pair(interfaces.residual(values, plan.index), values.context[plan.name], target, values.mask)

        sample = [pair(interfaces.with_fine(values, window)) for values in record.in_memory]

        def pairs() -> Iterable[Pair]:
            return iter(sample) if record.complete else map(pair, record.with_fine(window))

        layer = linear_part(module)
        if layer is not None and is_trained(layer[0]):
            regression = Regression(module, *layer)
            for each in pairs():
                regression.take(*each)
            regression.solve(ridge=settings.ridge)
            return "least squares"
        # Running statistics are set before each solution for the last layer, which stands behind the norms, and once
        # more after the distillation, which changes what enters them.
        if not measure_norms(module, pairs()):
            self._unmeasured[plan.name] = None
        solve_last(module, pairs, ridge=settings.ridge)
        distil(module, sample, steps=settings.steps, lr=settings.lr, seed=settings.seed)
        measure_norms(module, pairs())
        return "distilled, last layer solved" if solve_last(module, pairs, ridge=settings.ridge) else "distilled"


def _why_left(module: nn.Module, linear: bool) -> str:
    if not any(True for _ in module.parameters()):
        return "left: nothing to fit"
    return "left: frozen" if linear else "left: not linear"


def _of(window: Window) -> str:
    return f" of window {window.m}" if window.segments[0].m else ""


def _state_of(modules: Iterable[nn.Module]) -> list[dict[str, torch.Tensor]]:
    return [{key: value.clone() for key, value in module.state_dict().items()} for module in modules]
