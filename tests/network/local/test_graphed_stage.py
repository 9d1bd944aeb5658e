"""A rank's parts as CUDA graphs between the messages: the same steps as without; on a double of CUDA, over gloo."""

from __future__ import annotations

import contextlib
import copy
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

import pararealize as pararealize_package
from pararealize import pararealize
from pararealize.errors import DeviceError, ModelError
from pararealize.network.local.graphed_stage import capture_stage
from pararealize.network.local.graphed_step import capture_step
from tests import cuda_double
from tests.message_queues import logged_as_nccl
from tests.network.local.test_capture_checks import Opaque, network
from tests.network.local.test_graphed_step import stack_of
from tests.network.local.test_module import machine
from tests.rank_comparison import TIGHT, converted, distance, furthest, mean_square, mesh_of, optimiser, tensor_of
from tests.ranks import on_ranks


def train(names: list[str], device: str = "cpu") -> dict[str, Any]:
    """Five steps and an evaluation beside the network in one process; the first step of a size is eager."""
    found = {}
    for name in names:
        net, on_the_host = converted(name)
        net = net.to(device)

        def batch(size: int, on_the_host: Any = on_the_host) -> Any:
            return on_the_host(size).to(device)

        stage = net.distribute(init_device_mesh(device, (dist.get_world_size(),)), timeout=30)
        ours, theirs = optimiser(stage), optimiser(net)
        torch.manual_seed(1)
        worst = dict.fromkeys(("loss", "gradient", "clipped", "state", "output"), 0.0)
        with machine(device) as double:
            graphed = capture_stage(stage)
            for i, size in enumerate((4, 4, 4, 3, 4)):
                if i == 2:  # to None, as an optimiser does, and in place
                    ours.zero_grad()
                elif i != 4:
                    graphed.zero_grad()  # the last step adds to the gradients of the one before
                if i != 4:
                    theirs.zero_grad()
                inputs = batch(size)
                output = net(inputs)
                target = torch.randn_like(tensor_of(output))
                loss = mean_square(output, target)
                loss.backward()
                given = graphed.step(inputs, target=target, loss_fn=mean_square)
                worst["loss"] = max(worst["loss"], distance(given, loss))
                worst["gradient"] = max(worst["gradient"], furthest(stage, net, "grad"))
                stage.clip_grad_norm_(0.5), nn.utils.clip_grad_norm_(net.parameters(), 0.5)
                worst["clipped"] = max(worst["clipped"], furthest(stage, net, "grad"))
                ours.step(), theirs.step()
            worst["state"] = furthest(stage, net, "state")
            stage.eval(), net.eval()
            for _ in range(2):
                inputs = batch(1)
                with torch.no_grad():
                    expected = net(inputs)
                worst["output"] = max(
                    worst["output"], distance(tensor_of(graphed(inputs, everywhere=True)), tensor_of(expected))
                )
            assert graphed.replays == 4
            replayed = 0 if double is None else sum(graph.replays > 0 for graph in double.graphs)
            graphed.release()
        found[name] = worst, replayed, graphed.eager
    return found


def copies() -> float:
    """Copies of a network, each with its share of a batch, in steps that average and steps that do not."""
    net, batch = converted("perceptron")
    mesh = mesh_of(dist.get_world_size(), 1)
    stage = net.distribute(mesh, timeout=30, bucket_bytes=300)
    replica, worst = mesh.get_local_rank("dp"), 0.0
    torch.manual_seed(1)
    with cuda_double.cuda_on_the_cpu():
        graphed = capture_stage(stage)
        for i in range(4):
            inputs, targets = batch(4), torch.randn(4, 2, dtype=torch.float64)
            mean_square(net(inputs), targets).backward()
            share = slice(2 * replica, 2 * replica + 2)
            with stage.no_sync() if i % 2 == 0 else contextlib.nullcontext():
                graphed.step(inputs[share], target=targets[share], loss_fn=mean_square)
            if i % 2:
                worst = max(worst, furthest(stage, net, "grad"))
        assert graphed.replays == 3
    return worst


def scaled() -> bool:
    """Under autocast, with a scaled loss: the very bits of the stage that runs eagerly."""
    torch.manual_seed(0)
    net = pararealize(nn.Sequential(*[nn.Linear(8, 8) for _ in range(6)]), 2, example_inputs=torch.randn(2, 8))
    mesh = mesh_of(dist.get_world_size())
    stage, twin = net.distribute(mesh, timeout=30), net.distribute(mesh, timeout=30)
    scaler = ShardedGradScaler("cpu", init_scale=8.0, process_group=stage.group)
    torch.manual_seed(1)
    with cuda_double.cuda_on_the_cpu():
        graphed = capture_stage(stage)
        for _ in range(3):
            x, target = torch.randn(4, 8), torch.randn(4, 8)
            graphed.zero_grad(), twin.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                graphed.step(x, target=target, loss_fn=mean_square, scaler=scaler)
                twin.step(x, target=target, loss_fn=mean_square, scaler=scaler)
            pairs = zip(stage.parameters(), twin.parameters(), strict=True)
            assert all(torch.equal(p.grad, q.grad) for p, q in pairs)  # type: ignore[arg-type]
    return graphed.replays == 2


def faults() -> dict[str, Any]:
    """What is refused, what falls back, and what is noticed."""
    found: dict[str, Any] = {}
    net, batch = converted("perceptron")
    mesh = mesh_of(dist.get_world_size())
    stage = net.distribute(mesh, timeout=30, checkpoint_activations=True)
    with pytest.raises(DeviceError, match="distribute it over a mesh of 'cuda' devices"):
        capture_stage(stage)
    with cuda_double.cuda_on_the_cpu():
        with pytest.raises(ModelError, match="a network of one process to capture_step"):
            capture_stage(net)  # type: ignore[arg-type]
        with pytest.raises(ModelError, match="a rank's stage to capture_stage"):
            capture_step(stage, mean_square, batch(2))
        graphed = capture_stage(stage)
        adapter = next(parameter for name, parameter in stage.named_parameters() if name.startswith("adapters."))
        handle = adapter.register_hook(lambda gradient: gradient)
        inputs = batch(4)
        for _ in range(2):
            graphed.step(inputs, target=torch.zeros(4, 2), loss_fn=mean_square)
        found["eager"] = dict(graphed.eager)
        found["text"] = repr(graphed)
        net.load_state_dict(copy.deepcopy(net.state_dict()))
        stage.load_state_dict(copy.deepcopy(stage.state_dict()), strict=False, assign=True)
        with pytest.raises(ModelError, match="moved, replaced or frozen"):
            graphed.step(inputs, target=torch.zeros(4, 2), loss_fn=mean_square)
        handle.remove()
        graphed.release()
        graphed.step(inputs, target=torch.zeros(4, 2), loss_fn=mean_square)
        graphed = capture_stage(network(Opaque).distribute(mesh, timeout=30))
        graphed.step(torch.randn(4, 8), target=torch.zeros(4, 2), loss_fn=mean_square)
        found["text"] += repr(graphed)
    return found


def calls_in_the_package(depth: int) -> int:
    """Calls of the package's own functions in a replayed step; an operation of torch's takes a list as it takes one."""
    net = pararealize(stack_of(depth), n=3, example_inputs=torch.randn(4, 8), coarse="linear")
    stage, x, count = net.distribute(init_device_mesh("cpu", (1,))), torch.randn(4, 8), 0
    folder = str(Path(pararealize_package.__file__).parent)

    def see(frame: Any, event: str, _: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(folder)

    with cuda_double.cuda_on_the_cpu(), mock.patch("tests.cuda_double.Graph.replay"):
        graphed = capture_stage(stage)
        for i in range(3):
            sys.setprofile(see if i == 2 else None)
            try:
                graphed.zero_grad()
                graphed.step(x, target=0.0, loss_fn=mean_square)
            finally:
                sys.setprofile(None)
    stage.close()
    return count


def test_work_of_the_host_in_a_replayed_step_does_not_grow_with_the_parameters() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert calls_in_the_package(60) == calls_in_the_package(120) > 0
    finally:
        dist.destroy_process_group()


def train_on_a_gpu(names: list[str]) -> dict[str, Any]:
    """As one rank of NCCL, which may have something to say to a group without a device."""
    warnings.simplefilter("default")
    dist.destroy_process_group()
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    return train(names, "cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_captured_rank_on_a_gpu() -> None:
    (result,) = on_ranks(1, train_on_a_gpu, ["residual, batch norm", "windows, corrected outputs"])
    for name, (worst, _, eager) in result.items():
        assert max(worst.values()) < 1e-7, f"{name!r} is off by {worst}"
        assert not eager, f"{name!r}: {eager}"


def served() -> None:
    """Requests are answered by replays, on the first rank in a thread of the server's; of no more sizes than asked."""
    net, batch = converted("perceptron")
    stage = net.eval().distribute(mesh_of(dist.get_world_size()), timeout=30).eval()
    with cuda_double.cuda_on_the_cpu() as double:
        graphed = capture_stage(stage, sizes=2)
        call = graphed.__call__

        def forward(*args: Any, **kwargs: Any) -> Any:
            with double if stage.rank == 0 else contextlib.nullcontext():  # a mode of torch's is one thread's
                return call(*args, **kwargs)

        with stage.serve(forward=forward) as server:
            for size in (1, 1, 2, 1, 3, 3, 2) if server is not None else ():
                x = batch(size)
                assert distance(server(x), net(x).detach()) < TIGHT
        assert graphed.replays == 3
        with graphed.serve() as server:
            assert server is None or server.answered == 0


def issued(*, captured: bool) -> list[tuple[Any, ...]]:
    """The messages of three steps as NCCL would be given them, each with how many waits stand before it."""
    net, batch = converted("windows, context with gradients")
    with cuda_double.cuda_on_the_cpu(), logged_as_nccl() as log:
        stage = net.distribute(mesh_of(dist.get_world_size()), timeout=30)
        steps = capture_stage(stage) if captured else stage
        for _ in range(3):
            steps.step(batch(2), target=torch.zeros(()), loss_fn=mean_square)
        stage.close()
        assert not captured or steps.replays == 2
    return [(one.kind, one.ranks, one.label, one.waited) for one in log.operations]


def everything(names: list[str]) -> tuple[dict[str, Any], float, bool, dict[str, Any]]:
    served()
    messages = issued(captured=True)
    assert len(messages) > 8
    assert messages == issued(captured=False)
    return train(names), copies(), scaled(), faults()


def test_captured_ranks_train_as_one_process_does() -> None:
    names = ["residual, batch norm", "tied embedding", "windows, corrected outputs", "context and the stem"]
    for rank, (trained, averaged, is_replayed, fell_back) in enumerate(on_ranks(2, everything, names)):
        for name, (worst, replayed, eager) in trained.items():
            assert max(worst.values()) < TIGHT, f"{name!r} on rank {rank} is off by {worst}"
            assert replayed > 6, f"{name!r} on rank {rank} replayed {replayed} graphs; eager: {eager}"
            assert not eager, f"{name!r} on rank {rank}: {eager}"
        assert averaged < TIGHT
        assert is_replayed
        assert {name[0] for name in fell_back["eager"]} == {"g", "C"}
        assert "checkpoint_activations" in fell_back["text"]
        assert "has the hook" in fell_back["text"]
        assert "asks the GPU for values" in fell_back["text"]
