"""The algebra of reaches, against sets of positions that are written out one by one."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import fx, nn

from pararealize.analysis.fields.reach import (
    EVERYWHERE,
    Axis,
    Call,
    Interval,
    broadcast,
    dims_from_front,
    follow,
    integers,
    mix,
    operation_name,
    per_axis,
    plain,
    shape_of,
    slide,
    union,
)

intervals = st.builds(Interval, st.integers(1, 6), st.integers(1, 4), st.integers(-5, 5))


def read(interval: Interval, place: int) -> set[int]:
    """The positions that one output position reads: the definition of an interval."""
    first = interval.start + interval.stride * place
    return set(range(first, first + interval.size))


@given(intervals, intervals, st.integers(-3, 3))
def test_one_interval_after_another_reads_the_hull_of_what_both_read(first, second, place):
    both = Axis(2, first).through(second)
    every = set().union(*(read(first, middle) for middle in read(second, place)))
    assert both.dim == 2
    assert read(both.interval, place) == set(range(min(every), max(every) + 1))


@given(st.lists(intervals, min_size=1, max_size=4), st.integers(-3, 3))
def test_a_union_is_the_hull_of_all_branches_where_strides_agree(branches, place):
    (joined,) = union([(Axis(3, interval),) for interval in branches])
    if len({interval.stride for interval in branches}) > 1:
        assert joined == EVERYWHERE
    else:
        every = set().union(*(read(interval, place) for interval in branches))
        assert joined.dim == 3
        assert read(joined.interval, place) == set(range(min(every), max(every) + 1))


def test_a_union_of_branches_at_other_dimensions_is_global():
    assert union([(Axis(2), Axis(3)), (Axis(3), Axis(3))]) == (EVERYWHERE, Axis(3))
    assert union([(Axis(2),), (EVERYWHERE,)]) == (EVERYWHERE,)
    assert union([(Axis(None, Interval(3)),), (Axis(None, Interval(3)),)]) == (EVERYWHERE,)


def test_axes_follow_mix_and_slide():
    wide = Axis(3, Interval(3, 2, -1))
    reach = (Axis(2), wide)
    assert follow(reach, {2: 1, 3: 0}) == (Axis(1), Axis(0, wide.interval))
    assert follow(reach, {3: 3}) == (EVERYWHERE, wide)
    assert follow((EVERYWHERE,), {2: 2}) == (EVERYWHERE,)
    assert mix(reach, [3]) == (Axis(2), EVERYWHERE)
    assert mix(reach, [0, 1]) == reach
    assert slide(reach, {2: Interval(5, 1, -2)}) == (Axis(2, Interval(5, 1, -2)), wide)
    assert slide(reach, {3: None}) == (Axis(2), EVERYWHERE)
    assert slide((EVERYWHERE,), {2: Interval(5)}) == (EVERYWHERE,)


shapes = st.lists(st.integers(1, 3), min_size=1, max_size=4)


@given(shapes, shapes)
def test_broadcasting_follows_torch(shape, other):
    """A dimension is where its positions are, one by one, in torch's own result; spread out, it is nowhere."""
    try:
        target = torch.broadcast_shapes(shape, other)
    except RuntimeError:
        return
    for dim, size in enumerate(shape):
        (axis,) = broadcast((Axis(dim),), shape, target)
        positions = torch.arange(size).view([size if d == dim else 1 for d in range(len(shape))])
        seen = positions.expand(shape).broadcast_to(target)
        place = dim + len(target) - len(shape)
        follows = seen.shape[place] == size and torch.equal(
            seen.select(place, size - 1).unique(), torch.tensor([size - 1])
        )
        assert axis == (Axis(place) if follows else EVERYWHERE)


@given(st.integers(1, 5), st.data())
def test_dimensions_are_counted_as_torch_counts_them(rank, data):
    dims = data.draw(st.lists(st.integers(-rank, rank - 1), max_size=rank, unique_by=lambda d: d % rank))
    x = torch.zeros([2] * rank)
    kept = [d for d in range(rank) if d not in dims_from_front(dims or None, rank)]
    assert x.sum(dims or None).dim() == len(kept)
    assert [x.movedim(d, 0).stride(0) for d in dims] == [
        x.stride(d) for d in (dims_from_front(dims, rank) if dims else ())
    ]


def test_arguments_in_every_spelling():
    assert per_axis(3, 2) == per_axis((3,), 2) == per_axis([3], 2) == (3, 3)
    assert per_axis((1, 2), 2) == (1, 2)
    assert dims_from_front((), 3) == dims_from_front(None, 3) == (0, 1, 2)
    assert dims_from_front(-1, 3) == (2,)
    assert integers((0, 2, 1)) == integers(((0, 2, 1),)) == integers(([0, 2, 1], None)) == (0, 2, 1)
    assert plain(Fraction(4, 2)) == 2
    assert isinstance(plain(Fraction(4, 2)), int)
    assert plain(Fraction(1, 2)) == Fraction(1, 2)


@pytest.mark.parametrize("target", [torch.relu, torch.relu_, "relu", "relu_"])
def test_one_name_for_a_function_its_method_and_its_form_in_place(target):
    graph = fx.Graph()
    x = graph.placeholder("x")
    node = graph.call_method(target, (x,)) if isinstance(target, str) else graph.call_function(target, (x,))
    assert operation_name(node) == "relu"


def test_what_a_rule_may_ask_of_a_call():
    graph = fx.Graph()
    weight, x, y = (graph.placeholder(name) for name in ("weight", "x", "y"))
    node = graph.call_function(torch.add, (weight, x, y), {"alpha": 2})
    x.meta["val"], node.meta["val"] = torch.zeros(2, 3), (None, torch.zeros(4, 5))
    call = Call(node, None, {x: (), y: ()})
    assert call.operands == [x, y]
    assert call.source is x
    assert (call.argument(0, "input"), call.argument(2, "alpha"), call.argument(3, "alpha")) == (weight, y, 2)
    assert call.argument(5, "out", "default") == "default"
    assert (shape_of(x), shape_of(node), call.reach, call.rank) == ((2, 3), (4, 5), (), 2)
    of_a_module = Call(node, nn.Conv2d(1, 1, 3, stride=2), {x: ()})
    assert of_a_module.argument(0, "stride") == (2, 2)
    assert of_a_module.argument(0, "colour", "red") == "red"
