"""A captured graph, run against its model: nothing where they agree, the error that a user gets where they do not."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import traceback
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_map

from pararealize.errors import CaptureError, ExampleError
from pararealize.random_source import RandomSource
from pararealize.random_state import preserve_own_host_state, set_torch_state, torch_state
from pararealize.restore import as_written

from .behaviour import Behaviour, Difference, Setting, Shape, first_difference, observe
from .captured import Capture
from .example import Example
from .hooks import move_hooks
from .leaves import is_layer
from .model_twin import real_twin
from .module_view import Piece
from .random_calls import draws
from .type_nodes import of_type

__all__ = ["MisreadError", "check_against_model", "explain", "mode_error", "run_model", "settings"]

_HEAVY = 4e8  # operations of a call, from which on fewer settings do
_LARGE = 32  # sizes from here on are halved for a heavy network
_CASTS = ("to", "type", "type_as", "float", "half", "bfloat16", "double", "view_as_complex", "complex", "dtype_of")
_MUCH_MEMORY = 2**31  # bytes of parameters
_LINE = 80  # characters of a line of code in an error
# norms of differences, relative; the second is one digit of bfloat16
_CLOSE, _CLOSE_IN_HALF, _CLOSE_IN_DOUBLE = 1e-4, 2.0**-7, 1e-6


def run_model(model: nn.Module, example: Example, *, training: bool) -> Exception | None:
    """What the model raises in a mode, if anything; it is left alone, since a twin of it runs."""
    with as_written(), preserve_own_host_state(), RandomSource(seed=0):
        for gradients in (False, True):  # some need them: they compute gradients within their forward
            twin, _ = real_twin(model)
            setting = Setting(training=training, gradients=gradients)
            error = observe(twin, twin, example, setting, by_name=False).error
            if error is None:
                break
    return error


def check_against_model(captured: Capture) -> None:
    """Run graph and model in settings that differ in all that a graph could miss, and refuse it where they differ.

    Both run on twins of the model, and go through all settings one after the other, so that what a call changes is
    seen in the next one.

    Raises:
        CaptureError: what the graph gives is not what the model gives.
        ExampleError: the model never runs on the example.
    """
    if "meta" in {tensor.device.type for tensor in (*captured.model.parameters(), *captured.model.buffers())}:
        return
    trial, ran = _Trial(captured), False
    for alternatives in settings(captured):
        for setting in alternatives:
            if difference := trial.run(setting):
                raise _error(captured, setting, difference, trial)
            if not trial.refused:
                ran = ran or setting.dtype is None  # what runs in another type may not run as the example is
                break
    if not ran and all(run_model(captured.model, captured.example, training=mode) for mode in (False, True)):
        # fake tensors mind no element types, so that it was recorded; nothing shows that the graph is right
        raise explain(captured.model, captured.example, RuntimeError("it never ran"))
    if not trial.dtype and (difference := trial.compare_tensors()):
        raise _error(captured, None, difference, trial)


# Settings -------------------------------------------------------------------------------------------------------------


def settings(captured: Capture) -> list[list[Setting]]:
    """Few settings in which every pair of what may matter comes up: mode, gradients, autocast, shapes, element type.

    Each has alternatives, for models that refuse the first: batch norm does not train on one value a channel. A large
    network takes fewer settings, smaller inputs, and computes gradients once; other element types, which autocast
    makes, too, where its graph has calls that could mind them.
    """
    heavy = _work(captured) > _HEAVY
    types = not heavy or any(map(_minds_types, captured.graph.nodes))
    pair, single = _batch(captured, 2), _batch(captured, 1)
    if not single and captured.example.batch != 1:  # guards want more than one row
        single = _batch(captured, 3)
    small = [pair]
    if heavy:
        halves = _halves(captured, pair)
        small = [single, pair] if halves == pair else [halves, single, pair]

    def each(shapes: list[dict[str, Shape]], **changes: Any) -> list[Setting]:
        return [Setting(shapes=shape, **changes) for shape in shapes]

    plan = [
        each(small, training=True, gradients=True),
        each([single], training=False, gradients=not heavy),
    ]
    if types or _reads_flags(captured):
        plan.append(each(small, training="level", gradients=not heavy, autocast=types))
    if not heavy:
        plan.append(each([pair], training=False, gradients=False))  # a forward may ask for the grad mode
        plan += [each([pair], training="name", gradients=True), each([pair], training="level", gradients=True)]
        shapes = [shape for shape in captured.guards.other_shapes() if shape not in (pair, single)]
        plan += [each([shape], training=i % 2 == 0, gradients=i % 2 == 1) for i, shape in enumerate(shapes[:3])]
    others = _types(captured)
    plan += [each(small, training=False, gradients=not heavy, dtype=dtype) for dtype in others if types]
    if others and not heavy and torch.float64 not in others:  # where a norm hides what a branch did to its input
        plan.append(each([pair], training=False, gradients=False, dtype=torch.float64))
    return plan


def _minds_types(node: fx.Node) -> bool:
    """Whether a call could do with one element type what it would not do with another: casts, new tensors, regions."""
    constants: list[Any] = []
    tree_map(constants.append, (node.args, node.kwargs))
    name = str(getattr(node.target, "__name__", node.target))
    is_new = node.op == "call_function" and not node.all_input_nodes
    typed = any(
        isinstance(c, torch.dtype) or (isinstance(c, float) and c and not 1e-4 < abs(c) < 1e4) for c in constants
    )
    return bool(node.meta.get("region")) or is_new or typed or name in _CASTS


def _reads_flags(captured: Capture) -> bool:
    """Whether the mode of some module matters but to itself, as a layer of torch's does: it may be another's."""
    nodes = captured.graph.find_nodes(op="get_attr")
    return bool(captured.opaque) or any(str(node.target).rpartition(".")[2] == "training" for node in nodes)


def _work(captured: Capture) -> float:
    """What a call takes, in operations: multiplications of layers with weights, and for each call and each parameter
    what they take besides.
    """
    work = 1e6 * len(captured.graph.nodes) + 20 * sum(p.numel() for p in captured.model.parameters())
    for node in captured.graph.find_nodes(op="call_module"):
        weight, output = captured.model.get_submodule(str(node.target))._parameters.get("weight"), node.meta.get("val")
        if weight is not None and weight.ndim > 1 and isinstance(output, torch.Tensor):
            sizes = [size if isinstance(size, int) else size.node.hint for size in output.shape]
            work += math.prod(sizes) * weight.numel() / weight.shape[0]
    return work


def _batch(captured: Capture, size: int) -> dict[str, Shape]:
    """Shapes of inputs with a batch of that size; none where the batch size is fixed, or guards do not allow it."""
    if captured.fixed_batch:
        return {}
    example = captured.example
    shapes = {name: tuple(tensor.shape) for name, tensor in example.tensors.items()}
    resized = {name: (size, *shape[1:]) for name, shape in shapes.items() if shape[:1] == (example.batch,)}
    changed = {name: shape for name, shape in resized.items() if shape != shapes[name]}
    return changed if _is_allowed(captured, changed) else {}


def _halves(captured: Capture, shapes: dict[str, Shape]) -> dict[str, Shape]:
    """Shapes with half the sizes along all free axes but the batch, where there are such and guards allow them."""
    halves: dict[str, Shape] = {}
    for each in captured.guards.inputs:
        shape = shapes.get(each.name, each.shape)
        free = [axis and axis in each.free and size >= _LARGE for axis, size in enumerate(shape)]
        if any(free):
            halves[each.name] = tuple(size // 2 if half else size for size, half in zip(shape, free, strict=True))
    every = shapes | halves
    return every if _is_allowed(captured, every) else shapes


def _is_allowed(captured: Capture, shapes: dict[str, Shape]) -> bool:
    """Whether inputs of these shapes, and otherwise like the example's, are within the guards."""
    tensors = captured.example.tensors.items()
    metas = {n: torch.empty(shapes.get(n, t.shape), dtype=t.dtype, device="meta") for n, t in tensors}
    return not captured.guards.broken({**captured.example.values, **metas})


def _types(captured: Capture) -> list[torch.dtype]:
    """Another element type than that of the model's parameters; none where the graph holds for one alone."""
    if any(node.target is of_type for node in captured.graph.nodes):
        return []
    if any(".dtype ==" in guard.condition for guard in captured.guards):
        return []
    dtypes = {parameter.dtype for parameter in captured.model.parameters() if parameter.is_floating_point()}
    return [next(dtype for dtype in (torch.bfloat16, torch.float32) if dtype not in dtypes)] if len(dtypes) == 1 else []


# The trial ------------------------------------------------------------------------------------------------------------


class _Trial:
    """The model and its graph, each on a twin of the model, on their way through the settings.

    Random numbers are torch's, untouched, as long as nothing seems to draw any; from then on, all is done again with
    numbers that are drawn for this trial alone.

    Attributes:
        calls: how many calls of both there were.
        refused: whether the model itself raised in the last setting; then both begin anew.
        dtype: the element type that both were cast to, or ``None``.
    """

    def __init__(self, captured: Capture) -> None:
        self.captured, self.calls, self.refused = captured, 0, False
        model = captured.model
        # the recorder has seen all that changes a parameter, but for what an opaque module does
        self._share = sum(p.nbytes for p in model.parameters()) > _MUCH_MEMORY and not captured.opaque
        self._draws = any(draws(node, model.get_submodule) for node in captured.graph.nodes)
        self._devices = list({tensor.device for tensor in (*model.parameters(), *model.buffers())})
        self._start()

    def _start(self) -> None:
        (self._model, _), (self._tree, memo) = (
            real_twin(self.captured.model, share_parameters=self._share) for _ in range(2)
        )
        constants = {path: memo.get(id(tensor), tensor) for path, tensor in self.captured.constants.items()}
        self._graph = Piece(self._tree, self.captured.graph, "Trial", constants)
        move_hooks(self._tree, self._graph)
        self.captured.graph.owning_module = self.captured.graph_module
        self.dtype: torch.dtype | None = None

    def run(self, setting: Setting) -> Difference | None:
        """Where the graph differs from the model, if it does."""
        if setting.dtype != self.dtype:
            if difference := self.compare_tensors():  # while they are comparable to the digit
                return difference
            self.dtype = setting.dtype
            for twin in (self._model, self._tree):
                twin.to(setting.dtype)
        before = torch_state(self._devices)
        ours = self._observe(self._model, setting)
        theirs = Behaviour() if ours.error else self._observe(self._tree, setting, self._graph)
        if not self._draws and not _same_state(before, torch_state(self._devices)):
            set_torch_state(before)
            self._draws = True
            self._start()
            return self.run(setting)
        self.refused = ours.error is not None
        if self.refused:
            self._start()  # the model has changed what it may have changed until it raised
            return None
        self.calls += 1
        if theirs.error is not None:
            return Difference(name="the graph", fault=f"raises {type(theirs.error).__name__}: {theirs.error}")
        return self._compare(ours, theirs, setting)

    def _observe(self, tree: nn.Module, setting: Setting, graph: nn.Module | None = None) -> Behaviour:
        with contextlib.ExitStack() as stack:
            stack.enter_context(as_written())
            stack.enter_context(preserve_own_host_state())
            source = stack.enter_context(RandomSource(seed=self.calls)) if self._draws else None
            run = tree if graph is None else graph
            behaviour = observe(run, tree, self.captured.example, setting, by_name=graph is not None)
        return dataclasses.replace(behaviour, draws=source.draws if source else 0)

    def _compare(self, ours: Behaviour, theirs: Behaviour, setting: Setting) -> Difference | None:
        close = _CLOSE_IN_HALF if setting.autocast or setting.dtype == torch.bfloat16 else _CLOSE
        close = _CLOSE_IN_DOUBLE if setting.dtype == torch.float64 else close
        if ours.draws != theirs.draws:
            fault = f"draws {theirs.draws} times random numbers, and the model {ours.draws} times"
            return Difference(name="the graph", fault=fault)
        a, b = list(ours.outputs.items()), list(theirs.outputs.values())
        if len(a) != len(b):
            return Difference(name="the output", fault=f"has {len(a)} tensors and numbers, and in the graph {len(b)}")
        pairs = [(name, x, y) for (name, x), y in zip(a, b, strict=True)]
        if difference := first_difference(pairs, close=close):
            return difference
        gradients = [(name, gradient, theirs.gradients.get(name)) for name, gradient in ours.gradients.items()]
        return first_difference(gradients, close=10 * close)

    def compare_tensors(self) -> Difference | None:
        """Where the twins' parameters and buffers differ, after all calls so far."""
        before = dict(self.captured.model.named_buffers())
        theirs = dict(self._tree.named_buffers()) | dict(self._tree.named_parameters())
        pairs = [
            (name, tensor.detach(), None if (other := theirs.get(name)) is None else other.detach())
            for name, tensor in (*self._model.named_buffers(), *self._model.named_parameters())
            # a buffer of another size than at first is a cache, made anew when it does not fit
            if name not in before or before[name].shape == tensor.shape
        ]
        return first_difference(pairs, close=_CLOSE)

    def repeats(self, setting: Setting) -> bool:
        """Whether the model does the same when it starts again, so that the fault is the graph's."""
        behaviours = []
        for _ in range(2):
            self._start()
            self._model.to(setting.dtype)
            behaviours.append(self._observe(self._model, setting))
        first, second = behaviours
        return self._compare(first, second, setting) is None


def _same_state(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return all(torch.equal(state, b[name]) for name, state in a.items())


# Errors ---------------------------------------------------------------------------------------------------------------


class MisreadError(CaptureError):
    """A graph is not its model: what a call of some module would do right, the graph does not."""


def _error(captured: Capture, setting: Setting | None, difference: Difference, trial: _Trial) -> CaptureError:
    name = type(captured.model).__name__
    where = f"after {trial.calls} calls" if setting is None else f"{setting}, in call {trial.calls}"
    if setting is not None and not trial.repeats(setting):
        return CaptureError(
            f"{name} itself gives other values when it runs again from the same parameters, inputs and random numbers "
            f"({setting}), so that no conversion can be compared with it; keep what it changes in buffers, and draw "
            "random numbers with torch's default generator"
        )
    return MisreadError(
        f"the captured graph of {name} differs from the model {where}: {difference}; move what its forward does there "
        "into a submodule, which can be one call in the graph: pass leaf_modules=[...] with that submodule"
    )


def mode_error(model: nn.Module, paths: Iterable[str]) -> CaptureError:
    """The error for a structure that one graph cannot hold."""
    where = ", ".join(path or type(model).__name__ for path in paths)
    return CaptureError(
        f"the structure of {where} depends on train()/eval(), as auxiliary heads make it; one graph cannot be right in "
        "both modes: build the model without them (aux_logits=False), or pass leaf_modules=[...] with a smaller module"
    )


def explain(model: nn.Module, example: Example, error: Exception, opaque: Collection[str] = ()) -> Exception:
    """The error that a user gets for what the forward raised while it was recorded.

    Args:
        model: the model.
        example: its inputs.
        error: what was raised.
        opaque: qualified names of the modules that were one call each.
    """
    failure = run_model(model, example, training=False) or run_model(model, example, training=True)
    if failure is not None:
        if example.doubt:
            return ExampleError(example.doubt)
        return ExampleError(
            f"{type(model).__name__} does not accept the example inputs ({example}): "
            f"{type(failure).__name__}: {failure}; pass example_inputs that the model runs on"
        )
    path, module = getattr(error, "pararealize_stack", (("", model),))[-1]
    why = f"{str(error).splitlines()[0] if str(error) else type(error).__name__};"
    if isinstance(error, DataDependentOutputException | DynamicOutputShapeException):
        why = "control flow or a shape depends on the values of a tensor; write it with torch.where or masks, or"
    remedy = _remedy(path, module)
    if path in opaque:  # what was done already would be no remedy
        remedy = f"it is one call already ({path}): convert the part of the model before or behind it"
    return CaptureError(
        f"cannot capture {path or 'the forward'} ({type(module).__name__}) {_line(error)}: {why} {remedy}"
    )


def _remedy(path: str, module: nn.Module) -> str:
    """What the user can do about a module that cannot be read and was not made one call."""
    if not path:
        return "move it into a module of its own, which the forward calls: a small one that cannot be read is one call"
    if not is_layer(module):
        return (
            f"move it into a smaller module, or pass leaf_modules=[{path!r}] to keep {path} as one call, though it has "
            "more than half of the parameters"
        )
    return f"pass leaf_modules=[{(path.rpartition('.')[0] or path)!r}] to keep the module that calls it as one call"


def _line(error: Exception) -> str:
    """The last line of the model's own code that the error passed through."""
    frames = traceback.extract_tb(error.__traceback__)
    users = [frame for frame in frames if "/torch/" not in frame.filename and "/pararealize/" not in frame.filename]
    if not users:
        return ""
    line = users[-1].line or ""
    return f"at {users[-1].filename}:{users[-1].lineno} `{line if len(line) <= _LINE else line[: _LINE - 1] + '…'}`"
