"""A captured graph, run against its model: nothing where they agree, the error that a user gets where they do not."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

from pararealize.errors import CaptureError, ExampleError
from pararealize.restore import left_as_found

from .captured import Capture
from .example import Example
from .merging import DifferentStructureError
from .operations import fields_of

__all__ = ["check_against_model", "explain", "mode_error", "run_model"]


def run_model(model: nn.Module, example: Example, *, training: bool) -> tuple[Any, Exception | None]:
    """What the model gives in a mode, or what it raises; it is left as found."""
    inputs = example.resized(example.batch)  # copies: a forward may change its inputs
    return _run(model, lambda: model(*inputs.args, **inputs.kwargs), training=training)


def _run(model: nn.Module, call: Callable[[], Any], *, training: bool) -> tuple[Any, Exception | None]:
    with left_as_found(model), torch.no_grad():
        for module in model.modules():
            module.training = training
        torch.manual_seed(0)  # on all devices: model and graph are to draw the same numbers wherever they draw them
        try:
            return call(), None
        except Exception as error:  # noqa: BLE001 - whatever the model raises is what is asked for
            return None, error


def check_against_model(captured: Capture) -> None:
    """Run graph and model in both modes, at two batch sizes, and refuse the graph where they differ."""
    name = type(captured.model).__name__
    sizes = (captured.batch, captured.batch) if captured.fixed_batch else (2, 1)
    for training, size in zip((True, False), sizes, strict=True):
        example = captured.example.resized(size)
        expected, error = run_model(captured.model, example, training=training)
        if error is not None:
            continue  # the model itself refuses this mode or batch size
        values = list(example.values.values())
        result, error = _run(captured.model, lambda v=values: captured.graph_module(*v), training=training)  # type: ignore[misc]
        where = f"in {'train' if training else 'eval'} mode with a batch of {size}"
        if error is not None:
            fault = f"fails {where}, where the model does not: {error}"
        elif difference := _largest_difference(expected, result):
            fault = f"differs from the model {where} by {difference}"
        else:
            continue
        raise CaptureError(
            f"the captured graph of {name} {fault}; pass leaf_modules=[...] with the class whose forward it misreads"
        ) from error


def _largest_difference(expected: Any, result: Any) -> str | None:
    ours, theirs = list(_flat(expected)), list(_flat(result))
    if len(ours) != len(theirs):
        return f"{len(ours)} against {len(theirs)} tensors"
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{tuple(a.shape)} {a.dtype} against {tuple(b.shape)} {b.dtype}"
        if not torch.allclose(a, b, rtol=1e-4, atol=1e-6, equal_nan=True):
            return f"up to {(a.double() - b.double()).abs().max().item():.3g}"
    return None


def _flat(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value.detach()
    if (fields := fields_of(value)) is not None:
        value = fields
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    for item in items:
        yield from _flat(item)


def mode_error(model: nn.Module, difference: DifferentStructureError) -> CaptureError:
    """The error for a structure that one graph cannot hold."""
    where = ", ".join(path or type(model).__name__ for path in difference.paths)
    return CaptureError(
        f"the structure of {where} depends on train()/eval(), as auxiliary heads make it; one graph cannot be right in "
        "both modes: build the model without them (aux_logits=False), or pass leaf_modules=[...] with a smaller module"
    )


def explain(model: nn.Module, example: Example, error: Exception) -> Exception:
    """The error that a user gets for what the forward raised while it was recorded."""
    failure = run_model(model, example, training=False)[1] or run_model(model, example, training=True)[1]
    if failure is not None:
        return ExampleError(
            f"{type(model).__name__} does not accept the example inputs ({example}): "
            f"{type(failure).__name__}: {failure}; pass example_inputs that the model runs on"
        )
    path, module = getattr(error, "pararealize_stack", (("", model),))[-1]
    why = f"{str(error).splitlines()[0] if str(error) else type(error).__name__};"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        why = "control flow or a shape depends on the values of a tensor; write it with torch.where or masks, or"
    return CaptureError(
        f"cannot capture {path or 'the forward'} ({type(module).__name__}) {_line(error)}: {why} "
        "pass leaf_modules=[...] with a submodule that contains it"
    )


def _line(error: Exception) -> str:
    """The last line of the model's own code that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if "/torch/" not in frame.filename and "/pararealize/" not in frame.filename]
    return f"at {users[-1].filename}:{users[-1].lineno} `{users[-1].line}`" if users else ""
