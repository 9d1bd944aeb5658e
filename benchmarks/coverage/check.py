"""One model -> one row of the coverage table: captured, converted, and compared with the original.

Every comparison has the original itself as its oracle. None ends the row: no fault hides another.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import io
import re
import resource
import subprocess
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

import pararealize.compiler
from pararealize import BlockChain, Capture, PararealizeError, PararealModule, capture, find_blocks
from pararealize import pararealize as convert
from pararealize.errors import CaptureError

from . import comparison
from .cases import Case, build
from .comparison import NotApplicableError, WrongError
from .tables import COLUMNS
from .tensors import call, floating, put_back, seeded, shapes, state

__all__ = ["check", "commit", "measure"]

SEGMENTS = 4
_read = functools.partial(capture, check=False)
_MOST_ERROR = 600  # letters


def measure(name: str) -> dict[str, Any]:
    """The row of a model by name: ``failed`` and ``error`` say what went wrong, and where."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        row = check(build(name))
    row["peak_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 1)
    row["commit"] = commit()
    return row


@functools.cache
def commit() -> str:
    """The commit of this tree, with a ``+`` where the library differs from it."""
    folder = Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=False).stdout

    return git("rev-parse", "--short", "HEAD").strip() + ("+" if git("status", "--short", "pararealize") else "")


def check(case: Case) -> dict[str, Any]:
    """The row of a case; what fails is ``refused`` (a typed error), ``wrong`` (its result) or a ``crash``.

    ``columns`` has one of these, ``right``, or ``–`` (nothing to compare), for every comparison; ``faults`` the errors.
    ``failed`` is the verdict on the whole: refused only where the model was not converted at all.
    """
    row: dict[str, Any] = {
        "class": type(case.model).__name__,
        "parameters": sum(parameter.numel() for parameter in case.model.parameters()),
        "input": shapes(case.inputs),
        "built_with": case.note,
        "meta": case.on_meta,
        "columns": {},
        "faults": {},
    }
    nets: dict[str, PararealModule] = {}
    for stage, run in {"capture": _capture, "convert": _convert}.items():
        began = time.perf_counter()
        verdict, error = _verdict(functools.partial(run, case, row, nets))
        if verdict != "right":
            where = "capture" if error.startswith(CaptureError.__name__) else stage
            row |= {"failed": verdict, "stage": where, "error": error}
        row[f"{stage}_seconds"] = round(time.perf_counter() - began, 2)
        gc.collect()
        if "failed" in row:
            return row
    began = time.perf_counter()
    states = {model: state(model) for model in (case.model, *nets.values())}
    for column in COLUMNS:
        for model, values in states.items():
            put_back(model, values)  # no column sees what another did to running statistics
        row["columns"][column], error = _verdict(functools.partial(_compare, column, case, row, nets))
        if error:
            row["faults"][column] = error
    row["compare_seconds"] = round(time.perf_counter() - began, 2)
    for verdict in ("wrong", "crash"):
        at = [column for column, found in row["columns"].items() if found == verdict]
        if at and "failed" not in row:
            row |= {"failed": verdict, "stage": at[0], "error": row["faults"][at[0]]}
    return row


def _verdict(run: Callable[[], None]) -> tuple[str, str]:
    """What came of a stage or a comparison, and the error."""
    try:
        run()
    except NotApplicableError:
        return "–", ""
    except PararealizeError as error:
        return "refused", without_folders(f"{type(error).__name__}: {error}")[:_MOST_ERROR]
    except WrongError as error:
        return "wrong", str(error)[:_MOST_ERROR]
    except Exception as error:  # noqa: BLE001 (it becomes the row)
        return "crash", without_folders(f"{type(error).__name__}: {error}")[:_MOST_ERROR] + f" ({_line(error)})"
    return "right", ""


def without_folders(text: str) -> str:
    """A text whose paths begin within the installed packages or the project: where these stand is the machine's."""
    return re.sub(rf"/[^\s`'\"(]*/site-packages/|{re.escape(str(Path(__file__).resolve().parents[2]))}/", "", text)


def _line(error: Exception) -> str:
    """Where it was raised: the last line of this package, and the last of all."""
    frames = traceback.extract_tb(error.__traceback__)
    library = [frame for frame in frames if "/pararealize/" in frame.filename]
    return ", ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in (*library[-1:], *frames[-1:]))


# The stages -----------------------------------------------------------------------------------------------------------


def _capture(case: Case, row: dict[str, Any], _: Any) -> None:
    """Read, without the library's own comparison, which is made when it is converted."""
    captured = _read(case.model, case.inputs)
    row["nodes"] = len(captured.graph.nodes)
    row["opaque"] = _opaque(captured)
    row["guards"] = [line for line in str(getattr(captured, "guards", "")).splitlines() if line][:8]
    chain = find_blocks(captured)
    row["blocks"] = len(chain.blocks)
    row["kinds"] = _kinds(chain)
    total = sum(part.parameters for part in (chain.stem, *chain.blocks, chain.head))
    row["covered"] = round(sum(block.parameters for block in chain.blocks) / total, 2)


def _opaque(captured: Capture) -> dict[str, str]:
    """Class -> why it is one node."""
    return {
        type(captured.model.get_submodule(path)).__name__: without_folders(why) for path, why in captured.opaque.items()
    }


def _kinds(chain: BlockChain) -> str:
    """How many blocks of which kind: the commonest first."""
    counts: dict[str, int] = {}
    for block in chain.blocks:
        counts[block.kind] = counts.get(block.kind, 0) + 1
    ordered = sorted(counts.items(), key=lambda item: -item[1])
    named = [f"{kind if len(kind) <= 40 else kind[:37] + '…'} × {count}" for kind, count in ordered[:3]]
    return ", ".join([*named, *(["…"] if len(ordered) > 3 else [])])


def _convert(case: Case, row: dict[str, Any], nets: dict[str, PararealModule]) -> None:
    """In n segments as a user would, in train mode; and n = 1, in eval mode, which is the one that is compared."""
    row["n"] = min(SEGMENTS, row["blocks"])
    case.model.train()
    net = convert(case.model, row["n"], example_inputs=case.inputs)
    row["coarse"] = ", ".join(dict.fromkeys(block.kind for block in net.plan.coarse_blocks))
    row["source"] = ", ".join(dict.fromkeys(adapter.source for adapter in net.plan.adapters))
    row["speedup"] = round(net.plan.virtual_speedup, 2)
    row["notes"] = list(net.plan.notes)
    nets["n"] = net
    if not case.on_meta:
        case.model.eval()
        with mock.patch.object(pararealize.compiler, "capture", _read):
            nets["1"] = convert(case.model, 1, example_inputs=case.inputs)


def _compare(column: str, case: Case, row: dict[str, Any], nets: dict[str, PararealModule]) -> None:
    if column == "trained":
        return _train(case, row, nets["n"])
    if case.on_meta:
        raise NotApplicableError
    if column in ("iterations", "causality"):
        return getattr(comparison, column)(case, nets["n"])
    if column == "bfloat16":
        return comparison.bfloat16(case, nets["1"], nets["n"])
    return row.update(getattr(comparison, column.replace(" ", "_"))(case, nets["1"]) or {})


def _train(case: Case, row: dict[str, Any], net: PararealModule) -> None:
    """One step: what learns in the original learns in the conversion, and so does all that is new."""
    reached = {name for name, parameter in _learning(case.model, case.inputs)}
    case.model.zero_grad(set_to_none=True)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    got = dict(_learning(net, case.inputs))
    new = {name for name, _ in net.named_parameters() if name.startswith(("adapters.", "coarse."))}
    row["new_parameters"] = len(new)
    if missing := sorted((reached | new) - set(got)):
        raise WrongError(
            f"{len(missing)} of {len(reached | new)} parameters receive no gradient: {', '.join(missing[:4])}"
        )
    if not case.on_meta and (bad := [name for name, p in got.items() if not p.grad.isfinite().all()]):
        if all(p.grad.isfinite().all() for _, p in _learning(case.model, case.inputs)):
            raise WrongError(f"{len(bad)} gradients are not finite: {', '.join(bad[:4])}")
        row["not_finite"] = "gradients of the original are not finite either"
    optimiser.step()
    for model in (case.model, net):
        model.zero_grad(set_to_none=True)


def _learning(model: nn.Module, inputs: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that a backward pass from all outputs reaches, in train mode."""
    model.train()
    seeded()
    outputs = [output for output in floating(call(model, inputs)) if output.requires_grad]
    if not outputs:
        raise NotApplicableError
    torch.stack([_loss(output) for output in outputs]).sum().backward()
    return ((name, p) for name, p in model.named_parameters() if p.grad is not None)


def _loss(output: torch.Tensor) -> torch.Tensor:
    weights = torch.randn(output.shape, generator=torch.Generator().manual_seed(2)).to(output.device)
    return (output.float() * weights).mean()
