"""Windows tried one by one: which there are, and which of them matter."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pararealize import pararealize
from pararealize.calibration.fitting import calibration_mode
from pararealize.tradeoffs.block_values import BlockByBlock
from pararealize.tradeoffs.sensitivity import measure_windows, possible_windows
from tests.tuning_networks import padded_batches, token_net

from .chains import batches, network


@given(st.integers(1, 400), st.integers(2, 9))
def test_possible_windows_lie_within_the_network(blocks: int, n: int) -> None:
    windows = list(possible_windows([1.0] * blocks, n))
    assert len(set(windows)) == len(windows) <= 70 * (n + 14)
    for starts, stop in windows:
        assert starts[0] >= 0
        assert stop <= blocks
        assert len(starts) <= n
        lengths = {b - a for a, b in zip(starts, [*starts[1:], stop], strict=True)}
        assert len(lengths) == 1
        assert len(starts) == n or lengths == {1}
    _assert_without_gaps(windows, blocks)


@given(st.lists(st.sampled_from([1.0, 2.0, 5.0]), min_size=1, max_size=60), st.integers(2, 6))
def test_no_cut_of_a_possible_window_is_shorter(costs: list[float], n: int) -> None:
    windows = list(possible_windows(costs, n))
    assert len(set(windows)) == len(windows)
    prefix = list(itertools.accumulate(costs, initial=0.0))
    for starts, stop in windows:
        assert 1 < stop - starts[0] <= len(costs) - starts[0]
        assert len(starts) <= n
        longest = max(prefix[b] - prefix[a] for a, b in itertools.pairwise([*starts, stop]))
        least = [prefix[b] - prefix[starts[0]] for b in range(starts[0], stop + 1)]  # of one segment, then of more
        for _ in range(n - 1):
            least = [
                min([least[b], *(max(least[a], sum(costs[starts[0] + a : starts[0] + b])) for a in range(b))])
                for b in range(len(least))
            ]
        assert longest <= 1.002 * least[-1]
    if max(costs) == min(costs):
        _assert_without_gaps(windows, len(costs))


def _assert_without_gaps(windows: list[tuple[tuple[int, ...], int]], blocks: int) -> None:
    """Windows of a length cover the network, but for a rest that is shorter than they are."""
    for length in {stop - starts[0] for starts, stop in windows}:
        covered = {i for starts, stop in windows if stop - starts[0] == length for i in range(starts[0], stop)}
        assert len(covered) > blocks - length


def test_the_last_segment_may_be_an_mlp_alone() -> None:
    halves = [1.0, 2.0] * 6  # attention and MLP in turn
    assert ((1, 3, 5, 7, 9), 10) in list(possible_windows(halves, 5))
    assert ((1, 3, 5, 7, 9), 11) in list(possible_windows(halves, 5))
    assert all(stop - starts[0] != 9 for starts, stop in possible_windows([1.0] * 12, 5))  # no gain: as long as ten


@pytest.mark.parametrize("coarse", ["linear", "scale", "low-rank:4", "dense"])
def test_windows_of_large_blocks_err_most(coarse: str) -> None:
    model, data = network(), batches(6)
    net = pararealize(model, 1, windows=6, example_inputs=data[0])
    by_block = BlockByBlock(net)
    with calibration_mode(net, 0):
        values = [by_block.values(x) for x in data]
        said: list[str] = []
        trials = measure_windows(by_block, values[:4], values[4:], 2, coarse=coarse, say=said.append)
    assert len(said) == len(trials) == len(list(possible_windows([row.cost for row in by_block.rows], 2)))
    pairs = {trial.first: trial.error for trial in trials if trial.stop - trial.first == 2}
    assert max(pairs[1], pairs[2], pairs[3]) < min(pairs[0], pairs[4])
    costs = [row.cost for row in by_block.rows]
    assert all(trial.cost >= max(costs) for trial in trials)


def test_a_correction_makes_a_window_better_and_never_worse() -> None:
    model, data = network(), batches(8)
    net = pararealize(model, 1, windows=6, example_inputs=data[0])
    by_block = BlockByBlock(net)
    with calibration_mode(net, 0):
        values = [by_block.values(x) for x in data]
        errors = {
            coarse: sum(t.error for t in measure_windows(by_block, values[:6], values[6:], 2, coarse=coarse, say=print))
            for coarse in ("linear", "low-rank:8")
        }
    assert errors["low-rank:8"] < 0.8 * errors["linear"]


def test_windows_in_which_the_space_changes_are_left_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Sequential(nn.Linear(a, b), nn.Tanh()) for a, b in ((6, 6), (6, 6), (6, 8), (8, 8), (8, 8)))
    )
    x = torch.randn(9, 6)
    net = pararealize(model, 1, windows=5, example_inputs=x)
    by_block = BlockByBlock(net)
    with calibration_mode(net, 0):
        values = [by_block.values(x)]
        trials = measure_windows(by_block, values, values, 2, coarse="linear", say=lambda _: None)
    assert [(t.first, t.stop) for t in trials] == [(0, 2), (3, 5)]


def test_the_content_of_padding_changes_no_figure() -> None:
    model, _ = token_net()
    original = BlockByBlock(pararealize(model, 1, windows=4, example_inputs=padded_batches(1)[0]).eval())
    trials = []
    for padding in (0, 13):
        values = [original.values(batch) for batch in padded_batches(padding=padding)]
        assert all(one.mask is not None for one in values)
        trials.append(measure_windows(original, values[:4], values[4:], 2, coarse="dense", say=lambda _: None))
    assert trials[0] == trials[1]
    assert min(trial.error for trial in trials[0]) > 0
    everything = BlockByBlock(original.net, mask=None)
    assert everything.values(padded_batches(1)[0]).mask is None
