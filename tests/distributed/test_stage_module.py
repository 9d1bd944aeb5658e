"""A stage is an ordinary module: it is copied, averaged, moved and saved as one, or says what to do instead."""

from __future__ import annotations

import copy
import gc
import io
import math
import pickle
import weakref

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed import distributed_c10d as c10d
from torch.distributed.device_mesh import init_device_mesh
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pararealize import layer_parallel, pararealize
from pararealize.distributed.checkpoint import gather_state_dict
from pararealize.errors import DeviceError, DistributedError, ModelError
from tests.models import LanguageModel
from tests.rank_comparison import TIGHT, converted, distance, furthest, mean_square, mesh_of, optimiser
from tests.ranks import on_ranks


class Dropped(nn.Module):
    """A network whose own forward, and no module of it, drops; with batch norms and parameters of the root."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8)) for _ in range(4))
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return nn.functional.dropout(x * self.scale, 0.5, self.training)


def parareal(make=Dropped, **changes):
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64)
    return pararealize(make().double(), n=2, coarse="linear", example_inputs=x, **changes), x


def layers(make=Dropped):
    torch.manual_seed(0)
    x = torch.randn(4, 8, dtype=torch.float64)
    return layer_parallel(nn.Sequential(make().double()), coarsening=2, example_inputs=x, warm_start=True), x


KINDS = {"parareal": parareal, "layers": layers}


def loss_of(output):
    return output.square().mean()


@pytest.fixture(scope="module")
def mesh():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,), mesh_dim_names=("parareal",))
    dist.destroy_process_group()


# On one rank ---------------------------------------------------------------------------------------------------------


def lazily(name):
    """A wrapper of torch's, imported when it is used."""

    def wrap(stage):
        from torch.distributed.fsdp import fully_shard

        return {"fully_shard": fully_shard, "ddp": nn.parallel.DistributedDataParallel, "script": torch.jit.script}[
            name
        ](stage)

    return wrap


REFUSED = {  # what is done to a stage, the error, and what that tells to do
    "pickle": (pickle.dumps, ModelError, "save_sharded"),
    "torch.save": (lambda stage: torch.save(stage, io.BytesIO()), ModelError, "gather_state_dict"),
    "another device": (lambda stage: stage.to("meta"), DeviceError, "over a mesh of 'meta' devices"),
    "DistributedDataParallel": (lazily("ddp"), DistributedError, "dimension 'dp'"),
    "fully_shard": (lazily("fully_shard"), DistributedError, "dimension 'dp'"),
    "a script": (lazily("script"), DistributedError, "Script the model itself"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("what", REFUSED)
def test_what_a_stage_cannot_be_is_refused_and_leaves_it_as_it_was(mesh, kind, what) -> None:
    net, x = KINDS[kind]()
    stage = net.distribute(mesh)
    do, error, remedy = REFUSED[what]
    with pytest.raises(error, match=remedy):
        do(stage)
    stage.eval()
    assert torch.equal(stage(x), net.eval()(x))
    stage.step(x, loss_fn=loss_of)


def replace_module(stage):
    name = next(name for name, module in stage.named_modules() if isinstance(module, nn.Linear))
    owner, _, last = name.rpartition(".")
    setattr(stage.get_submodule(owner), last, nn.Linear(8, 8).double())


def untie(stage):
    stage.get_submodule("head").weight = nn.Parameter(stage.get_submodule("head").weight.detach().clone())


@pytest.mark.parametrize("what", ["another module", "untied"])
def test_parameters_that_a_step_would_pass_over_are_refused(mesh, what) -> None:
    if what == "untied":
        torch.manual_seed(0)
        x = torch.randint(0, 11, (2, 5))
        net = pararealize(LanguageModel(), n=2, coarse="linear", example_inputs=x)
        stage = net.distribute(mesh)
        untie(stage)
        message = "were one parameter and are several now"
    else:
        net, x = parareal()
        stage = net.distribute(mesh)
        replace_module(stage)
        message = "is a Linear now, which this rank does not call"
    for call in (lambda: stage(x), lambda: stage.step(x, loss_fn=loss_of)):
        with pytest.raises(DistributedError, match=message):
            call()


@pytest.mark.parametrize("kind", KINDS)
def test_modes_reach_what_the_network_itself_calls(mesh, kind) -> None:
    """``F.dropout(x, self.training)`` in the root's forward read the mode of a module that nobody switched."""
    net, x = KINDS[kind]()
    stage = net.distribute(mesh)
    for mode in (False, True, False):
        net.train(mode)
        stage.train(mode)
        torch.manual_seed(1)
        expected = net(x)
        torch.manual_seed(1)
        assert torch.equal(stage(x), expected)
        assert bool((expected == 0).any()) == mode


def transformed(stage, x):
    parameters = dict(stage.named_parameters())
    return torch.func.grad(lambda values: torch.func.functional_call(stage, values, (x,)).sum())(parameters)


CALLS = {  # that see only what this rank computes
    "torch.func.grad": (transformed, "transform of torch.func"),
    "vmap": (lambda stage, x: torch.vmap(stage)(x[:, None]), "transform of torch.func"),
    "torch.export": (lambda stage, x: torch.export.export(stage, (x,)), "torch.export"),
    "a hook of a container": (
        lambda stage, x: (stage.get_submodule("layers.1").register_forward_hook(print), stage(x)),
        r"layers.1 \(Module\) has got a forward hook print, since the network was distributed",
    ),
    "a backward hook": (
        lambda stage, x: (stage.register_full_backward_hook(print), stage.step(x, loss_fn=loss_of)),
        "backward hook print, which nothing would call",
    ),
}


@pytest.mark.parametrize("what", CALLS)
def test_calls_that_see_one_rank_alone_are_refused(mesh, what) -> None:
    net, x = parareal()
    call, message = CALLS[what]
    with pytest.raises(DistributedError, match=message):
        call(net.distribute(mesh), x)


@pytest.mark.parametrize("kind", KINDS)
def test_torch_compile_leaves_the_messages_alone(mesh, kind) -> None:
    """Dynamo ended in an internal error where it met the mesh."""
    net, x = KINDS[kind]()
    stage = net.distribute(mesh).eval()
    expected = stage(x)
    compiled = torch.compile(stage, backend="eager")
    assert torch.equal(compiled(x), expected)
    assert torch.equal(torch.compile(lambda x: stage(x) + 1, backend="eager")(x), expected + 1)
    assert torch.equal(compiled.step(x, loss_fn=loss_of), stage.step(x, loss_fn=loss_of))
    for module in stage.part_modules().values():
        module.compile(backend="eager")
    assert torch.equal(stage(x), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_values_by_name_are_used_for_one_call(mesh, kind) -> None:
    net, x = KINDS[kind]()
    stage = net.distribute(mesh).eval()
    values = {name: 2 * value for name, value in net.state_dict().items()}
    doubled = copy.deepcopy(net).eval()
    doubled.load_state_dict(values)
    before = stage(x)
    assert torch.equal(torch.func.functional_call(stage, values, (x,)), doubled(x))
    assert torch.equal(stage(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_parametrization_is_trained(mesh, kind) -> None:
    """A weight that is computed from others: the norm counts these, and so does the adjoint of layers."""
    net, x = KINDS[kind]()
    stage = net.distribute(mesh)
    name = next(name for name, inner in stage.named_modules() if isinstance(inner, nn.Linear) and "layers." in name)
    for module in (net, stage):
        nn.utils.parametrizations.weight_norm(module.get_submodule(name))
        torch.manual_seed(1)
        if module is stage:
            stage.step(x, loss_fn=loss_of)
        else:
            loss_of(net(x)).backward()
    assert furthest(stage, net, "grad") < TIGHT
    assert any("original0" in name and parameter.grad.any() for name, parameter in stage.named_parameters())
    assert distance(stage.clip_grad_norm_(1.0), nn.utils.clip_grad_norm_(net.parameters(), 1.0)) < TIGHT
    stage.load_state_dict(stage.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_of_a_stage_and_its_copies_takes_the_connections_with_it(mesh, kind) -> None:
    """At once: what waited for the collector of garbage had hundreds of threads and sockets by then."""
    net, x = KINDS[kind]()
    before = set(c10d._world.pg_map)
    gc.disable()
    try:
        stage = net.distribute(mesh)
        copied = copy.deepcopy(stage)
        shallow = copy.copy(copied)
        stage.step(x, loss_fn=loss_of)
        copied.step(x, loss_fn=loss_of)
        channel = weakref.ref(stage.rank_setup.channel)
        del stage, copied
        shallow.step(x, loss_fn=loss_of)
        assert set(c10d._world.pg_map) > before
        del shallow
        assert channel() is None
        assert set(c10d._world.pg_map) == before
    finally:
        gc.enable()


# Over several ranks --------------------------------------------------------------------------------------------------


def averaged(kind, name):
    """An average by torch, one by hand and a deep copy, beside the same of the network in one process."""
    if kind == "layers":
        net, x = layers()
    else:
        net, batch = converted(name)
        x = batch(4)
    options = {"checkpoint_activations": True} if name == "perceptron" else {}
    stage = net.distribute(mesh_of(2), timeout=60, **options)
    pair, worst = [(net, optimiser(net)), (stage, optimiser(stage))], {}
    averages = [AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) for module, _ in pair]
    by_hand = {key: value.clone() for key, value in stage.state_dict().items()}
    for weight in (1.0, 0.1):  # torch's first update is a copy
        for (module, optimizer), average in zip(pair, averages, strict=True):
            step(module, x)
            optimizer.step()
            average.update_parameters(module)
        for key, value in stage.state_dict().items():
            if value.is_floating_point():
                by_hand[key].lerp_(value, weight)
    theirs, ours = (average.module for average in averages)
    worst["average"] = furthest(ours, theirs, "state")
    worst["by hand"] = max(
        distance(value, ours.state_dict()[key]) for key, value in by_hand.items() if value.is_floating_point()
    )
    worst["output"] = outputs_apart(averages[1], averages[0], x)
    whole = gather_state_dict(ours, everywhere=True)
    worst["gathered"] = max(distance(whole[key], value) for key, value in theirs.state_dict().items())
    copied, copied_net = copy.deepcopy(stage), copy.deepcopy(net)
    for module in (copied, copied_net):
        step(module, x)
    worst["a step of a copy"] = furthest(copied, copied_net, "grad")
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.zero_()
    worst["the original"] = furthest(stage, net, "state")
    for module in (stage, net, copied, copied_net):  # by turns, over the same connections
        step(module, x)
    worst["a step of the original"] = furthest(stage, net, "grad")
    return worst


def step(module, x):
    module.zero_grad()
    torch.manual_seed(3)
    if hasattr(module, "step"):
        module.step(x, loss_fn=loss_of_all)
    else:
        loss_of_all(module(x)).backward()


def loss_of_all(output):
    return mean_square(output, torch.ones((), dtype=torch.float64))


def outputs_apart(stage, net, x):
    stage.eval(), net.eval()
    ours, theirs = stage(x, everywhere=True), net(x)
    stage.train(), net.train()
    return distance(*(output["logits"] if isinstance(output, dict) else output for output in (ours, theirs)))


def moved():
    """Token ids have one type whatever the weights have; messages do not."""
    net, batch = converted("tied embedding")
    stage = net.distribute(mesh_of(2), timeout=60)
    x, worst = batch(4), {}
    for dtype in (torch.float64, torch.float32, torch.float64):
        for module in (net, stage):
            step(module.to(dtype), x)
        worst[f"{dtype}"] = furthest(stage, net, "grad") * (1e-6 if dtype == torch.float32 else 1)
    return worst


def assigned():
    """Other parameters in the place of the old ones are summed, clipped and tied as these were."""
    net, batch = converted("tied embedding")
    stage, x = net.distribute(mesh_of(2), timeout=60), batch(4)
    step(stage, x)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    stage.load_state_dict(state, assign=True)
    for module in (net, stage):
        step(module, x)
    worst = {"gradients": furthest(stage, net, "grad")}
    worst["norm"] = distance(stage.clip_grad_norm_(1e-3), nn.utils.clip_grad_norm_(net.parameters(), 1e-3))
    worst["clipped"] = furthest(stage, net, "grad")
    return worst


def clipped_in_bfloat16():
    """Beside the norm of the same gradients in float64: rounded tensor by tensor, it depends on who holds which."""
    net, _ = converted("perceptron")
    stage, worst = net.distribute(mesh_of(2), timeout=60).bfloat16(), {}
    for module in (net.bfloat16(), stage):
        for name, parameter in module.named_parameters():
            generator = torch.Generator().manual_seed(len(name) + 7 * sum(map(ord, name)))
            parameter.grad = torch.randn(parameter.shape, generator=generator).bfloat16()
    for order in (2.0, 1.0, math.inf):
        every = torch.cat([parameter.grad.double().flatten() for parameter in net.parameters()])
        worst[f"order {order}"] = 1e-5 * distance(stage.clip_grad_norm_(math.inf, order), every.norm(order))
    return worst


def taken_for_one_another():
    """One rank has moved its part, or calls a copy, and the messages are those of another rank's call: it is told."""
    messages = []
    for what in ("moved", "copied"):
        stage, x = converted("tied embedding")[0].distribute(mesh_of(2), timeout=60), torch.ones(4, 5).long()
        copied = copy.deepcopy(stage)
        for module in (stage, copied):
            step(module.double(), x)
        if what == "moved" and stage.rank == 0:
            stage.float()
        with pytest.raises(DistributedError) as caught:
            step(stage if what == "moved" or stage.rank == 0 else copied, x)
        messages.append(str(caught.value))
    return messages


def two_ranks():
    return {
        "segments": averaged("parareal", "perceptron"),
        "tied": averaged("parareal", "tied embedding"),
        "layers": averaged("layers", ""),
        "moved": moved(),
        "assigned": assigned(),
        "clipped": clipped_in_bfloat16(),
    }, taken_for_one_another()


def test_copies_averages_and_moves_are_those_of_one_process() -> None:
    for rank, (found, messages) in enumerate(on_ranks(2, two_ranks)):
        for what, worst in found.items():
            for where, value in worst.items():
                assert value < TIGHT, (rank, what, where, value)
        assert "step in float32 on rank 0" in messages[0]
        assert "step in float64 on rank 1" in messages[0]
        assert "step in float64 on rank 0" in messages[1]
        assert "step in float64 of deep copy 1 on rank 1" in messages[1]
