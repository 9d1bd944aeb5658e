"""What a user asks of windows, and every fault of it: the fact, the values, and what to do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pararealize.analysis.blocks import BlockChain, find_blocks
from pararealize.analysis.cost import count_costs
from pararealize.errors import CutError, PlanError
from pararealize.planning.window_arguments import (
    WindowSpan,
    check_segments,
    named_windows,
    sequential_blocks,
    sequential_front,
    window_spans,
    windows_request,
)
from pararealize.tracing.front_end import capture
from tests.models import SmallResNet

NAMES = ["layer1.0", "layer1.1", "layer1.2", "layer2.0", "layer2.1", "layer2.2"]


@pytest.fixture(scope="module")
def chain() -> BlockChain:
    chain = find_blocks(capture(SmallResNet(), torch.randn(2, 3, 8, 8)))
    assert [block.name for block in chain.blocks] == NAMES
    return chain


def spans(chain: BlockChain, n: int, windows: int | tuple[int, ...], *sequential: int) -> list[tuple[int, int, bool]]:
    found = window_spans(chain, count_costs(chain), n, windows, frozenset(sequential))
    return [(span.first, span.stop, span.sequential) for span in found]


def test_sequential_blocks_are_the_first_or_named(chain):
    assert sequential_blocks(chain, 0) == frozenset()
    assert sequential_blocks(chain, 2) == {0, 1}
    assert sequential_blocks(chain, ["layer2.2", "layer1.0"]) == {0, 5}
    assert sequential_blocks(chain, 6) == set(range(6))


@pytest.mark.parametrize("number", [-1, 7, 1.5, True, "layer1.0", None])
def test_sequential_blocks_that_there_are_not(chain, number):
    with pytest.raises(
        CutError,
        match=r"sequential = .* is out of range: SmallResNet has 6 blocks; pass .* 0 to 6, names of blocks, or .auto.",
    ):
        sequential_blocks(chain, number)
    with pytest.raises(CutError, match=r"sequential: 'layer3' is not the name of a block; close ones: .*layer2"):
        sequential_blocks(chain, ["layer3"])


def test_requests(chain):
    assert windows_request(chain, 3, ()) == 3
    assert windows_request(chain, "auto", ()) is None
    assert windows_request(chain, ["layer1.2", "layer2.1"], {0}) == (2, 4)
    assert windows_request(chain, 1, range(6)) == 1, "all are sequential: there is nothing to divide"


@pytest.mark.parametrize("number", [0, -1, 7, 2.0, True, None])
def test_numbers_of_windows_that_cannot_be(chain, number):
    with pytest.raises(
        PlanError, match=r"windows = .* is out of range: SmallResNet has 6 blocks; pass .* from 1 .* to 6"
    ):
        windows_request(chain, number, ())


@pytest.mark.parametrize(
    "windows, sequential, error, message",
    [
        (5, {0, 1}, PlanError, "has 4 blocks that are not sequential, of 6; pass a number from 1"),
        ("paper", (), PlanError, "windows = 'paper' is unknown; pass a number, a list of names of blocks, or \"auto\""),
        ([], (), CutError, "windows = [] names no block; pass the blocks at which windows begin, or 1"),
        (["layer1.9", "stem"], (), CutError, "windows: 'layer1.9' is not the name of a block; close ones: layer1"),
        (["layer1.9", "stem"], (), CutError, "windows: 'stem' is not the name of a block; blocks run from layer1.0"),
        (["layer1.1", "layer1.1"], (), CutError, "windows: 'layer1.1' stands more than once"),
        (["layer2.0", "layer1.1"], (), CutError, "are not in the order of the network's blocks"),
        (["layer1.1"], {1}, CutError, "'layer1.1' stay as they are (sequential), so that no window begins there; name"),
    ],
)
def test_windows_that_cannot_be(chain, windows, sequential, error, message):
    with pytest.raises(error) as raised:
        windows_request(chain, windows, sequential)
    assert message in str(raised.value)


def test_spans_cover_the_blocks_and_leave_sequential_ones_alone(chain):
    assert spans(chain, 3, 1) == [(0, 6, False)]
    assert spans(chain, 2, 6) == [(i, i + 1, False) for i in range(6)]
    assert spans(chain, 2, 1, 0, 1) == [(0, 2, True), (2, 6, False)]
    assert spans(chain, 2, 1, 0, 5) == [(0, 1, True), (1, 5, False), (5, 6, True)]
    assert spans(chain, 2, (2, 4)) == [(0, 2, False), (2, 4, False), (4, 6, False)]
    assert spans(chain, 2, (0, 3), 5) == [(0, 3, False), (3, 5, False), (5, 6, True)]
    assert spans(chain, 2, 1, 2) == [(0, 2, False), (2, 3, True), (3, 6, False)], "a run has one window at least"
    assert spans(chain, 2, 1, *range(6)) == [(0, 6, True)]


def test_as_many_windows_as_were_asked_for_wherever_there_can_be(chain):
    """A block that changes the space is a window on top of these only where the others are enough for them."""
    for windows in range(1, 7):
        assert windows <= len(spans(chain, 3, windows)) <= windows + 1


def test_numbers_are_those_of_numpy_too(chain):
    for number in (2, np.int64(2)):
        assert sequential_front(chain, 3, number, "cost") == sequential_front(chain, 3, 2, "cost")


def test_more_segments_than_sequential_blocks_leave(chain):
    check_segments(chain, 4, [WindowSpan(0, 2, sequential=True), WindowSpan(2, 6)], 1)
    check_segments(chain, 9, [WindowSpan(0, 3), WindowSpan(3, 6)], 2)
    message = r"n = 5 .* 6 blocks, 2 of which are sequential, so that the longest window has 4; pass n = 1 to 4"
    with pytest.raises(PlanError, match=message):
        check_segments(chain, 5, [WindowSpan(0, 2, sequential=True), WindowSpan(2, 6)], 1)


def test_cuts_by_name_within_windows(chain):
    halves = [WindowSpan(0, 3), WindowSpan(3, 6)]
    assert named_windows(chain, [1, 4, 5], halves, 3) == [(0, 1), (3, 4, 5)]
    assert named_windows(chain, [], [WindowSpan(0, 6, sequential=True)], 1) == [(0,)]


@pytest.mark.parametrize(
    "names, n, message",
    [
        ([1, 2, 4], 2, "cuts: 3 segments in the window from layer1.0 to layer1.2, and n = 2; name fewer blocks there"),
        ([1, 4], 3, "cuts: 2 names leave windows of at most 2 segments, not n = 3"),
        ([1, 5], 2, "cuts: 'layer2.2' stand within blocks that stay as they are, layer2.1 to layer2.2 (sequential)"),
    ],
)
def test_cuts_that_contradict_windows(chain, names, n, message):
    windows = [WindowSpan(0, 3), WindowSpan(3, 4), WindowSpan(4, 6, sequential=True)]
    if n == 3:
        windows = [*windows[:1], WindowSpan(3, 6)]
    with pytest.raises(CutError) as raised:
        named_windows(chain, names, windows, n)
    assert message in str(raised.value)
    if n == 2 and len(names) == 3:
        with pytest.raises(CutError, match="1 names make 2 segments, not n = 3"):
            named_windows(chain, [2], [WindowSpan(0, 6)], 3)
