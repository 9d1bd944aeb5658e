"""nn.Module, example inputs -> Capture: the network as one fx graph, with shapes and qualified names.

The forward is recorded twice on fake tensors, in train mode with b samples and in eval mode with b + 1:

    record(train, b)  ─┐
                       ├─ compare ─> what differs depends on the mode or on the batch ─> rewritten to follow it
    record(eval, b+1) ─┘

A constant that differs as True/False, or 0.1/0.0, follows the mode of the module that it stands in; an integer that
differs follows a tensor's size. Where the structure differs (stochastic depth), the smallest such module becomes one
opaque node, and so does the innermost module that the recorder cannot read; then both recordings are made anew. At last
the graph is run against the model itself in several settings; where it differs, modules of one class become opaque if
that mends it.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.utils._pytree import tree_leaves

from pararealize.argument_types import typed_arguments
from pararealize.errors import CaptureError
from pararealize.restore import ordinary_mode

from .captured import Capture
from .example import Example
from .fake_copy import FakeCopy, copy_on_fakes
from .fake_logs import without_fake_logs
from .guards import Guards
from .hooks import check_global_hooks, hook_of, move_hooks, without_hooks
from .leaves import is_from_torch, is_layer
from .merging import DifferentStructureError, FollowsBatchError, merge
from .module_copy import check_model
from .module_view import Piece
from .node_table import UnreadableError
from .own_modes import warn_of_own_modes
from .python_state import names_mode
from .random_calls import draws
from .size_guards import contradict, follows_batch, guards_of, pins_of
from .tracer import Trace, record
from .type_nodes import fix_type, other_type
from .verification import MisreadError, check_against_model, explain, mode_error, run_model

__all__ = ["capture"]

_MOST_RETRIES = 80
_MOST_CLASSES = 6  # that are tried as opaque ones where a graph is wrong
_UNREADABLE = (UnreadableError, DataDependentOutputException, DynamicOutputShapeException)


@typed_arguments(CaptureError, "model")
@ordinary_mode()
@without_fake_logs()
def capture(
    model: nn.Module,
    example_inputs: Any = None,
    *,
    leaf_modules: Iterable[type[nn.Module] | str] = (),
    check: bool = True,
) -> Capture:
    """Read a network's forward pass as a graph that follows ``train()``/``eval()`` and the batch size.

    Args:
        model: any module; it is left exactly as found.
        example_inputs: a tensor, tuple or dict; inferred where it can be when left out.
        leaf_modules: classes, or qualified names, to keep as single nodes.
        check: run the graph against the model in both modes (skipped on the meta device).

    Raises:
        ExampleError: the model does not accept the example inputs.
        CaptureError: the forward depends on tensor values, its structure depends on the mode, or the graph does not
            reproduce the model.

    Example:
        >>> import torch
        >>> captured = capture(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.randn(2, 4))
        >>> [str(node.target) for node in captured.graph.nodes if node.op == "call_module"]
        ['0', '1']
    """
    check_model(model)
    check_global_hooks()
    warn_of_own_modes(model)
    example = Example.of(model, example_inputs)
    opaque = _OpaqueModules(model, leaf_modules)
    copy = copy_on_fakes(model)
    without_hooks(copy.model)
    captured = _read(model, copy, example, opaque)
    if check and not any(parameter.is_meta for parameter in model.parameters()):
        try:
            check_against_model(captured)
        except MisreadError:
            other = _with_one_class_opaque(model, copy, example, opaque, captured)
            if other is None:
                raise
            return other
    return captured


def _read(model: nn.Module, copy: FakeCopy, example: Example, opaque: _OpaqueModules) -> Capture:
    """The capture of what the recordings say, which nothing has been compared with yet."""
    trace, batch, fixed, guards = _record_and_compare(copy, model, example, opaque)
    trace.graph.eliminate_dead_code(is_impure_node=lambda node: _has_effect(model, node))
    calls = {node.target for node in trace.graph.find_nodes(op="call_module")}
    captured = Capture(
        graph_module=Piece(model, trace.graph, f"Captured{type(model).__name__}", trace.constants),
        model=model,
        example=example,
        batch=batch,
        fixed_batch=fixed,
        opaque={path: why for path, why in opaque.reasons.items() if path in calls},
        constants=trace.constants,
        guards=guards,
    )
    move_hooks(model, captured.graph_module)
    return captured


def _with_one_class_opaque(
    model: nn.Module, copy: FakeCopy, example: Example, opaque: _OpaqueModules, captured: Capture
) -> Capture | None:
    """Where a graph is not its model, the capture in which the modules of one class, as calls, mend that.

    Classes of small modules come first, and so the innermost.
    """
    paths: dict[type[nn.Module], str] = {}
    for node in captured.graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).items():
            if path and not is_from_torch(model.get_submodule(path)):
                paths.setdefault(kind, path)
    for path in sorted(paths.values(), key=lambda path: _size(model.get_submodule(path)))[:_MOST_CLASSES]:
        trial = opaque.copy()
        if trial.add(path, "its graph did something else than its forward"):
            with contextlib.suppress(CaptureError):
                other = _read(model, copy, example, trial)
                check_against_model(other)
                return other
    return None


def _has_effect(model: nn.Module, node: fx.Node) -> bool:
    """Whether a call is kept although nothing reads its result.

    It may draw random numbers, and whatever draws after it would draw others; it may keep running statistics; and what
    a module outside torch.nn does besides, nobody knows.
    """
    if node.op in ("placeholder", "output") or draws(node, model.get_submodule):
        return True
    modules = model.get_submodule(str(node.target)).modules() if node.op == "call_module" else ()
    return any(getattr(module, "track_running_stats", False) or not is_from_torch(module) for module in modules)


# Recording twice ----------------------------------------------------------------------------------------------------


class _OpaqueModules:
    """Which modules are to be one node: the user's choice, and what turned out to be unreadable.

    Attributes:
        rules: why modules of a class, or of a qualified name, are opaque.
        reasons: the same of the modules that a recording came across, by qualified name.
    """

    def __init__(self, model: nn.Module, leaf_modules: Iterable[type[nn.Module] | str]) -> None:
        self.model = model
        self.rules: dict[type[nn.Module] | str, str] = {}
        self.reasons: dict[str, str] = {}
        self._size = _size(model)
        names = dict(model.named_modules())
        for leaf in leaf_modules:
            if isinstance(leaf, str) and leaf not in names:
                close = difflib.get_close_matches(leaf, names, n=3)
                raise CaptureError(f"leaf_modules names {leaf!r}, which {type(model).__name__} has not; close: {close}")
            self.rules[leaf] = "asked for"
        for path, module in names.items():
            if path and not is_layer(module) and not self(path, module) and (hook := hook_of(module)):
                self._keep_hook(path, module, hook)
        self.reasons.clear()

    def copy(self) -> _OpaqueModules:
        """The same rules, to which others may be added."""
        other = object.__new__(_OpaqueModules)
        other.__dict__.update(self.__dict__, rules=dict(self.rules), reasons={})
        return other

    def __call__(self, path: str, module: nn.Module) -> bool:
        why = self.rules.get(path) or self.rules.get(type(module))
        if why is not None:
            self.reasons[path] = why
        return why is not None

    def _keep_hook(self, path: str, module: nn.Module, hook: str) -> None:
        """Make a module with a hook opaque, and it alone: the call, which runs the hook, is then one of the graph's."""
        if 2 * _size(module) > self._size:
            raise CaptureError(
                f"{path} ({type(module).__name__}) has a {hook}, and more than half of the parameters: as one call, "
                f"which the hook would need, it could not be cut. Remove the hook, register it on modules within "
                f"{path}, or pass leaf_modules=[{path!r}] to keep {path} as one call nevertheless"
            )
        self.rules[path] = f"it has a {hook}"

    def add(self, path: str, why: str) -> bool:
        """Make a module opaque, and its class with it; say whether that may be done.

        Not with a module of more than half of the parameters: what is one node cannot be cut, and the user had better
        know.
        """
        module = self.model.get_submodule(path)
        if not path or self(path, module) or 2 * _size(module) > self._size:
            return False
        self.rules[path if is_from_torch(module) else type(module)] = why
        return True


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class _Attempt(NamedTuple):
    """A way to record twice: the inputs' axes that are symbols, the batch size, and whether the second has one more."""

    free: frozenset[tuple[str, int]]
    rows: int
    grown: bool


def _attempts(example: Example) -> list[_Attempt]:
    """Ways to record, the most general first.

    A model may do with sizes what symbols cannot take part in, such as to use one as the key of a dictionary: then the
    batch alone is one, and at last nothing is. A model may decide on the batch size: then both recordings have one, at
    last that of the example.
    """
    axes = [(name, axis, size) for name, value in example.tensors.items() for axis, size in enumerate(value.shape)]
    every = frozenset((name, axis) for name, axis, _ in axes)
    rows = frozenset((name, axis) for name, axis, size in axes if axis == 0 and size == example.batch)
    frees = dict.fromkeys((every, rows, frozenset[tuple[str, int]]()))
    attempts = []
    for free in frees:
        if rows:
            attempts.append(_Attempt(free, _rows(example), grown=True))
        if free and example.batch:
            attempts.append(_Attempt(free, _rows(example), grown=False))
        attempts.append(_Attempt(free, example.batch or 1, grown=False))
    return list(dict.fromkeys(attempts))


class _MergedRecordings(NamedTuple):
    """Both recordings in one graph, its batch size, whether that is fixed, and the conditions under which it holds."""

    trace: Trace
    batch: int
    fixed: bool
    guards: Guards


def _record_and_compare(
    copy: FakeCopy, model: nn.Module, example: Example, opaque: _OpaqueModules
) -> _MergedRecordings:
    """Record until every part is readable."""
    attempts = _attempts(example)
    shapes = {name: tuple(tensor.shape) for name, tensor in example.tensors.items()}
    number = 0
    for _ in range(_MOST_RETRIES):
        attempt = attempts[number]
        plain = not attempt.free
        try:
            recordings = _record_twice(copy, example, opaque, attempt)
            if attempt.rows == (example.batch or 1) or recordings.guards.allow(shapes):
                return recordings
            raise FollowsBatchError  # they hold for more rows than the example has
        except FollowsBatchError:
            number += 1
            continue
        except DifferentStructureError as difference:
            additions = [opaque.add(path, "its structure depends on the mode") for path in difference.paths]
            if not any(additions):
                if not attempt.grown:
                    raise mode_error(model, difference.paths) from None
                number += 1  # it may be the batch that makes the difference
                continue
        except _UNREADABLE as error:
            if not _make_opaque(opaque, error):
                raise explain(model, example, error, opaque.reasons) from error
        except Exception as error:
            if not plain:
                number = next(i for i, other in enumerate(attempts) if len(other.free) < len(attempt.free))
                continue
            if not _make_opaque(opaque, error):
                if (
                    attempt.grown
                    and not _accepts(model, example.resized(_rows(example) + 1))
                    and _accepts(model, example)
                ):
                    number += 1
                    continue
                raise explain(model, example, error, opaque.reasons) from error
        number = 0
    raise CaptureError(
        f"{type(model).__name__} still cannot be read with {sorted(opaque.reasons)} as opaque modules; convert a part "
        "of it that has fewer of them"
    )


def _rows(example: Example) -> int:
    """The batch size to record: one that follows a batch of 1 would look as if it were 1 for ever."""
    return max(example.batch or 1, 2)


def _record_twice(copy: FakeCopy, example: Example, opaque: _OpaqueModules, attempt: _Attempt) -> _MergedRecordings:
    """Record in either mode, and where the model asks for element types, the second time in another one."""
    try:
        return _record_in_types(copy, example, opaque, attempt, other=True)
    except _SameTypeError:
        return _record_in_types(copy, example, opaque, attempt, other=False)


class _SameTypeError(Exception):
    """The model does something else in another element type."""


def _record_in_types(
    copy: FakeCopy, example: Example, opaque: _OpaqueModules, attempt: _Attempt, *, other: bool
) -> _MergedRecordings:
    batch = attempt.rows
    copy.leaves.forget_results()  # what their calls decide is a condition of these two recordings
    checked: set[Any] = set()
    settings: dict[str, Any] = {"opaque": opaque, "free": attempt.free, "checked": checked}
    first = record(copy, example, batch=batch, training=True, **settings)
    dtype = other_type(_types_in(copy.model, example, first)) if other and first.reads_types else None
    try:
        second = record(copy, example, batch=batch + attempt.grown, training=False, dtype=dtype, **settings)
        sizes = first.sizes, second.sizes
        if contradict(*sizes):
            raise FollowsBatchError
        pins = pins_of(sizes, grown=attempt.grown)
        trace = merge(first, second, batch if attempt.grown else None, copy.leaves.empty, pins)
    except Exception as error:
        if dtype is not None and not _is_of_mode(copy.model, error):
            raise _SameTypeError from error
        if not isinstance(error, DifferentStructureError):
            raise
        if attempt.grown and any(each.decides_on_batch for each in sizes):
            raise FollowsBatchError from None
        raise
    guards = guards_of(example, sizes, batch=batch, grown=attempt.grown)
    if first.reads_types and not other:
        guards = guards.of_types()
        if not any(".dtype ==" in guard.condition for guard in guards):
            fix_type(trace.graph)
    return _MergedRecordings(trace, batch, not (attempt.grown or follows_batch(guards, batch)), guards)


def _types_in(model: nn.Module, example: Example, trace: Trace) -> set[torch.dtype]:
    """Element types that come up: a value that autocast or a cast makes would have one of them in any recording."""
    values = tree_leaves([node.meta.get("val") for node in trace.graph.nodes])
    tensors = (*model.parameters(), *example.tensors.values(), *values)
    return {tensor.dtype for tensor in tensors if isinstance(tensor, torch.Tensor)}


def _is_of_mode(model: nn.Module, error: Exception) -> bool:
    """Whether two recordings differ in small modules alone that read the mode: no other element type explains more."""
    if not isinstance(error, DifferentStructureError):
        return False
    modules = [model.get_submodule(path) for path in error.paths]
    return all(names_mode(module) and not [*module.children(), *module.parameters()] for module in modules)


def _make_opaque(opaque: _OpaqueModules, error: Exception) -> bool:
    """Turn the innermost module that can be opaque among those the error was raised in into one node."""
    unreadable = isinstance(error, UnreadableError)
    why = str(error).split("\n")[0] if unreadable else f"{type(error).__name__} while reading it"
    return any(opaque.add(path, why) for path, _ in reversed(getattr(error, "pararealize_stack", ())))


def _accepts(model: nn.Module, example: Example) -> bool:
    return run_model(model, example, training=False) is None
