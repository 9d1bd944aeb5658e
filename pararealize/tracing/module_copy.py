"""A model -> the copy of it that a parareal module owns, and what about a model forbids to make one."""

from __future__ import annotations

import copy
import keyword
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from pararealize.errors import ModelError

__all__ = ["CONTENTS", "RESERVED", "check_model", "computed_tensors", "own_tree"]

CONTENTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
RESERVED = ("adapters", "coarse", "segments")


def check_model(model: nn.Module) -> None:
    """Refuse a model that no graph module could stand for.

    Raises:
        ModelError: its parameters have no shapes yet, or a name cannot be written in a graph's code.
    """
    name = type(model).__name__
    scripts = [path or name for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripts:  # the parameters of their deep copies are no leaves, and would not be trained
        raise ModelError(f"{name} has scripted modules ({scripts[0]}); convert the modules that they were made from")
    lazy = [path for path, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"{name} has parameters without a shape yet ({', '.join(lazy[:3])}); run it once on an example"
        )
    own = vars(fx.GraphModule(nn.Module(), fx.Graph())).keys() | vars(fx.GraphModule).keys()
    top = [attribute for attribute in (*model._modules, *model._parameters, *model._buffers) if attribute in own]
    if top:
        raise ModelError(
            f"{name} has top-level names {top}, which torch.fx's modules need for themselves; rename them, or wrap the "
            "model in a module that holds it as an attribute"
        )
    words = [path for path, _ in model.named_modules() if any(map(keyword.iskeyword, path.split(".")))]
    if words:
        raise ModelError(f"{name} has submodules with keywords of Python as names, which no code can call: {words}")


def own_tree(
    model: nn.Module, constants: Mapping[str, torch.Tensor], reserved: Sequence[str] = RESERVED
) -> tuple[nn.Module, list[str]]:
    """A copy of the model, whose constants are non-persistent buffers, and the original's keys in a state dict.

    Args:
        model: the model.
        constants: by their names.
        reserved: top-level names that the result needs for itself.

    Raises:
        ModelError: the model cannot be copied, or has a top-level name that the result needs for itself.
    """
    taken = [name for name in reserved if name in {*model._modules, *model._parameters, *model._buffers}]
    if taken:
        raise ModelError(
            f"{type(model).__name__} has top-level names {taken}, which the result needs for itself; "
            "rename them, or wrap the model in a module that holds it as an attribute"
        )
    try:
        owned = copy.deepcopy(model, computed_tensors(model))
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); make it deep-copyable, for "
            "instance by not keeping computed tensors as attributes"
        ) from error
    keys = list(_bare(owned).state_dict())
    for path, constant in constants.items():
        owner_path, _, name = path.rpartition(".")
        owner = owned.get_submodule(owner_path)
        owner.__dict__.pop(name, None)
        owner.register_buffer(name, constant.detach().clone(), persistent=False)
    return owned, keys


def computed_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies, by the originals' ids, of attributes that a hook computes anew before each forward: old weight norms."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        if module._forward_pre_hooks
        for value in vars(module).values()
        if isinstance(value, torch.Tensor) and not value.is_leaf
    }


def _bare(module: nn.Module) -> nn.Module:
    """The module's parameters, buffers and submodules without its class."""
    bare = nn.Module()
    for contents in CONTENTS:
        bare.__dict__[contents] = module.__dict__[contents]
    return bare
