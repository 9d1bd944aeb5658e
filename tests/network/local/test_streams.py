"""Which stream runs what, and that streams wait for one another wherever they have to: seen by a double of CUDA."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize.network.local.module import run_local
from pararealize.network.local.streams import CALLER, lanes_of
from tests.cuda_double import cuda_on_the_cpu
from tests.models import MaskedTransformer, SharedBias, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)
NETWORKS = {
    "convolutions": (SmallResNet, IMAGES),
    "masks": (MaskedTransformer, torch.randint(0, 11, (4, 5))),
    "shared values": (SharedBias, torch.randn(4, 6)),
}


def test_each_part_runs_on_its_segments_stream() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES)
    lanes = {node.name: lane for node, lane in lanes_of(net.graph, net.network_parts).items()}
    by_lane = {lane: {name for name, at in lanes.items() if at == lane} for lane in range(4)}
    assert by_lane == {
        CALLER: {"x", "output"},
        1: {"x_1", "y_1"},
        2: {"x_2", "y_2", "r_1", "F_1", "z_2"},
        3: {"x_3", "y_3", "r_2", "F_2", "z_3", "output_1"},
    }


def test_a_transfer_belongs_to_the_segment_that_asks_for_it() -> None:
    net = pararealize(SmallResNet(), n=2, example_inputs=IMAGES, devices=["cpu", "meta"])
    lanes = {node.name: lane for node, lane in lanes_of(net.graph, net.network_parts).items()}
    assert {name: lane for name, lane in lanes.items() if "_to_" in name} == {"x_to_1": 1, "x_to_2": 2, "y_1_to_2": 2}
    assert lanes["r_1"] == 2


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coarse", ["linear", "block", "exact"])
def test_streams_wait_for_what_they_read(name: str, coarse: str) -> None:
    make, x = NETWORKS[name]
    net = pararealize(make(), n=3, example_inputs=x, coarse=coarse).eval()
    with cuda_on_the_cpu() as machine:
        local = run_local(net)
        for _ in range(2):
            assert torch.equal(local(x), net(x))
        assert len({stream for memory, stream in machine.lent}) == 4, "three segments' streams, and the caller's"
        with torch.no_grad():  # what follows on the caller's stream comes after all of it
            for parameter in net.parameters():
                parameter.mul_(0.5)
        assert torch.equal(local(x), net(x))


def test_the_next_window_waits_for_the_end_of_the_one_before() -> None:
    layers = (layer for _ in range(9) for layer in (nn.Linear(6, 6), nn.Tanh()))
    x = torch.randn(4, 6)
    net = pararealize(nn.Sequential(*layers), n=3, windows=3, sequential=1, coarse="low-rank", example_inputs=x).eval()
    lanes = {node.name: lane for node, lane in lanes_of(net.graph, net.network_parts).items()}
    for window in net.plan.windows[1:]:
        assert lanes[f"w_{window.m}"] == window.offset + window.n
        assert lanes[f"y_{window.m}_1"] == lanes[f"v_{window.m}_1"] == window.offset + 1
    with cuda_on_the_cpu():
        local = run_local(net)
        for _ in range(2):
            assert torch.equal(local(x), net(x))


@pytest.mark.parametrize("missing", ["wait_event", "wait_stream", "lend"])
def test_the_double_sees_what_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES)
    with pytest.raises(AssertionError, match=r"does not wait for|allocator does not know"), cuda_on_the_cpu():  # noqa: PT012
        x = IMAGES.clone()
        if missing == "lend":
            monkeypatch.setattr("pararealize.network.local.streams.lend", lambda tensor, stream: None)
        else:
            monkeypatch.setattr(f"tests.cuda_double.Stream.{missing}", lambda stream, other: None)
        run_local(net)(x)


def test_after_an_error_the_caller_has_waited_all_the_same() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES)
    twin = copy.deepcopy(net)
    with cuda_on_the_cpu():
        local = run_local(net)
        local.coarse["F2"] = nn.Linear(7, 7)
        with pytest.raises(RuntimeError):
            local(IMAGES)
        local.coarse["F2"] = twin.coarse["F2"]
        with torch.no_grad():
            net.fc.weight.mul_(2)
        assert local(IMAGES).shape == (4, 3)


def test_values_are_let_go_after_their_last_use() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES)
    seen: dict[str, Any] = {}
    net.segments["g1"].register_forward_hook(lambda module, args, y: seen.update(y=weakref.ref(y)))
    net.head.register_forward_pre_hook(lambda module, args: seen.update(at_the_head=seen["y"]()))
    with torch.no_grad():
        run_local(net)(IMAGES)
    assert seen["at_the_head"] is None


def test_nothing_is_kept_of_a_step() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES)
    local = run_local(net)
    output = local(IMAGES)
    kept = weakref.ref(output)
    del output
    assert kept() is None


def test_without_streams_nothing_is_asked_of_cuda() -> None:
    net = pararealize(SmallResNet(), n=3, example_inputs=IMAGES).eval()
    with cuda_on_the_cpu() as machine:
        assert torch.equal(run_local(net, streams=False)(IMAGES), net(IMAGES))
        assert len(machine.streams) == 1
    assert torch.equal(run_local(net)(IMAGES), net(IMAGES))
