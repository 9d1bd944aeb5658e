"""A trained model, batches -> its values at every block's ends, and its blocks as functions from any of them on.

The model is converted with one segment a window and a window a block, which is the model itself, block by block; masks,
tables and what else blocks read besides are where its equation has them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, fx

from pararealize.calibration.batch import check_finite, inputs_of
from pararealize.calibration.masks import AUTO, MaskChoice, mask_of, unmasked
from pararealize.calibration.output_kind import named_leaves, position_outputs
from pararealize.errors import CalibrationError
from pararealize.network.module import PararealModule
from pararealize.network.parts import Index, read_equation
from pararealize.plan.spec import SegmentPlan
from pararealize.tracing.call_signature import CallSignature

__all__ = ["BatchValues", "BlockByBlock", "Say", "network_output", "output_error", "same_spaces"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BatchValues:
    """One batch's values in the original.

    Attributes:
        ends: u_0, what the first block reads, and u_i, what block i (from 1) gives.
        context: what each block reads besides, and the head behind the last one.
        output: the original's output.
        mask: which positions count; None where all do.
    """

    ends: tuple[Tensor, ...]
    context: tuple[tuple[Any, ...], ...]
    output: Any
    mask: Tensor | None = None


class BlockByBlock:
    """A network of one block a window, called block by block.

    Args:
        net: what ``pararealize(model, 1, windows=blocks)`` gives, in eval mode.
        mask: which positions of a batch count, as :func:`~pararealize.calibrate` has it.

    Attributes:
        rows: the plan's row of each block.
        by_position: the tensors of the output with one number a position, known from the first batch with a mask on.
    """

    def __init__(self, net: PararealModule, mask: MaskChoice = AUTO) -> None:
        self.net, self.rows, self.mask = net, tuple(net.plan.segments), mask
        if any(row.blocks != 1 for row in self.rows):
            raise CalibrationError("some windows have several blocks; convert with windows = the number of blocks")
        self.by_position: frozenset[Any] | None = None
        self._nodes = read_equation(net.graph)
        self._indices: list[Index] = [row.index for row in self.rows]

    @property
    def names(self) -> list[str]:
        """The blocks' names."""
        return [row.first_block for row in self.rows]

    def values(self, batch: Any, number: int = 1) -> BatchValues:
        """Run the original on a batch.

        Raises:
            CalibrationError: an activation is not finite; says in which batch, by its ``number``.
        """
        nodes = self._nodes
        env, output = _run(self.net, batch, keep=True)
        first = env[nodes.x[self._indices[0]]]
        ends = (first, *(env[nodes.y[index]] for index in self._indices))
        call = CallSignature.of_graph(self.net.graph)
        mask = mask_of(batch, self.mask, first, self.rows[0].x.channel + 1, call)
        for place, end in zip(("the stem", *(f"block {name}" for name in self.names)), ends, strict=True):
            check_finite(unmasked(end, mask), f"the output of {place}", number)
        names = [*(row.name for row in self.rows), "head"]
        context = tuple(tuple(env[read] for read in nodes.context_of(name)) for name in names)
        if mask is not None and self.by_position is None:
            self.by_position = position_outputs(self.net, (ends[-1], *context[-1]), output)
        return BatchValues(ends=ends, context=context, output=output, mask=mask)

    @torch.no_grad()
    def run(self, values: BatchValues, u: Tensor, first: int, stop: int) -> Tensor:
        """What blocks ``first`` to ``stop`` - 1 make of a value."""
        for i in range(first, stop):
            u = self.net.segments[self.rows[i].name](u.clone(), *values.context[i])
        return u

    @torch.no_grad()
    def output(self, values: BatchValues, u: Tensor, first: int) -> Any:
        """The network's output where block ``first`` reads this value."""
        return self.net.head(self.run(values, u, first, len(self.rows)).clone(), *values.context[-1])


def network_output(net: PararealModule, batch: Any) -> Any:
    """What a network gives for a batch as :func:`~pararealize.calibrate` takes it: inputs, with labels or without."""
    return _run(net, batch)[1]


@torch.no_grad()
def _run(net: PararealModule, batch: Any, *, keep: bool = False) -> tuple[dict[fx.Node, Any], Any]:
    """What parts of a network's equation give, ``keep`` as it was before a reader wrote into it; and its output."""
    run = fx.Interpreter(net, garbage_collect_values=False)
    tensors = inputs_of(batch, CallSignature.of_graph(net.graph))
    net.call_conditions.check_tensors(tensors)
    home, env = next(net.parameters()).device, run.env
    env.update((node, tensors[name].to(home)) for name, node in CallSignature.tensor_nodes(net.graph).items())
    found: dict[fx.Node, Any] = {}
    for node in net.graph.nodes:
        if not CallSignature.begins(node) and node.op != "output":
            value = env[node] = run.run_node(node)
            found[node] = value.clone() if keep and isinstance(value, Tensor) else value
    return env | found, fx.map_arg(net.graph.output_node().args[0], env.__getitem__)


def output_error(
    pairs: Iterable[tuple[Any, Any]],
    masks: Iterable[Tensor | None] = repeat(None),
    by_position: Collection[Any] | None = None,
) -> float:
    """‖value - true‖ / ‖true‖ over all tensors that can be compared of all outputs; infinite where all true are nought.

    Args:
        pairs: a network's outputs, and what they should be.
        masks: of each pair, which positions count.
        by_position: tensors with one number a position, by the keys that lead to them.

    Raises:
        CalibrationError: a true output is not finite, or nothing counts.
    """
    error = whole = 0.0
    count = 0
    for number, ((value, true), mask) in enumerate(zip(pairs, masks, strict=False), 1):
        for (path, a), (_, b) in zip(named_leaves(value), named_leaves(true), strict=True):
            a, b = (unmasked(of, mask, by_position=path in (by_position or ())) for of in (a, b))
            check_finite(b, "the original's output", number)
            count += b.numel()
            error += (a.double() - b.double()).square().sum().item()
            whole += b.double().square().sum().item()
    if not count:
        raise CalibrationError(
            "nothing is compared: the mask leaves out every position of the batches that errors are measured on, or "
            "the outputs have no floating-point or complex numbers but a loss; pass a mask that is nonzero where there "
            "is something, or mask=None, and a model that returns numbers, such as logits"
        )
    if not error:
        return 0.0
    return math.sqrt(error / whole) if whole else math.inf


def same_spaces(rows: Sequence[SegmentPlan], first: int, stop: int) -> bool:
    """Whether blocks ``first`` to ``stop`` - 1 all keep the space that the first of them reads."""
    return all(row.x == row.y == rows[first].x for row in rows[first:stop])


Say = Callable[[str], None]
