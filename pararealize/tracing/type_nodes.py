"""Element types that a graph reads from tensors, so that it follows ``.to(bfloat16)`` where the network does.

One of the two recordings runs in another element type. An argument that is a type, or a number that belongs to one
(``torch.finfo(q.dtype).min``), and that differs between the two, is read from the tensor that the model read it from.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from pararealize.errors import CaptureError, GuardError

__all__ = [
    "dtype_of",
    "finfo_of",
    "fix_type",
    "limit_of",
    "of_type",
    "other_type",
    "parameter_of_type",
    "reads_no_value",
    "source_of_type",
    "types_of",
]

_LIMITS = ("min", "max", "eps", "tiny", "resolution")


def dtype_of(tensor: torch.Tensor) -> torch.dtype:
    """The element type of a tensor; within a piece of a network, of one that has the same type wherever it is used."""
    return tensor.dtype


def finfo_of(tensor: torch.Tensor, limit: str) -> float:
    """A number that belongs to the element type of a tensor: the smallest, the largest …, by its name."""
    number: float = getattr(torch.finfo(tensor.dtype), limit)
    return number


def of_type(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The value itself, which has the element type that the network was recorded in.

    Raises:
        GuardError: it has another one.
    """
    if value.dtype != dtype:
        raise GuardError(
            f"the network was recorded in {dtype}, the model does something else in other element types, and its "
            f"values are {value.dtype} now; convert the model in that type",
            (f"dtype == {dtype}",),
        )
    return value


def fix_type(graph: fx.Graph) -> None:
    """Have a graph check the element type of the first value that it computes with parameters."""
    for node in graph.nodes:
        value = node.meta.get("val")
        computes = node.op.startswith("call") and node.meta.get("trainable")
        if computes and isinstance(value, torch.Tensor) and value.is_floating_point():
            with graph.inserting_after(node):
                typed = graph.call_function(of_type, (node, value.dtype))
            node.replace_all_uses_with(typed, delete_user_cb=lambda user, typed=typed: user is not typed)
            typed.meta.update(node.meta)
            return


def reads_no_value(node: fx.Node) -> bool:
    """Whether a call reads the type of its tensor and none of its values."""
    return node.target in (dtype_of, finfo_of)


def other_type(dtypes: set[torch.dtype]) -> torch.dtype:
    """An element type that is none of these."""
    return next(dtype for dtype in (torch.bfloat16, torch.float32, torch.float64, torch.float16) if dtype not in dtypes)


def limit_of(number: Any, dtype: torch.dtype, other_number: Any, other: torch.dtype) -> str | None:
    """What numbers of two types both are of their types; ``None`` where they are nothing that is known."""
    infos = torch.finfo(dtype), torch.finfo(other)
    pairs = ((limit, *(getattr(info, limit) for info in infos)) for limit in _LIMITS)
    return next((limit for limit, a, b in pairs if (a, b) == (number, other_number)), None)


def source_of_type(node: fx.Node, dtype: torch.dtype, other: torch.dtype) -> fx.Node | None:
    """The tensor to read a type from that is another one in either recording.

    It is the one whose type the model read last, where it is of these types; else one that the call reads anyway.
    """
    candidates = (node.meta.get("types", {}).get(dtype), *node.all_input_nodes)
    return next((source for source in candidates if source is not None and types_of(source) == (dtype, other)), None)


def parameter_of_type(node: fx.Node) -> str:
    """The qualified name of a parameter or buffer that a value is computed from, the nearest of its type.

    Raises:
        CaptureError: it is computed from none.
    """
    module = node.graph.owning_module
    dtype = node.meta["val"].dtype
    queue, seen = [node], {node}
    while queue and module is not None:
        each = queue.pop(0)
        if each.op == "get_attr" and types_of(each)[0] == dtype:
            return str(each.target)
        if each.op == "call_module":
            for name, parameter in module.get_submodule(str(each.target)).named_parameters():
                if parameter.dtype == dtype:
                    return f"{each.target}.{name}"
        arguments = [argument for argument in each.all_input_nodes if argument not in seen]
        seen.update(arguments)
        queue += arguments
    raise CaptureError(
        f"the element type of {node.name} is read where neither it nor a parameter of its type is at hand; read it "
        "from a tensor that the block itself is called with"
    )


def types_of(node: fx.Node) -> tuple[Any, Any]:
    """The element types of a value in either recording."""
    return getattr(node.meta.get("val"), "dtype", None), getattr(node.meta.get("other"), "dtype", None)
