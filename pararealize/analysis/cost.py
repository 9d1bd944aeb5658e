"""BlockChain -> Costs: operations and bytes of every block, counted on shapes; or seconds, measured.

Convolutions and matrix products are counted as ``torch.utils.flop_counter`` does (a multiply-add is two operations).
Everything else moves memory rather than computes, and small convolutions do too. So each element that an operation
writes, views left out, is charged ``PER_ELEMENT`` operations, those that a processor could have done while it reads and
writes one: eight bytes at some twelve operations a byte. *Work* is the sum of both, and what a plan adds up. FLOPs
alone would call the paper's coarse unit seventeen bottleneck units of ResNet-1001; measured, it is three on its
authors' GPU and five to twelve on a CPU core. Where that matters, measure: ``cost="seconds"``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import nn
from torch.utils import _pytree as pytree

from pararealize.argument_types import typed_arguments
from pararealize.errors import ModelError, PlanError
from pararealize.random_state import preserve_torch_state
from pararealize.table import aligned

from .blocks import Block, BlockChain, runs
from .counter import count_operations
from .dry_run import StandIn, named_tensors, stand_in_inputs, with_gradient
from .space import Space
from .stopwatch import median_seconds
from .timed_run import TimedRun

__all__ = [
    "PER_ELEMENT",
    "BlockCost",
    "Costs",
    "ModuleSeconds",
    "Split",
    "count_costs",
    "count_module",
    "measure_costs",
    "measure_module",
    "plus",
]

TOGETHER = 8  # interchangeable blocks that are measured as one
PER_ELEMENT = 100  # operations that writing one element is worth
Unit = Literal["flops", "seconds"]
Split: TypeAlias = tuple[float, float]  # forward and backward
InputsOf: TypeAlias = Callable[[StandIn], list[Any]]


class ModuleSeconds(Protocol):
    """Seconds of modules ``(batch, *x.shape), ... -> ...``, forward and backward, as :func:`measure_module` has."""

    def __call__(
        self,
        key: Hashable,
        build: Callable[[], nn.Module],
        x: Space,
        batch: int,
        *,
        first: bool = False,
        inputs: int = 1,
    ) -> Split:
        """Seconds of one call of what ``build`` makes; it makes the same for equal keys."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockCost:
    """What one block costs in one training step.

    Attributes:
        flops_forward: operations of convolutions and matrix products, a multiply-add being two, per sample.
        flops_backward: the same of the backward pass, for the parameters that require a gradient.
        elements_forward: elements that its operations write, views left out, per sample.
        elements_backward: the same of the backward pass; gradients of weights, written once a batch, are left out.
        bytes_activations: bytes of its operations' results, per sample.
        bytes_parameters: bytes of its parameters.
        seconds_forward: measured at the captured batch size; ``None`` where costs were counted.
        seconds_backward: likewise.
    """

    flops_forward: int = 0
    flops_backward: int = 0
    elements_forward: int = 0
    elements_backward: int = 0
    bytes_activations: int = 0
    bytes_parameters: int = 0
    seconds_forward: float | None = None
    seconds_backward: float | None = None

    def plus(self, more: BlockCost, times: int) -> BlockCost:
        """The cost with ``times`` the difference to ``more`` added, field by field; seconds are not extrapolated."""
        fields = [field.name for field in dataclasses.fields(self) if not field.name.startswith("seconds")]
        ours, theirs = ({name: getattr(cost, name) for name in fields} for cost in (self, more))
        return BlockCost(**{name: ours[name] + times * (theirs[name] - ours[name]) for name in fields})

    @property
    def work_forward(self) -> int:
        """Operations of the forward pass of one sample, ``flops + PER_ELEMENT * elements``."""
        return self.flops_forward + PER_ELEMENT * self.elements_forward

    @property
    def work_backward(self) -> int:
        """The same of the backward pass."""
        return self.flops_backward + PER_ELEMENT * self.elements_backward

    @property
    def work(self) -> int:
        """Operations of one training step of one sample, forward and backward."""
        return self.work_forward + self.work_backward

    @property
    def seconds(self) -> float | None:
        """Forward and backward."""
        if self.seconds_forward is None or self.seconds_backward is None:
            return None
        return self.seconds_forward + self.seconds_backward


def plus(*costs: Split) -> Split:
    """The sum of forward costs and that of backward costs."""
    return sum(cost[0] for cost in costs), sum(cost[1] for cost in costs)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """The cost of every block of a chain, in one unit.

    Attributes:
        unit: ``"flops"``, work per sample; or ``"seconds"`` at the captured batch size.
        stem: what comes before the blocks.
        blocks: the blocks, in order.
        head: what comes after the blocks.
        notes: blocks that could not be counted, and what stands for them.
        module_seconds: what says the seconds of modules that a plan adds, where they are predicted; ``None`` where they
            are measured as the blocks were.
    """

    unit: Unit
    stem: BlockCost
    blocks: tuple[BlockCost, ...]
    head: BlockCost
    notes: tuple[str, ...] = ()
    module_seconds: ModuleSeconds | None = dataclasses.field(default=None, repr=False, compare=False)
    _rates: Split = dataclasses.field(init=False, repr=False, compare=False)
    _before: tuple[Split, ...] = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_rates", self._blocks_rates())
        # prefix sums, so that the cost of any run of blocks is one subtraction
        zero: Split = 0, 0
        before = itertools.accumulate(map(self.split, self.blocks), plus, initial=zero)
        object.__setattr__(self, "_before", tuple(before))

    def _blocks_rates(self) -> Split:
        """Seconds an operation of the network's own blocks, forward and backward; 1 where operations are the unit."""
        timed = [block for block in self.blocks if block.seconds is not None]
        if self.unit == "flops" or not timed:
            return 1, 1
        forward = sum(block.seconds_forward or 0 for block in timed) / max(sum(b.work_forward for b in timed), 1)
        backward = sum(block.seconds_backward or 0 for block in timed) / max(sum(b.work_backward for b in timed), 1)
        return forward, backward

    def split(self, cost: BlockCost) -> Split:
        """Forward and backward cost of one training step, in this unit.

        What was only counted costs what its work takes at the rate of the network's own blocks.
        """
        if self.unit == "seconds" and cost.seconds_forward is not None and cost.seconds_backward is not None:
            return cost.seconds_forward, cost.seconds_backward
        return cost.work_forward * self._rates[0], cost.work_backward * self._rates[1]

    def of(self, cost: BlockCost) -> float:
        """The cost of one training step of one block, forward and backward, in this unit."""
        return sum(self.split(cost))

    def step(self, first: int, last: int) -> float:
        """Forward and backward of blocks ``first`` to ``last`` (0-based, inclusive)."""
        return sum(self.split_step(first, last))

    def split_step(self, first: int, last: int) -> Split:
        """The same, forward and backward by themselves."""
        (a, b), (c, d) = self._before[first], self._before[last + 1]
        return c - a, d - b

    @property
    def total(self) -> float:
        """One training step of the whole network."""
        return self.of(self.stem) + sum(self._before[-1]) + self.of(self.head)

    def __str__(self) -> str:
        unit = "work per sample" if self.unit == "flops" else "seconds"
        rows = [("stem", self.stem), *((str(i), cost) for i, cost in enumerate(self.blocks)), ("head", self.head)]
        lines = [("", "flops forward", "backward", "activations", "parameters", unit)]
        for name, c in rows:
            activations, parameters = (f"{size / 1024:.0f} KiB" for size in (c.bytes_activations, c.bytes_parameters))
            flops = f"{c.flops_forward:,}", f"{c.flops_backward:,}"
            lines.append((name, *flops, activations, parameters, f"{self.of(c):.6g}"))
        return aligned(lines, gap=1, least=(6, 14, 14, 12, 12, 15))


@typed_arguments(PlanError)
def count_costs(chain: BlockChain) -> Costs:
    """Count operations and bytes of every block on fake tensors, once for each group of interchangeable blocks.

    Nothing is computed and nothing allocated: it works on the meta device, and takes time in proportion to the number
    of different blocks. Operations are per sample, in the mode that the model is in. A block that does not run on fake
    tensors (its own C++ kernel) is taken as two operations a parameter, and named in ``notes``.

    Example:
        >>> import torch
        >>> from pararealize import capture, find_blocks
        >>> layers = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU()) for _ in range(3)]
        >>> costs = count_costs(find_blocks(capture(torch.nn.Sequential(*layers), torch.randn(4, 8))))
        >>> costs.blocks[1].flops_forward, costs.blocks[1].flops_backward, costs.blocks[1].elements_forward
        (128, 256, 16)
    """
    notes: list[str] = []
    count = partial(_count_block, chain, notes)
    blocks, stem, head = chain.for_each_block(count), count(chain.stem), count(chain.head)
    return Costs(unit="flops", stem=stem, blocks=blocks, head=head, notes=tuple(notes))


def count_module(module: nn.Module, x: Space, *, first: bool = False) -> BlockCost:
    """Count one module ``(batch, *x.shape) -> ...`` on fake tensors, as :func:`count_costs` does blocks.

    Args:
        module: an adapter or a coarse block; on the meta device as well.
        x: the space that it reads.
        first: whether it reads the network's input, into which no gradient flows.
    """
    home = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))

    def inputs(_: StandIn) -> list[Any]:
        value = torch.empty((_SAMPLES, *x.shape), dtype=x.torch_dtype, device=home)  # fake: allocates nothing
        return [with_gradient(value, not first)]

    flops, elements = count_operations(module, inputs)
    return _per_sample(module, flops, elements, _SAMPLES, elements[0] // _SAMPLES * x.torch_dtype.itemsize)


@typed_arguments(PlanError)
def measure_costs(chain: BlockChain, *, batch: int | None = None, repeats: int = 5, warmup: int = 2) -> Costs:
    """Measure forward and backward seconds of every block where the model is, once for interchangeable blocks.

    Interchangeable neighbours are run together, up to eight, and share their seconds equally: one block by itself finds
    everything in the cache, as it does not between its neighbours, and its launches hide behind nothing. All such runs
    take turns; the medians of ``repeats`` rounds after ``warmup`` are taken, on random inputs, in the mode that the
    model is in. Forgetting the gradients of the last step is part of forward, adding up those of this one of backward.
    Parameters and buffers are copied, so values, gradients, running statistics and the random state stay as found; a
    GPU is waited for before and after each run.

    Args:
        chain: the network's blocks.
        batch: samples, 1 or more; as many as were recorded when left out, which are two at least.
        repeats: measured rounds.
        warmup: rounds before those.

    Raises:
        ModelError: the model is on the meta device, where nothing runs; or it takes the recorded batch alone.
        ValueError: of batch norm, which refuses to normalise a single value, at ``batch=1``.
    """
    if batch is not None and batch < 1:
        raise PlanError(f"batch is {batch}; pass 1 or more")
    more = 0 if batch is None else batch - chain.capture.batch
    if more and chain.capture.fixed_batch:
        raise ModelError(f"the model takes {chain.capture.batch} samples alone, and cannot be measured at {batch}")
    if any(parameter.is_meta for parameter in chain.capture.model.parameters()):
        raise ModelError(
            'cost="seconds" runs the model, but its parameters are on the meta device; pass cost="flops", or give it '
            "memory first with model.to_empty(device=...)"
        )
    counts = count_costs(chain)
    stretches = _measured_runs(chain)
    pieces = {signature: chain.module(*stretch) for signature, stretch in stretches.items()}
    pieces |= {block.name: chain.piece(block) for block in (chain.stem, chain.head) if block.nodes}
    inputs = (partial(stand_in_inputs, piece, first=name == "stem", more=more) for name, piece in pieces.items())
    calls = list(zip(pieces.values(), inputs, strict=True))
    seconds = dict(zip(pieces, _seconds(calls, repeats, warmup), strict=True))

    def measured(key: str, cost: BlockCost) -> BlockCost:
        forward, backward = seconds.get(key, (0.0, 0.0))
        first, last = stretches.get(key, (0, 0))
        alike = last - first + 1
        return dataclasses.replace(cost, seconds_forward=forward / alike, seconds_backward=backward / alike)

    signatures = [block.exact_signature for block in chain.blocks]
    blocks = tuple(map(measured, signatures, counts.blocks))
    stem, head = measured("stem", counts.stem), measured("head", counts.head)
    return dataclasses.replace(counts, unit="seconds", stem=stem, blocks=blocks, head=head)


def measure_module(
    module: nn.Module,
    x: Space,
    batch: int,
    *,
    first: bool = False,
    inputs: int = 1,
    repeats: int = 5,
    warmup: int = 2,
) -> Split:
    """Forward and backward seconds of one module ``(batch, *x.shape) -> ...``, as :func:`measure_costs` does blocks.

    Args:
        module: an adapter or a coarse block, where it is to run.
        x: the space that it reads.
        batch: the batch size.
        first: whether it reads the network's input, into which no gradient flows.
        inputs: how many values of that space it reads.
        repeats: measured runs.
        warmup: runs before those.
    """
    home = next((parameter.device for parameter in module.parameters()), torch.get_default_device())

    def values(_: StandIn) -> list[Any]:
        drawn = (torch.randn(batch, *x.shape, device=home).to(x.torch_dtype) for _ in range(inputs))
        return [with_gradient(value, not first) for value in drawn]

    [seconds] = _seconds([(module, values)], repeats, warmup)
    return seconds


# Counting -----------------------------------------------------------------------------------------------------------

_SAMPLES = 2  # batch norm refuses to normalise a single value


def _count_block(chain: BlockChain, notes: list[str], block: Block) -> BlockCost:
    """The cost of a block per sample; one that does not run on fake tensors is estimated, with a note."""
    if not block.nodes:
        return BlockCost()
    piece, batch = chain.piece(block), max(chain.capture.batch, 1)
    results = [
        leaf
        for node in block.nodes
        for leaf in pytree.tree_leaves(node.meta.get("val"))
        if isinstance(leaf, torch.Tensor) and node.op.startswith("call")
    ]
    try:
        flops, elements = count_operations(piece, lambda fake: stand_in_inputs(piece, fake, first=block is chain.stem))
    except (RuntimeError, TypeError, ValueError) as error:
        written = sum(leaf.numel() for leaf in results)
        flops, elements = (2 * block.parameters * batch, 4 * block.parameters * batch), (written, 2 * written)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        notes.append(f"{block.name} cannot be counted ({reason}); taken as 2 operations a parameter")
    elements = max(batch, elements[0]), elements[1]
    size = sum(leaf.numel() * leaf.element_size() for leaf in results)
    return _per_sample(piece, flops, elements, batch, size // batch)


def _per_sample(
    module: nn.Module, flops: tuple[int, int], elements: tuple[int, int], samples: int, bytes_activations: int
) -> BlockCost:
    return BlockCost(
        flops_forward=round(flops[0] / samples),
        flops_backward=round(flops[1] / samples),
        elements_forward=elements[0] // samples,
        elements_backward=elements[1] // samples,
        bytes_activations=bytes_activations,
        bytes_parameters=sum(p.numel() * p.element_size() for p in module.parameters()),
    )


# Measuring ----------------------------------------------------------------------------------------------------------


def _measured_runs(chain: BlockChain) -> dict[str, tuple[int, int]]:
    """The first and the last of the blocks to be run together, for each kind of interchangeable blocks."""
    longest: dict[str, tuple[int, int]] = {}
    for signature, first, last in runs(block.exact_signature for block in chain.blocks):
        other_first, other_last = longest.get(signature, (0, -1))
        if last - first > other_last - other_first:
            longest[signature] = first, last
    return {signature: (first, min(last, first + TOGETHER - 1)) for signature, (first, last) in longest.items()}


def _seconds(calls: Sequence[tuple[nn.Module, InputsOf]], repeats: int, warmup: int) -> list[Split]:
    """Median seconds of a forward and a backward pass of each module, on copies, in turn."""
    homes = {tensor.device for piece, _ in calls for _, tensor in named_tensors(piece)}
    home = min(homes or {torch.get_default_device()}, key=str)
    with preserve_torch_state([home]), torch.inference_mode(False), torch.enable_grad():

        def value(tensor: torch.Tensor) -> torch.Tensor:
            if not tensor.is_meta and (type(tensor) is torch.Tensor or isinstance(tensor, nn.Parameter)):
                return tensor.clone()
            zeros = torch.zeros(tensor.shape, dtype=tensor.dtype, device=home)  # for a fake: an activation's value
            return zeros.normal_() if zeros.is_floating_point() else zeros

        timed_runs = [TimedRun(piece, inputs(value), value) for piece, inputs in calls]
        medians = median_seconds(timed_runs, home, repeats=repeats, warmup=warmup)
    return [(max(forward, 1e-9), max(backward, 0.0)) for forward, backward in medians]
