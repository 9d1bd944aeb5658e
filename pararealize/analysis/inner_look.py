"""A block that is one opaque call -> what it does inside: which operators it runs, and whether it is x + f(x).

A module that cannot be recorded, or that is named as a leaf, is one node of the captured graph. Its family is seen in
what autograd and the dispatcher see when it runs on fake tensors, which allocates and changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from .blocks import Block, BlockChain
from .dry_run import DryRun, stand_in_inputs

__all__ = ["InnerLook", "look_inside"]

# what leads a value on as it is, and the ReLU of a post-activation block
_SAME = ("Clone", "Alias", "View", "UnsafeView", "Reshape", "ToCopy", "Contiguous", "Relu")


@dataclass(frozen=True, slots=True, kw_only=True)
class InnerLook:
    """What a block does when it runs.

    Attributes:
        operators: names of ATen's operators, such as ``"convolution"``.
        is_residual: whether what it gives is x + f(x), relu(x + f(x)), or several of these in a row.
    """

    operators: frozenset[str]
    is_residual: bool


def look_inside(chain: BlockChain, block: Block) -> InnerLook | None:
    """Run a block on fake tensors, in the mode that its modules are in; ``None`` where it does not run on them.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> from pararealize.models import resnet20
        >>> chain = find_blocks(capture(resnet20(), torch.randn(2, 3, 32, 32)))
        >>> [look_inside(chain, block).is_residual for block in chain.blocks[2:5]]  # the middle one has a projection
        [True, False, True]
    """
    piece = chain.piece(block)
    with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)

        try:
            run = DryRun(piece, stand_in_inputs(piece, fake, first=False), fake)
            with _Operators() as seen:
                outputs = run.forward()
        except (RuntimeError, TypeError, ValueError):  # fake tensors have no values, some modules read them
            return None
        x = run.inputs[0] if run.inputs else None
        is_residual = bool(outputs) and isinstance(x, torch.Tensor) and _leads_back(outputs[0].grad_fn, x)
    return InnerLook(operators=frozenset(seen.names), is_residual=is_residual)


class _Operators(TorchDispatchMode):
    """The names of operators, overloads left out."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


def _leads_back(node: Any, x: torch.Tensor, sums: int = 0) -> bool:
    """Whether sums alone, at least one, lead from a value back to x, along one of their operands each."""
    while node is not None and type(node).__name__.removesuffix("0").removesuffix("Backward") in _SAME:
        node = node.next_functions[0][0]
    if node is None:
        return False
    if getattr(node, "variable", None) is x:
        return sums > 0
    if not type(node).__name__.startswith("AddBackward"):
        return False
    return any(_leads_back(operand, x, sums + 1) for operand, _ in node.next_functions)
