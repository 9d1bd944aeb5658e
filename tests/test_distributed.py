"""Networks over several ranks compute what they compute in one process: outputs, losses, gradients, steps, buffers."""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import re
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from models import InPlace, LanguageModel, MaskedTransformer, Perceptron, SharedBias, SmallResNet
from ranks import on_ranks
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

from pararealize import pararealize
from pararealize.errors import CheckpointError, DistributedError
from pararealize.models import resnet20

TIGHT = 1e-11


def images(batch):
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def vectors(batch, width=8):
    return torch.randn(batch, width, dtype=torch.float64)


def ids(batch):
    return torch.randint(0, 11, (batch, 5))


def undropped(model):
    for layer in model.layers:
        layer.dropout = 0.0
    return model


# name: (model, inputs of a batch size, arguments of pararealize)
NETWORKS = {
    "residual, batch norm": (SmallResNet, images, {"n": 4}),
    "pre-activation, linear coarse": (lambda: resnet20(num_classes=3), images, {"n": 3, "coarse": "linear"}),
    "perceptron": (Perceptron, vectors, {"n": 4, "coarse": "linear"}),
    "perceptron, an empty stem": (Perceptron, vectors, {"n": 3, "source": "stem"}),
    "mask from the inputs": (lambda: undropped(MaskedTransformer()), ids, {"n": 3}),
    "context with gradients": (SharedBias, lambda b: vectors(b, 6), {"n": 3, "coarse": "exact"}),
    "context with gradients, read by copies": (SharedBias, lambda b: vectors(b, 6), {"n": 4, "coarse": "block"}),
    "context and the stem": (SharedBias, lambda b: vectors(b, 6), {"n": 3, "source": "stem"}),
    "in place": (InPlace, lambda b: vectors(b, 6), {"n": 3}),
    "in place, one segment": (InPlace, lambda b: vectors(b, 6), {"n": 1}),
    "tied embedding": (LanguageModel, ids, {"n": 3, "coarse": "linear"}),
    "shared layers": (lambda: LanguageModel(shared=True), ids, {"n": 3, "coarse": "exact"}),
}


def mean_square(output, target):
    """A mean loss of whatever the network gives."""
    output = output["logits"] if isinstance(output, dict) else output
    return (output - target).square().mean()


def mesh_of(*sizes):
    return init_device_mesh("cpu", sizes, mesh_dim_names=("dp", "parareal")[-len(sizes) :])


def converted(name, **changes):
    make, batch, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model = make().double()
    return pararealize(model, example_inputs=batch(2), **{**arguments, **changes}), batch


def optimiser(module):
    return torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-3)


def distance(a, b):
    """The largest difference, relative where values are large; infinite where only one of the two is there."""
    if (a is None) != (b is None):
        return float("inf")
    if a is None or a.numel() == 0:
        return 0.0
    a, b = a.double(), b.double()
    return ((a - b).abs() / b.abs().clamp(min=1)).max().item()


def furthest(stage, net, what):
    """The largest difference of this rank's gradients, or of its state, from the one-process network's."""
    if what == "grad":
        ours = {name: p.grad for name, p in stage.named_parameters(remove_duplicate=False)}
        theirs = {name: p.grad for name, p in net.named_parameters(remove_duplicate=False)}
    else:
        ours, theirs = stage.state_dict(), net.state_dict()
    assert ours
    return max(distance(ours[name], theirs[name]) for name in ours)


def tensor_of(output):
    return output["logits"] if isinstance(output, dict) else output


# As in one process ---------------------------------------------------------------------------------------------------


def follow(names, checkpoint=False):
    """Five steps, ragged batches among them, beside the one-process network; then evaluation."""
    mesh, found = mesh_of(dist.get_world_size()), {}
    for name in names:
        net, batch = converted(name)
        stage = net.distribute(mesh, timeout=30, checkpoint_activations=checkpoint)
        pair = [(net, optimiser(net)), (stage, optimiser(stage))]
        worst = dict.fromkeys(["loss", "gradient", "state", "output", "evaluation"], 0.0)
        torch.manual_seed(1)
        for size in (4, 4, 3, 4, 1 if "batch norm" not in name else 2):
            inputs = batch(size)
            for _, optimizer in pair:
                optimizer.zero_grad()
            output = net(inputs)
            target = torch.randn_like(tensor_of(output))
            loss = mean_square(output, target)
            loss.backward()
            ours = stage.step(inputs, target=target, loss_fn=mean_square)
            assert not ours.requires_grad
            worst["loss"] = max(worst["loss"], distance(ours, loss))
            worst["gradient"] = max(worst["gradient"], furthest(stage, net, "grad"))
            for _, optimizer in pair:
                optimizer.step()
        worst["state"] = furthest(stage, net, "state")
        for mode, size in (("evaluation", 3), ("output", 4), ("evaluation", 4)):
            for module, _ in pair:
                module.train(mode == "output")
            inputs = batch(size)
            with torch.no_grad():
                expected = net(inputs)
            everywhere = stage(inputs, everywhere=True) if size == 3 else stage(inputs)
            if size == 4 and stage.rank < dist.get_world_size() - 1:
                assert everywhere is None
                continue
            assert type(everywhere) is type(expected)
            worst[mode] = max(worst[mode], distance(tensor_of(everywhere), tensor_of(expected)))
        found[name] = worst, sorted(stage.state_dict()), sorted(net.state_dict())
    return found


def check(results, names):
    for name in names:
        for rank, result in enumerate(results):
            for what, worst in result[name][0].items():
                assert worst < TIGHT, f"{what} of {name!r} on rank {rank} is off by {worst}"
        whole = results[0][name][2]
        union = sorted({key for result in results for key in result[name][1]})
        assert union == whole
        assert all(len(result[name][1]) < len(whole) for result in results)


def test_two_ranks_compute_what_one_process_does():
    names = [name for name in NETWORKS if name != "in place, one segment"]
    check(on_ranks(2, follow, names), names)


def test_three_ranks_compute_what_one_process_does():
    names = ["context with gradients", "shared layers"]
    check(on_ranks(3, follow, names), names)


def test_one_rank_does():
    def alike(results):
        for name, (worst, ours, whole) in results[0].items():
            assert max(worst.values()) < TIGHT, name
            assert ours == whole

    alike(on_ranks(1, follow, ["in place, one segment", "context with gradients"]))


def test_recomputed_activations_give_the_same():
    names = ["residual, batch norm", "tied embedding"]
    check(on_ranks(2, follow, names, True), names)


# Around steps --------------------------------------------------------------------------------------------------------


def accumulate(name, dp):
    """Two steps without synchronisation and one with it, twice, and clipping, against the whole batches at once."""
    size = dist.get_world_size()
    mesh = mesh_of(2, size // 2) if dp else mesh_of(size)
    net, batch = converted(name)
    stage = net.distribute(mesh, timeout=30, bucket_bytes=300)
    replica = mesh.get_local_rank("dp") if dp else 0
    found = {}
    for round_ in range(2):  # the second one adds to gradients that are there
        batches = [batch(4) for _ in range(3)]
        targets = [torch.randn_like(tensor_of(net(inputs))) for inputs in batches]
        for inputs, target in zip(batches, targets, strict=True):
            mean_square(net(inputs), target).backward()
        for i, (inputs, target) in enumerate(zip(batches, targets, strict=True)):
            if dp:
                inputs, target = inputs[2 * replica :][:2], target[2 * replica :][:2]
            with stage.no_sync() if i < 2 else contextlib.nullcontext():
                stage.step(inputs, target=target, loss_fn=mean_square)
        found[f"round {round_}"] = furthest(stage, net, "grad")
    for limit, kind in ((1e-3, 2.0), (1e-4, float("inf")), (1e-5, 1.0)):
        expected = nn.utils.clip_grad_norm_(net.parameters(), limit, kind)
        found[f"norm {kind}"] = distance(stage.clip_grad_norm_(limit, kind), expected)
        found[f"clipped {kind}"] = furthest(stage, net, "grad") / limit
    return found


def aspects(names):
    """Every check for two ranks that needs no launch of its own."""
    found = {name: accumulate(name, dp=False) for name in names}
    checks = (in_bfloat16, frozen, without_target, scaled, from_meta)
    return {**found, **{check.__name__: check() for check in checks}}


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


def largest(results):
    return {
        (rank, name, what): worst
        for rank, result in enumerate(results)
        for name, values in result.items()
        for what, worst in values.items()
        if not worst < (1e-6 if name == "in_bfloat16" else TIGHT)  # its parameters are of single precision
    }


def test_accumulation_clipping_autocast_scaler_and_meta():
    assert largest(on_ranks(2, aspects, ["perceptron", "shared layers"])) == {}


def average(names):
    """Averages over dp are the gradients of the whole batch; weights are the first replica's."""
    mesh = mesh_of(2, 2)
    found = {name: accumulate(name, dp=True) for name in names}
    net, _ = converted("perceptron")
    other = copy.deepcopy(net)
    if mesh.get_local_rank("dp") == 1:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.add_(1)
    stage = other.distribute(mesh, timeout=30)
    return {**found, "first": {"state": furthest(stage, net, "state")}, "unused": partly_used(mesh)}


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


def page():
    """Run the script that the documentation shows; what it prints."""
    text = (Path(__file__).resolve().parent.parent / "docs/howto/distributed.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(# train.py\n.*?)```", text, re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        exec(compile(script, "train.py", "exec"), {})
    return printed.getvalue()


def test_the_script_of_the_documentation_runs():
    first, last = on_ranks(2, page)
    assert re.fullmatch(r"(step \d: loss \d\.\d{3}\n){5}", first)
    assert last == "rank 1 has the output, (8, 10)\n"


# Refusals ------------------------------------------------------------------------------------------------------------


def refused(call):
    """The message of the typed error that a call raises."""
    with pytest.raises(DistributedError) as caught:
        call()
    return str(caught.value)


def refusals():
    """One after the other on both ranks: each ends in an error on each."""
    rank, mesh = dist.get_rank(), mesh_of(2)
    net, batch = converted("perceptron")
    other, _ = converted("perceptron", n=2 + rank)
    changed = copy.deepcopy(net)
    with torch.no_grad():
        next(changed.parameters()).add_(rank)
    placed, _ = converted("perceptron", devices=["cpu"])
    normed = SmallResNet()
    normed.layer2[-1] = normed.layer2[-2]
    tied = pararealize(normed, n=5, example_inputs=torch.randn(2, 3, 8, 8))
    synchronised, _ = converted("residual, batch norm")
    synchronised.layer1[0].bn1.__class__ = nn.SyncBatchNorm
    stage = net.distribute(mesh, timeout=20)

    def step(inputs, **arguments):
        return lambda: stage.step(inputs, **{"target": torch.zeros(()), "loss_fn": mean_square, **arguments})

    def autocast():
        with torch.autocast("cpu", torch.bfloat16, enabled=rank == 1):
            step(batch(2))()

    found = {
        "dimension": refused(lambda: net.distribute(init_device_mesh("cpu", (2,), mesh_dim_names=("tp",)))),
        "mesh": refused(lambda: net.distribute("cpu")),
        "assignment": refused(lambda: net.distribute(mesh, assignment=[4, 1], timeout=20)),
        "one rank's assignment": refused(lambda: net.distribute(mesh, assignment=[[2, 2], [9]][rank], timeout=20)),
        "cuts": refused(lambda: net.distribute(mesh, assignment=[[2, 2], [1, 3]][rank], timeout=20)),
        "n": refused(lambda: other.distribute(mesh, timeout=20)),
        "weights": refused(lambda: changed.distribute(mesh, timeout=20)),
        "devices": refused(lambda: placed.distribute(mesh, timeout=20)),
        "norms": refused(lambda: tied.distribute(mesh, assignment=[4, 1], timeout=20)),
        "synchronised": refused(lambda: synchronised.distribute(mesh, timeout=20)),
        "shapes": refused(step(batch(3 + rank))),
        "types": refused(step(batch(7).to([torch.float64, torch.float32][rank]))),
        "autocast": refused(autocast),
        "call": refused([step(batch(9)), lambda: stage(batch(9))][rank]),
    }
    stage.train(rank == 0)
    found["mode"] = refused(step(batch(8)))
    stage.train()
    assert step(batch(2))() > 0  # it goes on after what was refused
    single, _ = converted("perceptron", n=1)
    found["ranks"] = refused(lambda: single.distribute(mesh, timeout=20))
    return found


EXPECTED = {
    "dimension": "dimensions .'tp',.; pass one with mesh_dim_names=",
    "mesh": "mesh is str; pass torch.distributed.device_mesh.init_device_mesh",
    "assignment": r"assignment is \[4, 1\]; pass how many of the 4 segments each of the 2 ranks takes",
    "one rank's assignment": r"^rank 1: assignment is \[9\]",
    "cuts": r"segments of the ranks is \(\(1, 2\), \(3, 4\)\) on rank 0, \(\(1, 1\), \(2, 4\)\) on rank 1",
    "n": " n is 2 on rank 0, 3 on rank 1; ",
    "weights": "the digest of .*weight is [0-9a-f]+ on rank 0, [0-9a-f]+ on rank 1; call torch.manual_seed",
    "devices": "converted with devices=",
    "norms": r"batch norms that several ranks share .*: layer2.*bn1 on ranks \[0, 1\]; put the segments",
    "synchronised": r"1 synchronised batch norms \(layer1.0.bn1\) would wait",
    "shapes": r"input input_1 is \(3, 8\) float64 on rank 0 \(segments 1 to 2, .*\), \(4, 8\) float64 on rank 1 \(",
    "types": r"\(7, 8\) float64 on rank 0 .*, \(7, 8\) float32 on rank 1",
    "autocast": "autocast is off on rank 0 .*, bfloat16 on rank 1 ",
    "call": "call is step on rank 0 .*, inference on rank 1",
    "mode": "mode is train on rank 0 .*, eval on rank 1 .*; give every rank",
    "ranks": "2 ranks for n = 1 segments",
}


def test_what_cannot_be_distributed_is_refused_on_every_rank():
    for found in on_ranks(2, refusals):
        assert found.keys() == EXPECTED.keys()
        for what, message in found.items():
            assert re.search(EXPECTED[what], message), f"{what}: {message}"


def abandoned(seconds):
    """The second rank leaves before the second step; the first one is not left waiting."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=seconds)
    arguments = {"target": torch.zeros(()), "loss_fn": mean_square}
    stage.step(batch(2), **arguments)
    if stage.rank == 1:
        return ""
    message = refused(lambda: stage.step(batch(2), **arguments))
    assert refused(lambda: stage(batch(2))) == message
    return message


def test_a_rank_that_leaves_is_named():
    message, _ = on_ranks(2, abandoned, 3)
    assert re.search(r"^rank 1 \(segments 3 to 4, .*\) has left", message)


def test_it_needs_process_groups():
    with pytest.raises(DistributedError, match=r"torch\.distributed is not initialised; start with torchrun"):
        converted("perceptron")[0].distribute(None)
