"""What a model holds besides tensors of its own, before and after a forward pass -> what the pass changed.

A graph computes with tensors; a counter, a list that grows or an attention map that is kept as an attribute are Python,
which it would leave out. State is what modules have as attributes (nested, and in plain objects that they hold), and
the globals, closures and class attributes that the code of their forward names.

    snapshot(before), a pass, snapshot(after)     ->  what differs was changed
    a second pass, snapshot(later)                ->  what differs once more is an effect; what does not, and holds only
                                                      sizes and plain values, is a cache: harmless
"""

from __future__ import annotations

import dataclasses
import dis
import inspect
import itertools
import operator
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn

from .leaves import is_from_torch, is_layer

__all__ = ["Change", "Snapshot", "changes_between", "line_of", "names", "names_host_random", "names_mode", "snapshot"]

_ATOMIC = (type(None), bool, int, str, bytes, type, torch.dtype, torch.device, torch.Size, ModuleType)
_OF_TORCH = vars(nn.Module()).keys() | {"_compiled_call_impl"}  # parameters, hooks, the mode and so on
_DEEPEST, _MOST_ITEMS = 8, 10_000


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """Something that a forward pass changed.

    Attributes:
        path: qualified name of the module that holds it, or whose code names it.
        name: of the attribute or variable.
        kind: ``"attribute"``, ``"global"``, ``"closure"`` or ``"class attribute"``.
    """

    path: str
    name: str
    kind: str


@dataclasses.dataclass(frozen=True, slots=True)
class Snapshot:
    """Python state at one moment.

    Attributes:
        values: for each place, what is there, as nested tuples that compare.
        tensors: for each place, the tensors in it.
        settings: what layers of torch.nn have as attributes, by the layer's name.
    """

    values: dict[Change, Any]
    tensors: dict[Change, tuple[torch.Tensor, ...]]
    settings: dict[str, tuple[Any, ...]]


def snapshot(
    model: nn.Module, is_call: Callable[[str, nn.Module], bool], *, identity: bool = True, variables: bool = True
) -> Snapshot:
    """The Python state of a model, without what lies in modules that are one call each.

    Args:
        model: the model.
        is_call: whether the module of a qualified name is one call, within which all is kept.
        identity: whether another tensor of the same shape is another value.
        variables: take up globals, closures and class attributes, too.
    """
    reader = _StateReader(identity=identity)
    settings: dict[str, tuple[Any, ...]] = {}
    for path, module in _modules(model, is_call):
        if is_layer(module):  # of which a forward may change a setting
            settings[path] = tuple(vars(module).values())
            continue
        for name, value in vars(module).items():
            if name not in _OF_TORCH and not isinstance(value, nn.Module):
                reader.read(Change(path, name, "attribute"), value)
        for change, value in _variables(path, module) if variables else ():
            reader.read(change, value)
    return Snapshot(reader.values, reader.tensors, settings)


def changes_between(before: Snapshot, after: Snapshot) -> list[Change]:
    """What differs, innermost modules first."""
    places = dict.fromkeys((*before.values, *after.values))
    changes = [place for place in places if before.values.get(place, _ABSENT) != after.values.get(place, _ABSENT)]
    for path, values in before.settings.items():
        others = after.settings.get(path, values)
        if not all(map(operator.is_, values, others)) and _plain(values) != _plain(others):
            changes.append(Change(path, "settings", "attribute"))
    return sorted(changes, key=lambda change: -change.path.count(".") - bool(change.path))


def line_of(module: nn.Module, name: str) -> str:
    """The line of a module's own code that last changes an attribute or variable, or names it; else its forward's."""
    places = []
    for function in _functions(type(module)):
        for code in _codes(function.__code__):
            line = code.co_firstlineno
            for instruction in dis.get_instructions(code):
                line = instruction.starts_line or line
                if instruction.argval == name and instruction.opname.startswith(("STORE", "LOAD")):
                    places.append((instruction.opname.startswith("STORE"), code.co_filename, int(line)))
    if not places:
        forward = getattr(type(module).forward, "__code__", None)
        return f"{forward.co_filename}:{forward.co_firstlineno}" if forward else ""
    _, file, line = max(places, key=lambda place: place[0])
    return f"{file}:{line}"


def names_host_random(module: nn.Module) -> bool:
    """Whether the code of a module's forward names Python's or NumPy's random numbers."""
    for function in _functions(type(module)):
        for name in {name for code in _codes(function.__code__) for name in code.co_names}:
            value = function.__globals__.get(name)
            source = getattr(value, "__self__", value)
            is_numpy = str(getattr(value, "__module__", "")).startswith("numpy.random")
            is_random = is_numpy or isinstance(source, random.Random) or name in ("random", "numpy")
            if is_random or any(source is package for package in (random, np, np.random)):
                return True
    return False


def names_mode(module: nn.Module) -> bool:
    """Whether the code of a module's forward names its training flag."""
    return names(module, "training")


def names(module: nn.Module, attribute: str) -> bool:
    """Whether the code of a module's forward names an attribute, of whatever it is."""
    return any(attribute in code.co_names for f in _functions(type(module)) for code in _codes(f.__code__))


_ABSENT = ("absent",)


def _plain(values: Iterable[Any]) -> list[Any]:
    return [value for value in values if isinstance(value, int | float | str | tuple)]


def _modules(model: nn.Module, is_call: Callable[[str, nn.Module], bool]) -> Iterator[tuple[str, nn.Module]]:
    """Every module, but not those within one that is one call, nor that itself."""
    stack = [("", model)]
    seen = {model}
    while stack:
        path, module = stack.pop()
        yield path, module
        for name, child in module._modules.items():
            place = f"{path}.{name}" if path else name
            if child is not None and child not in seen and (is_layer(child) or not is_call(place, child)):
                seen.add(child)
                stack.append((place, child))


# Values as what compares ----------------------------------------------------------------------------------------------


class _StateReader:
    """Turns values into nested tuples; what is found in two places is read once."""

    def __init__(self, *, identity: bool) -> None:
        self.values: dict[Change, Any] = {}
        self.tensors: dict[Change, tuple[torch.Tensor, ...]] = {}
        self._identity = identity
        self._alive: dict[int, Any] = {}  # by ``id``: as long as it lives, no other object has that
        self._found: list[torch.Tensor] = []

    def read(self, place: Change, value: Any) -> None:
        """Write down what is at a place."""
        self._found = []
        self.values[place] = self._token(value, 0)
        if self._found:
            self.tensors[place] = tuple(self._found)

    def _token(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is float or kind is complex:
            return repr(value)  # a NaN is not equal to itself
        if isinstance(value, _ATOMIC):
            return kind.__name__, value
        if isinstance(value, torch.Tensor):
            self._found.append(value)
            self._alive[id(value)] = value
            version = 0 if value.is_inference() else value._version
            return "tensor", tuple(map(str, value.shape)), value.dtype, (id(value), version) if self._identity else 0
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return "size", str(value)
        if isinstance(value, nn.Module) or depth > _DEEPEST:
            return kind.__name__, id(value) if self._identity else 0
        if id(value) in self._alive:
            return "again", kind.__name__, id(value) if self._identity else 0
        self._alive[id(value)] = value
        return kind.__name__, self._contents(value, depth + 1)

    def _contents(self, value: Any, depth: int) -> Any:
        if isinstance(value, Mapping):
            items = itertools.islice(list(value.items()), _MOST_ITEMS)
            return tuple((self._token(key, depth), self._token(item, depth)) for key, item in items)
        if isinstance(value, set | frozenset):
            return len(value), frozenset(repr(item) for item in itertools.islice(value, _MOST_ITEMS))
        if isinstance(value, list | tuple | deque):
            return len(value), tuple(self._token(item, depth) for item in itertools.islice(list(value), _MOST_ITEMS))
        if isinstance(value, np.ndarray):
            return value.shape, hash(value.tobytes())
        if isinstance(value, random.Random):
            return hash(value.getstate())
        if isinstance(value, itertools.count):
            return repr(value)
        if isinstance(value, MethodType):
            return id(value.__func__)
        if isinstance(value, FunctionType):
            cells = () if _is_from_torch(value) else value.__closure__ or ()
            return id(value), tuple(self._token(cell.cell_contents, depth) for cell in cells if _is_set(cell))
        contents = getattr(value, "__dict__", None)
        if not isinstance(contents, dict) or type(value).__module__.partition(".")[0] in ("torch", "logging"):
            return id(value) if self._identity else 0
        return tuple((name, self._token(item, depth)) for name, item in list(contents.items()))


# Variables that code names --------------------------------------------------------------------------------------------


def _variables(path: str, module: nn.Module) -> Iterator[tuple[Change, Any]]:
    """Globals, closures and class attributes that the code of a module's forward names, where they can change."""
    if is_from_torch(module):
        return
    for function in _functions(type(module)):
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            if _can_change(value, function):
                yield Change(path, name, "closure"), value
        for name in {name for code in _codes(function.__code__) for name in code.co_names}:
            value = function.__globals__.get(name, _ABSENT)
            if value is not _ABSENT and _can_change(value, function):
                yield Change(path, name, "global"), value
    for kind in type(module).__mro__:
        if not kind.__module__.startswith("torch.") and kind is not object:
            for name, value in list(vars(kind).items()):
                if not name.startswith("__") and isinstance(value, int | float | list | dict | set):
                    yield Change(path, name, "class attribute"), value


def _can_change(value: Any, function: FunctionType) -> bool:
    """Whether a variable is state: a plain value or container, or an object of a class of the same package."""
    if value is None or isinstance(value, int | float | str | tuple | list | dict | set | deque | itertools.count):
        return True
    package = str(function.__module__).partition(".")[0]
    is_code = isinstance(value, type | ModuleType | nn.Module | torch.Tensor) or callable(value)
    return not is_code and type(value).__module__.partition(".")[0] == package


_FUNCTIONS: dict[type, tuple[FunctionType, ...]] = {}


def _functions(kind: type) -> tuple[FunctionType, ...]:
    """The functions that the forward of a class may call: its own methods, and functions of its files, by name."""
    if kind not in _FUNCTIONS:
        functions: dict[FunctionType, None] = {}
        stack: list[Any] = [getattr(kind, name, None) for name in ("forward", "__call__")]
        while stack and len(functions) < 200:
            function = stack.pop()
            function = getattr(function, "fget", getattr(function, "__func__", function))
            function = inspect.unwrap(function) if callable(function) else function
            if not isinstance(function, FunctionType) or function in functions or _is_from_torch(function):
                continue
            functions[function] = None
            names = {name for code in _codes(function.__code__) for name in code.co_names}
            for name in names:
                stack += [vars(base).get(name) for base in kind.__mro__]  # a method may be called by super()
                stack.append(function.__globals__.get(name))
            cells = (cell.cell_contents for cell in function.__closure__ or () if _is_set(cell))
            stack += [value for value in cells if isinstance(value, FunctionType)]
        _FUNCTIONS[kind] = tuple(functions)
    return _FUNCTIONS[kind]


def _is_from_torch(function: FunctionType) -> bool:
    return str(function.__module__).partition(".")[0] == "torch"


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code and that of the functions within it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
