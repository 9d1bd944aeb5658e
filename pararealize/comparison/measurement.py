"""PararealModule, its original, batches -> Comparison: both are called with the same inputs, side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.calibration.batch import (
    Batches,
    call_arguments,
    inputs_of,
    labels_of,
    named_inputs,
    one_pass,
    samples_of,
)
from pararealize.calibration.masks import attention_mask
from pararealize.calibration.output_kind import position_outputs
from pararealize.errors import CalibrationError, ExampleError, ModelError, PararealizeError
from pararealize.network.module import PararealModule
from pararealize.restore import ordinary_mode
from pararealize.tracing.call_signature import CallSignature, forward_call
from pararealize.tracing.containers import copied, on_device
from pararealize.train.run.score import as_input, eval_mode, input_dtype

from .latency import measure_latency, of_batch_size
from .outputs import OutputSums
from .report import Comparison, Latency

__all__ = ["compare"]


@typed_arguments(CalibrationError, "net", "original")
def compare(
    net: PararealModule,
    original: nn.Module,
    batches: Batches,
    *,
    logits: bool | None = None,
    batch_sizes: Sequence[int] = (1, 32),
    rounds: int = 9,
    report: Callable[[str], None] | None = None,
) -> Comparison:
    r"""A parareal network beside its original: quality and agreement on the same samples, and the time of a call.

    With y the network's output and :math:`y_0` the original's, over all samples that the batches have,

    .. math:: e = \|y - y_0\| / \|y_0\|,

    of all their tensors together; besides, of the ``logits`` among these, or the first with samples, the cosine, and
    where they are logits the share of equal classes; with labels, accuracy and cross-entropy of each. Both run in eval
    mode and without gradients, and are left as found.

    Args:
        net: the converted network.
        original: the trained original, such as :func:`pararealize.load_original` gives.
        batches: a list, a loader, or a function that gives a new iterator, as :func:`calibrate` takes them. Positions
            of sequences that an ``"attention_mask"`` excludes count nowhere.
        logits: whether the output is one of logits. Left out, it is where labels fit two-dimensional outputs.
        batch_sizes: of the calls that are timed; none for no times.
        rounds: calls of each, in turn, and more where they are short; the median counts. In one process on one CPU the
            segments share its cores: a ratio above 1 needs devices for them (see :meth:`PararealModule.distribute`,
            ``serve``).
        report: told now and then what is being done.

    Returns:
        A report that prints, and has ``to_json()``.

    Raises:
        ExampleError: batches have not the form of the network's inputs, or no samples; there are none; nothing in the
            outputs can be compared.
        CalibrationError: an argument is of another type, or a number is not positive.

    Example:
        >>> from pararealize import compare, pararealize
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> model, data = resnet20().eval(), digits(image_size=8)
        >>> net = pararealize(model, n=2, example_inputs=data.example())
        >>> result = compare(net, model, data.test_batches, batch_sizes=())
        >>> result.samples, 0 <= result.same_class <= 1
        (360, True)
    """
    if not isinstance(net, PararealModule) or not isinstance(original, nn.Module):
        raise ModelError(
            f"net is a {type(net).__name__} and original a {type(original).__name__}; pass what pararealize(model, n) "
            "gave, and the model"
        )
    if rounds < 1 or min(batch_sizes, default=1) < 1:
        raise CalibrationError(f"rounds = {rounds} and batch_sizes = {tuple(batch_sizes)}; pass positive numbers")
    say = report or (lambda _: None)
    call = CallSignature.of_graph(net.graph)
    device, dtype = next(original.parameters()).device, input_dtype(original)
    first = None
    with eval_mode(net), eval_mode(original), torch.no_grad(), ordinary_mode():
        sums = OutputSums(logits=logits, space=net.plan.segments[-1].y)
        for batch in one_pass(batches):
            inputs_of(batch, call)  # says what is wrong with them
            args, kwargs = as_input(call_arguments(batch, call), device, dtype)
            first = (args, kwargs) if first is None else first
            labels, mask = labels_of(batch), attention_mask(named_inputs(batch, call))
            with _refusing_the_batch(net.plan.model):
                wanted = _output(original, *forward_call(original, args, kwargs))
            if mask is not None and not sums.samples:
                sums.kind = replace(sums.kind, by_position=position_outputs(net, output=wanted))
            sums.add(wanted, _output(net, args, kwargs), labels=labels, mask=mask, samples=samples_of(batch))
            say(f"{sums.samples} samples compared")
        if first is None:
            raise ExampleError("the batches are empty; pass at least one")
        latencies = []
        for size in batch_sizes:
            say(f"measuring calls with batch {size}")
            latencies.append(_latency(net, original, first, size, rounds, device))
    return Comparison(
        model=net.plan.model,
        n=net.plan.n,
        samples=sums.samples,
        relative_error=sums.relative_error,
        cosine=sums.cosine,
        same_class=sums.same_class,
        original=sums.quality(0),
        parareal=sums.quality(1),
        latencies=tuple(latencies),
        predicted_speedup=net.plan.virtual_speedup,
        device=str(device),
        threads=torch.get_num_threads(),
    )


@contextlib.contextmanager
def _refusing_the_batch(model: str) -> Iterator[None]:
    """Say of what an original raises that it is the batch's fault, as it ran on the example of its conversion."""
    try:
        yield
    except (PararealizeError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise ExampleError(
            f"{model} does not take this batch: {type(error).__name__}: {error}; pass batches like the example inputs "
            "of the conversion"
        ) from error


def _output(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a model gives for copies of these arguments, into which it may write."""
    args, kwargs = copied((args, kwargs))
    return model(*args, **kwargs)


def _latency(
    net: PararealModule, original: nn.Module, call: tuple[Any, Any], size: int, rounds: int, device: torch.device
) -> Latency:
    args, kwargs = on_device(of_batch_size(call, size), device)
    args, kwargs = forward_call(original, args, kwargs)
    return measure_latency(original, net, batch=size, rounds=rounds, device=device, inputs=(args, kwargs))
