"""A model whose ``train()`` or ``eval()`` is its own: what it does that torch's does not is lost, and is told.

A converted network has the model's modules, whose methods stay theirs, but not the model's class.
"""

from __future__ import annotations

import contextlib
import warnings
from typing import Any

from torch import nn

from pararealize.errors import ModeWarning
from pararealize.table import quantity

from .fake_copy import copy_on_fakes

__all__ = ["warn_of_own_modes"]


def warn_of_own_modes(model: nn.Module) -> None:
    """Warn where ``train()`` or ``eval()`` of the model itself leave modules in other modes than torch's would.

    Both are called on copies on fake tensors; one that only does something else besides, and then what torch does, is
    no reason to warn.
    """
    if not any(_is_own(model, name) for name in ("train", "eval")):
        return
    for name, mode in (("train", True), ("eval", False)):
        if lost := _lost(model, name, mode):
            warnings.warn(
                f"{type(model).__name__} has its own {name}(), after which {lost}; the converted network does not call "
                f"it, and its {name}() sets every module: let the modules themselves have the method (a subclass of "
                f"theirs), or set their modes after each call of {name}()",
                ModeWarning,
                stacklevel=3,
            )
            return


def _is_own(model: nn.Module, name: str) -> bool:
    return getattr(type(model), name) is not getattr(nn.Module, name) or name in vars(model)


def _lost(model: nn.Module, name: str, mode: bool) -> str:
    """What a model's own method leaves otherwise than torch's does, in words; empty where that is nothing."""
    own, plain = copy_on_fakes(model).model, copy_on_fakes(model).model
    for copy in (own, plain):
        nn.Module.train(copy, not mode)
    before = _attributes(own)
    with contextlib.suppress(Exception):  # it may look at values, which there are none of
        getattr(own, name)()
    nn.Module.train(plain, mode)
    flags = {path: module.training for path, module in plain.named_modules()}
    kept = [path for path, module in own.named_modules() if path and module.training is not flags.get(path)]
    if kept:
        others = f" and {quantity(len(kept) - 1, 'other module')}" if kept[1:] else ""
        return f"{kept[0]}{others} {'are' if others else 'is'} in {'eval' if mode else 'train'} mode"
    after = _attributes(own)
    changed = sorted(key for key in {*before, *after} if before.get(key) is not after.get(key))
    return f"its attribute {changed[0]!r} is another" if changed else ""


def _attributes(module: nn.Module) -> dict[str, Any]:
    """The Python state of a module itself, but for its mode."""
    return {name: value for name, value in vars(module).items() if name != "training"}
