"""Work that all ranks do ends well on all of them or on none; tensors of all ranks come together once each."""

from __future__ import annotations

import itertools
import re
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize.data import digits
from pararealize.distributed.checkpoint.collective import (
    collect,
    facts_of_all,
    first_replica,
    group_of,
    is_first,
    together,
)
from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state, load_optimizer_state
from pararealize.distributed.checkpoint.sharded import load_sharded, save_sharded
from pararealize.distributed.checkpoint.state import gather_state_dict, load_state, save_state
from pararealize.distributed.training_processes import processes_of
from pararealize.errors import AgreedError, CheckpointError, DistributedError, OutputError
from pararealize.train.run.score import evaluate
from tests.rank_comparison import converted, mean_square, mesh_of
from tests.ranks import on_ranks


def part_of(*sizes):
    """A module that stands for this rank's part of a network, as stages do."""
    part = nn.Module()
    part.mesh = mesh_of(*sizes)
    part.group = part.mesh.get_group("parareal")
    return part


def test_an_ordinary_module_is_one_process() -> None:
    module = nn.Linear(2, 2)
    assert group_of(module) is None
    assert is_first(module)
    assert facts_of_all(module, "fact") == ["fact"]
    assert together(module, lambda: 3) == 3
    with pytest.raises(OutputError, match="full"):
        together(module, fail_with(OutputError("the disk is full")))
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    copied = collect({"a": tensor}, None)["a"]
    assert copied.is_contiguous()
    assert torch.equal(copied, tensor)


def fail_with(error):
    def work():
        raise error

    return work


def on_replicas():
    part = part_of(2, 2)
    roles = first_replica(part), is_first(part)
    facts = facts_of_all(part, dist.get_rank())
    result = together(part, lambda: dist.get_rank() + 10)
    ends = []
    for error in (CheckpointError("a"), OutputError("b: c"), RuntimeError("d")):
        try:
            together(part, fail_with(error) if dist.get_rank() == 1 else lambda: None)
        except (CheckpointError, OutputError, DistributedError, RuntimeError) as raised:
            ends.append((type(raised).__name__, str(raised)))
    return roles, facts, result, ends


def test_a_fault_of_one_rank_is_raised_by_all_and_one_replica_works() -> None:
    roles, facts, results, ends = zip(*on_ranks(4, on_replicas), strict=True)
    assert roles == ((True, True), (True, False), (False, False), (False, False))
    assert facts == ([0, 1],) * 4
    assert results == (10, 11, None, None)
    for rank, errors in enumerate(ends):
        kind = "RuntimeError" if rank == 1 else "DistributedError"
        assert errors == [("CheckpointError", "a"), ("OutputError", "b: c"), (kind, "d")]


def of_both():
    part = part_of(2)
    rank = dist.get_rank()
    tensors = {"both": torch.full((2,), 5), f"of {rank}": torch.full((rank + 1, 2), rank, dtype=torch.bfloat16)}
    first, every = collect(tensors, part.group), collect(tensors, part.group, everywhere=True)
    with pytest.raises(CheckpointError, match=r"ranks 0 and 1 hold x as \(\(1,\), .* and \(\(2,\), .*not parts of one"):
        collect({"x": torch.ones(rank + 1)}, part.group)
    return sorted(first), {key: (value.dtype == torch.bfloat16, value.tolist()) for key, value in every.items()}


def test_tensors_come_together_once_each() -> None:
    (first, every), (nothing, same) = on_ranks(2, of_both)
    assert first == ["both", "of 0", "of 1"]
    assert nothing == []
    assert every == same == {
        "both": (False, [5, 5]), "of 0": (True, [[0.0, 0.0]]), "of 1": (True, [[1.0, 1.0]] * 2)
    }  # fmt: skip


# Of a stage: where some ranks call something else --------------------------------------------------------------------


def calls_of(stage, folder):
    """Every function that all ranks call, by name."""
    optimizer = torch.optim.SGD(stage.parameters(), lr=0.1)
    return {
        "gather_state_dict": lambda: gather_state_dict(stage),
        "gather_state_dict, everywhere": lambda: gather_state_dict(stage, everywhere=True),
        "gather_optimizer_state": lambda: gather_optimizer_state(stage, optimizer),
        "save_state": lambda: save_state(stage, f"{folder}/one"),
        "save_sharded": lambda: save_sharded(stage, f"{folder}/many"),
        "record": lambda: stage.record().__enter__(),
        "evaluate": lambda: evaluate(stage, digits(image_size=8)),
    }


def mixed_calls(folder, copies):
    """Each rank calls another one: all raise, at once, and go on."""
    sizes = (2, 2) if copies else (2,)
    stage = converted("perceptron")[0].distribute(mesh_of(*sizes), timeout=60)
    processes_of(stage)
    calls, said = calls_of(stage, folder), {}
    for first, second in itertools.pairwise([*calls, "gather_state_dict"]):
        start = time.monotonic()
        with pytest.raises(AgreedError) as caught:
            calls[second if stage.rank else first]()
        said[first, second] = str(caught.value), time.monotonic() - start
    save_sharded(stage, f"{folder}/many")
    with pytest.raises(OutputError, match="is there already"):
        save_sharded(stage, f"{folder}/many")  # all raise it, and go on
    whole = gather_state_dict(stage, everywhere=True)
    stage.load_state_dict(whole)
    return said, len(whole)


@pytest.mark.parametrize("copies", [False, True])
def test_calls_that_differ_are_named_and_all_go_on(tmp_path, copies) -> None:
    for said, count in on_ranks(4 if copies else 2, mixed_calls, str(tmp_path), copies, seconds=300):
        assert count == len(converted("perceptron")[0].state_dict())
        for (first, second), (message, seconds) in said.items():
            values = [name.replace(", everywhere", "") for name in (first, second)]
            assert "everywhere is" in message or all(f"{value} on rank" in message for value in values), message
            assert seconds < 30


def some_call(name, folder):
    """The second rank calls something, while the first one makes steps."""
    net, batch = converted("perceptron")
    stage = net.distribute(mesh_of(2), timeout=60)
    step = {"target": torch.zeros(()), "loss_fn": mean_square}
    for _ in range(3):
        stage.step(batch(2), **step)
    calls = {**calls_of(stage, folder), "load_state_dict": lambda: stage.load_state_dict(stage.state_dict())}
    calls["clip_grad_norm_"] = lambda: stage.clip_grad_norm_(1.0)
    start = time.monotonic()

    def go_on():
        if stage.rank == 1:
            calls[name]()
        for _ in range(2):
            stage.step(batch(2), **step)

    with pytest.raises(DistributedError) as caught:
        go_on()
    return str(caught.value), time.monotonic() - start


@pytest.mark.parametrize("name", ["gather_state_dict", "load_state_dict", "clip_grad_norm_"])
def test_a_call_beside_the_others_steps_is_named(tmp_path, name) -> None:
    for message, seconds in on_ranks(2, some_call, name, str(tmp_path)):
        assert "call is step" in message
        assert f"{name} on rank 1" in message
        assert seconds < 30


# Loads ----------------------------------------------------------------------------------------------------------------


def loads(folder):
    """What each rank hears of loads that differ or fail on one of them; then it loads, and makes a step."""
    net, batch = converted("tied embedding")
    stage = net.distribute(mesh_of(2), timeout=60)
    optimizer = torch.optim.Adam(stage.parameters(), lr=0.1)
    step = {"target": torch.zeros(()), "loss_fn": mean_square}
    inputs, whole = batch(2), {}
    for name in ("a", "b"):
        stage.step(inputs, **step)
        optimizer.step()
        save_state(stage, f"{folder}/{name}")
        save_sharded(stage, f"{folder}/{name}.d")
        whole[name] = gather_state_dict(stage, everywhere=True)
        whole[f"optimizer {name}"] = gather_optimizer_state(stage, optimizer, everywhere=True)
    kept = {name: value.clone() for name, value in stage.state_dict().items()}
    which = "ab"[stage.rank]
    narrow = {name: value[..., :1] if stage.rank and "head" in name else value for name, value in whole["a"].items()}
    other_rate = {
        **whole["optimizer b"],
        "groups": [{**group, "lr": 0.1 + stage.rank} for group in whole["optimizer b"]["groups"]],
    }
    calls = {
        "files": lambda: load_state(stage, f"{folder}/{which}"),
        "a missing file": lambda: load_state(stage, f"{folder}/{'a' if stage.rank == 0 else 'none'}"),
        "folders": lambda: load_sharded(stage, f"{folder}/{which}.d"),
        "a missing folder": lambda: load_sharded(stage, f"{folder}/{'a.d' if stage.rank else 'none'}"),
        "state dicts": lambda: stage.load_state_dict(whole[which]),
        "a shape": lambda: stage.load_state_dict(narrow),
        "optimisers": lambda: load_optimizer_state(stage, optimizer, whole[f"optimizer {which}"]),
        "learning rates": lambda: load_optimizer_state(stage, optimizer, other_rate),
        "an optimiser of one rank": lambda: (
            load_optimizer_state(stage, optimizer, whole["optimizer b"])
            if stage.rank
            else gather_optimizer_state(stage, optimizer)
        ),
    }
    said = {}
    for name, call in calls.items():
        with pytest.raises((AgreedError, CheckpointError)) as caught:
            call()
        said[name] = type(caught.value).__name__, str(caught.value)
    unchanged = all(torch.equal(value, kept[name]) for name, value in stage.state_dict().items())
    load_state(stage, f"{folder}/a")
    load_sharded(stage, f"{folder}/a.d")
    stage.load_state_dict(whole["a"])
    load_optimizer_state(stage, optimizer, whole["optimizer a"])
    same = all(torch.equal(value, whole["a"][name]) for name, value in stage.state_dict().items() if name in whole["a"])
    stage.step(inputs, **step)
    return said, unchanged, same


TOLD = {
    "files": r"AgreedError.*the file is '.*/a' \(digest \w+\) on rank 0, '.*/b' \(digest \w+\) on rank 1",
    "a missing file": "CheckpointError.*none' cannot be read",
    "folders": r"AgreedError.*the folder is '.*/a.d' \(digest \w+\) on rank 0, '.*/b.d'",
    "a missing folder": "CheckpointError.*none. is not there",
    "state dicts": r"AgreedError.*on rank 0, \(.* on rank 1",
    "a shape": r"CheckpointError.*head.weight: \(\d+, 1\) there",
    "optimisers": "AgreedError.*(step|exp_avg) is .* on rank 0, .* on rank 1",
    "learning rates": "AgreedError.*group 0 of parameters is .*'lr': 0.1.* on rank 0, .*'lr': 1.1.* on rank 1",
    "an optimiser of one rank": "AgreedError.*gather_optimizer_state on rank 0.*load_optimizer_state on rank 1",
}


def test_loads_are_of_one_checkpoint_or_of_none(tmp_path) -> None:
    for rank, (said, unchanged, same) in enumerate(on_ranks(2, loads, str(tmp_path))):
        for name, pattern in TOLD.items():
            kind, text = said[name]
            assert re.search(pattern, f"{kind} {text}"), (name, kind, text)
        other = {"a missing file": 0, "a shape": 0, "a missing folder": 1}  # who hears of it from the one at fault
        for name, listener in other.items():
            assert said[name][1].startswith(f"rank {1 - listener}: ") is (rank == listener), said[name]
        assert unchanged
        assert same
