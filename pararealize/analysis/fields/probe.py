"""A block -> how far before and behind its own position it reads along each axis, by trying a copy of it out.

For some positions t, the values from t on are changed, and the outputs looked at that stand before; and the other way
round. Weights are those of the model, disturbed, so that a layer that starts at zero hides nothing; what is zero among
other values stays so, since a mask may have made it. Changes are compared with the largest one: what is smaller by five
digits is rounding, as of a Fourier transform.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.space import Space
from pararealize.random_source import RandomSource
from pararealize.random_state import generator
from pararealize.restore import ordinary_mode
from pararealize.tracing.extraction import subgraph
from pararealize.tracing.model_twin import real_twin
from pararealize.tracing.module_view import Piece

from .reach import Number

__all__ = ["Probe", "ReachTrial", "UnprobedError", "try_out"]

ROUNDING = 1e-5  # of the largest change
BATCH = 2
ALL = 16  # axes up to so long are tried at every position
SCALE = 3.0  # standard deviation of the changed values, where the others have 1


class UnprobedError(Exception):
    """A block cannot be tried out; says why."""


class ReachTrial(NamedTuple):
    """What was seen of a block.

    Attributes:
        axes: along each, (stride, positions behind, positions ahead) that are read, see
            :class:`~pararealize.analysis.fields.dependency.Dependency`.
        raster: whether two axes are read in reading order.
        ordered_channels: whether one side alone is read along the channels.
    """

    axes: tuple[tuple[Number, Number, Number], ...]
    raster: bool
    ordered_channels: bool


def try_out(module: nn.Module, x: Space, y: Space, *, batch: int = BATCH, context: Sequence[Any] = ()) -> ReachTrial:
    """How far a module from one space to another reads, along each of equally many axes.

    Args:
        module: called ``module(x, *context)``; a copy of it runs, in eval mode.
        x: the space of its input.
        y: the space of its output.
        batch: how many samples it is tried out on.
        context: what it reads besides.

    Raises:
        UnprobedError: it cannot be copied, or does not run on random values.
    """
    with _trial():
        run = _Run(_disturbed(copy.deepcopy(module)), x, batch, list(context))
        axes, ends = _axes(x), _axes(y)
        alike = len(axes) == len(ends)
        trials = tuple(run.axis(a, b) for a, b in zip(axes, ends, strict=True)) if alike else ()
        raster = run.raster(trials, axes, ends)
        ordered = run.ordered([x.channel] if alike else range(len(x.shape)), [y.channel])
    if raster is not None:
        trials = ((1, max(x.extent), raster),) * 2
    return ReachTrial(trials, raster is not None, ordered)


@contextlib.contextmanager
def _trial() -> Iterator[None]:
    """Without gradients, and whatever a module raises as an UnprobedError."""
    with ordinary_mode(), torch.no_grad():
        try:
            yield
        except Exception as error:
            lines = str(error).splitlines() or [type(error).__name__]
            raise UnprobedError(f"it does not run on random values ({lines[0]})") from error


def _axes(space: Space) -> list[int]:
    return [d for d in range(len(space.shape)) if d != space.channel]


def _disturbed(module: nn.Module) -> nn.Module:
    """The module in eval mode, its weights a little other than they were, in place."""
    for part in module.modules():
        part.training = False
    for parameter in module.parameters():
        if parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=generator("disturbed")).to(parameter)
            if parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
                parameter.add_(noise, alpha=0.1)
            else:
                parameter.mul_(1 + 0.1 * noise)
    return module


class Probe:
    """Tries out blocks of a chain; what they read besides is computed once, from the example."""

    def __init__(self, chain: BlockChain) -> None:
        self.chain = chain
        self.batch = chain.capture.batch if chain.capture.fixed_batch else BATCH
        self._values: dict[fx.Node, Any] = {}

    def measure(self, block: Block) -> ReachTrial:
        """How far a block reads.

        Raises:
            UnprobedError: it is on the meta device, cannot be copied, or does not run on random values.
        """
        context = self.context(block.context)
        return try_out(self.chain.piece(block), block.x, block.y, batch=self.batch, context=context)

    def independent(self, block: Block, pairs: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Those of pairs (axis of the input, axis of the output) along which no position reads another one.

        Raises:
            UnprobedError: as :meth:`measure` does.
        """
        context = self.context(block.context)
        piece = self.chain.piece(block)
        with _trial():
            run = _Run(_disturbed(copy.deepcopy(piece)), block.x, self.batch, context)
            axes = {i: [end for start, end in pairs if start == i] for i, _ in pairs}
            return [(i, j) for i, ends in axes.items() for j in run.independent(i, ends)]

    def context(self, nodes: Sequence[fx.Node]) -> list[Any]:
        """The values of nodes, of a run of the captured network on the example.

        Raises:
            UnprobedError: the model is on the meta device, or does not run.
        """
        chain = self.chain
        if any(tensor.is_meta for tensor in (*chain.capture.model.parameters(), *chain.capture.model.buffers())):
            raise UnprobedError("the model is on the meta device, where nothing runs")
        if not self._values.keys() >= set(nodes):
            every = tuple(dict.fromkeys((*chain.context(0, len(chain.blocks) - 1), *nodes)))
            inputs = list(chain.capture.graph.find_nodes(op="placeholder"))
            values = chain.capture.example.resized(self.batch).values.values()
            with RandomSource(seed=0), ordinary_mode(), torch.no_grad():
                try:
                    graph = subgraph(inputs, every)
                    piece = copy.deepcopy(Piece(chain.capture.model, graph, "Piece", chain.capture.constants))
                    for module in piece.modules():
                        module.training = False
                    self._values = dict(zip(every, piece(*values), strict=True))
                except Exception as error:
                    raise UnprobedError(f"what it reads besides is not known ({type(error).__name__})") from error
        return [self._values[node] for node in nodes]


class _Run:
    """A module with an input, its output, and what changes there when something of the input does."""

    def __init__(self, module: nn.Module, x: Space, batch: int, context: list[Any]) -> None:
        self.module, self.context = module, context
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        if not x.torch_dtype.is_floating_point:
            raise TypeError(f"its input is of {x.dtype}")

        def draw(name: str) -> torch.Tensor:
            return torch.randn(batch, *x.shape, generator=generator("probe", name)).to(device, x.torch_dtype)

        self.x, self.change = draw("x"), SCALE * draw("change")
        self.masked = bool(context) or any(True for _ in module.buffers())
        twin, _ = real_twin(module)
        # what counts its calls, say, gives something else each time, whatever it is called on
        self.changes_itself = not torch.equal(self._call(twin, self.x), self._call(twin, self.x))
        self.y = self.run(self.x)
        self.rank = self.x.ndim

    def run(self, x: torch.Tensor) -> torch.Tensor:
        """The output, in double precision, of the module as it is at first."""
        return self._call(real_twin(self.module)[0] if self.changes_itself else self.module, x)

    def _call(self, module: nn.Module, x: torch.Tensor) -> torch.Tensor:
        context = pytree.tree_map_only(torch.Tensor, torch.clone, self.context)
        with RandomSource(seed=0):  # of this thread alone, the same in each run
            y = module(x.clone(), *context)
        if not isinstance(y, torch.Tensor):
            raise TypeError(f"it gives {type(y).__name__}")
        return y.double()

    def difference(self, mask: torch.Tensor) -> torch.Tensor:
        """Where the output changes when the input does where ``mask`` is."""
        change = (self.run(torch.where(mask, self.x + self.change, self.x)) - self.y).abs()
        change = torch.where(change.isnan(), math.inf, change)
        return change > ROUNDING * change[change.isfinite()].max() if bool(change.any()) else change > 0

    def changes(self, a: int, mask: torch.Tensor) -> torch.Tensor:
        """Where the output changes when the input does at some positions of its axis a."""
        shape = [1] * self.rank
        shape[a + 1] = -1
        return self.difference(mask.view(shape).to(self.x.device))

    def along(self, a: int, b: int, mask: torch.Tensor) -> list[int]:
        """Positions of axis b of the output that change when those of axis a of the input do."""
        return _positions(self.changes(a, mask), b)

    def axis(self, a: int, b: int) -> tuple[Number, Number, Number]:
        """(stride, behind, ahead) from axis a of the input to axis b of the output."""
        size, target = self.x.shape[a + 1], self.y.shape[b + 1]
        stride = _stride(size, target)
        behind: Number | None = None
        ahead: Number | None = None
        places = torch.arange(size)
        for few in (True, False):
            for t in _places(size, few=few):
                later = self.along(a, b, places >= t)
                if later:
                    ahead = max(t - stride * later[0], -size if ahead is None else ahead)
                earlier = self.along(a, b, places < t)
                if earlier:
                    behind = max(stride * earlier[-1] - (t - 1), -size if behind is None else behind)
            if ahead is not None and behind is not None and 2 * min(ahead, behind) >= max(ahead, behind, 2 * stride):
                break  # it sees both sides
        behind, ahead = behind or 0, ahead or 0
        both = min(behind, ahead) > 0 and self.rank == 3 and size == target
        if both and self.masked and self.mostly_behind(a, b):
            return stride, 0, 0  # what reads earlier positions might read one of those that see later ones
        return stride, behind, ahead

    def mostly_behind(self, a: int, b: int) -> bool:
        """Whether at most positions of some sample nothing reads the next one.

        Masks may let a few see everything: those of padding in front of a text, which see nothing else, or a prefix.
        """
        size = self.x.shape[a + 1]
        cuts = sorted({size * k // 8 for k in (1, 3, 4, 5, 7)} - {0})
        hidden = torch.zeros(len(self.x), dtype=torch.int64)
        for t in cuts:
            changed = self.changes(a, torch.arange(size) >= t).any(2 - b)
            hidden += ~changed[:, t - 1].cpu()
        return bool((2 * hidden > len(cuts)).any())

    def raster(
        self, trials: tuple[tuple[Number, Number, Number], ...], axes: list[int], ends: list[int]
    ) -> Number | None:
        """Of a map of two axes that is causal along the first alone, whether it is read row by row.

        Returns ``None`` where it is not; else 0 where its own position is read, -1 where not.
        """
        if len(trials) != 2 or trials[0][2] > 0 or trials[1][2] <= 0 or trials[1][1] <= 0:
            return None
        if self.x.ndim != 4 or any(self.x.shape[a + 1] != self.y.shape[b + 1] for a, b in zip(axes, ends, strict=True)):
            return None
        height, width = (self.x.shape[a + 1] for a in axes)
        order = torch.arange(height * width).view(height, width)
        own = False
        for h, w in {(h, w) for h in (1, height // 2) for w in (1, width // 2, width - 1)}:
            begin = h * width + w
            mask = (order >= begin).unsqueeze(_channel(axes)).unsqueeze(0).to(self.x.device)
            changed = self.difference(mask).any(_channel(ends) + 1).any(0)
            if bool(changed.flatten()[:begin].any()):
                return None
            own = own or bool(changed[h, w])
        return 0 if own else -1

    def ordered(self, axes: Sequence[int], ends: Sequence[int]) -> bool:
        """Whether some of these axes of the input, or of the output, are read in an order: those of the channels."""
        pairs = itertools.product(enumerate(self.x.shape[1:]), enumerate(self.y.shape[1:]))
        return any(
            size == target > 2 and self.in_order(i, j) for (i, size), (j, target) in pairs if i in axes or j in ends
        )

    def in_order(self, i: int, j: int) -> bool:
        """Whether axis i is read from one side by axis j, wherever it is parted; halves alone may be of two values."""
        size = self.x.shape[i + 1]
        places, past, future = torch.arange(size), True, True
        for t in dict.fromkeys((size // 2, size // 3, 2 * size // 3, size - 1, 1)):
            later, earlier = self.along(i, j, places >= t), self.along(i, j, places < t)
            past = past and all(place >= t for place in later)
            future = future and all(place < t for place in earlier)
            if past == future:
                return False
        return True

    def independent(self, i: int, ends: Sequence[int]) -> list[int]:
        """Those of some axes of the output whose positions read no other one of axis i than their own."""
        size = self.x.shape[i + 1]
        places = torch.arange(size)
        read: set[int] = set()
        for t in dict.fromkeys((size // 2, size // 3, 2 * size // 3, size - 1, 1)):
            later, earlier = self.changes(i, places >= t), self.changes(i, places < t)
            behind, before = ({j: _positions(changed, j) for j in ends} for changed in (later, earlier))
            ends = [j for j in ends if all(p >= t for p in behind[j]) and all(p < t for p in before[j])]
            read.update(j for j in ends if behind[j] and before[j])
            if not ends:
                break
        return [j for j in ends if j in read]


def _positions(changed: torch.Tensor, axis: int) -> list[int]:
    """The positions along an axis, counted behind the batch, where anything changed."""
    others = [d for d in range(changed.ndim) if d != axis + 1]
    return [int(i) for i in changed.any(others).nonzero().flatten()]


def _channel(axes: list[int]) -> int:
    """Where the channels stand among three axes, two of which these are."""
    return next(d for d in range(3) if d not in axes)


def _stride(size: int, target: int) -> Number:
    """Input positions from one output position to the next."""
    if target >= size:
        return Fraction(size, target) if target % size == 0 and target > size else 1
    if size % target == 0:
        return size // target
    steps = (s for up in (True, False) for s in range(1, size + 1) if target == (-(-size // s) if up else size // s))
    return next(steps, 1)


def _places(size: int, *, few: bool) -> Iterator[int]:
    """Positions at which an axis is parted: its ends, or more."""
    ends = {1, size - 1}
    if few:
        yield from sorted(t for t in ends if 0 < t < size)
    elif size <= ALL:
        yield from (t for t in range(1, size) if t not in ends)
    else:
        more = {2, 3, 5, size // 4, size // 3, size // 2, size // 2 + 1, 2 * size // 3, size - 5, size - 3, size - 2}
        yield from sorted(t for t in more - ends if 0 < t < size)
