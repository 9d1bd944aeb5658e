"""Networks over several ranks, beside the same networks in one process."""

from __future__ import annotations

import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from pararealize import pararealize
from pararealize.models import resnet20
from tests.models import InPlace, LanguageModel, MaskedTransformer, Perceptron, SharedBias, SkipInPlace, SmallResNet
from tests.nested_inputs import Tabular, table
from tests.pair_networks import RevNet, WaveNet

TIGHT = 1e-11


def images(batch):
    return torch.randn(batch, 3, 8, 8, dtype=torch.float64)


def vectors(batch, width=8):
    return torch.randn(batch, width, dtype=torch.float64)


def ids(batch):
    return torch.randint(0, 11, (batch, 5))


def alike():
    """Layers of one width, so that all interfaces lie in one space."""
    return nn.Sequential(*(layer for _ in range(7) for layer in (nn.Linear(8, 8), nn.Tanh())))


def deep():
    """More blocks of one width, for several windows."""
    return nn.Sequential(*(layer for _ in range(9) for layer in (nn.Linear(8, 8), nn.Tanh())))


def undropped(model):
    for layer in model.layers:
        layer.dropout = 0.0
    return model


BEHIND = {"n": 3, "windows": ["2", "8", "14"], "coarse": "linear", "sequential": 1}  # 1, 3, 3 and 2 segments

# name: (model, inputs of a batch size, arguments of pararealize)
NETWORKS = {
    "residual, batch norm": (SmallResNet, images, {"n": 4}),
    "pre-activation, linear coarse": (lambda: resnet20(num_classes=3), images, {"n": 3, "coarse": "linear"}),
    "perceptron": (Perceptron, vectors, {"n": 4, "coarse": "linear"}),
    "alike": (alike, vectors, {"n": 3, "coarse": "linear"}),
    "perceptron, an empty stem": (Perceptron, vectors, {"n": 3, "source": "stem"}),
    "mask from the inputs": (lambda: undropped(MaskedTransformer()), ids, {"n": 3}),
    "context with gradients": (SharedBias, lambda b: vectors(b, 6), {"n": 3, "coarse": "exact"}),
    "context with gradients, read by copies": (SharedBias, lambda b: vectors(b, 6), {"n": 4, "coarse": "block"}),
    "context and the stem": (SharedBias, lambda b: vectors(b, 6), {"n": 3, "source": "stem"}),
    "context and a sequential block": (SharedBias, lambda b: vectors(b, 6), {"n": 3, "sequential": 1}),
    "in place": (InPlace, lambda b: vectors(b, 6), {"n": 3}),
    "in place, one segment": (InPlace, lambda b: vectors(b, 6), {"n": 1}),
    "a skip added to in place": (SkipInPlace, lambda b: vectors(b, 6), {"n": 2, "windows": 2, "coarse": "dense"}),
    "tied embedding": (LanguageModel, ids, {"n": 3, "coarse": "linear"}),
    "shared layers": (lambda: LanguageModel(shared=True), ids, {"n": 3, "coarse": "exact"}),
    "a dict of inputs": (Tabular, table, {"n": 3, "coarse": "linear"}),
    "skips that add up": (WaveNet, lambda b: torch.randn(b, 1, 9, dtype=torch.float64), {"n": 3}),
    "windows": (deep, vectors, {"n": 3, "windows": 2, "coarse": "paper"}),
    "windows, linear coarse": (deep, vectors, {"n": 2, "windows": 3, "coarse": "linear"}),
    "windows behind a sequential block": (deep, vectors, BEHIND),
    "windows that read the input": (lambda: resnet20(num_classes=3), images, {"n": 2, "windows": 3, "source": "input"}),
    "windows, context with gradients": (SharedBias, lambda b: vectors(b, 6), {"n": 2, "windows": 2, "coarse": "block"}),
    "windows, tied embedding": (LanguageModel, ids, {"n": 2, "windows": 2, "coarse": "linear"}),
    "windows, corrected outputs": (deep, vectors, {"n": 2, "windows": 3, "coarse": "dense"}),
    "windows, a short one between": (deep, vectors, {"n": 3, "windows": ["0", "6", "10"], "coarse": "linear"}),
    "reversible halves": (RevNet, lambda b: vectors(b, 5), {"n": 3, "coarse": "exact"}),
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


def follow(names, changes=None, **how):
    """Five steps, ragged batches among them, beside the one-process network; then evaluation."""
    mesh, found = mesh_of(dist.get_world_size()), {}
    for name in names:
        net, batch = converted(name, **(changes or {}))
        stage = net.distribute(mesh, timeout=30, **how)
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


def accumulate(name, dp, **how):
    """Two steps without synchronisation and one with it, twice, and clipping, against the whole batches at once."""
    size = dist.get_world_size()
    mesh = mesh_of(2, size // 2) if dp else mesh_of(size)
    net, batch = converted(name, **how)
    stage = net.distribute(mesh, timeout=30, bucket_bytes=300, reduce_linear=True)
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


def largest(results):
    return {
        (rank, name, what): worst
        for rank, result in enumerate(results)
        for name, values in result.items()
        for what, worst in values.items()
        if not worst < (1e-6 if name == "in_bfloat16" else TIGHT)  # its parameters are of single precision
    }
