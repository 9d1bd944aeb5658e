"""Several networks on several meshes of one program: made, called, copied, closed and dropped in any order."""

from __future__ import annotations

import copy
import gc
import random
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import DeviceMesh

from pararealize import layer_parallel, pararealize
from pararealize.errors import DistributedError, PararealizeError, RankError
from tests.rank_comparison import TIGHT, distance, furthest, mesh_of
from tests.ranks import on_ranks

PROCESS = Path("/proc/self")
MESHES = ([0, 1], [0, 1, 2], [1, 2], [2], [2, 0])  # the last one in another order


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(6))

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x


def network(seed, kind="parareal"):
    torch.manual_seed(seed)
    x = torch.randn(3, 8, dtype=torch.float64)
    if kind == "layers":
        return layer_parallel(nn.Sequential(Residual().double()), coarsening=2, example_inputs=x), x
    return pararealize(Residual().double(), n=3, coarse="linear", example_inputs=x), x


def loss_of(output):
    return output.square().mean()


def live():
    """Threads, open files and process groups of this process."""
    gc.collect()
    return len([*PROCESS.joinpath("task").iterdir()]), len([*PROCESS.joinpath("fd").iterdir()]), len(c10d._world.pg_map)


def settled(expected):
    """Whether nothing more lives than that; threads of gloo take a moment to end."""
    until = time.monotonic() + 20
    while any(now > before for now, before in zip(live(), expected, strict=True)):
        if time.monotonic() > until:
            return f"{live()} threads, files and groups live, and before there were {expected}"
        time.sleep(0.1)
    return ""


# A random program ----------------------------------------------------------------------------------------------------


def program(seed, length):
    """The same on all ranks, of which each does what concerns it: makes, calls, copies, closes and drops stages.

    The meshes of the second one are made when ranks have been in different numbers of groups.
    """
    meshes = [DeviceMesh("cpu", ranks, mesh_dim_names=("parareal",)) for ranks in MESHES]
    draw, stages, worst = random.Random(seed), [], 0.0
    before = live()
    for number in range(length):
        action = draw.choice(["make", "call", "call", "call", "copy", "end"]) if len(stages) > 1 else "make"
        which, kind, how = draw.randrange(len(meshes)), draw.choice(["parareal", "layers"]), draw.choice("abcd")
        if action == "make":
            here = dist.get_rank() in MESHES[which]
            net, x = network(number, kind)
            stages.append((net, x, net.distribute(meshes[which], timeout=60) if here else None))
            continue
        place = draw.randrange(len(stages))
        net, x, stage = stages.pop(place) if action == "end" else stages[place]
        if action == "copy":
            stages.append((copy.deepcopy(net), x, copy.deepcopy(stage)))
        elif action == "end":
            if stage is not None and how in "ab" and not any(alike(stage, row[2]) for row in stages):
                stage.close()  # otherwise it is dropped
        elif action == "call":
            worst = max(worst, called(net, x, stage, how))
        del stage
    stages.clear()
    return worst, settled(before)


def alike(stage, other):
    """Whether another stage speaks over the same connections."""
    return other is not None and other.group is stage.group


def called(net, x, stage, how):
    """A call of a stage beside the network's: how far apart they are."""
    if how == "a":
        output = net(x).detach()
        return 0.0 if stage is None else distance(stage(x, everywhere=True), output)
    net.zero_grad()
    loss = loss_of(net(x))
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), 0.1)
    if stage is None:
        return 0.0
    stage.zero_grad()
    worst = distance(stage.step(x, loss_fn=loss_of), loss.detach())
    return max(worst, distance(stage.clip_grad_norm_(0.1), norm), furthest(stage, net, "grad"))


# After a failure, and beside one -------------------------------------------------------------------------------------


def strike(stage):
    for module in stage.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda *_: 1 / 0)


def failures():
    """A failed stage that is closed, dropped or kept; the next one in the same process group; and another beside it."""
    mesh, heard, kept = mesh_of(3), [], []
    pair = DeviceMesh("cpu", [0, 1], mesh_dim_names=("parareal",))
    for number, end in enumerate(("close", "drop", "keep")):
        net, x = network(number)
        stage = net.distribute(mesh, timeout=60)
        if stage.rank == 1:
            strike(stage)
        try:
            stage.step(x, loss_fn=loss_of)
        except (ZeroDivisionError, PararealizeError) as error:
            heard.append((type(error), str(error)))
        if end == "close":
            stage.close()
        kept += [stage] if end == "keep" else []
        del stage
    net, x = network(9)
    stage = net.distribute(mesh, timeout=60)
    worst = called(net, x, stage, "b")
    if dist.get_rank() < 2:  # the failure of a teacher ends the student, on all three ranks
        teacher = network(10)[0].distribute(pair, timeout=60)
        if teacher.rank == 1:
            strike(teacher)
        with pytest.raises((ZeroDivisionError, RankError)):
            teacher.step(x, loss_fn=loss_of)
    start, beside = time.monotonic(), None
    while beside is None:
        try:
            stage.step(x, loss_fn=loss_of)
        except PararealizeError as error:
            beside = str(error)
    return worst, heard, beside, time.monotonic() - start


def closed():
    """What a closed stage says, and its copies."""
    net, x = network(0)
    stage = net.distribute(mesh_of(3), timeout=60)
    copied = copy.deepcopy(stage)
    stage.close()
    stage.close()
    said = []
    for call in (lambda: stage.step(x, loss_fn=loss_of), lambda: copied(x), lambda: stage.clip_grad_norm_(1.0)):
        with pytest.raises(DistributedError) as caught:
            call()
        said.append(str(caught.value))
    return said


def three_ranks():
    program(2, 3)  # what torch starts once, such as threads of its own, lives on
    return program(0, 7), program(1, 7), closed(), failures()


def test_networks_do_not_get_into_each_others_way() -> None:
    for rank, (*programs, said, (worst, heard, beside, seconds)) in enumerate(on_ranks(3, three_ranks)):
        for apart, leak in programs:
            assert apart < TIGHT
            assert not leak
        assert all("has closed its connections" in text for text in said)
        assert worst < TIGHT
        assert [kind for kind, _ in heard] == [ZeroDivisionError if rank == 1 else RankError] * 3
        assert rank == 1 or all("rank 1 (segment 2" in text for _, text in heard)
        assert "rank" in beside
        assert seconds < 30
