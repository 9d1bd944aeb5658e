"""PararealModule of a trained network, batches -> Calibration: adapters and coarse blocks fitted, errors measured.

adapters        C^j to each segment's true input             least squares, where linear     least_squares.py
coarse blocks   F^1, F^2, … to the true propagation of the   least squares, where linear;    distillation.py
                residuals that arrive                        else a short distillation
errors          at every interface, before and after                                         interface_errors.py

Only the new modules change: the original's weights and statistics stay as they are, bit for bit.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import CalibrationError, ModelError
from pararealize.network.module import PararealModule
from pararealize.random_state import preserve_state
from pararealize.restore import ordinary_mode
from pararealize.train.run.score import eval_mode

from .distillation import Pair, distil, measure_norms, solve_last
from .interface_errors import measure_errors
from .interfaces import Batches, InterfaceRecord, Interfaces, InterfaceValues
from .least_squares import Regression, is_trained, linear_part
from .report import Calibration, Fit

__all__ = ["calibrate", "calibration_mode", "check_network"]

KEEP = 1 << 30


@typed_arguments(CalibrationError, "net")
def calibrate(
    net: PararealModule,
    batches: Batches,
    *,
    test: Batches | None = None,
    steps: int = 200,
    lr: float = 1e-2,
    ridge: float = 1e-4,
    keep: int = KEEP,
    seed: int = 0,
    report: Callable[[str], None] | None = None,
) -> Calibration:
    r"""Fit the adapters and coarse blocks of a parareal network to the trained network that it was made from.

    With :math:`u_j` the output of segment j when all segments run in sequence, adapters first, each on its own,

    .. math:: C^j = \operatorname{argmin} \sum \|C^j(x) - u_{j-1}\|^2,

    then coarse blocks from the first interface on, each with those before it as they are now,

    .. math:: F^j = \operatorname{argmin} \sum \|F^j(z_j - x_{j+1}) - (u_{j+1} - y_{j+1})\|^2 .

    Modules that are one linear layer are solved for in closed form, by ridge regression in double precision. Others
    are trained with Adam for ``steps`` batches, and the last layer of a residual unit is solved for before and after.
    Everything runs in eval mode. The batch norms of coarse blocks normalise by the batch while they are distilled;
    then their running statistics are set to the averages over all batches.

    Args:
        net: a converted network with the trained weights; changed where it is, on its own devices.
        batches: training inputs: a list, a loader, or a function that gives a new iterator. A batch is a tensor,
            ``(inputs, labels)``, or a dict of keyword arguments (with ``"labels"``); labels only serve the report.
        test: other batches to measure the errors on; ``batches`` when left out.
        steps: steps of Adam, for every coarse block that is not linear.
        lr: Adam's largest learning rate; the rate rises linearly and falls as a cosine.
        ridge: penalty of all least squares, relative to the mean squared feature.
        keep: bytes of activations to hold in memory. Where the data needs more, a pass over it runs the network again,
            and distillation sees as many of the first batches as fit.
        seed: fixes the order of batches, and a loader's own shuffling. The caller's random state stays as found.
        report: called with a line of text as the work goes on.

    Returns:
        The errors at every interface, before and after.

    Raises:
        ModelError: ``net`` is no :class:`PararealModule`, or on the meta device.
        ExampleError: there is no batch, it does not fit the network, or batches can be read only once.
        CalibrationError: activations are not finite, labels do not fit the output, an option is out of range.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> data = digits(image_size=8)
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> calibration = calibrate(net, data.batches, test=data.test_batches)
        >>> calibration.stage("after").output < calibration.stage("before").output
        True
    """
    check_network(net)
    settings = _FitSettings(steps=steps, lr=lr, ridge=ridge, keep=keep, seed=seed)
    say = report or (lambda _: None)
    with calibration_mode(net, seed):
        interfaces = Interfaces(net)
        say("running the network in sequence")
        record = InterfaceRecord(interfaces, batches, keep=keep)
        tested = record if test is None else InterfaceRecord(interfaces, test, keep=0)
        say("measuring the errors before")
        before = measure_errors(interfaces, tested)
        fits = [*_fit_adapters(record, settings, say), *_fit_coarse(record, settings, say)]
        say("measuring the errors after")
        after = measure_errors(interfaces, tested)
    return Calibration(
        model=net.plan.model,
        n=net.plan.n,
        coarse=net.plan.coarse,
        samples=record.samples,
        tested=tested.samples,
        held_out=test is not None,
        accuracy=after.accuracy,
        fits=tuple(fits),
        stages=(before.errors("before"), after.errors("after")),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _FitSettings:
    """How to fit; the arguments of :func:`calibrate` of the same names.

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


def _fit_adapters(record: InterfaceRecord, settings: _FitSettings, say: Callable[[str], None]) -> Iterator[Fit]:
    """Solve for all adapters in one pass over the batches: none depends on another."""
    interfaces = record.interfaces
    plans = interfaces.net.plan.adapters
    start = time.perf_counter()
    layers = {plan.j: linear_part(interfaces.adapter(plan.j)) for plan in plans}
    linear = {j: layer for j, layer in layers.items() if layer is not None and is_trained(layer[0])}
    regressions = {j: Regression(interfaces.adapter(j), *layer) for j, layer in linear.items()}
    say(f"fitting {len(regressions)} adapters")
    for values in record:
        for j, regression in regressions.items():
            regression.take(values.sources[j], (), interfaces.at(j, values.true[j - 1]))
    for regression in regressions.values():
        regression.solve(ridge=settings.ridge)
    share = (time.perf_counter() - start) / max(len(regressions), 1)
    for plan in plans:
        method, seconds = "left: not linear" if layers[plan.j] is None else "left: frozen", 0.0
        if plan.j in regressions:
            method, seconds = "least squares", share
        yield Fit(part=f"C{plan.j}", kind=plan.recipe, method=method, seconds=seconds)


def _fit_coarse(record: InterfaceRecord, settings: _FitSettings, say: Callable[[str], None]) -> Iterator[Fit]:
    """One coarse block after the other, each on the residuals that those before it leave."""
    interfaces = record.interfaces
    fitted: set[int] = set()
    for plan in interfaces.net.plan.coarse_blocks:
        start = time.perf_counter()
        module = interfaces.coarse(plan.j)
        say(f"fitting F{plan.j} of {interfaces.n - 1} ({plan.kind})")
        if module is None:
            method = "left: the segment itself"
        elif not any(parameter.requires_grad for parameter in module.parameters()):
            method = "left: nothing to fit"
        elif fitted.intersection(map(id, module.parameters())):
            method = "left: shared with one before"
        else:
            method = _fit_one(module, record, plan.j, settings)
            fitted.update(map(id, module.parameters()))
        yield Fit(part=f"F{plan.j}", kind=plan.kind, method=method, seconds=time.perf_counter() - start)


def _fit_one(module: nn.Module, record: InterfaceRecord, j: int, settings: _FitSettings) -> str:
    """Fit F^j to what z_{j+1} still lacks, u_{j+1} - y_{j+1}; says by which method."""
    interfaces = record.interfaces

    def pair(values: InterfaceValues) -> Pair:
        target = interfaces.at(j + 1, values.true[j + 1]) - values.y[j + 1]
        return interfaces.residual(values, j), values.context[f"F{j}"], target

    sample = [pair(interfaces.with_fine(values)) for values in record.in_memory]

    def pairs() -> Iterator[Pair]:
        return iter(sample) if record.complete else map(pair, record.with_fine())

    layer = linear_part(module)
    if layer is not None and is_trained(layer[0]):
        regression = Regression(module, *layer)
        for each in pairs():
            regression.take(*each)
        regression.solve(ridge=settings.ridge)
        return "least squares"
    # Running statistics are set before each solution for the last layer, which stands behind the norms, and once more
    # after the distillation, which changes what enters them.
    measure_norms(module, pairs())
    solve_last(module, pairs, ridge=settings.ridge)
    distil(module, sample, steps=settings.steps, lr=settings.lr, seed=settings.seed)
    measure_norms(module, pairs())
    return "distilled, last layer solved" if solve_last(module, pairs, ridge=settings.ridge) else "distilled"


def check_network(net: object) -> None:
    """Raise unless it is a converted network with weights."""
    if not isinstance(net, PararealModule):
        raise ModelError(f"calibration takes what pararealize(...) gives, and this is a {type(net).__name__}")
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        raise ModelError("the network is on the meta device, where nothing runs; convert the model with its weights")


@contextmanager
def calibration_mode(net: PararealModule, seed: int) -> Iterator[None]:
    """Eval mode and seeded random numbers, outside the caller's autocast and no_grad; all is put back on leaving."""
    devices = (parameter.device for parameter in net.parameters())
    with ordinary_mode(), preserve_state(devices), eval_mode(net):
        torch.manual_seed(seed)
        yield
