"""BlockChain -> Dependencies: along each axis, how far before and behind its own position every block reads.

From the rules of receptive fields, where these are exact; where a field is global (attention, recurrence, sums along an
axis), where a weight is masked, or where there is no rule, by trying the block out (``probe.py``).

    rule      dense convolutions, constant padding, slices                 start and size of the field
    witness   a dense convolution that reads both sides, nothing shifted   both sides
    probe     everything else                                              what a change of the input changes
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import reduce

from torch import fx

from pararealize.analysis.blocks import Block, BlockChain
from pararealize.analysis.causality import Causality, Sides
from pararealize.analysis.space import Space
from pararealize.errors import FieldError

from .field import field_of_block
from .independence import AxisPath, IndependentAxes, candidates, follow_axes
from .probe import Probe, UnprobedError
from .reach import Number
from .witness import is_doubtful, masks_of, mixes_channels, sees_both_sides

__all__ = ["Dependencies", "Dependency", "PieceDependency", "dependencies"]

UNEVEN = 4  # so many times further on one side than on the other is one-sided: a look-ahead, not a neighbourhood


@dataclass(frozen=True, slots=True)
class Dependency:
    """Along one axis, output position ``o`` reads from ``stride · o - behind`` to ``stride · o + ahead``.

    Infinite where the whole of that side is read; negative where its own position is not read.
    """

    stride: Number
    behind: Number | float
    ahead: Number | float

    def then(self, later: Dependency) -> Dependency:
        """The dependency of this piece followed by ``later``."""
        return Dependency(
            self.stride * later.stride,
            self.stride * later.behind + self.behind,
            self.stride * later.ahead + self.ahead,
        )

    def causality(self, before: int, after: int, *, alone: bool) -> Causality | None:
        """The side that is read, or ``None`` for both.

        Args:
            before: the size of the axis in the input.
            after: its size in the output.
            alone: whether it is the only axis; convolutions without padding shorten a signal at its beginning, so that
                its last position is the present. Of maps with more axes they are taken as neighbourhoods.
        """
        s, behind, ahead = self.stride, self.behind, self.ahead
        within = 0 if s <= 1 else s - 1  # the positions of a frame beside its first
        if ahead <= within or (ahead < math.inf and UNEVEN * ahead <= behind):
            sizes = (before * Fraction(1) / s,) if s <= 1 else (-(-before // s), before // s)
            if after not in sizes:
                return Causality(side="unclear")
            offset = math.ceil(min(ahead, 0))
            backwards = behind > max(-offset, 0) + (1 - s if s < 1 else 0)
            stride = math.ceil(s)
            return Causality(
                side="past" if backwards else "own", offset=offset, stride=stride, frame=s > 1 and ahead >= within
            )
        if s != 1:
            return None
        if before == after and (behind <= 0 or (behind < math.inf and UNEVEN * behind <= ahead)):
            return Causality(side="future", offset=math.floor(max(-behind, 0)))
        if alone and behind <= 0 and ahead == before - after:
            return Causality(side="past", offset=int(ahead))
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class PieceDependency:
    """What one block, or the stem, reads.

    Attributes:
        axes: along each axis of its space; ``None`` where input and output have not equally many.
        raster: whether it reads its axes in reading order, row by row, as masked convolutions on images do.
        ordered_channels: whether it is causal along the axis that counts as that of the channels; where input and
            output have not equally many axes, along any.
        unknown: why that is not known, and only what the rules cover; empty where it is.
    """

    axes: tuple[Dependency, ...] | None
    raster: bool = False
    ordered_channels: bool = False
    unknown: str = ""

    def sides(self, x: Space, y: Space) -> Sides:
        """The sides that it reads, by axis; nothing where input and output have not equally many."""
        if self.axes is None:
            return ()
        alone = len(self.axes) == 1
        rows = zip(self.axes, x.extent, y.extent, strict=True)
        return tuple(axis.causality(before, after, alone=alone) for axis, before, after in rows)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dependencies:
    """What the stem and every block of a chain read, and so what may be read by what stands for them.

    Attributes:
        chain: the network's blocks.
        blocks: of each block.
        stem: of the stem, from the raw input, where adapters can read that.
        independent: the axes along which the network as a whole mixes no positions.
    """

    chain: BlockChain
    blocks: tuple[PieceDependency, ...]
    stem: PieceDependency | None = None
    independent: IndependentAxes = field(default_factory=IndependentAxes)
    _both: dict[int, list[bool]] = field(init=False, repr=False, compare=False)  # by number of axes
    _restrict: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        both: dict[int, list[bool]] = {}
        object.__setattr__(self, "_both", both)
        sides = [(len(x.extent), piece.sides(x, y)) for piece, x, y in self._pieces(0, len(self.blocks))]
        for axes, each in sides:
            before = both.setdefault(axes, [False] * axes)
            both[axes] = [a or side is None for a, side in zip(before, each or (False,) * axes, strict=True)]
        pieces = list(self._pieces(0, len(self.blocks), from_input=True))
        object.__setattr__(self, "_restrict", any(self._restricts(*piece) for piece in pieces))

    def of(self, first: int, stop: int, *, from_input: bool = False) -> Sides:
        """The sides that may be read in the place of blocks ``first`` up to ``stop``, and of the stem where asked for.

        Empty where both sides of every axis may be read. A piece that mixes no positions is bound to its own only in
        networks that nowhere see both sides of that axis, since its neighbours are seen anyway elsewhere, and where
        input and output have the same axes.
        """
        pieces = list(self._pieces(first, stop, from_input=from_input))
        if not pieces:
            return ()
        sides = self._of_pieces(pieces) if self._restrict and pieces[-1][2].extent else ()
        from_input = from_input and self.stem is not None
        return self.independent.bind(sides, pieces[0][1], pieces[-1][2], first, stop, from_input=from_input)

    def _of_pieces(self, pieces: list[tuple[PieceDependency, Space, Space]]) -> Sides:
        """What the pieces of a run read one after the other."""
        x, y = pieces[0][1], pieces[-1][2]
        unclear = (Causality(side="unclear"),) * len(y.extent)
        if any(piece.axes is None or piece.ordered_channels for piece, _, _ in pieces):
            return unclear if any(self._orders(*piece) for piece in pieces) else ()
        run = reduce(_in_a_row, (piece.axes for piece, _, _ in pieces if piece.axes is not None))
        rows = [
            piece.raster or all(side and side.side == "own" for side in piece.sides(a, b)) for piece, a, b in pieces
        ]
        if all(rows) and any(piece.raster for piece, _, _ in pieces):
            reads_own = all(axis.ahead >= 0 for axis in run)
            return (Causality(side="own"),) * len(y.extent) if reads_own else unclear
        return self._binding(PieceDependency(axes=run).sides(x, y))

    def _pieces(
        self, first: int, stop: int, *, from_input: bool = False
    ) -> Iterator[tuple[PieceDependency, Space, Space]]:
        blocks = self.chain.blocks
        if from_input and self.chain.source is not None and self.stem is not None:
            yield self.stem, self.chain.source, blocks[0].x
        for piece, block in zip(self.blocks[first:stop], blocks[first:stop], strict=True):
            yield piece, block.x, block.y

    def _binding(self, sides: Sides) -> Sides:
        """The sides without those of axes that some block sees both sides of, where this piece reads its own alone."""
        both = self._both.get(len(sides), [False] * len(sides))
        binding = tuple(
            None if side is not None and side.side == "own" and anyway else side
            for side, anyway in zip(sides, both, strict=True)
        )
        return binding if any(binding) else ()

    def _restricts(self, piece: PieceDependency, x: Space, y: Space) -> bool:
        """Whether one side of an axis is hidden from a piece."""
        return piece.raster or piece.ordered_channels or any(self._binding(piece.sides(x, y)))

    @staticmethod
    def _orders(piece: PieceDependency, x: Space, y: Space) -> bool:
        """Whether a piece reads some axis from one side."""
        one_sided = any(side is not None and side.side != "own" for side in piece.sides(x, y))
        return one_sided or piece.raster or piece.ordered_channels

    @property
    def notes(self) -> tuple[str, ...]:
        """What is not known."""
        unknown = (*(piece.unknown for piece in self.blocks), self.independent.unknown)
        return tuple(dict.fromkeys(filter(None, unknown)))


def _in_a_row(before: tuple[Dependency, ...], later: tuple[Dependency, ...]) -> tuple[Dependency, ...]:
    return tuple(a.then(b) for a, b in zip(before, later, strict=True))


def dependencies(chain: BlockChain) -> Dependencies:
    """What every block reads along every axis; interchangeable blocks that read alike are looked at once.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pararealize import capture, find_blocks
        >>> units = [nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 4, 3), nn.Tanh()) for _ in range(4)]
        >>> chain = find_blocks(capture(nn.Sequential(*units), torch.randn(2, 4, 16)))
        >>> dependencies(chain).of(0, 2)
        (Causality(side='past', offset=0, stride=1, frame=False),)
    """
    probe = Probe(chain)
    memory: dict[Hashable, PieceDependency] = {}
    blocks = []
    for block in chain.blocks:
        key = block.exact_signature, block.context, block.x, block.y, tuple(masks_of(chain, block))
        if key not in memory:
            memory[key] = _dependency(chain, block, probe)
        blocks.append(memory[key])
    stem = None
    if chain.source is not None and chain.stem.nodes:
        entry = next(node for node in chain.capture.graph.find_nodes(op="placeholder") if node.users)
        stem = _dependency(chain, _stem_block(chain, entry), probe)
    independent = _independent(chain, probe, blocks, stem)
    return Dependencies(chain=chain, blocks=tuple(blocks), stem=stem, independent=independent)


def _stem_block(chain: BlockChain, entry: fx.Node) -> Block:
    """The stem as a block from the raw input."""
    assert chain.source is not None
    return replace(chain.stem, input=entry, x=chain.source)


# Independent axes ---------------------------------------------------------------------------------------------------


def _independent(
    chain: BlockChain, probe: Probe, blocks: list[PieceDependency], stem: PieceDependency | None
) -> IndependentAxes:
    """The network's independent axes, but for those that what is known of the blocks settles."""
    context = dict.fromkeys((*chain.context(0, len(chain.blocks) - 1), *chain.head.context))
    context.pop(chain.blocks[0].input, None)
    pieces = list(zip(blocks, chain.blocks, strict=True))
    origins = {"from_stem": (replace(chain.stem, x=chain.blocks[0].x, context=tuple(context)), pieces)}
    if stem is not None:
        entry, *others = (node for node in chain.capture.graph.find_nodes(op="placeholder") if node.users)
        front = replace(_stem_block(chain, entry), context=tuple(others))
        origins["from_input"] = front, [(stem, front), *pieces]
    paths: dict[str, tuple[AxisPath, ...]] = {}
    for name, (origin, behind) in origins.items():
        axes = [axis for axis in candidates(chain, origin.x) if not _is_settled(chain, axis, behind)]
        try:
            paths[name] = follow_axes(chain, origin, axes, probe) if axes else ()
        except UnprobedError as error:
            unknown = f"whether positions along axis {axes[0] + 1} of {origin.x} stay apart is not known: {error}"
            return IndependentAxes(unknown=unknown)
    return IndependentAxes(from_input=paths.get("from_input", ()), from_stem=paths["from_stem"])


def _is_settled(chain: BlockChain, axis: int, pieces: list[tuple[PieceDependency, Block]]) -> bool:
    """Whether some piece surely mixes the positions of an axis, or all of them are known to read their own alone."""
    for piece, block in pieces:
        if axis == block.x.channel:
            return mixes_channels(chain, block)
        if sees_both_sides(chain, block):
            return True
        if piece.axes is None or piece.unknown:
            return False
        place = axis - (axis > block.x.channel)
        reach, size = piece.axes[place], block.x.shape[axis]
        axis = place + (place >= block.y.channel)
        if [i for i, other in enumerate(block.y.shape) if other == size] != [axis]:
            return False  # it may have become another one
        if reach.behind > 0 or reach.ahead > 0:
            return True
    return True


# One block ----------------------------------------------------------------------------------------------------------


def _dependency(chain: BlockChain, block: Block, probe: Probe) -> PieceDependency:
    """What a block reads: by a witness, by rule, or by trying it out."""
    axes = len(block.x.extent)
    if axes != len(block.y.extent):
        return _of_other_axes(block, probe)
    everything = Dependency(1, math.inf, math.inf)
    if sees_both_sides(chain, block):
        return PieceDependency(axes=(everything,) * axes)
    rules = _by_rule(chain, block)
    if None not in rules and not any(is_doubtful(chain, node) for node in block.nodes):
        return PieceDependency(axes=tuple(rule for rule in rules if rule is not None))
    try:
        trial = probe.measure(block)
    except UnprobedError as error:
        cover = PieceDependency(axes=tuple(rule or everything for rule in rules))
        if None not in cover.sides(block.x, block.y):
            return cover
        return replace(cover, unknown=_unknown(block, error))
    return PieceDependency(
        axes=tuple(Dependency(*axis) for axis in trial.axes),
        raster=trial.raster,
        ordered_channels=trial.ordered_channels,
    )


def _of_other_axes(block: Block, probe: Probe) -> PieceDependency:
    """What a block with more or fewer axes behind it reads: whether it is causal along one that it keeps."""
    if not any(size > 2 for size in {*block.x.shape} & {*block.y.shape}):
        return PieceDependency(axes=None)
    try:
        return PieceDependency(axes=None, ordered_channels=probe.measure(block).ordered_channels)
    except UnprobedError as error:
        return PieceDependency(axes=None, unknown=_unknown(block, error))


def _unknown(block: Block, error: UnprobedError) -> str:
    return f"whether {block.name} ({block.kind}) is causal is not known: {error}"


def _by_rule(chain: BlockChain, block: Block) -> list[Dependency | None]:
    """The dependency along each axis, by the rules of receptive fields; ``None`` where it is global or has no rule."""
    try:
        rule = field_of_block(chain, block)
    except FieldError:
        return [None] * len(block.x.extent)
    return [
        None if size is None else Dependency(stride, -start, start + size - 1)
        for size, stride, start in zip(rule.size, rule.stride, rule.start, strict=True)
    ]
