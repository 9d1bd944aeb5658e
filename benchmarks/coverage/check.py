"""One model -> one row of the coverage table: captured, converted, trained by one step, and switched between modes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import io
import itertools
import resource
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import nn

import pararealize.compiler
from pararealize import BlockChain, Capture, PararealizeError, PararealModule, capture, find_blocks
from pararealize import pararealize as convert
from pararealize.errors import CaptureError

from .cases import Case, build

__all__ = ["check", "measure"]

SEGMENTS = 4
_read = functools.partial(capture, check=False)
_CLOSE = 1e-4  # of the largest output: two runs of the same sums may round differently


class WrongError(Exception):
    """What was converted is not what was asked for."""


def measure(name: str) -> dict[str, Any]:
    """The row of a model by name: ``failed`` and ``error`` say what went wrong, and where."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        row = check(build(name))
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    return row


def check(case: Case) -> dict[str, Any]:
    """The row of a case; what fails is ``refused`` (a typed error), ``wrong`` (its result) or a ``crash``."""
    row: dict[str, Any] = {
        "class": type(case.model).__name__,
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "input": _shapes(case.inputs),
        "built_with": case.note,
        "meta": case.on_meta,
    }
    for stage, run in {"capture": _capture, "convert": _convert, "train": _train, "switch": _switch}.items():
        began = time.perf_counter()
        try:
            run(case, row)
        except PararealizeError as error:
            where = "capture" if isinstance(error, CaptureError) else stage
            row |= {"failed": "refused", "stage": where, "error": f"{type(error).__name__}: {error}"}
        except WrongError as error:
            row |= {"failed": "wrong", "stage": stage, "error": str(error)}
        except Exception as error:  # noqa: BLE001 (it becomes the row)
            row |= {"failed": "crash", "stage": stage, "error": f"{type(error).__name__}: {error}"}
            row["trace"] = traceback.format_exc()[-3000:]
        row[f"{stage}_seconds"] = round(time.perf_counter() - began, 2)
        gc.collect()
        if "failed" in row:
            break
    row.pop("_net", None)
    return row


def _shapes(inputs: Any) -> str:
    tensors = inputs.values() if isinstance(inputs, Mapping) else [inputs]
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in tensors)


# The stages -----------------------------------------------------------------------------------------------------------


def _capture(case: Case, row: dict[str, Any]) -> None:
    captured = _read(case.model, case.inputs)  # compared with the model when it is converted
    row["nodes"] = len(captured.graph.nodes)
    row["opaque"] = _opaque(captured)
    row["fixed_batch"] = captured.fixed_batch
    chain = find_blocks(captured)
    row["blocks"] = len(chain.blocks)
    row["kinds"] = _kinds(chain)
    total = sum(part.parameters for part in (chain.stem, *chain.blocks, chain.head))
    row["covered"] = round(sum(block.parameters for block in chain.blocks) / total, 2)


def _opaque(captured: Capture) -> dict[str, str]:
    """Class -> why it is one node."""
    return {type(captured.model.get_submodule(path)).__name__: why for path, why in captured.opaque.items()}


def _kinds(chain: BlockChain) -> str:
    """How many blocks of which kind: the commonest first."""
    counts: dict[str, int] = {}
    for block in chain.blocks:
        counts[block.kind] = counts.get(block.kind, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{kind if len(kind) <= 40 else kind[:37] + '…'} × {count}" for kind, count in ordered[:3]]
    return ", ".join([*named, *(["…"] if len(ordered) > 3 else [])])


def _convert(case: Case, row: dict[str, Any]) -> None:
    row["n"] = min(SEGMENTS, row["blocks"])
    case.model.eval()
    net = convert(case.model, row["n"], example_inputs=case.inputs)
    row["coarse"] = ", ".join(dict.fromkeys(block.kind for block in net.plan.coarse_blocks))
    row["source"] = ", ".join(dict.fromkeys(adapter.source for adapter in net.plan.adapters))
    row["speedup"] = round(net.plan.virtual_speedup, 2)
    row["notes"] = list(net.plan.notes)
    row["_net"] = net


def _train(case: Case, row: dict[str, Any]) -> None:
    """One step: what learns in the original learns in the conversion, and so does all that is new."""
    net: PararealModule = row.pop("_net")
    case.model.train()
    reached = {name for name, parameter in _learning(case.model, case.inputs)}
    case.model.zero_grad(set_to_none=True)
    net.train()
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    got = dict(_learning(net, case.inputs))
    new = {name for name, _ in net.named_parameters() if name.startswith(("adapters.", "coarse."))}
    row["trained"], row["new_parameters"] = len(got), len(new)
    if missing := sorted((reached | new) - set(got)):
        raise WrongError(
            f"{len(missing)} of {len(reached | new)} parameters receive no gradient: {', '.join(missing[:4])}"
        )
    if not case.on_meta and (bad := [name for name, p in got.items() if not p.grad.isfinite().all()]):
        if all(p.grad.isfinite().all() for _, p in _learning(case.model, case.inputs)):
            raise WrongError(f"{len(bad)} gradients are not finite: {', '.join(bad[:4])}")
        row["not_finite"] = "gradients of the original are not finite either"
    optimiser.step()
    case.model.zero_grad(set_to_none=True)


def _learning(model: nn.Module, inputs: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a backward pass from all outputs reaches."""
    torch.manual_seed(1)
    outputs = [output for output in _tensors(_call(model, inputs)) if output.requires_grad]
    torch.stack([_loss(output) for output in outputs]).sum().backward()
    return ((name, p) for name, p in model.named_parameters() if p.grad is not None)


def _loss(output: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.device)
    return (output.float() * weights).mean()


def _switch(case: Case, row: dict[str, Any]) -> None:
    """n = 1 converted in one mode and used in the other is the original in that mode, batch statistics included."""
    if case.on_meta:
        return
    exact = True
    for first, second in itertools.permutations([True, False]):
        case.model.train(first)
        with mock.patch.object(pararealize.compiler, "capture", _read):  # this is the comparison
            net = convert(case.model, 1, example_inputs=case.inputs)
        for training in (second, first):
            difference = _difference(case, net, training=training)
            if difference > _CLOSE:
                raise WrongError(
                    f"n = 1 converted in {_mode(first)} mode differs in {_mode(training)} mode by {difference:.2g} of "
                    "the largest output"
                )
            exact = exact and difference == 0.0
    row["exact"] = exact


def _mode(training: bool) -> str:
    return "train" if training else "eval"


def _difference(case: Case, net: nn.Module, *, training: bool) -> float:
    """The largest difference between original and conversion, as a share of the largest output."""
    results = []
    for model in (case.model, net):
        model.train(training)
        torch.manual_seed(3)
        with torch.no_grad():
            results.append(list(_tensors(_call(model, case.inputs))))
    if [r.shape for r in results[0]] != [r.shape for r in results[1]]:
        return float("inf")
    return max(_relative(a, b) for a, b in zip(*results, strict=True))


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    if torch.equal(a.nan_to_num(), b.nan_to_num()):
        return 0.0
    return float((a.double() - b.double()).abs().max() / a.double().abs().max())


def _call(model: nn.Module, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, Mapping) else model(inputs)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every floating-point tensor within a result."""
    if isinstance(value, torch.Tensor):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors, value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from itertools.chain.from_iterable(_tensors(getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(_tensors, value))
