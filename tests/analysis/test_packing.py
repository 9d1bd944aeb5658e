"""Blocks that hand on several values: one tensor stands between them, and the network stays the network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from pararealize.analysis.blocks import find_blocks
from pararealize.analysis.packing import pack_of
from pararealize.compiler import pararealize
from pararealize.errors import PlanError
from pararealize.plan.plan import Plan
from pararealize.tracing.front_end import capture
from tests.models import SmallResNet
from tests.pair_networks import PAIRS, PairChain, ScoreResidual, pair_chains


def in_double(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.double() if x.is_floating_point() else x for x in inputs)


def gradients(run: Any, inputs: tuple[Tensor, ...], parameters: list[nn.Parameter]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in inputs]
    asked = [*parameters, *(x for x in leaves if x.requires_grad)]
    torch.manual_seed(1)
    return list(torch.autograd.grad(run(*leaves).square().sum(), asked, allow_unused=True, materialize_grads=True))


def compare(model: nn.Module, inputs: tuple[Tensor, ...], n: int, *, training: bool) -> None:
    """n segments are the original: at n = 1 to the bit, by n - 1 iterations too; gradients to rounding.

    In double precision: how large the rounding of single precision is depends on the processor's kernels.
    """
    model, inputs = model.double().train(training), in_double(inputs)
    net = pararealize(model, n=n, example_inputs=inputs, coarse="linear")
    names = [name for name, _ in model.named_parameters()]
    own = dict(net.named_parameters())

    def run(*x: Tensor) -> Any:
        return net(*x) if n == 1 else net.iterate(x, n - 1)

    others = tuple(x.flip(0)[: len(x) - 1] for x in inputs)
    for batch in (inputs, others):
        torch.manual_seed(1)
        expected = model(*batch)
        torch.manual_seed(1)
        assert torch.equal(run(*batch), expected)
    for (name, buffer), other in zip(model.named_buffers(), dict(net.named_buffers()).values(), strict=False):
        torch.testing.assert_close(buffer, other, msg=name)
    ours = gradients(run, inputs, [own[name] for name in names])
    for a, b in zip(ours, gradients(model, inputs, list(model.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("n", [1, 3])
def test_networks_with_pairs_stay_themselves(name: str, n: int) -> None:
    make, inputs, _ = PAIRS[name]
    compare(make(), inputs, n, training=False)


def test_running_statistics_and_dropout_within_pairs() -> None:
    make, inputs, _ = PAIRS["streams"]
    compare(make(), inputs, 1, training=True)


@pytest.mark.parametrize("name", PAIRS)
def test_what_is_packed_is_said(name: str) -> None:
    make, inputs, k = PAIRS[name]
    chain = find_blocks(capture(make(), inputs))
    assert len(chain.blocks) >= 5
    assert max((len(pack.names) for pack in chain.packs), default=1) == k
    assert (f"{k} values as one tensor" in str(chain)) == (k > 1)
    plan = pararealize(make(), n=3, example_inputs=inputs, coarse="linear").plan
    assert any(f"blocks hand on {k} values" in note for note in plan.notes) == (k > 1)
    for before, after in zip(chain.blocks, chain.blocks[1:], strict=False):
        assert before.output is after.input
        pack = pack_of(before.output)
        if pack is not None:
            assert before.y.channels == sum(pack.sizes)
            assert before.y.channel == pack.axis - 1


def test_blocks_of_a_wavenet_are_its_modules_and_segments_pack_at_their_ends_alone() -> None:
    make, inputs, _ = PAIRS["WaveNet zero"]
    net = pararealize(make(), n=2, example_inputs=inputs, cuts=["blocks.3"])
    assert [segment.first_block for segment in net.plan.segments] == ["blocks.0", "blocks.3"]
    assert (str(net.plan.segments[0].x), str(net.plan.segments[0].y)) == ("6×12", "10×12")
    assert net.segments["g1"].code.count("torch.cat") == 1
    assert net.segments["g2"].code.count("torch.cat") == 0
    assert net.segments["g2"].code.count("x.narrow(") == 2
    whole = pararealize(make(), n=1, example_inputs=inputs).segments["g1"].code
    assert "torch.cat" not in whole
    assert "narrow" not in whole


def test_a_plan_of_packed_blocks_is_taken_again() -> None:
    make, inputs, _ = PAIRS["RevNet"]
    model = make()
    plan = pararealize(model, n=3, example_inputs=inputs, coarse="linear").plan
    again = pararealize(model, plan=Plan.from_json(plan.to_json()), example_inputs=inputs, coarse="linear")
    assert again.plan == plan


def test_the_capture_stays_as_it_was() -> None:
    make, inputs, _ = PAIRS["WaveNet sum"]
    captured = capture(make(), inputs)
    before = captured.graph_module.code
    chain = find_blocks(captured)
    assert chain.packs
    assert captured.graph_module.code == before
    assert chain.capture is not captured


def test_values_that_no_axis_joins_are_refused_by_name() -> None:
    with pytest.raises(
        PlanError, match=r"holds \d+% of the work: .*there are 2: add(_\d)? 2×6×6, add_\d 6×8; hand on one tensor"
    ):
        pararealize(ScoreResidual(), n=4, example_inputs=torch.randn(2, 6, 3))
    model, x = ScoreResidual().eval(), torch.randn(2, 6, 3)
    assert torch.equal(pararealize(model, n=1, example_inputs=x)(x), model(x))


class Watched(nn.Module):
    """A skip around layers, the first of which is run without gradients beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[0](x).clone().mul_(0.5)
        with torch.no_grad():
            y = self.layers[1](x.clone().mul_(0.5).float())
        y = self.layers[1]((x * 0.5 + y).float())
        y = self.layers[1](y.float())
        return self.head(x * 0.5 + y)


def test_values_are_not_packed_where_gradients_are_off() -> None:
    """Those that were computed outside have gradients, and must have them behind."""
    torch.manual_seed(0)
    model, x = Watched(), torch.randn(4, 8)
    net = pararealize(model, 1, example_inputs=x)
    model(x).square().sum().backward()
    net(x).square().sum().backward()
    assert model.layers[0].weight.grad.any()
    torch.testing.assert_close(net.get_parameter("layers.0.weight").grad, model.layers[0].weight.grad)


def test_a_chain_with_one_value_is_not_packed() -> None:
    chain = find_blocks(capture(SmallResNet(), torch.randn(2, 3, 8, 8)))
    assert not chain.packs


@settings(max_examples=5)
@given(pair_chains(), st.integers(1, 3))
def test_random_chains_of_pairs(case: tuple[PairChain, Tensor], n: int) -> None:
    model, x = case
    chain = find_blocks(capture(model, x))
    assert len(chain.blocks) >= 3
    compare(model, (x,), n, training=False)
