"""A module or a BlockChain -> every operation of a call: what it computes, reads and writes, forward and backward.

Counted on fake tensors, as ``counter.py`` does; here operation by operation, so that each can be priced by itself. Of
bytes, those that a larger batch makes more (activations) are told from those that it does not (weights, and their
gradients), so that one count serves all batch sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, shape_wrapper

from .blocks import Block, BlockChain
from .counter import FORMULAS
from .dry_run import DryRun, StandIn, stand_in_inputs, with_gradient
from .space import Space

__all__ = ["ChainOperations", "Operation", "PartOperations", "list_chain_operations", "list_module_operations"]

SAMPLES = 2  # batch norm refuses to normalise a single value
_COUNT = {**flop_registry, **{target: shape_wrapper(formula) for target, formula in FORMULAS.items()}}
_CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten._convolution, torch.ops.aten.convolution_backward)
_NO_KERNEL = ("aten::empty", "aten::new_empty", "aten::_local_scalar_dense")  # which allocate, or look at a number


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation.

    Attributes:
        flops: of one sample, a multiply-add being two; 0 for all but convolutions and matrix products.
        bytes_sample: read and written for each sample.
        bytes_fixed: read and written whatever the batch: weights and their gradients.
        kernels: launches.
        kind: the element type, ``"float32"`` and so on; ``"tf32"`` of convolutions in float32, which torch computes in
            that type where the device has it.
    """

    flops: float
    bytes_sample: float
    bytes_fixed: float
    kernels: int
    kind: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PartOperations:
    """All operations of one call of a part of a network.

    Attributes:
        forward: in order.
        backward: likewise.
        bytes_saved: that the forward pass keeps for the backward pass, of one sample.
        bytes_gradients: of the parameters that require a gradient.
        bytes_parameters: of all parameters and buffers.
    """

    forward: tuple[Operation, ...] = ()
    backward: tuple[Operation, ...] = ()
    bytes_saved: float = 0.0
    bytes_gradients: int = 0
    bytes_parameters: int = 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ChainOperations:
    """The operations of stem, blocks and head.

    Attributes:
        stem: what comes before the blocks.
        blocks: in order; interchangeable ones have one value.
        head: what comes after them.
        notes: parts that could not be counted, and what stands for them.
    """

    stem: PartOperations
    blocks: tuple[PartOperations, ...]
    head: PartOperations
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[PartOperations, ...]:
        """All parts in order."""
        return self.stem, *self.blocks, self.head


def list_chain_operations(chain: BlockChain) -> ChainOperations:
    """The operations of every block, listed once for each group of interchangeable blocks. Nothing is computed.

    A block that does not run on fake tensors is taken as one operation each way, of two operations a parameter, and
    named in ``notes``.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(3)]
        >>> listed = list_chain_operations(find_blocks(capture(torch.nn.Sequential(*layers), torch.randn(4, 8))))
        >>> [(operation.flops, operation.kernels) for operation in listed.blocks[1].forward]
        [(128.0, 1), (0.0, 1)]
        >>> listed.blocks[1].bytes_parameters, listed.blocks[1].forward[0].bytes_fixed
        (288, 288.0)
    """
    notes: list[str] = []
    one = partial(_of_block, chain, notes)
    blocks, stem, head = chain.for_each_block(one), one(chain.stem), one(chain.head)
    return ChainOperations(stem=stem, blocks=blocks, head=head, notes=tuple(notes))


def list_module_operations(module: nn.Module, x: Space, *, first: bool = False, inputs: int = 1) -> PartOperations:
    """The operations of a module ``(batch, *x.shape), ... -> ...``.

    Args:
        module: an adapter or a coarse block; on the meta device as well.
        x: the space that it reads.
        first: whether it reads the network's input, into which no gradient flows.
        inputs: how many values of that space it reads.
    """
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def values(_: StandIn) -> list[Any]:
        drawn = (torch.empty((SAMPLES, *x.shape), dtype=x.torch_dtype, device=home) for _ in range(inputs))
        return [with_gradient(value, not first) for value in drawn]

    return _listed(module, values, SAMPLES)


def _of_block(chain: BlockChain, notes: list[str], block: Block) -> PartOperations:
    if not block.nodes:
        return PartOperations()
    piece, batch = chain.piece(block), max(chain.capture.batch, 1)
    try:
        return _listed(piece, lambda fake: stand_in_inputs(piece, fake, first=block is chain.stem), batch)
    except (RuntimeError, TypeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        notes.append(f"{block.name} cannot be counted ({reason}); taken as 2 operations a parameter")
        size = sum(p.numel() * p.element_size() for p in piece.parameters())
        values = float((block.x.numel + block.y.numel) * block.y.torch_dtype.itemsize)
        kind = str(block.y.torch_dtype).removeprefix("torch.")
        once = Operation(flops=2.0 * block.parameters, bytes_sample=values, bytes_fixed=size, kernels=1, kind=kind)
        twice = dataclasses.replace(once, flops=2 * once.flops, bytes_sample=2 * values, bytes_fixed=2 * size)
        return PartOperations(
            forward=(once,), backward=(twice,), bytes_saved=values, bytes_gradients=size, bytes_parameters=size
        )


def _listed(module: nn.Module, inputs: Callable[[StandIn], list[Any]], samples: int) -> PartOperations:
    with torch.inference_mode(False), torch.enable_grad(), FakeTensorMode(allow_non_fake_inputs=True):

        def fake(tensor: torch.Tensor) -> torch.Tensor:
            return torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device=tensor.device)

        dry_run = DryRun(module, inputs(fake), fake)
        weights = {id(tensor): tensor for tensor in dry_run.tensors.values()}.values()
        fixed = {_storage(tensor) for tensor in weights}
        saved: dict[int, Any] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            saved[_storage(tensor)] = tensor.untyped_storage()
            return tensor

        with _Log() as log:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                outputs = dry_run.forward()
            end = len(log.calls)
            gradients = dry_run.backward(outputs)
        # what only reads fixed tensors gives one: a transposed or a cast weight, say
        for call in log.calls[:end]:
            if call.reads and all(_storage(tensor) in fixed for tensor in call.reads):
                fixed |= {_storage(tensor) for tensor in call.writes}
        trained = [leaf for leaf in weights if leaf.requires_grad]
        of_weights = {id(leaf) for leaf in trained}
        fixed |= {
            _storage(gradient)
            for leaf, gradient in zip(dry_run.leaves, gradients, strict=bool(gradients))
            if gradient is not None and id(leaf) in of_weights
        }
        listed = [call.priced(fixed, samples) for call in log.calls]
        return PartOperations(
            forward=tuple(listed[:end]),
            backward=tuple(listed[end + len(outputs) * bool(gradients) :]),  # behind the ones that it begins with
            bytes_saved=sum(memory.nbytes() for key, memory in saved.items() if key not in fixed) / samples,
            bytes_gradients=sum(map(_bytes, trained)),
            bytes_parameters=sum(map(_bytes, weights)),
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _RanOperation:
    """One operation, with the tensors that it reads and writes, which stay alive: storages are told by address."""

    flops: int
    kernels: int
    kind: str
    reads: tuple[torch.Tensor, ...]
    writes: tuple[torch.Tensor, ...]

    def priced(self, fixed: set[int], samples: int) -> Operation:
        tensors = [*self.reads, *self.writes]
        constant = sum(_bytes(tensor) for tensor in tensors if _storage(tensor) in fixed)
        growing = sum(map(_bytes, tensors)) - constant
        return Operation(
            flops=self.flops / samples,
            bytes_sample=growing / samples,
            bytes_fixed=float(constant),
            kernels=self.kernels,
            kind=self.kind,
        )


class _Log(TorchDispatchMode):
    """Every operation that writes something: those that give views alone launch nothing."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[_RanOperation] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        values = result if len(returns) > 1 else (result,)
        writes = [
            tensor
            for declared, value in zip(returns, values, strict=False)
            if declared.alias_info is None or declared.alias_info.is_write
            for tensor in _tensors(value)
        ]
        if writes and not func._schema.name.startswith(_NO_KERNEL):
            packet = func._overloadpacket
            formula = _COUNT.get(packet)
            flops = 0 if formula is None else int(formula(*args, **(kwargs or {}), out_val=result))
            self.calls.append(
                _RanOperation(
                    flops=flops,
                    kernels=sum(map(bool, args[-1][:2])) if packet is torch.ops.aten.convolution_backward else 1,
                    kind=_kind(packet, writes),
                    reads=tuple({id(tensor): tensor for tensor in _tensors((args, kwargs))}.values()),
                    writes=tuple(writes),
                )
            )
        return result


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    return (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor))


def _kind(packet: Any, writes: Iterable[torch.Tensor]) -> str:
    dtype = next((tensor.dtype for tensor in writes if tensor.is_floating_point()), torch.float32)
    if dtype is torch.float32 and packet in _CONVOLUTIONS:
        return "tf32"
    return str(dtype).removeprefix("torch.")


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: torch.Tensor) -> int:
    """Of what is looked at: an expanded tensor is as large as what it repeats."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
