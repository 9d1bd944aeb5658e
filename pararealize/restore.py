"""Contexts for work on a user's model: the model left as found, outside the caller's modes, outside torch.compile."""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from .random_state import preserve_state

__all__ = [
    "AttributeSnapshot",
    "as_written",
    "attributes_as_found",
    "left_as_found",
    "never_compiled",
    "ordinary_mode",
    "preserve_run_state",
    "preserve_training_flags",
    "set_within",
]


_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put back, on leaving, every attribute, training flag, hook, parameter and buffer, and all random states.

    Parameters, buffers, submodules, hooks and training flags all stand in a module's ``__dict__``, the first four in
    dictionaries of their own: both layers are put back, and the very same objects with them. What stands deeper (a list
    within a list) is not. No other thread may use the model meanwhile.
    """
    tensors = [*model.parameters(), *model.buffers()]
    real = [tensor for tensor in tensors if not tensor.is_meta]
    values = [(tensor, _version(tensor), tensor.detach().clone()) for tensor in real]
    with preserve_state(tensor.device for tensor in tensors):
        try:
            with attributes_as_found(model.modules()):
                yield
        finally:
            with torch.no_grad():
                for tensor, version, value in values:
                    if not _is_equal(tensor, version, value):  # a copy makes graphs that autograd keeps unusable
                        tensor.copy_(value)


@contextlib.contextmanager
def preserve_run_state(model: nn.Module, devices: Iterable[torch.device]) -> Iterator[None]:
    """Put back, on leaving, what a run moves on: buffers and random states. Gradients must not be touched within.

    Args:
        model: the module that runs.
        devices: where it draws random numbers.
    """
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    with preserve_state(devices):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was changed in place; those made in inference mode do not count."""
    return 0 if tensor.is_inference() else tensor._version


def _is_equal(tensor: torch.Tensor, version: int, value: torch.Tensor) -> bool:
    """Whether a tensor is what it was; by its version where torch compares no values (sparse, nested, quantised)."""
    try:
        return torch.equal(tensor, value)
    except Exception:  # noqa: BLE001 - each layout and subclass has another way to say that it cannot
        return _version(tensor) == version


@contextlib.contextmanager
def attributes_as_found(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Put back, on leaving, every attribute of these modules, and what stands in those that are containers."""
    attributes = [(module, dict(module.__dict__), _containers(module), module.training) for module in modules]
    try:
        yield
    finally:
        for module, dictionary, containers, training in attributes:
            module.__dict__.clear()
            module.__dict__.update(dictionary)
            for container, content in containers:
                container.clear()
                (container.extend if isinstance(container, list) else container.update)(content)
            module.training = training  # which is not in the dictionary where a module has the mode of another


class AttributeSnapshot:
    """What modules hold as plain attributes now, tensors by value, for calls that are to begin with just that.

    Args:
        modules: the modules; their parameters, buffers, submodules and hooks are no part of it.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        own = vars(nn.Module()).keys()
        self._attributes = [
            (module, {name: _copied(value) for name, value in vars(module).items() if name not in own})
            for module in modules
        ]

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """The attributes of the snapshot within; on leaving, those that were there before."""
        own = vars(nn.Module()).keys()
        with attributes_as_found(module for module, _ in self._attributes):
            for module, values in self._attributes:
                for name in vars(module).keys() - own - values.keys():
                    del module.__dict__[name]
                module.__dict__.update({name: _copied(value) for name, value in values.items()})
            yield


def _copied(value: Any) -> Any:
    """A value, anew where it is a tensor or a list, dictionary or set, whose entries may change in place."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if type(value) in (list, set):
        return type(value)(map(_copied, value))
    if type(value) is dict:
        return {key: _copied(entry) for key, entry in value.items()}
    return value


@contextlib.contextmanager
def preserve_training_flags(model: nn.Module) -> Iterator[None]:
    """Put the training flag of every submodule back on leaving; ``train()`` would give all of them one and the same."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


@contextlib.contextmanager
def set_within(module: nn.Module, attribute: str, value: Any) -> Iterator[None]:
    """Give a module's plain attribute another value, and put the old one back on leaving."""
    before = module.__dict__[attribute]
    module.__dict__[attribute] = value  # not by setattr: a module of the user's may have such a name
    try:
        yield
    finally:
        module.__dict__[attribute] = before


@contextlib.contextmanager
def ordinary_mode() -> Iterator[None]:
    """Outside the caller's ``no_grad``, ``inference_mode`` and ``autocast``, which belong to a use of the network.

    A tensor that is made in ``inference_mode`` could never take part in autograd, in whatever mode it is used later.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Run what torch.compile made as the Python that it was made of; what compiled code calls, no recorder sees.

    It is a setting of the whole process: the first thread that wants it switches it, and the last one back.
    """
    if "torch._dynamo" not in sys.modules:  # then nothing was compiled, and it takes long to import
        yield
        return
    with _STANCE.lock:
        _STANCE.users += 1
        if _STANCE.users == 1:
            _STANCE.context = torch.compiler.set_stance("force_eager")
            _STANCE.context.__enter__()
    try:
        yield
    finally:
        with _STANCE.lock:
            _STANCE.users -= 1
            if _STANCE.users == 0:
                _STANCE.context.__exit__(None, None, None)


class _Stance:
    """Who runs compiled code as it was written at this moment."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.context: Any = None


_STANCE = _Stance()


def _containers(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(value, value.copy()) for value in module.__dict__.values() if isinstance(value, dict | list | set)]


def never_compiled(function: Callable[_Arguments, _Result]) -> Callable[_Arguments, _Result]:
    """A function that torch.compile leaves alone, with all that it calls, as ``torch.compiler.disable`` does.

    That imports the compiler where the function is defined, which takes longer than all the rest; here it is left out
    until somebody else has imported it.
    """
    outside: list[Callable[_Arguments, _Result]] = []

    @functools.wraps(function)
    def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Result:
        if "torch._dynamo" not in sys.modules or torch._C._is_tracing():  # which refuses what is disabled
            return function(*args, **kwargs)
        if not outside:
            outside.append(torch.compiler.disable(function))
        return outside[0](*args, **kwargs)

    call._torchdynamo_disable = True  # type: ignore[attr-defined]
    return call
