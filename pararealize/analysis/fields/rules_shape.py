"""Receptive-field rules of operations that move dimensions about or mix them: elementwise, norms, products, shapes.

A dimension that an operation keeps as it is follows; one that it splits, merges, contracts or indexes by a tensor is
global from there on, which is the simplest honest cover. Batch norm counts as pointwise, as it is in ``eval()``.
"""

import torch
from torch import fx

from .reach import EVERYWHERE, Call, Interval, Reach, Rule, broadcast, follow, integers, mix, shape_of, slide, union


def pointwise(call: Call) -> Reach:
    """Elementwise with broadcasting: the union of what the operands read."""
    target = shape_of(call.node)
    return union(broadcast(call.reaches[node], shape_of(node), target) for node in call.operands)


def everything(call: Call) -> Reach:
    """Attention, Fourier transforms, opaque modules: every position may read all."""
    return tuple(EVERYWHERE for _ in call.reach)


def reducing(position: int) -> Rule:
    """A sum, mean, norm or maximum whose dimensions stand at ``position``: global along them, the others follow."""

    def rule(call: Call) -> Reach:
        # max(x, y) is torch.maximum by another name, with a constant for y, too
        if len(call.operands) > 1 or isinstance(call.argument(position, "dim"), fx.Node):
            return pointwise(call)
        dims = call.dims(position, "dim", call.node.kwargs.get("axis"))
        others = [d for d in range(call.rank) if d not in dims]
        keeps = len(shape_of(call.node)) == call.rank
        return follow(call.reach, {d: d if keeps else place for place, d in enumerate(others)})

    return rule


def along(position: int, name: str, default: int | None) -> Rule:
    """Softmax, normalise, roll: the result has the same shape and mixes the named dimension."""
    return lambda call: mix(call.reach, call.dims(position, name, default))


def layer_norm(call: Call) -> Reach:
    """Layer and RMS norm mix the last dimensions, as many as their shape has."""
    shape = call.argument(1, "normalized_shape")
    axes = len(shape) if isinstance(shape, (tuple, list)) else 1
    return mix(call.reach, range(call.rank - axes, call.rank))


def space_norm(call: Call) -> Reach:
    """Group and instance norm mix channels and space."""
    return mix(call.reach, range(1, call.rank))


def linear(call: Call) -> Reach:
    """A linear layer mixes the last dimension: the channels of tokens, or the tokens of a transposed map."""
    return mix(call.reach, [call.rank - 1])


def product(first: int) -> Rule:
    """``(..., m, k) @ (..., k, n)``: k is mixed, the rest follows; the factors begin at argument ``first``."""

    def rule(call: Call) -> Reach:
        target = shape_of(call.node)
        parts = []
        for place, argument in enumerate((*call.node.args, *call.node.kwargs.values())[: first + 2]):
            if not isinstance(argument, fx.Node) or argument not in call.reaches:
                continue
            free, contracted = list(shape_of(argument)), (-1 if place == first else -2)
            if len(free) < 2 and place >= first:
                return everything(call)
            reach = call.reaches[argument]
            if place >= first:
                reach = mix(reach, [len(free) + contracted])
                free[contracted] = target[contracted]
            parts.append(broadcast(reach, free, target))
        return union(parts)

    return rule


def attention(call: Call) -> Reach:
    """Scaled dot products mix the keys (dimension -2) and the features; batch and head dimensions follow."""
    parts = []
    for place, name in enumerate(("query", "key", "value")):
        node = call.argument(place, name)
        if node in call.reaches:
            rank = len(shape_of(node))
            parts.append(mix(call.reaches[node], [rank - 1] if name == "query" else [rank - 2, rank - 1]))
    return union(parts) if parts else everything(call)


def reshaping(call: Call) -> Reach:
    """A dimension that keeps its size between the same neighbours follows; one that is split or merged is global."""
    shape, target = shape_of(call.source), shape_of(call.node)
    moves: dict[int, int] = {}
    i = j = 0
    while i < len(shape) and j < len(target):
        a, b, left, right = shape[i], target[j], [i], [j]
        while a != b:
            if a < b:
                i += 1
                a, left = a * shape[i], [*left, i]
            else:
                j += 1
                b, right = b * target[j], [*right, j]
        sources, targets = [d for d in left if shape[d] > 1], [d for d in right if target[d] > 1]
        if len(sources) == len(targets) == 1:
            moves[sources[0]] = targets[0]
        elif not sources and not targets:
            moves[left[0]] = right[0]
        i, j = i + 1, j + 1
    return follow(call.reach, moves)


def permutation(call: Call) -> Reach:
    """The axes go where the permutation puts them."""
    order = integers((*call.node.args[1:], call.node.kwargs.get("dims", ())))
    return follow(call.reach, {d % call.rank: place for place, d in enumerate(order)})


def transposition(call: Call) -> Reach:
    """Two dimensions change places (the last two for ``t`` and ``mT``)."""
    rank = call.rank
    first, second = (call.argument(place, name) for place, name in ((1, "dim0"), (2, "dim1")))
    if not isinstance(first, int):  # t(), or getattr(x, "mT")
        first, second = -2, -1
    moves = {d: d for d in range(rank)}
    moves[first % rank], moves[second % rank] = second % rank, first % rank
    return follow(call.reach, moves)


def moving(call: Call) -> Reach:
    """``movedim``: the remaining dimensions keep their order."""
    targets = call.dims(2, "destination")
    places = dict(zip(call.dims(1, "source"), targets, strict=True))
    free = (d for d in range(call.rank) if d not in targets)
    return follow(call.reach, {d: places[d] if d in places else next(free) for d in range(call.rank)})


def inserting(call: Call) -> Reach:
    """``unsqueeze``, and ``stack`` whose parts all gain the new dimension."""
    rank = call.rank + 1
    dim = int(call.argument(1, "dim", 0)) % rank
    return union(follow(call.reaches[n], {d: d + (d >= dim) for d in range(rank - 1)}) for n in call.operands)


def removing(call: Call) -> Reach:
    """``select`` and ``unbind``: a dimension goes, and with it the positions along it."""
    dim = int(call.argument(1, "dim", 0)) % call.rank
    return follow(call.reach, {d: d - (d > dim) for d in range(call.rank) if d != dim})


def squeezing(call: Call) -> Reach:
    """``squeeze``: dimensions of size 1 go."""
    dims = call.dims(1, "dim")
    others = [d for d, size in enumerate(shape_of(call.source)) if size != 1 or d not in dims]
    return follow(call.reach, {d: place for place, d in enumerate(others)})


def concatenation(call: Call) -> Reach:
    """Over channels the union; over space each part stands further along."""
    dim = int(call.argument(1, "dim", call.node.kwargs.get("axis", 0))) % len(shape_of(call.node))
    place, reaches = 0, []
    for part in call.argument(0, "tensors"):
        if part in call.reaches:
            reaches.append(slide(call.reaches[part], {dim: Interval(1, 1, -place)}))
        place += shape_of(part)[dim]
    return union(reaches)


def narrowing(call: Call) -> Reach:
    """``narrow``: a slice that begins further along."""
    dim, begin = int(call.argument(1, "dim")) % call.rank, call.argument(2, "start")
    return slide(call.reach, {dim: Interval(1, 1, begin) if isinstance(begin, int) else None})


def item(call: Call) -> Reach:
    """Indexing: slices move and stride the interval, an integer or a tensor as index is global along its dimension."""
    source, index = call.argument(0, "input"), call.argument(1, "index")
    if source not in call.reaches:
        return everything(call)
    if not isinstance(source.meta["val"], torch.Tensor):
        return call.reaches[source]  # one of the parts of a split
    parts = index if isinstance(index, tuple) else (index,)
    if not all(part is None or part is Ellipsis or isinstance(part, int | slice) for part in parts):
        return everything(call)
    shape, target = shape_of(source), shape_of(call.node)
    indexed = sum(part is not None and part is not Ellipsis for part in parts)
    at = parts.index(Ellipsis) if Ellipsis in parts else len(parts)
    parts = (*parts[:at], *[slice(None)] * (len(shape) - indexed), *parts[at + 1 :])
    moves: dict[int, int] = {}
    intervals: dict[int, Interval | None] = {}
    dim = place = 0
    for part in parts:
        if isinstance(part, slice):
            moves[dim] = place
            if all(bound is None or isinstance(bound, int) for bound in (part.start, part.stop, part.step)):
                begin, _, step = part.indices(shape[dim])
                intervals[place] = Interval(1, step, begin)
            elif shape[dim] != target[place]:
                intervals[place] = None
        dim, place = dim + (part is not None), place + (part is None or isinstance(part, slice))
    return slide(follow(call.reaches[source], moves), intervals)


def replacing(call: Call) -> Reach:
    """``x[index] = value``: x where only x is followed, otherwise anything."""
    target = call.argument(0, "target")
    return call.reaches[target] if call.operands == [target] else everything(call)


def ordering(call: Call) -> Reach:
    """A value read again after something changed it in place (the recorder's ``after``)."""
    same = all(shape_of(node) == shape_of(call.node) for node in call.operands)
    return pointwise(call) if same else everything(call)


def first_alone(call: Call) -> Reach:
    """``expand_as``, ``type_as``: the second operand gives a shape or a type, no values."""
    return broadcast(call.reach, shape_of(call.source), shape_of(call.node))


def unchanged(call: Call) -> Reach:
    """Every dimension stays where it is; new ones come last (an embedding)."""
    return call.reach


def attribute(call: Call) -> Reach:
    """``getattr(x, "mT")`` and the like."""
    if call.argument(1, "name") in ("T", "mT", "H", "mH"):
        return transposition(call)
    return pointwise(call)


def repeating(call: Call) -> Reach:
    """``repeat``, ``tile``, ``repeat_interleave``: global along each dimension that grows."""
    target = shape_of(call.node)
    shift = len(target) - call.rank
    return follow(call.reach, {d: d + shift for d, n in enumerate(shape_of(call.source)) if n == target[d + shift]})
