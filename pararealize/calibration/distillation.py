r"""A module, pairs of inputs and target outputs -> the module, its weights fitted to the pairs by a short training.

Adam on the relative squared error :math:`\|F(r) - t\|^2 / \|t\|^2` of one batch after another, at the positions that
count. Then, with the features
in front of it as they are now, the last linear layer is solved for in closed form, where the module is *that layer plus
the rest*, as residual units are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pararealize.errors import CalibrationError
from pararealize.restacking.batchnorm import average_statistics, normalises, running_norms
from pararealize.restore import preserve_training_flags

from .least_squares import LinearLayer, Regression, is_trained, linear_part
from .masks import unmasked

__all__ = ["Pair", "distil", "last_layer", "measure_norms", "solve_last"]


class Pair(NamedTuple):
    """What a module reads and what it should give.

    Attributes:
        value: the input.
        context: what else is passed to it.
        target: what should come out.
        mask: which positions of the target count; None where all do.
    """

    value: Tensor
    context: tuple[Any, ...]
    target: Tensor
    mask: Tensor | None = None


WARMUP = 0.1  # of the steps: the rate rises linearly, and then falls as a cosine does


def distil(module: nn.Module, pairs: Sequence[Pair], *, steps: int, lr: float, seed: int) -> None:
    """Train a module with Adam; batch norms normalise by the batch, all else is in eval mode.

    Batches with one value a channel at a norm, which cannot be normalised, are left out; where all are such, the norms
    are in eval mode, too.

    Args:
        module: called ``module(input, *context)``.
        pairs: batches, taken in a new random order in every round.
        steps: steps of Adam; none change nothing.
        lr: the largest rate.
        seed: fixes the order.

    Raises:
        CalibrationError: the loss is not finite.
    """
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not parameters or not steps:
        return
    least = max(torch.finfo(parameter.dtype).tiny for parameter in parameters)
    optimizer = torch.optim.Adam(parameters, lr=lr, eps=max(1e-8, least))
    norms = running_norms(module)
    if norms:
        usable = _normalised(module, pairs)
        norms, pairs = (norms, usable) if usable else ([], pairs)
    order = _order(len(pairs), torch.Generator().manual_seed(seed))
    with norms_training(module, norms), _other_gradients(parameters), torch.enable_grad():
        for step in range(steps):
            r, context, target, mask = pairs[next(order)]
            for group in optimizer.param_groups:
                group["lr"] = lr * _rate(step, steps)
            optimizer.zero_grad()
            wide = torch.promote_types(target.dtype, torch.float32)
            true = unmasked(target, mask).to(wide)
            error = unmasked(module(r.clone(), *context), mask).to(wide) - true
            if not error.numel():
                continue  # all padding
            loss = error.square().mean() / true.square().mean().clamp(min=torch.finfo(wide).tiny)
            if not bool(torch.isfinite(loss)):
                raise CalibrationError(
                    f"the loss is {loss.item()} in step {step + 1} of {steps} of a distillation; pass a smaller lr "
                    f"than {lr:g}"
                )
            loss.backward()
            optimizer.step()


def measure_norms(module: nn.Module, pairs: Iterable[Pair]) -> bool:
    """Set the running statistics of the module's batch norms to their averages over all pairs that have a variance.

    Returns:
        False where none has, and the statistics are as they were.
    """
    norms = running_norms(module)
    return not norms or average_statistics(module, norms, (_call_of(module, pair) for pair in pairs)) > 0


def solve_last(module: nn.Module, pairs: Callable[[], Iterable[Pair]], *, ridge: float) -> bool:
    """Solve for the last linear layer, all else as it is; False where there is no such layer, or it is frozen."""
    first = next(iter(pairs()))
    layer = last_layer(module, first.value, first.context, first.mask)
    if layer is None or not is_trained(layer):
        return False
    regression = Regression(module, layer, rest=True)
    for pair in pairs():
        regression.take(*pair)
    regression.solve(ridge=ridge)
    return True


@torch.no_grad()
def last_layer(
    module: nn.Module, r: Tensor, context: tuple[Any, ...] = (), mask: Tensor | None = None
) -> LinearLayer | None:
    """The last linear layer, where the module is that layer's output plus what does not depend on it.

    It is tried out: a change of the layer's output has to appear in the module's output as it is.
    """
    calls: list[LinearLayer] = []

    def note(layer: Any, _: Any, __: Any) -> None:
        calls.append(layer)

    with ExitStack() as stack:
        for layer in module.modules():
            if linear_part(layer) == (layer, ()):
                stack.enter_context(layer.register_forward_hook(note))
        before = module(r.clone(), *context)
    if not calls or calls.count(calls[-1]) != 1:
        return None
    changes = []

    def change(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(output.shape, generator=generator, dtype=torch.float64).to(output)
        changes.append(noise * unmasked(output, mask).std().clamp(min=1e-6))
        return output + changes[-1]

    with calls[-1].register_forward_hook(change):
        after = module(r.clone(), *context)
    if after.shape != changes[-1].shape:
        return None
    after, before, changed = (unmasked(value, mask) for value in (after, before, changes[-1]))
    difference = after - before
    rounding = torch.finfo(difference.dtype).eps
    tolerance = max(1e-3, rounding) * changed.norm() + max(1e-5, rounding) * before.norm()
    return calls[-1] if bool((difference - changed).norm() <= tolerance) else None


@contextmanager
def norms_training(module: nn.Module, norms: Sequence[nn.Module]) -> Iterator[None]:
    """These batch norms in train mode, all else in eval mode; every flag is put back on leaving."""
    chosen = set(norms)
    with preserve_training_flags(module):
        for part in module.modules():
            part.training = part in chosen
        yield


@torch.no_grad()
def _normalised(module: nn.Module, pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs that a module's batch norms can normalise: several samples have several values a channel."""
    norms = running_norms(module)
    with norms_training(module, norms):
        return [pair for pair in pairs if len(pair.value) > 1 or normalises(norms, _call_of(module, pair))]


def _call_of(module: nn.Module, pair: Pair) -> Callable[[], object]:
    return partial(module, pair.value.clone(), *pair.context)


@contextmanager
def _other_gradients(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Parameters without gradients; those that were there are put back on leaving, by an error too."""
    gradients = [parameter.grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient


def _rate(step: int, steps: int) -> float:
    warm = WARMUP * steps
    if step < warm:
        return (step + 1) / (warm + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(steps - warm, 1)))


def _order(count: int, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from torch.randperm(count, generator=generator).tolist()
