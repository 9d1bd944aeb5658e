"""Hooks of modules and of parameters: which there are, and what becomes of them in a converted network.

of torch.nn's modules, and of what is one call     run with the call
of a block or container                            make it one call
of the model itself                                move to the converted network
of parameters                                      are put on the copied parameters
of all modules of the process                      are refused
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module

from pararealize.errors import ModelError

__all__ = [
    "check_global_hooks",
    "copy_tensor_hooks",
    "describe_hook",
    "hook_of",
    "hooks_by_kind",
    "move_hooks",
    "tensor_hook_of",
    "without_backward_hooks",
    "without_hooks",
]

_KINDS = {  # dictionaries in a module's ``__dict__``, and what the user calls their hooks
    "_forward_pre_hooks": "forward-pre hook",
    "_forward_hooks": "forward hook",
    "_backward_pre_hooks": "backward-pre hook",
    "_backward_hooks": "backward hook",
}
_SETTINGS = ("_forward_pre_hooks_with_kwargs", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")


def hook_of(module: nn.Module) -> str | None:
    """A module's first hook that its forward does not show, in words; those of ``torch.nn.utils`` are read with it."""
    for dictionary, kind in _KINDS.items():
        for hook in module.__dict__[dictionary].values():
            if not type(hook).__module__.startswith("torch.nn.utils"):  # of weight_norm and the like
                return f"{kind} {describe_hook(hook)}"
    return None


def hooks_by_kind(module: nn.Module) -> dict[str, dict[int, Any]]:
    """A module's own dictionaries of hooks, by what the user calls these."""
    return {kind: module.__dict__[dictionary] for dictionary, kind in _KINDS.items()}


def describe_hook(hook: Any) -> str:
    """The name of a hook and where it is written."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    function = getattr(hook, "__func__", hook)
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", type(hook).__name__).replace("<locals>.", "")
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code else name


def without_hooks(module: nn.Module) -> None:
    """Take all hooks off a module that is a copy: its forward is to be read, and they are kept elsewhere."""
    for name in (*_KINDS, *_SETTINGS):
        module.__dict__[name] = type(module.__dict__[name])()


def without_backward_hooks(model: nn.Module) -> None:
    """Take the hooks of the backward pass off all modules of a copy: they change nothing that its forward gives."""
    for module in model.modules():
        for name in ("_backward_pre_hooks", "_backward_hooks"):
            module.__dict__[name] = type(module.__dict__[name])()


def move_hooks(source: nn.Module, target: nn.Module) -> None:
    """Let a module run the hooks of another one, whose place it takes; they are shared from then on."""
    for name in (*_KINDS, *_SETTINGS, "_is_full_backward_hook"):
        if name in source.__dict__:
            target.__dict__[name] = source.__dict__[name]


def copy_tensor_hooks(source: torch.Tensor, target: torch.Tensor) -> None:
    """Register on a copy of a parameter what is registered on the parameter; copies of tensors have no hooks."""
    if not target.requires_grad:
        return
    for hook in _hooks_of_tensor(source, "_backward_hooks"):
        target.register_hook(hook)
    for hook in _hooks_of_tensor(source, "_post_accumulate_grad_hooks"):
        target.register_post_accumulate_grad_hook(hook)


def tensor_hook_of(tensor: torch.Tensor, *, accumulated: bool = True) -> str | None:
    """A parameter's first hook, in words; ``accumulated`` where one that runs on accumulated gradients counts."""
    names = ("_backward_hooks", *["_post_accumulate_grad_hooks"] * accumulated)
    hooks = [hook for name in names for hook in _hooks_of_tensor(tensor, name)]
    return describe_hook(hooks[0]) if hooks else None


def _hooks_of_tensor(tensor: torch.Tensor, name: str) -> Iterator[Callable[..., Any]]:
    return iter(list((getattr(tensor, name, None) or {}).values()))


def check_global_hooks() -> None:
    """Refuse to convert while hooks of all modules are registered.

    They would run for modules of the converted network, among which those without work of their own are not.

    Raises:
        ModelError: there are some, besides those of torch's own tools.
    """
    for dictionary, kind in _KINDS.items():
        for hook in list(getattr(torch_module, f"_global{dictionary}").values()):
            if not str(getattr(hook, "__module__", "")).startswith("torch."):
                raise ModelError(
                    f"a {kind} of all modules is registered, {describe_hook(hook)}, which a converted network would "
                    "run for other modules than the model has; remove it (handle.remove()) while the model is converted"
                )
