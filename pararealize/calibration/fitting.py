"""A trained network's parareal form, batches of inputs -> the same, adapters and coarse blocks fitted; a Calibration.

adapters        C^j to each segment's true input             least squares, where linear     least_squares.py
coarse blocks   F^1, F^2, … to the true propagation of the   least squares, where linear;    distil.py
                residuals that arrive                        else a short distillation
errors          at every interface, before and after                                          calibration.py

Only the new modules change: the original's weights and statistics stay as they are, bit for bit.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from pararealize.errors import CalibrationError, ModelError
from pararealize.network.module import PararealModule
from pararealize.random_state import preserve_state
from pararealize.restore import ordinary_mode
from pararealize.train.run.score import eval_mode

from .distillation import Pair, distil, measure_norms, solve_last
from .interface_errors import Measured, measure
from .interfaces import Batches, Crossing, Interfaces, Record
from .least_squares import Regression, is_trained, linear_part
from .report import Calibration, Errors, Fit

__all__ = ["calibrate", "check_network", "quiet"]

KEEP = 1 << 30


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
        batches: of training inputs: a list, a loader, or a function that gives a new iterator. A batch is a tensor,
            ``(inputs, labels)``, or a dict of keyword arguments (with ``"labels"``); labels only serve the report.
        test: other batches to measure the errors on; ``batches`` when left out.
        steps: of Adam, for every coarse block that is not linear.
        lr: its largest learning rate; it rises linearly and falls as a cosine.
        ridge: of all least squares, relative to the mean squared feature.
        keep: bytes of activations to hold. Where the data needs more, a pass over it runs the network again, and
            distillation sees as many of the first batches as fit.
        seed: of the order of batches, and of a loader's own shuffling. The caller's random state stays as found.
        report: called with a line of text as the work goes on.

    Returns:
        The errors at every interface, before and after.

    Raises:
        ModelError: ``net`` is no :class:`PararealModule`, or on the meta device.
        ExampleError: there is no batch, it does not fit the network, or batches can be read only once.
        CalibrationError: activations are not finite, labels do not fit the output, an option is out of range.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.data.catalogue import digits
        >>> from pararealize.models import resnet20
        >>> data = digits(image_size=8)
        >>> net = pararealize(resnet20(), n=3, coarse="linear")
        >>> calibration = calibrate(net, data.batches, test=data.test_batches)
        >>> calibration.stage("after").output < calibration.stage("before").output
        True
    """
    check_network(net)
    _check_options(steps=steps, lr=lr, ridge=ridge, keep=keep)
    told = report or (lambda _: None)
    with quiet(net, seed):
        interfaces = Interfaces(net)
        told("running the network in sequence")
        record = Record(interfaces, batches, keep=keep)
        held_out = test is not None
        measured = _Meter(record if test is None else Record(interfaces, test, keep=0))
        told("measuring the errors before")
        before = measured("before")
        fits = [*_fit_adapters(record, ridge, told)]
        fits += _fit_coarse(record, steps=steps, lr=lr, ridge=ridge, seed=seed, told=told)
        told("measuring the errors after")
        after = measured("after")
    return Calibration(
        model=net.plan.model,
        n=net.plan.n,
        coarse=net.plan.coarse,
        samples=record.samples,
        tested=measured.samples,
        held_out=held_out,
        accuracy=measured.accuracy,
        fits=tuple(fits),
        stages=(before, after),
    )


class _Meter:
    """Errors of the network as it is now, stage by stage."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.samples = record.samples
        self.accuracy: float | None = None

    def __call__(self, stage: str) -> Errors:
        found: Measured = measure(self.record.interfaces, self.record)
        self.accuracy = found.accuracy
        return found.errors(stage)


def _fit_adapters(record: Record, ridge: float, told: Callable[[str], None]) -> Iterator[Fit]:
    """All adapters in one pass: none depends on another."""
    interfaces = record.interfaces
    began = time.perf_counter()
    regressions = {}
    for plan in interfaces.net.plan.adapters:
        module = interfaces.adapter(plan.j)
        if (found := linear_part(module)) is not None and is_trained(found[0]):
            regressions[plan.j] = Regression(module, *found)
    told(f"fitting {len(regressions)} adapters")
    for crossing in record:
        for j, regression in regressions.items():
            regression.take(crossing.sources[j], (), interfaces.at(j, crossing.true[j - 1]))
    for regression in regressions.values():
        regression.solve(ridge=ridge)
    share = (time.perf_counter() - began) / max(len(regressions), 1)
    for plan in interfaces.net.plan.adapters:
        solved = plan.j in regressions
        left = "left: not linear" if linear_part(interfaces.adapter(plan.j)) is None else "left: frozen"
        method = "least squares" if solved else left
        yield Fit(part=f"C{plan.j}", kind=plan.recipe, method=method, seconds=share if solved else 0.0)


def _fit_coarse(
    record: Record, *, steps: int, lr: float, ridge: float, seed: int, told: Callable[[str], None]
) -> Iterator[Fit]:
    """One coarse block after the other, each on the residuals that those before it leave."""
    interfaces = record.interfaces
    fitted: set[int] = set()
    for plan in interfaces.net.plan.coarse_blocks:
        began = time.perf_counter()
        module = interfaces.coarse(plan.j)
        told(f"fitting F{plan.j} of {interfaces.n - 1} ({plan.kind})")
        if module is None:
            method = "left: the segment itself"
        elif not any(parameter.requires_grad for parameter in module.parameters()):
            method = "left: nothing to fit"
        elif fitted.intersection(map(id, module.parameters())):
            method = "left: shared with one before"
        else:
            method = _fit_one(module, record, plan.j, steps=steps, lr=lr, ridge=ridge, seed=seed)
            fitted.update(map(id, module.parameters()))
        yield Fit(part=f"F{plan.j}", kind=plan.kind, method=method, seconds=time.perf_counter() - began)


def _fit_one(module: nn.Module, record: Record, j: int, *, steps: int, lr: float, ridge: float, seed: int) -> str:
    interfaces = record.interfaces

    def pair(crossing: Crossing) -> Pair:
        target = interfaces.at(j + 1, crossing.true[j + 1]) - crossing.y[j + 1]
        return interfaces.residual(crossing, j), crossing.coarse_context[j], target

    sample = [pair(interfaces.filled(crossing)) for crossing in record.kept]

    def pairs() -> Iterator[Pair]:
        return iter(sample) if record.complete else map(pair, record.fine())

    if (found := linear_part(module)) is not None and is_trained(found[0]):
        regression = Regression(module, *found)
        for one in pairs():
            regression.take(*one)
        regression.solve(ridge=ridge)
        return "least squares"
    measure_norms(module, pairs())
    solve_last(module, pairs, ridge=ridge)
    distil(module, sample, steps=steps, lr=lr, seed=seed)
    measure_norms(module, pairs())
    return "distilled, last layer solved" if solve_last(module, pairs, ridge=ridge) else "distilled"


def check_network(net: object) -> None:
    """Raise unless it is a converted network with weights."""
    if not isinstance(net, PararealModule):
        raise ModelError(f"calibration takes what pararealize(...) gives, and this is a {type(net).__name__}")
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        raise ModelError("the network is on the meta device, where nothing runs; convert the model with its weights")


def _check_options(*, steps: int, lr: float, ridge: float, keep: int) -> None:
    wrong = [
        f"{name} is {value!r}; pass {wanted}"
        for name, value, wanted, fits in (
            ("steps", steps, "0 or more steps", isinstance(steps, int) and steps >= 0),
            ("lr", lr, "a positive number", 0 < lr < float("inf")),
            ("ridge", ridge, "0 or a positive number", 0 <= ridge < float("inf")),
            ("keep", keep, "0 or more bytes", keep >= 0),
        )
        if not fits
    ]
    if wrong:
        raise CalibrationError("; and ".join(wrong))


@contextmanager
def quiet(net: PararealModule, seed: int) -> Iterator[None]:
    """In eval mode, outside the caller's autocast and no_grad, with random states that are put back."""
    with ExitStack() as stack:
        stack.enter_context(ordinary_mode())
        stack.enter_context(preserve_state(parameter.device for parameter in net.parameters()))
        torch.manual_seed(seed)
        stack.enter_context(eval_mode(net))
        yield
