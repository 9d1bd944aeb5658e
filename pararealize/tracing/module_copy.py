"""A model -> the copy of it that a converted network owns; what about a model forbids to make one; shared contents.

A converted network carries the model's parameters, buffers and submodules under the model's own names, but none of its
class: no ``forward``, no properties, no extra state. ``CONTENTS`` names the dictionaries that this comes down to.
"""

from __future__ import annotations

import copy
import keyword
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from pararealize.errors import ModelError

from .hooks import copy_tensor_hooks, move_hooks, without_hooks
from .model_twin import copy_plain_layers

__all__ = [
    "RESERVED",
    "bare_tree",
    "check_model",
    "copy_contents",
    "copy_hooks",
    "copy_model",
    "share_contents",
    "uncopyable_tensors",
]

CONTENTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")  # of every nn.Module's ``__dict__``
RESERVED = ("adapters", "coarse", "segments")  # top-level names of a parareal network's own
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def check_model(model: Any) -> None:
    """Refuse a model that no graph module could stand for.

    Raises:
        ModelError: its parameters have no shapes yet, or a name cannot be written in a graph's code.
    """
    if not isinstance(model, nn.Module):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise ModelError(f"the model is {what}; pass an nn.Module: an object of its class, which holds the parameters")
    name = type(model).__name__
    scripts = [path or name for path, module in model.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if scripts:  # the parameters of their deep copies are no leaves, and would not be trained
        raise ModelError(f"{name} has scripted modules ({scripts[0]}); convert the modules that they were made from")
    lazy = [path for path, tensor in _tensors_by_name(model) if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"{name} has parameters without a shape yet ({', '.join(lazy[:3])}); run it once on an example"
        )
    if odd := [f"{path} ({kind})" for path, tensor in _tensors_by_name(model) if (kind := _unrecordable(tensor))]:
        raise ModelError(
            f"{name} has tensors that no forward pass can be recorded with: {', '.join(odd[:3])}; keep what they stand "
            "for as dense tensors (values and scales, a padded tensor and its lengths) and make them in the forward"
        )
    attributes = vars(fx.GraphModule(nn.Module(), fx.Graph())).keys() | vars(fx.GraphModule).keys()
    clashes = [name for name in (*model._modules, *model._parameters, *model._buffers) if name in attributes]
    if clashes:
        raise ModelError(
            f"{name} has top-level names {clashes}, which torch.fx's modules need for themselves; rename them, or wrap "
            "the model in a module that holds it as an attribute"
        )
    keywords = [path for path, _ in model.named_modules() if any(map(keyword.iskeyword, path.split(".")))]
    if keywords:
        raise ModelError(f"{name} has submodules with keywords of Python as names, which no code can call: {keywords}")


def _tensors_by_name(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    yield from (*model.named_parameters(), *model.named_buffers())


def _unrecordable(tensor: torch.Tensor) -> str:
    """The kind of a tensor that has no fake counterpart; nothing where it has one."""
    kinds = {"quantised": tensor.is_quantized, "nested": tensor.is_nested, "of MKL-DNN": tensor.is_mkldnn}
    return next((kind for kind, applies in kinds.items() if applies), "")


def copy_model(
    model: nn.Module, constants: Mapping[str, torch.Tensor], reserved: Sequence[str] = RESERVED
) -> tuple[nn.Module, list[str]]:
    """A copy of the model, whose constants are non-persistent buffers, and the original's keys in a state dict.

    Args:
        model: the model.
        constants: tensors that are neither parameters nor buffers, by qualified name. As buffers they follow ``to``.
        reserved: top-level names that the result needs for itself.

    Raises:
        ModelError: the model cannot be copied, or has a top-level name that the result needs for itself.
    """
    clashes = [name for name in reserved if name in {*model._modules, *model._parameters, *model._buffers}]
    if clashes:
        raise ModelError(
            f"{type(model).__name__} has top-level names {clashes}, which the result needs for itself; "
            "rename them, or wrap the model in a module that holds it as an attribute"
        )
    try:
        memo = uncopyable_tensors(model)
        copy_plain_layers(model, memo)
        tree = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); make it deep-copyable, for "
            "instance by not keeping computed tensors as attributes"
        ) from error
    bare = nn.Module()  # without the model's class, whose extra state and hooks would add keys
    share_contents(bare, tree)
    keys = list(bare.state_dict())
    for parameter, copied in zip(model.parameters(), tree.parameters(), strict=True):
        copy_tensor_hooks(parameter, copied)
    for path, constant in constants.items():
        owner_path, _, name = path.rpartition(".")
        owner = tree.get_submodule(owner_path)
        owner.__dict__.pop(name, None)
        owner.register_buffer(name, constant.detach().clone(), persistent=False)
    return tree, keys


def uncopyable_tensors(model: nn.Module) -> dict[int, Any]:
    """Copies, by the originals' ids, of tensors that ``copy.deepcopy`` refuses; as a memo for it these stand in.

    They are attributes that a hook computes anew before each forward, as tensors with a gradient function
    (``torch.nn.utils.weight_norm`` sets ``weight`` so), and tensors in compressed sparse layouts, whose storage torch
    does not give away.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for values in (vars(module), module._buffers)
        for value in values.values()
        if isinstance(value, torch.Tensor)
        and (value.layout in _COMPRESSED or (module._forward_pre_hooks and not value.is_leaf))
    }


def share_contents(module: nn.Module, tree: nn.Module) -> None:
    """Give a module the parameters, buffers, submodules and hooks of ``tree``, shared from then on, and its mode."""
    for contents in CONTENTS:
        module.__dict__[contents] = tree.__dict__[contents]
    move_hooks(tree, module)
    module.training = tree.training


def copy_hooks(source: nn.Module, target: nn.Module, memo: dict[int, Any]) -> None:
    """Give a deep copy the hooks that were registered on its original itself, as ``copy.deepcopy`` of a module does.

    Args:
        source: the original.
        target: the copy; ``memo`` has it, so that a method of the original becomes one of the copy.
        memo: of the deep copy.
    """
    for name, value in vars(source).items():
        if "_hook" in name and isinstance(value, dict | bool | type(None)) and name in vars(target):
            target.__dict__[name] = copy.deepcopy(value, memo)


def bare_tree(model: nn.Module) -> nn.Module:
    """A module without a class of the user's that shares a model's contents, and may have submodules of its own."""
    tree = nn.Module()
    share_contents(tree, model)
    tree.__dict__["_modules"] = dict(model._modules)
    return tree


def copy_contents(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A plain module with deep copies of a module's parameters, buffers and submodules, and its mode."""
    tree = nn.Module()
    share_contents(tree, module)
    without_hooks(tree)  # one may refer to the module itself, of which there is no copy yet: see ``copy_hooks``
    memo |= {key: value for key, value in uncopyable_tensors(module).items() if key not in memo}
    return copy.deepcopy(tree, memo)
