"""A program -> its outcome, by the original model alone: right, refused, wrong, or another error.

The network that ``make`` gives is converted; then a second one that ``make`` gives, and the conversion, go through the
same steps, with the same random numbers. Each step compares outputs, gradients of inputs and parameters, buffers, what
hooks saw, and what modules keep as plain attributes. Where the original raises, the comparison ends.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import random
import re
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

from pararealize import PararealizeError, pararealize
from pararealize.errors import PlanError, RecordingWarning

__all__ = ["Outcome", "judge"]

_CLOSE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.03}  # of the largest value
_ITERATED = 1e-4


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of an example.

    Attributes:
        kind: "right", "refused" (a typed error), "wrong", "crash" (any other error) or "no example" (the original
            itself does not run).
        stage: where: "convert", "steps", "convert n", "iterate", ...
        text: the error, or what differs.
    """

    kind: str
    stage: str = ""
    text: str = ""


class WrongError(Exception):
    """What was converted is not what was asked for."""


class OriginalError(Exception):
    """The original model itself raises."""


def judge(program: Any) -> Outcome:
    """Try a program; the names that it must define are those of ``programs.py``."""
    stage, stderr = "original", io.StringIO()
    try:
        with warnings.catch_warnings(), _quiet_state(), contextlib.redirect_stderr(stderr):
            warnings.simplefilter("ignore")
            for stage, run in _STAGES.items():  # noqa: B007 (it is told below)
                if run is not _several or program.N > 1:
                    run(program)
    except PararealizeError as error:
        return Outcome(kind="refused", stage=stage, text=f"{type(error).__name__}: {error}")
    except WrongError as error:
        return Outcome(kind="wrong", stage=stage, text=str(error))
    except OriginalError as error:
        return Outcome(kind="no example", stage=stage, text=str(error))
    except Exception as error:  # noqa: BLE001 (it becomes the outcome)
        where = [frame for frame in traceback.extract_tb(error.__traceback__) if "/pararealize/" in frame.filename]
        place = f" at {where[-1].filename.rsplit('/pararealize/')[-1]}:{where[-1].lineno}" if where else ""
        return Outcome(kind="crash", stage=stage, text=f"{type(error).__name__}: {error}{place}")
    if "FX-traced" in stderr.getvalue():
        return Outcome(kind="crash", stage=stage, text=f"on stderr: {stderr.getvalue()[-300:]}")
    return Outcome(kind="right")


@contextlib.contextmanager
def _quiet_state() -> Iterator[None]:
    """Whatever a program leaves switched is switched back."""
    grad = torch.is_grad_enabled()
    try:
        yield
    finally:
        torch.set_grad_enabled(grad)


# The stages -----------------------------------------------------------------------------------------------------------


def _convert(program: Any, n: int, coarse: str = "linear") -> Any:
    model = program.make().train(program.CONVERTED_IN == "train")
    before = _picture(model)
    random_state = torch.get_rng_state()
    args, kwargs = program.inputs(*program.EXAMPLE)
    example: Any = kwargs or args
    if kwargs and args:
        example = {"x": args[0], **kwargs}
    try:
        return _with_at_most(n, lambda n: pararealize(model, n, example_inputs=example, coarse=coarse))
    finally:
        program.SEEN.clear()
        if "STATE" in vars(program):
            program.STATE["calls"] = 0
        if difference := _compare(before, _picture(model)):
            raise WrongError(f"the user's model was changed: {difference}")
        if not torch.equal(random_state, torch.get_rng_state()):
            raise WrongError("the random state was moved")


def _with_at_most(n: int, convert: Callable[[int], Any]) -> Any:
    """A conversion into n segments, or as many as there are blocks."""
    try:
        return convert(n)
    except PlanError as error:
        blocks = re.search(r"out of range: \w+ has (\d+) blocks", str(error))
        if not blocks or int(blocks[1]) in (0, n):
            raise
        return convert(int(blocks[1]))


def _picture(model: nn.Module) -> dict[str, Any]:
    tensors = {name: value.detach().clone() for name, value in model.state_dict(keep_vars=True).items()}
    flags = {name: module.training for name, module in model.named_modules()}
    return tensors | {f"{name} flag": flag for name, flag in flags.items()} | _plain(model)


def _plain(model: nn.Module) -> dict[str, Any]:
    """What modules keep as plain attributes: numbers, tensors, and lists and dictionaries of such."""
    values: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if name.startswith("_") or name in ("training", "parents"):
                continue
            if isinstance(value, int | float | list | dict | torch.Tensor):
                values[f"{path}.{name}"] = tree_map_only(torch.Tensor, lambda t: t.detach().clone(), value)
    return values


def _original(program: Any) -> None:
    try:
        model = program.make()
        for training in (True, False):
            args, kwargs = program.inputs(*program.EXAMPLE)
            model.train(training)(*args, **kwargs)
    except Exception as error:
        raise OriginalError(f"{type(error).__name__}: {error}") from error
    program.SEEN.clear()


def _steps(program: Any) -> None:
    """One segment is the original: all of it, call after call."""
    net = _convert(program, 1)
    ours = program.make()
    for network in (ours, net):
        network.to(program.DTYPE)
    for number, step in enumerate(program.STEPS):
        flags = _flags(ours, step["training"], number)
        results = []
        for network in (ours, net):
            program.SEEN.clear()
            if network is ours:
                state = dict(program.STATE) if "STATE" in vars(program) else {}
            elif state:
                program.STATE.update(state)
            try:
                with warnings.catch_warnings(record=True) as notes:
                    warnings.simplefilter("always", RecordingWarning)
                    results.append(_step(program, network, step, flags))
            except Exception:
                if network is ours:
                    return  # the original does not take this
                raise
        if any(issubclass(note.category, RecordingWarning) for note in notes):  # of whose call forward hooks see more
            results[0]["hooks"] = results[1]["hooks"]
        if difference := _compare(*results, close=_CLOSE[program.DTYPE] if step["mode"] != "autocast" else 0.03):
            raise WrongError(f"step {number} ({step}) in {program.DTYPE}: {difference}")


def _flags(model: nn.Module, training: Any, number: int) -> dict[str, bool]:
    draw = random.Random(number)
    names = [name for name, _ in model.named_modules()]
    return {name: draw.random() < 0.5 if training == "mixed" else training for name in names}


def _step(program: Any, network: nn.Module, step: dict[str, Any], flags: dict[str, bool]) -> dict[str, Any]:
    network.train(flags[""])
    for name, module in network.named_modules():  # not get_submodule: ``net.head`` is the piece, not the model's module
        module.training = flags.get(name, flags[""])
    network.zero_grad(set_to_none=True)
    args, kwargs = program.inputs(step["batch"], step["size"], seed=step["batch"])
    leaves = []

    def leaf(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point():
            return tensor
        tensor = tensor.to(program.DTYPE)
        if step["mode"] in ("gradients", "autocast"):
            leaves.append(tensor.requires_grad_())
        return tensor

    args, kwargs = tree_map_only(torch.Tensor, leaf, (args, kwargs))
    modes = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }
    torch.manual_seed(5)
    random.seed(5)
    with modes.get(step["mode"], contextlib.nullcontext)():
        output = network(*args, **kwargs)
    result: dict[str, Any] = {"type": str(tree_flatten(output)[1])}
    tensors = [value for value in tree_flatten(output)[0] if isinstance(value, torch.Tensor)]
    result |= {f"output {i}": value for i, value in enumerate(tree_flatten(output)[0])}
    result |= {f"output {i} requires_grad": tensor.requires_grad for i, tensor in enumerate(tensors)}
    sources = [tensor for tensor in tensors if tensor.requires_grad]
    if sources:
        generator = torch.Generator().manual_seed(1)
        cotangents = [torch.randn(s.shape, generator=generator).to(s.dtype) for s in sources]
        torch.autograd.backward(sources, cotangents)
        result |= {f"gradient of input {i}": tensor.grad for i, tensor in enumerate(leaves)}
        result |= {
            f"gradient of {name}": parameter.grad
            for name, parameter in network.named_parameters()
            if not name.startswith(("adapters.", "coarse."))
        }
    result |= {f"buffer {name}": buffer for name, buffer in network.named_buffers()}
    result |= {f"parameter {name}": parameter for name, parameter in network.named_parameters()}
    result |= {"hooks": list(program.SEEN)}
    result |= {f"attribute {name}": value for name, value in _plain(network).items()}
    result["random state"] = torch.get_rng_state()
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), result)


def _compare(ours: dict[str, Any], theirs: dict[str, Any], close: float = 0.0) -> str:
    """What differs first: of the original's values, those that are other in the conversion."""
    for name, value in ours.items():
        if name not in theirs:
            return f"{name} is missing"
        if fault := _different(value, theirs[name], close):
            return f"{name}: {fault}"
    return ""


def _different(a: Any, b: Any, close: float) -> str:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return f"{tuple(a.shape)} {a.dtype} became {tuple(b.shape)} {b.dtype}"
        if torch.equal(a, b) or not a.numel():
            return ""
        a, b = a.double(), b.double()
        off = float((a.nan_to_num() - b.nan_to_num()).abs().max() / (a.nan_to_num().abs().max() + 1e-6))
        return f"off by {off:.2g} of the largest value" if off > close or not torch.equal(a.isnan(), b.isnan()) else ""
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return f"{_short(a)} became {_short(b)}"
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{len(a)} entries became {len(b)}"
        return next((fault for x, y in zip(a, b, strict=True) if (fault := _different(x, y, close))), "")
    if isinstance(a, dict) and isinstance(b, dict):
        return "other keys" if list(a) != list(b) else _compare(a, b, close)
    if isinstance(a, float) and isinstance(b, float):
        return "" if abs(a - b) <= max(close, 1e-12) * (abs(a) + 1e-6) else f"{a} became {b}"
    return "" if a == b else f"{_short(a)} became {_short(b)}"


def _short(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)[:60]


# Several segments -----------------------------------------------------------------------------------------------------


def _several(program: Any) -> None:
    """Several segments: n - 1 iterations are the original; a copy, a step of training and a cast run."""
    fresh = _convert(program, program.N, program.COARSE)  # once; what runs below is a deep copy of it
    call = program.inputs(*program.EXAMPLE)
    try:
        _train(program, program.make())
    except Exception:  # noqa: BLE001 (whatever it is, the original does not learn)
        pass
    else:
        _train(program, copy.deepcopy(fresh))
    net = copy.deepcopy(fresh)
    twin = copy.deepcopy(net)
    first, second = (_evaluate(program, network, call) for network in (net, twin))
    if fault := _different(first, second, 1e-5):
        raise WrongError(f"a deep copy: {fault}")
    expected = [_evaluate(program, program.make(), call, seed) for seed in (1, 2)]
    if _different(*expected, 1e-6):
        return  # it draws random numbers in eval mode
    net = copy.deepcopy(fresh)
    args, kwargs = call
    inputs: Any = args if not kwargs else {"x": args[0], **kwargs}
    result = _evaluate(program, net, ((inputs, net.plan.n - 1), {}), run=net.iterate)
    if fault := _different(expected[0], result, _ITERATED):
        raise WrongError(f"iterate(x, {net.plan.n - 1}): {fault}")
    if program.CAUSAL:
        _look_ahead(program, fresh)


def _train(program: Any, net: nn.Module) -> None:
    args, kwargs = program.inputs(*program.EXAMPLE)
    net.to(program.DTYPE).train()
    args, kwargs = tree_map_only(
        torch.Tensor, lambda t: t.to(program.DTYPE) if t.is_floating_point() else t, (args, kwargs)
    )
    sources = [t for t in tree_flatten(net(*args, **kwargs))[0] if isinstance(t, torch.Tensor) and t.requires_grad]
    if sources:
        torch.autograd.backward(sources, [torch.ones_like(source) for source in sources])


def _evaluate(program: Any, network: Any, call: Any, seed: int = 0, run: Any = None) -> list[Any]:
    args, kwargs = call
    network.eval()
    if "STATE" in vars(program):
        program.STATE["calls"] = 0
    torch.manual_seed(seed)
    random.seed(seed)
    args, kwargs = tree_map_only(torch.Tensor, torch.clone, (args, kwargs))
    with torch.no_grad():
        output = (run or network)(*args, **kwargs)
    return [value.clone() if isinstance(value, torch.Tensor) else value for value in tree_flatten(output)[0]]


def _look_ahead(program: Any, fresh: nn.Module) -> None:
    """What a causal network gives before a position does not change with what stands from there on."""
    batch, size = program.EXAMPLE
    results = {}
    for name, make in {"original": program.make, "net": lambda: copy.deepcopy(fresh)}.items():
        for changed in (False, True):
            call = program.inputs(batch, size)
            for tensor in tree_flatten(call)[0]:
                if changed and isinstance(tensor, torch.Tensor) and tensor.ndim == 3 and tensor.shape[1] == size:
                    tensor[:, size - 1 :] += 3.0
            output = _evaluate(program, make(), call)
            results[name, changed] = [
                o[:, : size - 1] for o in output if isinstance(o, torch.Tensor) and o.shape[:2] == (batch, size)
            ]
    if not _different(results["original", False], results["original", True], 1e-6) and (
        fault := _different(results["net", False], results["net", True], 1e-6)
    ):
        raise WrongError(f"it sees the future: {fault}")


_STAGES = {"original": _original, "one segment": _steps, "several segments": _several}
