"""``tradeoff``: measured plans are what a user gets, and wrong numbers are refused before any work."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize import Plan, calibrate, pararealize, tradeoff
from pararealize.errors import CalibrationError, CoarseError, ExampleError, PlanError
from pararealize.tradeoffs import measured_plans, sensitivity
from pararealize.tradeoffs.block_values import network_output, output_error
from pararealize.tradeoffs.selection import selections
from tests.added_branches import AddedLinear, chain_of
from tests.models import LanguageModel

from .chains import Residual, batches, network


def test_what_is_measured_is_what_its_plan_gives() -> None:
    model, data = network(), batches(6)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    said: list[str] = []
    cosine = nn.CosineSimilarity()
    front = tradeoff(
        model, data, n=(2, 3), points=3, coarse="low-rank:8", report=said.append,
        agreement=("cosine", lambda a, b: cosine(a, b).mean().item()),
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    first = front.rows[0]
    assert (first.error, first.speedup, first.windows) == (0.0, pytest.approx(1.0), 0)
    assert front.rows[0].agreement == pytest.approx(1)
    assert {row.n for row in front.rows} == {1, 2, 3}
    assert (front.samples, front.tested) == (240, 48)
    assert any("window 1 of" in line for line in said)
    fastest = max(front.rows, key=lambda row: row.speedup)
    assert 0 < fastest.error < 1
    net = pararealize(model, plan=fastest.plan, example_inputs=data[0]).eval()
    calibrate(net, data[:4] + data[5:])
    pair = network_output(net, data[4]), model(data[4])
    assert output_error([pair]) == pytest.approx(fastest.error, rel=1e-4)
    assert fastest.agreement == pytest.approx(cosine(*pair).mean().item(), rel=1e-4)


def test_plans_are_cut_where_the_window_was_that_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "possible_windows", lambda costs, n: [((1, 2), 5)])  # the planner would cut at 3
    front = tradeoff(network(), batches(5), n=2, coarse="linear")
    _, row = front.rows
    (window,) = (window for window in row.plan.windows if not window.sequential)
    assert [(segment.first, segment.last) for segment in window.segments] == [(1, 1), (2, 4)]


def test_a_mask_is_never_taken_for_a_label() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = network()

        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return self.layers(x if mask is None else x * mask)

    data, wanted = [(x, torch.rand(len(x), 1)) for x in batches(5)], r"\(48, 1\).* Masked may take it as 'mask'; pass"
    with pytest.raises(ExampleError, match=wanted):
        tradeoff(Masked(), data, n=2)
    several = Masked()
    several.forward = lambda *xs: Masked.forward(several, *xs)
    with pytest.raises(ExampleError, match=r"Masked may take it as 'xs'; pass"):
        tradeoff(several, data, n=2)
    fronts = [
        tradeoff(Masked(), given, n=2, points=1, coarse="low-rank:8")
        for given in ([(pair, None) for pair in data], [{"x": x, "mask": mask} for x, mask in data])
    ]
    assert fronts[0].rows[-1].error == fronts[1].rows[-1].error > 0


def test_plans_that_are_no_faster_are_not_measured() -> None:
    """Beside a wide block what two narrow ones save is less than what the conversion adds."""
    torch.manual_seed(0)
    blocks = (Residual(8, 0.1, hidden) for hidden in (4, 512, 4))
    model = nn.Sequential(nn.Linear(6, 8), *blocks, nn.Linear(8, 5)).eval()
    for options in ({"points": 6}, {"tolerance": 0.5}, {"tolerance": 0.0, "points": 1}):
        front = tradeoff(model, batches(5), n=2, **options)
        assert all(row.speedup > 1 for row in front.rows[1:])


@pytest.mark.parametrize("starts", [(1, 3), (1, 4)])  # of the latter the first segment decides, which has no adapter
@pytest.mark.parametrize("coarse", ["low-rank:2", "scale", "dense", "linear"])
def test_a_trial_costs_what_its_plan_says(
    monkeypatch: pytest.MonkeyPatch, coarse: str, starts: tuple[int, int]
) -> None:
    """Maps are priced as the planner prices them, and not by what operations of narrow blocks cost."""
    found: list[Any] = []

    def noted(costs: Any, trials: Any) -> Any:
        found.extend(trials)
        return selections(costs, trials)

    monkeypatch.setattr(measured_plans, "selections", noted)
    monkeypatch.setattr(sensitivity, "possible_windows", lambda costs, n: [(starts, 5)])
    front = tradeoff(network(), batches(5), n=2, coarse=coarse)
    assert len(front.rows) == 2
    (trial,), plan = found, front.rows[1].plan
    blocks = sum(row.cost for row in front.rows[0].plan.segments[1:5])
    saved = plan.serial * (1 - 1 / plan.speedup)
    assert trial.cost == pytest.approx(blocks - saved, rel=0.03)


class Squashed(nn.Module):
    """x + tanh(W x): a block with no layer for a map at its end."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.3 * torch.tanh(self.layer(x))


def test_maps_are_folded_where_there_are_layers_for_them() -> None:
    torch.manual_seed(0)
    data = [torch.randn(40, 6) for _ in range(5)]
    squashed = [Squashed() for _ in range(4)]
    front = tradeoff(nn.Sequential(*squashed, *(AddedLinear(6) for _ in range(2))).eval(), data, n=2, coarse="folded")
    folds = {bool(row.plan.corrections) for row in front.rows if row.plan.speedup > 1}
    assert folds == {False, True}  # windows of blocks of the first kind alone are plans of their own
    said: list[str] = []
    with pytest.raises(CoarseError, match="no block ends with a linear layer"):
        tradeoff(nn.Sequential(*squashed).eval(), data, n=2, coarse="folded", report=said.append)
    frozen = chain_of(AddedLinear, 6, 4).float().requires_grad_(False)
    with pytest.raises(
        CoarseError, match=r"last layers of blocks, and all of these are frozen; call model.requires_grad_"
    ):
        tradeoff(frozen, data, n=2, coarse="folded", report=said.append)
    assert not [line for line in said if "window" in line]  # before anything is tried


def test_folded_maps_cost_nothing() -> None:
    data = [batch.double() for batch in batches(5, size=40)]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8).double(), *chain_of(AddedLinear, 8, 6)).eval()
    front = {c: tradeoff(model, data, n=2, points=1, coarse=c).rows[-1] for c in ("linear", "folded")}
    assert front["folded"].speedup == pytest.approx(front["linear"].speedup)
    assert front["folded"].error < front["linear"].error
    assert any(row.layer for row in front["folded"].plan.corrections)


def test_refusals() -> None:
    model, data = network(), batches(3)
    with pytest.raises(PlanError, match=r"n is 1; pass .*; and points is 0; pass 1 or more"):
        tradeoff(model, data, n=(2, 1), points=0)
    with pytest.raises(PlanError, match="n is empty"):
        tradeoff(model, data, n=())
    with pytest.raises(CalibrationError, match="'paper' has no correction in closed form"):
        tradeoff(model, data, coarse="paper")
    for agreement in (("cosine", 3), ("cosine",), (3, max)):
        with pytest.raises(CalibrationError, match=r"agreement is .*pass a name and a function of two outputs"):
            tradeoff(model, data, agreement=agreement)
    with pytest.raises(CalibrationError, match=r"agreement 'same' gives Tensor .* for a batch; return a number"):
        tradeoff(model, [data[0]] * 2, n=2, agreement=("same", torch.eq))
    with pytest.raises(CalibrationError, match="the output of the stem is not finite in batch 2"):
        tradeoff(model, [data[0], data[1] / 0, data[2]], n=2)
    with pytest.raises(ExampleError, match="pass some tens of batches"):
        tradeoff(model, data[:1])
    with pytest.raises(ExampleError, match=r"read several times|a function that gives"):
        tradeoff(model, iter(data))


def test_more_devices_than_any_window_has_blocks() -> None:
    """They take as many as its blocks; the batches to measure on are told apart by place, though all are one tensor."""
    front = tradeoff(network((0.1,) * 4), batches(1) * 2, n=99, points=1, coarse="linear")
    assert [(row.n, row.windows) for row in front.rows] == [(1, 0), (4, 1)]
    assert (front.samples, front.tested) == (48, 48)


def test_windows_may_begin_within_layers() -> None:
    """With the finest blocks, and the plans say so: conversions of them find the same blocks."""
    torch.manual_seed(0)
    model = LanguageModel(3).eval()
    data = [torch.randint(0, 11, (8, 7)) for _ in range(5)]
    coarse = tradeoff(model, data, n=2, points=2, coarse="dense")
    fine = tradeoff(model, data, n=2, points=2, coarse="dense", granularity="finest")
    assert {len(front.rows[0].plan.segments) for front in (coarse,)} == {3}
    assert len(fine.rows[0].plan.segments) == 6
    for row in fine.rows:
        plan = Plan.from_json(row.plan.to_json())
        assert plan.granularity == "finest"
        assert pararealize(model, plan=plan, example_inputs=data[0]).plan == plan
    begins = {window.segments[0].first_block for row in fine.rows for window in row.plan.windows}
    assert any(name.endswith("mlp") for name in begins)
