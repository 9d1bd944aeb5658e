"""Work that all ranks do ends well on all of them or on none; tensors of all ranks come together once each."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import nn

from pararealize.distributed.checkpoint.collective import (
    collect,
    facts_of_all,
    first_replica,
    group_of,
    is_first,
    together,
)
from pararealize.errors import CheckpointError, DistributedError, OutputError
from tests.rank_comparison import mesh_of
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
