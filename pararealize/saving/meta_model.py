"""A model on the meta device -> the same with memory on the CPU, for the weights of a folder.

``Module.to_empty`` would give every name of a tied tensor memory of its own, and leave tensors that are no parameters
and no buffers where they are.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from pararealize.errors import CheckpointError

from .plain_attributes import attributes_of, named_plain_tensors

__all__ = ["give_memory"]

MOST_NAMES = 4  # that an error lists


def give_memory(model: nn.Module, names: Collection[str], device: torch.device | str = "cpu") -> None:
    """Give the meta tensors of a model memory, in place; those that were one tensor are one afterwards.

    Args:
        model: any module; one without meta tensors is left as it is.
        names: of the tensors that get values afterwards.
        device: of the memory.

    Raises:
        CheckpointError: there are meta tensors that nothing gives values: plain attributes, or buffers that no file
            has. The model is as it was then.

    Example:
        >>> layer = nn.Linear(2, 3, device="meta")
        >>> give_memory(layer, {"weight", "bias"})
        >>> layer.weight.shape, layer.weight.device.type
        (torch.Size([3, 2]), 'cpu')
    """
    named = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
        *((name, tensor) for name, tensor in named_plain_tensors(model).items() if name in names),
    ]
    memory: dict[int, torch.Tensor] = {}
    has_values = {id(tensor) for name, tensor in named if name in names}
    for _, tensor in named:
        if tensor.is_meta and id(tensor) not in memory:
            empty = torch.empty_like(tensor, device=device)
            trained = tensor.requires_grad
            memory[id(tensor)] = nn.Parameter(empty, trained) if isinstance(tensor, nn.Parameter) else empty
    if not memory:
        return
    faults = [name for name, tensor in named if tensor.is_meta and id(tensor) not in has_values]
    faults += [
        f"{prefix}.{key}".lstrip(".")
        for prefix, module in model.named_modules()
        for key, value in attributes_of(module)
        for leaf in tree_leaves(value)
        if isinstance(leaf, torch.Tensor) and leaf.is_meta and not (leaf is value and id(leaf) in memory)
    ]
    if faults:
        listed = ", ".join([*faults[:MOST_NAMES], *["…"] * (len(faults) > MOST_NAMES)])
        raise CheckpointError(
            f"the model is on the meta device, and the folder has no values for {listed}, which its constructor "
            "computes; build the model off the meta device"
        )
    for module in model.modules():
        for holder in (module._parameters, module._buffers, module.__dict__):
            tensors = cast("dict[str, Any]", holder)
            for key, value in tensors.items():
                if isinstance(value, torch.Tensor) and value.is_meta:
                    tensors[key] = memory[id(value)]
