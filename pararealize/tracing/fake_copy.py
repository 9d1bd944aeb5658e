"""A model -> the copy that a recording runs on: the same modules and Python state, parameters and buffers on fakes.

The user's model is only read, so that another thread may use it meanwhile.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from .leaves import Leaves
from .model_twin import plain_tensors, twin_of

__all__ = ["FakeCopy", "copy_on_fakes"]

_NO_FAST_PATH = nn.MultiheadAttention | nn.TransformerEncoderLayer


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FakeCopy:
    """The copy of a model that a recording runs on.

    Attributes:
        model: the copy.
        leaves: what calls its leaf modules, and knows the real tensor of every fake one.
        attributes: qualified names of parameters and buffers by the ``id`` of the fake tensor, and of the real one: a
            closure of the user's may hold the model itself.
        constants: copies, no fakes, of tensors that submodules hold as plain attributes, by qualified name, where that
            can be a buffer's name.
    """

    model: nn.Module
    leaves: Leaves
    attributes: dict[int, tuple[torch.Tensor, str]]
    constants: dict[str, torch.Tensor]

    @contextlib.contextmanager
    def cast(self, dtype: torch.dtype | None) -> Iterator[None]:
        """Within it, parameters and buffers of a floating-point type have this one; nothing changes without one."""
        before: list[tuple[dict[str, Any], str, torch.Tensor]] = []
        others: dict[int, torch.Tensor] = {}
        for module in self.model.modules() if dtype is not None else ():
            for tensors in (module.__dict__["_parameters"], module.__dict__["_buffers"]):
                for name, tensor in tensors.items():
                    if tensor is None or not tensor.is_floating_point():
                        continue
                    if id(tensor) not in others:
                        others[id(tensor)] = other = self.leaves.fake(
                            tensor, requires_grad=tensor.requires_grad, dtype=dtype
                        )
                        self.attributes[id(other)] = other, self.attributes[id(tensor)][1]
                        self.leaves.real[id(other)] = self.leaves.real[id(tensor)]
                    before.append((tensors, name, tensor))
        for tensors, name, tensor in before:
            tensors[name] = others[id(tensor)]
        try:
            yield
        finally:
            for tensors, name, tensor in before:
                tensors[name] = tensor


def copy_on_fakes(model: nn.Module) -> FakeCopy:
    """Copy a model, with fake tensors in place of its parameters and buffers; tied ones become one fake tensor."""
    # Tensors that a model keeps as plain attributes stay real, and calls on them and on fake ones are allowed.
    leaves = Leaves(FakeTensorMode(allow_non_fake_inputs=True))
    memo: dict[int, Any] = {}
    attributes: dict[int, tuple[torch.Tensor, str]] = {}
    constants: dict[str, torch.Tensor] = {}
    modules = dict(model.named_modules())
    for path, module in modules.items():
        prefix = f"{path}." if path else ""
        # torch's fused attention gives another tuple; it is not taken where a parameter requires a gradient
        graded = isinstance(module, _NO_FAST_PATH) or any(isinstance(m, _NO_FAST_PATH) for m in module.children())
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and id(tensor) not in memo:
                    fake = memo[id(tensor)] = leaves.fake(
                        tensor, requires_grad=graded and tensors is module._parameters
                    )
                    leaves.real[id(fake)] = tensor
                    attributes[id(fake)] = fake, prefix + name
                    attributes[id(tensor)] = tensor, prefix + name
        for name, value in vars(module).items():
            for tensor in plain_tensors(value):
                if id(tensor) not in memo:  # a forward may change it
                    copied = memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
                    leaves.real[id(copied)] = tensor
            # what a class has under the same name would hide a buffer; the root will be of another class
            if isinstance(value, torch.Tensor) and path and not hasattr(type(module), name):
                constants.setdefault(prefix + name, memo[id(value)])
    twin = twin_of(model, memo)
    return FakeCopy(model=twin, leaves=leaves, attributes=attributes, constants=constants)
