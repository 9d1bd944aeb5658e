"""Work that all ranks do ends well on all of them or on none; tensors of all ranks come together once each."""

from __future__ import annotations

import itertools
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
from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state
from pararealize.distributed.checkpoint.sharded import save_sharded
from pararealize.distributed.checkpoint.state import gather_state_dict, save_state
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
