"""What stands around the steps of a rank: accumulation, clipping, mixed precision, checkpoints, data parallelism."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from pararealize import calibrate, pararealize
from pararealize.distributed.checkpoint.state import gather_state_dict
from pararealize.errors import CheckpointError, DistributedError
from tests.added_branches import AddedLinear, batches_of, chain_of
from tests.models import LanguageModel
from tests.rank_comparison import (
    TIGHT,
    accumulate,
    converted,
    distance,
    furthest,
    largest,
    mean_square,
    mesh_of,
    optimiser,
    vectors,
)
from tests.ranks import on_ranks


def aspects(names):
    """Every check for two ranks that needs no launch of its own."""
    found = {name: accumulate(name, dp=False) for name in names}
    checks = (in_bfloat16, frozen, without_target, scaled, not_finite, from_meta, folded)
    return {**found, **{check.__name__: check() for check in checks}}


def not_finite():
    """Where the norm is not finite, no gradient changes, so that the one at fault can be told from the others."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=30)
    stage.step(batch(4), target=torch.zeros(()), loss_fn=mean_square)
    others = list(stage.parameters())
    if stage.rank == 1:
        others.pop().grad.fill_(float("nan"))
    before = [parameter.grad.clone() for parameter in others]
    assert not stage.clip_grad_norm_(1e-3).isfinite()
    return {"grad": max(distance(p.grad, old) for p, old in zip(others, before, strict=True))}


def in_bfloat16():
    net, batch = converted("mask from the inputs")
    net = net.float()
    stage = net.distribute(mesh_of(2), timeout=30)
    worst = 0.0
    for size in (4, 4, 3):
        inputs = batch(size)
        net.zero_grad()
        stage.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = net(inputs)
            assert output.dtype is torch.bfloat16
            loss = mean_square(output, torch.ones_like(output))
            ours = stage.step(inputs, target=torch.ones_like(output), loss_fn=mean_square)
        loss.backward()
        assert ours.dtype is loss.dtype
        worst = max(worst, distance(ours, loss), furthest(stage, net, "grad"))
    inputs = batch(4)
    ours = stage.step(inputs, target=torch.zeros(4, 3), loss_fn=mean_square)  # without autocast, with other messages
    worst = max(worst, distance(ours, mean_square(net(inputs), torch.zeros(4, 3))))
    return {"bfloat16": worst}


def frozen():
    """The first half is not trained; later it is."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=30)
    worst = 0.0
    for trained in (True, False, True):
        for module in (net, stage):
            for name, parameter in module.named_parameters():
                if name in ("0.weight", "2.bias") or name.startswith("adapters.C2"):
                    parameter.requires_grad_(trained)
            module.zero_grad()
        inputs = batch(4)
        mean_square(net(inputs), torch.ones(4, 2)).backward()
        stage.step(inputs, target=torch.ones(4, 2), loss_fn=mean_square)
        worst = max(worst, furthest(stage, net, "grad"))
    return {"frozen": worst}


def folded():
    """Maps within segments' last layers: they travel with these, and so does what says that they are there."""
    batches = batches_of(AddedLinear, 6)
    arguments = {"windows": 2, "example_inputs": batches[0], "coarse": "folded", "source": "stem"}
    net = pararealize(chain_of(AddedLinear, 6, 4), 2, **arguments).eval()
    calibrate(net, batches)
    stage = net.distribute(mesh_of(2), timeout=30)
    expected = mean_square(net(batches[0]), torch.ones(12, 6))
    expected.backward()
    loss = stage.step(batches[0], target=torch.ones(12, 6), loss_fn=mean_square)
    whole = gather_state_dict(stage, everywhere=True)
    assert whole.keys() == net.state_dict().keys()
    assert all(torch.equal(whole[key], value) for key, value in net.state_dict().items())
    assert all(value for key, value in whole.items() if key.endswith("is_folded"))
    return {"loss": distance(loss, expected), "grad": furthest(stage, net, "grad")}


def without_target():
    """A loss without a target, of an output that keeps its structure."""
    net, batch = converted("tied embedding")
    stage = net.distribute(mesh_of(2), timeout=30)
    inputs = batch(3)
    expected = net(inputs)["logits"].logsumexp(-1).mean()
    ours = stage.step(ids=inputs, loss_fn=lambda output: output["logits"].logsumexp(-1).mean())
    with stage.record() as recording:
        stage.step(inputs, loss_fn=lambda output: output["logits"].logsumexp(-1).mean())
    rows = [(row.j, row.action, row.direction) for row in recording.actions]
    n = net.plan.n
    owned = range(stage.segments[0], stage.segments[1] + 1)
    for j in owned:
        assert rows.count((j, "fine", "forward")) == rows.count((j, "fine", "backward")) == 1
        assert rows.count((j, "coarse", "forward")) == rows.count((j, "coarse", "backward")) == (j > 1)
    assert ((n, "head", "backward") in rows) == (n in owned)
    assert all(0 <= row.start <= row.end and row.rank == stage.rank for row in recording.actions)
    coarse = max((i for i, row in enumerate(rows) if row[1:] == ("coarse", "backward")), default=0)
    assert coarse < min(i for i, row in enumerate(rows) if row[1:] == ("fine", "backward"))
    return {"loss": distance(ours, expected)}


def scaled():
    """Gradients of a scaled loss, unscaled and stepped together; an infinite one keeps every rank from stepping."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=30)
    ours, theirs = optimiser(stage), optimiser(net)
    scaler = ShardedGradScaler("cpu", init_scale=2.0**10, process_group=stage.group)
    for _ in range(2):
        inputs = batch(4)
        theirs.zero_grad()
        ours.zero_grad()
        loss = mean_square(net(inputs), torch.ones(4, 2))
        loss.backward()
        theirs.step()
        value = stage.step(inputs, target=torch.ones(4, 2), loss_fn=mean_square, scaler=scaler)
        assert distance(value, loss) < TIGHT
        scaler.step(ours)
        scaler.update()
    found = {"stepped": furthest(stage, net, "state")}
    ours.zero_grad()
    stage.step(batch(4), target=torch.ones(4, 2), loss_fn=mean_square, scaler=scaler)
    if stage.rank == 0:
        next(stage.parameters()).grad.fill_(torch.inf)
    scaler.step(ours)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    return {**found, "kept": furthest(stage, net, "state")}


def from_meta():
    """Each rank gives memory to its own part; weights come from a checkpoint, or from the seed."""
    net, batch = converted("tied embedding")
    with torch.device("meta"):
        model = LanguageModel().double()
    empty = pararealize(model, plan=net.plan, example_inputs=torch.zeros(2, 5, dtype=torch.long, device="meta"))
    stage = empty.distribute(mesh_of(2), timeout=30)
    assert {tensor.device.type for tensor in (*stage.parameters(), *stage.buffers())} == {"cpu"}
    for name, tensor in stage.state_dict().items():  # drawn as in one process
        if name.split(".")[0] in ("adapters", "coarse"):
            assert torch.equal(tensor, net.state_dict()[name].to(tensor)), name
    with pytest.raises(DistributedError, match=r"tensors have no values \(.*gain.*from the meta device"):
        stage(batch(2))
    state = net.state_dict()
    del state["embed.weight"]  # as safetensors.torch.save_model leaves out all but one name
    stage.load_state_dict(state)
    stage.get_buffer("causal").copy_(torch.ones(16, 16).triu(1).bool())
    inputs = batch(3)
    loss = mean_square(net(inputs), torch.zeros(()))
    loss.backward()
    ours = stage.step(inputs, target=torch.zeros(()), loss_fn=mean_square)
    tied = {name for name, _ in stage.named_parameters(remove_duplicate=False)} & {"embed.weight", "head.weight"}
    assert tied == {"embed.weight" if stage.rank == 0 else "head.weight"}
    with pytest.raises(CheckpointError, match=r"1 missing .*1 unknown \(surplus\)"):
        stage.load_state_dict({**dict(itertools.islice(stage.state_dict().items(), 1, None)), "surplus": torch.ones(1)})
    return {"loss": distance(ours, loss), "gradient": furthest(stage, net, "grad")}


def test_accumulation_clipping_autocast_scaler_and_meta():
    assert largest(on_ranks(2, aspects, ["perceptron", "shared layers"])) == {}


def average(names):
    """Averages over dp are the gradients of the whole batch."""
    mesh = mesh_of(2, 2)
    found = {name: accumulate(name, dp=True) for name in names}
    return {**found, "unused": partly_used(mesh)}


class Skipping(nn.Module):
    """A layer that only takes part when the batch is larger than one, and one that never does."""

    def __init__(self):
        super().__init__()
        self.linear, self.often, self.never = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        x = x + torch.tanh(self.linear(x))
        return x + self.often(x) if x.shape[0] > 1 else x


def partly_used(mesh):
    """A parameter that one replica uses gets half of its gradient; one that nobody uses gets none."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Skipping() for _ in range(4)]).double()
    net = pararealize(model, n=2, example_inputs=vectors(2, 6), leaf_modules=[Skipping], coarse="linear")
    stage = net.distribute(mesh, timeout=30)
    replica = mesh.get_local_rank("dp")
    batches = [vectors(2, 6), vectors(1, 6)]
    (sum(mean_square(net(inputs), torch.zeros(())) for inputs in batches) / 2).backward()
    stage.step(batches[replica], target=torch.zeros(()), loss_fn=mean_square)
    assert any("never" in name for name, _ in stage.named_parameters())
    return {"grad": furthest(stage, net, "grad")}


def test_averages_over_replicas():
    assert largest(on_ranks(4, average, ["perceptron", "tied embedding", "context with gradients"])) == {}


# Calls that cannot be made --------------------------------------------------------------------------------------------


def heard(call):
    """The kind of this library's error, and what it says."""
    with pytest.raises(DistributedError) as caught:
        call()
    return type(caught.value).__name__, str(caught.value)


def in_child(call):
    """What a call gives in a process that is forked from this one."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads that are there, from Python 3.12 on
        child = os.fork()
    if not child:
        try:
            os.write(writer, ": ".join(heard(call)).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    return os.read(reader, 10_000).decode()


def wrong_calls():
    net, batch = converted("perceptron")
    x, last = batch(4), dist.get_rank() == 1
    step = {"target": torch.zeros(()), "loss_fn": mean_square}
    said = {}
    stage = net.distribute(mesh_of(2), timeout=60)
    stage.step(x, **step)
    assert stage.clip_grad_norm_("1e9", "inf") == stage.clip_grad_norm_(1e9, float("inf")) > 0
    for bad in (float("nan"), -1.0, "much"):
        said[f"max_norm {bad}"] = heard(lambda bad=bad: stage.clip_grad_norm_(bad))
    said["norm_type"] = heard(lambda: stage.clip_grad_norm_(1.0, 0.0))
    said["scaler"] = heard(lambda: stage.step(x, **step, scaler=1.0))
    said["plain scaler"] = heard(lambda: stage.step(x, **step, scaler=torch.amp.GradScaler("cpu")))
    alone = [dist.new_group([rank]) for rank in range(2)][last]
    said["scaler's group"] = heard(lambda: stage.step(x, **step, scaler=ShardedGradScaler("cpu", process_group=alone)))
    stage.step(x, **step, scaler=torch.amp.GradScaler("cpu", enabled=False))
    said["meta"] = heard(lambda: stage.step(x.to("meta"), **step))
    stage.step(x, **step)
    said["fork"] = "", in_child(lambda: stage.step(x, **step))
    said["fork, load"] = "", in_child(lambda: stage.load_state_dict(stage.state_dict()))
    stage.step(x, **step)

    def closes(output, target):
        stage.close()

    for name, call in (  # of one rank alone, when the others have begun: the run is over
        ("close", lambda stage: stage.step(x, **{**step, "loss_fn": closes})),
        ("loss_fn", lambda stage: stage.step(x, **{**step, "loss_fn": None})),
        ("scale", lambda stage: stage.step(x, **step, scaler=ShardedGradScaler("cpu", init_scale=2.0 + last))),
        ("one max_norm", lambda stage: stage.clip_grad_norm_(float("nan") if last else 1.0)),
    ):
        said[name] = heard(partial(call, stage))
        stage = net.distribute(mesh_of(2), timeout=60)
        stage.step(x, **step)
    store = c10d._get_default_store()
    store.set(f"{dist.get_rank()} has ended its step", "")
    store.wait([f"{rank} has ended its step" for rank in range(2)])
    dist.destroy_process_group()
    said["destroyed"] = heard(lambda: stage.step(x, **step))
    return said


TOLD = {
    "max_norm nan": "max_norm is nan; pass a number of 0 or more",
    "max_norm -1.0": "max_norm is -1.0; pass a number",
    "one max_norm": "rank 1 .*max_norm is nan",
    "max_norm much": "max_norm is 'much'; pass a number",
    "norm_type": "norm_type is 0.0; pass a number above 0",
    "loss_fn": "loss_fn is None; pass a function",
    "scaler": "scaler is 1.0; pass a torch.amp.GradScaler",
    "plain scaler": "scaler is a GradScaler, which skips a step on the rank .* no other of 2; pass a .*Sharded",
    "scaler's group": r"the scaler's process group is without the ranks \[[01]\] of this network; pass a",
    "scale": "scaler is on, with the scale 2 on rank 0 .*, on, with the scale 3 on rank 1",
    "meta": "is on the meta device, without values",
    "fork": "DistributedError: process .* was forked from rank",
    "fork, load": "DistributedError: process .* was forked from rank",
    "close": r"is within a call of the stage, which needs what close\(\) ends",
    "destroyed": r"process groups of the network have been destroyed \(torch.distributed.destroy_process_group",
}


def test_calls_that_cannot_be_made_are_named_on_every_rank():
    for said in on_ranks(2, wrong_calls):
        assert said.keys() == TOLD.keys()
        for what, (kind, text) in said.items():
            assert re.search(TOLD[what], text), (what, text)
            if what in ("close", "destroyed", "loss_fn", "scale", "one max_norm"):
                assert kind in ("DistributedError", "RankError", "DisagreementError"), what
            elif "fork" not in what:
                assert kind == ("RefusedCallError" if what == "meta" else "AgreedError"), what
