"""Calls that ask autograd about a tensor, or tell it something -> an answer that always holds, or a refusal.

Whether a value requires a gradient depends on how the network is called: under ``no_grad``, none does. A recording can
answer only where it is no in every call. A hook on a tensor, and a backward pass within the forward, are Python that no
graph of the forward holds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import fx, nn

from .node_table import NodeTable, UnreadableError
from .regions import leaves_gradients

__all__ = ["AutogradCalls"]

_READS = ("requires_grad", "grad_fn", "is_leaf", "retains_grad", "grad")  # attributes of a tensor
_HOOKS = ("register_hook", "register_post_accumulate_grad_hook", "retain_grad")
_PASSES = (torch.Tensor.backward, torch.autograd.grad, torch.autograd.backward)
_CHANGES = ("requires_grad_", "detach_")
_TORCH = f"{Path(torch.__file__).parent}/"


class AutogradCalls:
    """Answers or refuses what a forward pass asks autograd and tells it.

    Args:
        table: which node each tensor is the value of.
        model: the copy of the model that is recorded.
        real: from the ``id`` of its fake parameters and buffers to the real ones.
    """

    def __init__(self, table: NodeTable, model: nn.Module, real: dict[int, torch.Tensor]) -> None:
        self._table, self._model, self._real = table, model, real

    def answer(self, func: Callable[..., Any], args: tuple[Any, ...], frame: FrameType) -> tuple[Any] | None:
        """The answer to a call, in a tuple; ``None`` where the call is none of these.

        Raises:
            UnreadableError: there is no answer that holds in every call.
        """
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            attribute = func.__self__.__name__  # type: ignore[attr-defined]
            if attribute in _READS and not frame.f_code.co_filename.startswith(_TORCH):
                return self._attribute(attribute, args[0], is_read=name == "__get__")
        elif name in _HOOKS and getattr(torch.Tensor, name, None) is func:
            raise UnreadableError(f"it calls {name} on a tensor, whose hook runs in the backward pass")
        elif func in _PASSES:
            raise UnreadableError(f"it computes gradients within its forward ({name})")
        elif name in _CHANGES:
            raise UnreadableError(f"it calls {name} on a tensor, which a graph of values does not show")
        return None

    def _attribute(self, name: str, tensor: torch.Tensor, *, is_read: bool) -> tuple[Any]:
        if not is_read:
            raise UnreadableError(f"it sets {name} of a tensor, which a graph of values does not show")
        parameter = self._real.get(id(tensor))
        if name == "grad":
            raise UnreadableError("it reads the gradient of a tensor")
        if parameter is not None and name in ("requires_grad", "is_leaf"):
            return (getattr(parameter, name),)
        if self._may_require_gradient(self._table.node(tensor)):
            raise UnreadableError(f"it reads {name} of a tensor, which depends on how the network is called")
        return ({"requires_grad": False, "grad_fn": None, "is_leaf": True, "retains_grad": False}[name],)

    def _may_require_gradient(self, node: fx.Node) -> bool:
        """Whether a value may require a gradient in some call, as far back as gradients flow."""
        stack, seen = [node], {node}
        while stack:
            node = stack.pop()
            value = node.meta.get("val")
            is_integer = isinstance(value, torch.Tensor) and not (value.is_floating_point() or value.is_complex())
            if is_integer or not leaves_gradients(node.meta.get("region") or ()) or _detaches(node):
                continue
            if node.op == "placeholder" or (node.op == "get_attr" and self._is_trained(value)):
                return True
            if node.op == "call_module":
                parameters = self._model.get_submodule(str(node.target)).parameters()
                if any(map(self._is_trained, parameters)):
                    return True
            sources = [source for source in node.all_input_nodes if source not in seen]
            stack += sources
            seen.update(sources)
        return False

    def _is_trained(self, tensor: Any) -> bool:
        real = self._real.get(id(tensor), tensor)
        return bool(getattr(real, "requires_grad", False))


def _detaches(node: fx.Node) -> bool:
    return node.target in ("detach", torch.detach) or (node.target is getattr and bool(node.args[1] == "data"))
