"""Ranks that are called differently, once all signatures are known: every one of them says both values, at once."""

from __future__ import annotations

import re
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from pararealize import layer_parallel, pararealize
from pararealize.distributed.checkpoint.state import gather_state_dict
from pararealize.distributed.rank_calls import samples_of
from pararealize.errors import CheckpointError, DisagreementError, DistributedError, GuardError, RankError
from tests.ranks import on_ranks

TIMEOUT = 60.0  # seconds; what waits for it is too late


def network(way="segments"):
    torch.manual_seed(0)
    tied = nn.Linear(6, 6)
    model = nn.Sequential(tied, nn.Tanh(), *(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)), tied)
    if way == "nested":
        model = nn.Sequential(model)
    if way == "layers":
        model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)))
        residual = nn.Sequential(nn.Linear(6, 6), *(Residual() for _ in range(4)))
        return layer_parallel(residual, coarsening=2, forward_iterations=1, example_inputs=torch.randn(2, 6))
    return pararealize(model, 2, coarse="linear", example_inputs=torch.randn(2, 6))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, x):
        return x + torch.tanh(self.linear(x))


def mean(output):
    return output.square().mean()


def batch(size, seed=0):
    return torch.randn(size, 6, generator=torch.Generator().manual_seed(10 * size + seed))


def step(stage, size=4, seed=0, **arguments):
    return stage.step(batch(size, seed), loss_fn=mean, **arguments)


def in_autocast(stage, enabled):
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        step(stage)


def in_no_sync(stage, inside):
    if not inside:
        return step(stage)
    with stage.no_sync():
        return step(stage)


def in_mode(stage, training):
    stage.train(training)
    step(stage)


def with_module_in(stage, training):
    stage.get_submodule("0").train(training)
    step(stage)


def with_frozen(stage, frozen):
    for name, parameter in stage.named_parameters(remove_duplicate=False):
        if name in ("0.weight", "6.weight"):
            parameter.requires_grad_(not frozen)
    step(stage)


def with_iterations(stage, count):
    stage.forward_iterations = count
    step(stage)


def from_saved_states(stage, forget):
    stage.warm_start = True
    step(stage)
    if forget:
        stage.forget()
    step(stage)


def left(stage):
    stage.rank_setup.watch.close()
    raise DistributedError("has left")  # so that this rank's test sees an error as well


# kind: (the network, what a rank does that deviates, what the other one does, a pattern of what each of them says)
KINDS = {
    "shapes": ("segments", lambda s: step(s, 2), step, r"\(2, 6\) float32 on rank \d.*\(4, 6\)|\(4, 6\).*\(2, 6\)"),
    "shapes in inference": ("segments", lambda s: s(batch(2)), lambda s: s(batch(4)), r"\(2, 6\).*\(4, 6\)|\(4.*\(2"),
    "shapes new to one rank": ("segments", lambda s: step(s, 5), step, r"\(5, 6\).*\(4, 6\)|\(4, 6\).*\(5, 6\)"),
    "mode": ("segments", lambda s: in_mode(s, False), lambda s: in_mode(s, True), "mode is .*train.*eval|eval.*train"),
    "mode of a module": (
        "nested",
        lambda s: with_module_in(s, False),
        lambda s: with_module_in(s, True),
        "the mode of modules on ranks 0, 1 is .*eval in 0, 0.0, 0.6",
    ),
    "autocast": ("segments", lambda s: in_autocast(s, True), lambda s: in_autocast(s, False), "autocast is .*bfloat16"),
    "step, inference": ("segments", lambda s: s(batch(4)), step, "call is .*inference.*step|step.*inference"),
    "everywhere": ("segments", lambda s: s(batch(4), everywhere=True), lambda s: s(batch(4)), "inference, everywhere"),
    "no_sync": ("segments", lambda s: in_no_sync(s, True), lambda s: in_no_sync(s, False), "no_sync is o.* on rank"),
    "frozen": ("segments", lambda s: with_frozen(s, True), lambda s: with_frozen(s, False), "shared by ranks 0, 1 is"),
    "a step is left out": ("segments", lambda s: step(s, 4, 2), lambda s: step(s, 4, 1), "some values of input"),
    "clipping": ("segments", lambda s: s.clip_grad_norm_(1.0), step, "call is .*clip_grad_norm_"),
    "refused": ("segments", lambda s: s.step(batch(4).long(), loss_fn=mean), step, "int64"),
    "leaving": ("segments", left, step, "has left"),
    "settings": ("layers", lambda s: with_iterations(s, 2), lambda s: with_iterations(s, 1), "forward_iterations = 2"),
    "saved states": (
        "layers",
        lambda s: from_saved_states(s, True),
        lambda s: from_saved_states(s, False),
        "warm_start = True.*, from saved states forward and backward on rank",
    ),
    "shapes of layers": ("layers", lambda s: step(s, 2), step, r"\(2, 6\).*\(4, 6\)|\(4, 6\).*\(2, 6\)"),
}


def known(stage, way):
    """Every signature, once and again, in the same way on both ranks: nobody complains."""
    for _ in range(2):
        for size in (4, 2):
            step(stage, size)
            stage(batch(size))
        if way == "layers":
            for count in (2, 1):
                with_iterations(stage, count)
            continue
        in_no_sync(stage, True)
        in_mode(stage, False)
        in_mode(stage, True)
        in_autocast(stage, True)
        stage(batch(4), everywhere=True)
        with_frozen(stage, True)
        with_frozen(stage, False)
        stage.clip_grad_norm_(1.0)


def disagree(kinds):
    """Each pair of ranks in one way; what this rank says, and after how many seconds."""
    pair, here = divmod(dist.get_rank(), 2)
    groups = [dist.new_group([2 * i, 2 * i + 1]) for i in range(len(kinds))]
    way, deviating, usual, _ = KINDS[kinds[pair]]
    mesh = DeviceMesh.from_group(groups[pair], "cpu", mesh_dim_names=("parareal",))
    stage = network(way).distribute(mesh, timeout=TIMEOUT)
    known(stage, way)
    start = time.monotonic()
    said = said_next = kind = "no error"
    try:
        (deviating if here == pair % 2 else usual)(stage)
        step(stage)
    except (DistributedError, GuardError) as error:
        said, kind = str(error), type(error).__name__
    seconds = time.monotonic() - start
    try:
        step(stage)
    except (DistributedError, GuardError) as error:
        said_next = str(error)
    dist.destroy_process_group()
    return said, kind, said_next, seconds


def test_every_disagreement_is_named_with_both_values_and_at_once():
    kinds = list(KINDS)
    results = on_ranks(2 * len(kinds), disagree, kinds, seconds=240)
    for i, kind in enumerate(kinds):
        for said, type_name, said_next, seconds in results[2 * i : 2 * i + 2]:
            assert re.search(KINDS[kind][3], said), (kind, said)
            assert seconds < TIMEOUT / 2, (kind, seconds, said)
            if kind == "refused":
                assert type_name in ("GuardError", "RankError"), type_name
            elif kind != "leaving":
                assert type_name in (DisagreementError.__name__, "AgreedError"), (kind, type_name)
                assert "rank 0 (" in said or "on rank 0" in said or f"rank {2 * i}" in said, said
            if type_name == DisagreementError.__name__:
                assert said_next.startswith("a call before this one has failed: "), (kind, said_next)
            elif type_name == RankError.__name__:
                assert said_next, kind


class Centred(nn.Module):
    """A norm with a running mean of its own."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))

    def forward(self, x):
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(x.mean(0), 0.1)
        return x - self.mean


def go_on(stage):
    for _ in range(3):
        step(stage)
        stage.clip_grad_norm_(1.0)


def apart():
    """Copies of tensors on two ranks that one of them changes: what a checkpoint and the next steps say."""
    mesh, said = init_device_mesh("cpu", (2,), mesh_dim_names=("parareal",)), []
    shared = Centred()
    model = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), shared, nn.Tanh()) for _ in range(4)))
    centred = pararealize(model, 2, coarse="linear", example_inputs=torch.randn(2, 6))
    for net, name in ((network(), "weight"), (network(), "bias"), (centred, "mean")):
        stage = net.distribute(mesh, timeout=TIMEOUT)
        step(stage)
        if stage.rank == 1 and net is not centred:  # as of an optimiser that clips by its own gradients
            with torch.no_grad():
                stage.get_parameter(f"6.{name}").add_(1e-4)
        with pytest.raises(CheckpointError) as at_saving:
            gather_state_dict(stage)
        stage.eval()(batch(4))
        stage.train()
        with pytest.raises(DisagreementError) as in_step:
            go_on(stage)
        said.append((str(at_saving.value), str(in_step.value)))
    return said


def test_copies_of_a_tensor_on_several_ranks_that_go_apart_are_named():
    whys = ["which the optimisers of ranks 0, 1 have to treat alike"] * 2 + ["of which ranks 0, 1 have a copy each"]
    for said in on_ranks(2, apart):
        for (at_saving, in_step), name, why in zip(said, ("0.weight", "0.bias", "0.1.mean"), whys, strict=True):
            assert re.match(f"copies of {name} .digest .* on rank 0, digest .* on rank 1. are not alike", at_saving)
            assert re.search(f": {name}, {why} .*, is .* on rank 0 .* on rank 1", in_step), in_step


COPIES = {
    "no_sync": "average gradients .*no_sync is off on rank .*, on on rank",
    "frozen": "trained parameters is 8 of 8 .* on rank .*, 7 of 8 .* on rank",
    "modes": "the mode of modules is the network's in all .* on rank .*, eval in 1 \\(1 of ",
    "parameter 0": "some values of parameter 0.weight .* on rank .* on rank",
    "parameter 1": "some values of parameter 0.bias .* on rank .* on rank",
    "steps": "steps since the last inference is 2 on rank .*, 1 on rank",
}


def copies(kinds):
    """Two copies of one rank each, for each kind; the second one deviates."""
    pair, copy = divmod(dist.get_rank(), 2)
    kind, rows = kinds[pair], []
    for i in range(len(kinds)):
        both = dist.new_group([2 * i, 2 * i + 1])
        rows.append((both, *(dist.new_group([2 * i + j]) for j in range(2))))
    groups = [rows[pair][0], rows[pair][1 + copy]]
    ranks = [[2 * pair], [2 * pair + 1]]
    mesh = DeviceMesh.from_group(groups, "cpu", mesh=ranks, mesh_dim_names=("dp", "parareal"))
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    stage = pararealize(model, 1, example_inputs=torch.randn(2, 6)).distribute(mesh, timeout=TIMEOUT)
    step(stage, 2 + copy, copy)  # each has batches of its own
    in_no_sync(stage, True)
    with stage.no_sync():
        stage(batch(4)) if copy else None
    step(stage)
    stage(batch(2))
    stage(batch(2)) if copy else None  # inference is each copy's own, as long as both do some
    step(stage)
    try:
        if copy and kind == "no_sync":
            in_no_sync(stage, True)
        elif copy and kind == "frozen":
            stage.get_parameter("1.weight").requires_grad_(False)
            step(stage)
        else:
            if copy and kind == "modes":
                stage.get_submodule("1").eval()
            if copy and "parameter" in kind:  # as of an optimiser with another learning rate
                with torch.no_grad():
                    [*stage.parameters()][int(kind[-1])].mul_(2)
            if copy and kind == "steps":
                stage(batch(2))
            step(stage)
        step(stage)
        if "parameter" in kind:  # another one is compared in every step
            [go_on(stage) for _ in range(3)]
    except DisagreementError as error:
        return str(error)
    return "no error"


def test_copies_that_disagree_are_named():
    results = on_ranks(2 * len(COPIES), copies, list(COPIES), seconds=240)
    for i, pattern in enumerate(COPIES.values()):
        for said in results[2 * i : 2 * i + 2]:
            assert re.search(pattern, said), said


def test_samples_are_of_tensors_that_can_be_read():
    inputs = {
        "x": torch.ones(2, 3),
        "sparse": torch.eye(2).to_sparse(),
        "flag": True,
        "shape": torch.ones(2, device="meta"),
    }
    assert list(samples_of(inputs)) == ["input x"]
