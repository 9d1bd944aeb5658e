"""Layer-parallel networks over several ranks compute what they compute in one process, whatever stands where."""

from __future__ import annotations

import os
import time

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from pararealize import layer_parallel
from pararealize.errors import AgreedError, DistributedError, MultigridError, RankError
from pararealize.multigrid.distributed.stage import LayerStage
from pararealize.train.methods import Options, build
from tests.models import LanguageModel, MaskedTransformer, Residual, SharedBias, StochasticDepth
from tests.rank_comparison import distance, furthest, images, mean_square, mesh_of, optimiser, tensor_of, vectors
from tests.ranks import RanksFailed, on_ranks

TIGHT = 1e-11


class Chains(nn.Module):
    """Two chains of pre- and post-activation blocks with batch norm, and a transition between them."""

    def __init__(self, depth=7, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, padding=1)
        self.first = nn.Sequential(*(Residual(width) for _ in range(depth)))
        self.second = nn.Sequential(*(Residual(2 * width, 2 * width) for _ in range(depth - 2)))
        self.down = nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.fc = nn.Linear(2 * width, 3)

    def forward(self, x):
        return self.fc(self.second(self.down(self.first(self.conv(x)))).mean((2, 3)))


class AlwaysDropped(nn.Module):
    """A residual block whose dropout is on in eval mode, too."""

    def __init__(self, width=6):
        super().__init__()
        self.a = nn.Linear(width, width)

    def forward(self, x):
        return x + F.dropout(self.a(x), 0.3)


class Dropped(nn.Sequential):
    """Dropout within residual blocks."""

    def __init__(self, depth=9, width=6):
        super().__init__(nn.Linear(6, width), *(StochasticDepth(width, 0.3) for _ in range(depth)), nn.Linear(width, 2))


def ids(batch):
    return torch.randint(0, 11, (batch, 5))


# name: (model, inputs of a batch size, arguments of layer_parallel)
NETWORKS = {
    "two chains, batch norm": (Chains, images, {"coarsening": 3}),
    "two chains, FCF": (Chains, images, {"coarsening": 2, "relaxation": "FCF", "backward_iterations": 2}),
    "three levels": (Chains, images, {"coarsening": 2, "levels": 3, "forward_iterations": 3}),
    "F-cycles of three levels": (
        Dropped, lambda b: vectors(b, 6), {"coarsening": 2, "levels": 3, "cycle": "F", "relaxation": "FCF"}
    ),
    "dropped paths": (Dropped, lambda b: vectors(b, 6), {"coarsening": 3, "backward_iterations": 2}),
    "Monte Carlo dropout": (
        lambda: nn.Sequential(*(AlwaysDropped() for _ in range(7))), lambda b: vectors(b, 6), {"coarsening": 2}
    ),
    "masks and dropout": (lambda: MaskedTransformer(7), ids, {"coarsening": 2}),
    "context with gradients": (lambda: SharedBias(8), lambda b: vectors(b, 6), {"coarsening": 2}),
    "two residuals a layer, tied": (lambda: LanguageModel(5), ids, {"coarsening": 3, "forward_iterations": 3}),
    "layers that are one": (lambda: LanguageModel(4, shared=True), ids, {"coarsening": 3}),
    "a warm start": (Chains, images, {"coarsening": 3, "warm_start": True}),
    "a tolerance": (Chains, images, {"coarsening": 3, "forward_iterations": 4, "tolerance": 1.0}),
    "as it is": (Chains, images, {"coarsening": 3, "exact": True}),
}  # fmt: skip


def made(name):
    make, batch, arguments = NETWORKS[name]
    torch.manual_seed(0)
    model = nn.Sequential(make()).double().train()  # names of the model itself may be those of the result
    return layer_parallel(model, example_inputs=batch(2), **arguments), batch


def apart(ours, theirs):
    """The largest relative difference of two rows of norms; infinite where they differ in length."""
    if len(ours) != len(theirs):
        return float("inf")
    return max((abs(a - b) / max(b, 1e-9) for a, b in zip(ours, theirs, strict=True) if a > 1e-12), default=0.0)


def follow(names):
    """Four steps, ragged batches among them, beside the network in one process; then evaluation."""
    mesh, found = mesh_of(dist.get_world_size()), {}
    for name in names:
        net, batch = made(name)
        stage = net.distribute(mesh, timeout=30)
        pair = [(net, optimiser(net)), (stage, optimiser(stage))] if list(stage.parameters()) else []
        worst = dict.fromkeys(["loss", "gradient", "state", "norms", "evaluation"], 0.0)
        for step, rows in enumerate((3, 2, 2, 3)):
            torch.manual_seed(step)  # the first rank alone draws the seed of dropout
            x = batch(rows)
            for module, optimizer in pair:
                optimizer.zero_grad()
                torch.manual_seed(100 + step)  # of dropout
                if module is net:
                    output = net(x)
                    target = torch.linspace(-1, 1, tensor_of(output).numel()).view_as(tensor_of(output)).double()
                    expected = mean_square(output, target)
                    expected.backward()
                else:
                    loss = stage.step(x, target=target, loss_fn=mean_square)
            worst["loss"] = max(worst["loss"], distance(loss, expected.detach()))
            worst["gradient"] = max(worst["gradient"], furthest(stage, net, "grad"))
            for way in ("forward", "backward") if net.history else ():
                rows_of = [getattr(module.history[-1], way) for module in (stage, net)]
                worst["norms"] = max(worst["norms"], apart(*rows_of))
            for _, optimizer in pair:
                optimizer.step()
            worst["state"] = max(worst["state"], furthest(stage, net, "state"))
        net.eval(), stage.eval()
        with torch.no_grad():
            torch.manual_seed(7)
            outputs = [stage(x, everywhere=True) for _ in range(2)]
            torch.manual_seed(7)
            worst["evaluation"] = max(distance(tensor_of(output), tensor_of(net(x))) for output in outputs)
        assert len(stage.history) == len(net.history)
        found[name] = worst
    return found


@pytest.mark.parametrize("size, names", [(1, list(NETWORKS)[4:6]), (2, list(NETWORKS)), (3, list(NETWORKS))])
def test_every_rank_gets_what_one_process_computes(size, names):
    found = on_ranks(size, follow, names)
    for name in names:
        for rank in range(size):
            assert max(found[rank][name].values()) < TIGHT, (rank, name, found[rank][name])


def small(**settings):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6, 0.3) for _ in range(7))).double().eval()
    return layer_parallel(model, example_inputs=vectors(2, 6), **{"coarsening": 2, **settings})


def copies():
    """Two copies of two ranks, each with a batch of its own, beside one process with both batches."""
    mesh = mesh_of(2, 2)
    net, stage = small(), small().distribute(mesh, timeout=30)
    torch.manual_seed(1)
    x = vectors(4, 6)
    for _ in range(2):
        for half in (x[:2], x[2:]):  # the mean of gradients of halves, as dp ranks have them
            (net(half).square().mean() / 2).backward()
        own = x[:2] if mesh.get_local_rank("dp") == 0 else x[2:]
        loss = stage.step(own, loss_fn=lambda y: y.square().mean())
    assert loss.isfinite()
    with stage.no_sync():
        stage.step(own, loss_fn=lambda y: y.square().mean())
    norm = stage.clip_grad_norm_(1e9)
    stage.zero_grad()
    return furthest(small_again(stage, own), reference(net, x), "grad"), bool(norm > 0)


def small_again(stage, own):
    stage.step(own, loss_fn=lambda y: y.square().mean())
    return stage


def reference(net, x):
    net.zero_grad()
    for half in (x[:2], x[2:]):
        (net(half).square().mean() / 2).backward()
    return net


def test_copies_average_their_gradients():
    for worst, clipped in on_ranks(4, copies):
        assert worst < TIGHT
        assert clipped


def idle():
    """Three intervals on five ranks: two of them have nothing to do, and the head stands on one of these."""
    net = small(coarsening=3)
    stage, x = small(coarsening=3).distribute(mesh_of(5), timeout=30), torch.ones(3, 6, dtype=torch.float64)
    loss = stage.step(x, loss_fn=lambda y: y.square().mean())
    expected = net(x).square().mean()
    expected.backward()
    worst = furthest(stage, net, "grad") if list(stage.parameters()) else 0.0
    return stage.layers, worst, abs((loss - expected.detach()).item())


def test_more_ranks_than_intervals():
    found = on_ranks(5, idle)
    assert [row[0] for row in found] == [(0, 1, 2), (3, 4, 5), (6,), (), ()]
    assert max(max(row[1:]) for row in found) < TIGHT


def stricken(kind):
    """What each rank sees of a step in which one of them comes to grief."""
    # on a busy machine a first step may take seconds; only who waits for one that hangs should not wait for long
    mesh, timeout = mesh_of(dist.get_world_size()), 3 if kind == "hang" else 20
    stage, x = small().distribute(mesh, timeout=timeout), torch.ones(2, 6, dtype=torch.float64)
    loss_fn = torch.Tensor.mean
    stage.step(x, loss_fn=loss_fn)
    if dist.get_rank() == 1:

        def strike(*_):
            if kind == "raise":
                raise ValueError("a bad layer")
            if kind == "kill":
                os._exit(9)
            time.sleep(4.5)  # longer than the others wait, and shorter than a rank that hangs may live

        own = stage.rank_setup.modules.parts[f"f{stage.layers[-1]}"]
        next(m for m in own.modules() if isinstance(m, nn.Linear)).register_forward_hook(strike)
    try:
        stage.step(x, loss_fn=loss_fn)
    except Exception as error:  # noqa: BLE001 - it is compared
        first = f"{type(error).__name__}: {error}"
    try:
        stage.step(x, loss_fn=loss_fn)
    except DistributedError as error:
        return first, str(error)
    return first, ""


@pytest.mark.parametrize("kind", ["raise", "hang"])
def test_a_rank_that_fails_ends_all(kind):
    found = on_ranks(3, stricken, kind, seconds=45)
    for rank, (first, second) in enumerate(found):
        if kind == "raise" and rank == 1:
            assert first == "ValueError: a bad layer"
        else:
            assert "rank 1 (layers 2 to 3, 3 to 4)" in first, first
            assert first.startswith("RankError")
        assert second


def test_a_rank_that_dies_ends_the_others():
    with pytest.raises(RanksFailed, match="rank 1: died with exit code 9") as caught:
        on_ranks(3, stricken, "kill", seconds=45)
    assert "rank 0" not in str(caught.value)
    assert "rank 2" not in str(caught.value)


def settled():
    """Settings that differ between ranks, before and after, and none that do not fit."""
    mesh = mesh_of(2)
    seen = []
    for what in ("made otherwise", "changed", "weights", "iterations"):
        try:
            net = small(relaxation="FCF" if what == "made otherwise" and dist.get_rank() else "F")
            if what == "weights" and dist.get_rank():
                next(net.parameters()).data.add_(1)
            stage = net.distribute(mesh, timeout=30)
            stage.forward_iterations = 0 if what == "iterations" else 3 if what == "changed" and dist.get_rank() else 2
            stage(torch.ones(2, 6, dtype=torch.float64))
        except (AgreedError, MultigridError, RankError) as error:
            seen.append(str(error))
    return seen


def test_ranks_that_differ_are_refused():
    for made_otherwise, changed, weights, iterations in on_ranks(2, settled):
        assert "the settings is" in made_otherwise
        assert "forward_iterations = 3" in changed
        assert "the digest of 0.weight is" in weights
        assert "iterations are 0; pass a whole number of at least 1" in iterations  # whichever rank found it first


class OneNorm(nn.Module):
    """A batch norm that all layers call."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.steps = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x):
        for step in self.steps:
            x = x + step(torch.tanh(self.norm(x)))
        return x


def refused():
    net = layer_parallel(OneNorm(), coarsening=2, example_inputs=torch.randn(4, 4))
    with pytest.raises(DistributedError, match=r"batch norms that several ranks share.*norm on ranks \[0, 1\]"):
        net.distribute(mesh_of(2), timeout=30)


def test_a_norm_on_several_ranks_is_refused():
    on_ranks(2, refused)


def passed():
    """What layer_parallel(mesh=...) gives is what distribute gives."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(6))).eval()
    stage = layer_parallel(model, 2, 2, example_inputs=torch.ones(2, 6), mesh=mesh_of(2))
    assert isinstance(stage, LayerStage)
    output = stage(torch.ones(3, 6))
    assert (output is None) == (stage.rank == 0)
    return stage.segments, list(stage.state_dict()), stage.history[-1].forward


def test_it_is_asked_for_with_a_mesh():
    (first, keys, norms), (second, others, norms2) = on_ranks(2, passed)
    assert (first, second) == ((1, 2), (3, 3)) or first[1] + 1 == second[0]
    assert {key.split(".")[0] for key in keys} | {key.split(".")[0] for key in others} == {str(i) for i in range(7)}
    assert not set(keys) & set(others)
    assert norms == norms2


def built():
    """As the command line trains it: by multigrid, and scored as the model is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 6), *(StochasticDepth(6) for _ in range(7))).eval()
    more = {"coarsening": 3, "forward_iterations": 1}
    example, x = torch.ones(2, 6), torch.linspace(-1, 1, 18).view(3, 6)
    stage = build("multigrid", model, Options(mesh=mesh_of(2), example_inputs=example, more=more)).net
    exact, _ = stage(x, everywhere=True), stage.train().step(x, loss_fn=torch.Tensor.mean)
    assert torch.equal(exact, model(x))
    assert len(stage.history) == 1
    assert not stage.exact
    with pytest.raises(DistributedError, match="trains in one process"):
        build("oneshot", model, Options(mesh=mesh_of(2), example_inputs=example))


def test_the_method_of_the_command_line():
    on_ranks(2, built)
