"""The parts of each rank as functions, and the last backward call that reaches each of them."""

import pytest
import torch

from pararealize import pararealize
from pararealize.distributed.assignment import assign
from pararealize.distributed.partition import SegmentPartition
from pararealize.distributed.rank_modules import copy_modules
from pararealize.distributed.rank_segments import RankSegments
from tests.rank_comparison import converted


def segments_of(net, rank, ranks):
    partition = SegmentPartition.of(net, assign(net.plan, ranks))
    modules = copy_modules(net, partition.parts_of(rank), torch.device("cpu"))
    return RankSegments(partition, rank, modules)


def test_parts_called_one_after_the_other_are_the_network() -> None:
    """Equation (3) by hand, from the parts of two ranks."""
    net, batch = converted("tied embedding", n=2)
    first, last = (segments_of(net.eval(), rank, 2) for rank in range(2))
    assert (first.owns_head, last.owns_head) == (False, True)
    assert first.owns("stem")
    assert not last.owns("stem")
    inputs = batch(3)
    values = dict.fromkeys(first.partition.inputs.values(), inputs)
    if first.owns("context"):
        gives = first.partition.parts["context"].gives
        values.update(zip(gives, first.call("context", 0, values), strict=True))
    stem = first.call("stem", 0, values)
    values.update(zip(first.partition.parts["stem"].gives, stem if isinstance(stem, tuple) else (stem,), strict=True))
    y_1 = first.call("segment", 1, values, values["x_1"])
    x_2 = last.call("adapter", 2, values)
    z_2 = last.call("segment", 2, values, x_2) + last.call("coarse", 1, values, y_1 - x_2)
    assert torch.equal(last.call("head", 0, values, z_2)["logits"], net(inputs)["logits"])


def test_phases_of_several_windows() -> None:
    """From the last window to the first; a rank without segments in a window passes over it."""
    net, _ = converted("windows, a short one between")
    first, last = (segments_of(net, rank, 3) for rank in (0, 2))
    assert [window.run for window in first.windows] == [range(1, 2)] * 3
    assert [list(window.run) for window in last.windows] == [[3], [], [3]]
    phases = first.last_phases()
    assert (phases["g3_1"], phases["g2_1"], phases["g1_1"], phases["stem"]) == (1, 3, 5, 6)
    phases = last.last_phases()
    assert (phases["head"], phases["F3_2"], phases["g3_3"], phases["F1_2"], phases["g1_3"]) == (0, 0, 1, 2, 3)


@pytest.mark.parametrize("source, stem", [("input", 2), ("stem", 3)])
def test_the_last_phase_of_a_part(source: str, stem: int) -> None:
    """Head and coarse blocks first, then segments from the last to the first; the stem apart where others read it."""
    net = pararealize(
        torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(6))),
        n=2,
        example_inputs=torch.randn(2, 4),
        coarse="linear",
        source=source,
    )
    phases = segments_of(net, 0, 1).last_phases()
    assert phases == {"stem": stem, "g1": 2, "C2": 1, "g2": 1, "F1": 0, "head": 0}
