"""Simulated steps of layer-parallel multigrid against closed forms, and against what real ranks do."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize import layer_parallel
from pararealize.errors import MultigridError, PlanError
from pararealize.multigrid.simulation import simulate_multigrid
from pararealize.multigrid.solver.hierarchy import make_hierarchy
from pararealize.multigrid.times import LayerTimes
from pararealize.plan.timeline_figure import draw_timeline
from pararealize.plan.trace import chrome_trace
from pararealize.plan.transfer import Transfer
from tests.models import StochasticDepth
from tests.rank_comparison import mesh_of, vectors
from tests.ranks import on_ranks

F, B, BX = 64.0, 128.0, 80.0
TIMES = LayerTimes.equal(64, forward=F / 64, backward=B / 64, input_only=BX / 64)


def published(c: int, ranks: int, k: int, b: int) -> float:
    """The cost of two levels, every phase after the other, every coarse step and transpose computed anew."""
    forward = F * (k / c + k / ranks + (k - 1) / (c * ranks))
    return forward + b * B / ranks + (F + BX) * (b / c + (b - 1) / (c * ranks))


@pytest.mark.parametrize("c", [2, 4, 8])
@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_one_iteration_takes_what_the_formula_says(c: int, ranks: int) -> None:
    """T = F/c + F(1-1/c)/P + B_x/c + B/P; the formula without what is remembered adds F/cP and F/c."""
    timeline = simulate_multigrid(make_hierarchy([False] * 64, coarsening=c), TIMES, ranks, forward_iterations=1)
    assert timeline.step == pytest.approx(F / c + F * (1 - 1 / c) / ranks + BX / c + B / ranks)
    assert published(c, ranks, 1, 1) - timeline.step == pytest.approx(F / (c * ranks) + F / c)
    assert timeline.serial == pytest.approx(F + B)
    assert [timeline.busy(rank, "fine") for rank in range(ranks)] == pytest.approx([(F + B) / ranks] * ranks)


def remembered(c: int, ranks: int, k: int, b: int) -> float:
    """The same, where what was computed at one value is not computed again; still every phase after the other."""
    return F * (k / c + k / ranks * (1 - 1 / c)) + BX * (b / c + (b - 1) / ranks) + B / ranks


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
@pytest.mark.parametrize("k, b", [(2, 1), (2, 2), (3, 2), (4, 3)])
def test_more_iterations_take_less_than_the_formula_says(ranks: int, k: int, b: int) -> None:
    """What is remembered and what overlaps save time; what has to be done on one rank does not."""
    hierarchy = make_hierarchy([False] * 64, coarsening=4)
    step = simulate_multigrid(hierarchy, TIMES, ranks, forward_iterations=k, backward_iterations=b).step
    least = F * k / ranks - (k - 1) * F / 64 + B / ranks + BX / 4 / ranks  # of the busiest rank, without any wait
    assert least <= step < remembered(4, ranks, k, b) < published(4, ranks, k, b)


def test_two_layers_two_ranks_by_hand() -> None:
    """Intervals of two layers: f0 f1 | f2 f3, one rank each; all numbers by hand."""
    times = LayerTimes.equal(4, forward=1.0, backward=10.0, input_only=5.0)
    hierarchy = make_hierarchy([False] * 4, coarsening=2)
    timeline = simulate_multigrid(hierarchy, times, 2, forward_iterations=1, transfer=Transfer(0.5, float("inf")))
    spans = {str(action): (action.rank, action.start, action.end) for action in timeline.actions}
    assert spans == {
        "g0": (0, 0, 1),  # the coarse step, which the sweep reads
        "stem": (0, 0, 0),
        "u1.1": (0, 1, 1.5),
        "g1": (0, 1, 2),
        "g2": (1, 1.5, 2.5),
        "g3": (1, 2.5, 3.5),
        "head": (1, 3.5, 3.5),
        "head'": (1, 3.5, 3.5),
        "F2.1'": (1, 3.5, 8.5),
        "v2.1'": (1, 8.5, 9),
        "g3'": (1, 8.5, 18.5),
        "g2'": (1, 18.5, 28.5),
        "F0.1'": (0, 9, 14),
        "g1'": (0, 14, 24),
        "g0'": (0, 24, 34),
        "stem'": (0, 34, 34),
    }


def messages() -> list[tuple[int, int]]:
    """How many values each rank really receives, in a step of each kind."""
    found = []
    for settings in SETTINGS:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(12))).double().eval()
        net = layer_parallel(model, example_inputs=vectors(2, 6), **settings)
        stage = net.distribute(mesh_of(dist.get_world_size()), timeout=30)
        stage.step(vectors(2, 6), loss_fn=torch.Tensor.mean)
        (order,) = stage.receive_orders
        found.append(len(order))
    return found


SETTINGS = [
    {"coarsening": 2},
    {"coarsening": 3, "relaxation": "FCF", "backward_iterations": 2},
    {"coarsening": 2, "levels": 3, "forward_iterations": 3},
    {"coarsening": 2, "levels": 3, "cycle": "F", "relaxation": "FCF"},
]


def test_real_ranks_send_as_many_messages() -> None:
    """The simulation runs the same program as the ranks do."""
    found = on_ranks(3, messages)
    for i, settings in enumerate(SETTINGS):
        built = {key: settings[key] for key in ("coarsening", "levels") if key in settings}
        rest = {key: value for key, value in settings.items() if key not in built}
        timeline = simulate_multigrid(
            make_hierarchy([False] * 12, **built), LayerTimes.equal(12, forward=1, backward=2, input_only=1), 3, **rest
        )
        received = [sum(action.to == rank for action in timeline.actions) for rank in range(3)]
        assert received == [found[rank][i] for rank in range(3)]


def test_messages_take_their_time() -> None:
    hierarchy = make_hierarchy([False] * 64, coarsening=8)
    free = simulate_multigrid(hierarchy, TIMES, 4)
    slow = simulate_multigrid(hierarchy, TIMES, 4, transfer=Transfer(0.25, 1e3), size=500.0)
    assert slow.step > free.step + 3 * 0.75
    assert simulate_multigrid(hierarchy, TIMES, 4, training=False).step < free.step / 2


def test_it_can_be_printed_drawn_and_traced(tmp_path) -> None:
    timeline = simulate_multigrid(make_hierarchy([False] * 12, coarsening=3), LayerTimes.equal(
        12, forward=1e-3, backward=2e-3, input_only=1e-3), 2)  # fmt: skip
    assert "relax" in str(timeline).splitlines()[2]
    assert draw_timeline(timeline, tmp_path / "multigrid.svg").exists()
    assert len(chrome_trace(timeline)["traceEvents"]) > len(timeline.actions)
    assert type(timeline).from_json(timeline.to_json()) == timeline


def test_what_does_not_fit() -> None:
    hierarchy = make_hierarchy([False] * 8)
    with pytest.raises(PlanError, match="times of 64 layers, a hierarchy of 8, 2 ranks"):
        simulate_multigrid(hierarchy, TIMES, 2)
    with pytest.raises(PlanError, match="0 ranks"):
        simulate_multigrid(hierarchy, LayerTimes.equal(8, forward=1, backward=1, input_only=1), 0)
    with pytest.raises(MultigridError, match="iterations are 0"):
        simulate_multigrid(hierarchy, TIMES, 2, forward_iterations=0)
