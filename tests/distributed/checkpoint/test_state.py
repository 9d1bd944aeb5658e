import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.distributed.checkpoint.sharded import load_sharded, save_sharded
from pararealize.distributed.checkpoint.state import gather_state_dict, load_state, save_state
from pararealize.errors import CheckpointError, OutputError
from pararealize.models import resnet20
from tests import failing_ranks, rank_networks


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a)


@pytest.mark.parametrize("way, error, told", [
    ("file", "OutputError", "cannot write the checkpoint"),
    ("nowhere", "OutputError", "No such file or directory"),
    ("kinds", "CheckpointError", "ranks 0 and 1 hold shared as"),
])  # fmt: skip
def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path, way: str, error: str, told: str) -> None:
    good = tmp_path / "one.safetensors"
    save_state(rank_networks.Network(), good)
    before = good.read_bytes()
    ends = failing_ranks.launch(2, tmp_path, way, seconds=60, target=rank_networks.fail)
    for end in ends:
        assert (end["code"], end["type"]) == (0, error), end
        assert told in end["error"], end
    assert good.read_bytes() == before
    assert [path.name for path in tmp_path.glob(".one*")] == []


def test_one_process_saves_and_loads_the_same_way(tmp_path: Path) -> None:
    network, other = rank_networks.Network(0), rank_networks.Network(1)
    save_state(network, tmp_path / "one.safetensors")
    assert same(load_file(tmp_path / "one.safetensors"), gather_state_dict(network))
    load_state(other, tmp_path / "one.safetensors")
    assert same(other.state_dict(), network.state_dict())
    load_state(other, rank_networks.Network(2).state_dict())
    assert same(other.state_dict(), rank_networks.Network(2).state_dict())


def test_a_gathered_state_is_a_copy() -> None:
    network = rank_networks.Network()
    state = gather_state_dict(network)
    state["shared"].zero_()
    assert network.shared.abs().sum() > 0


def test_another_n_takes_the_originals_part(tmp_path: Path) -> None:
    two, three = pararealize(resnet20(), n=2), pararealize(resnet20(), n=3)
    save_state(two, tmp_path / "two.safetensors")
    with pytest.raises(CheckpointError, match=r"of another plan: plan.n: 2 there, 3 here; .*load_original_state_dict"):
        load_state(three, tmp_path / "two.safetensors")
    three.load_original_state_dict(load_file(tmp_path / "two.safetensors"))
    assert same(three.original_state_dict(), two.original_state_dict())


def test_adapters_of_another_plan_are_not_taken_for_ones_of_the_same_shapes(tmp_path: Path) -> None:
    def converted(n: int, *cuts: str) -> PararealModule:
        model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
        return pararealize(model, n, coarse="linear", cuts=cuts, example_inputs=torch.randn(2, 4), seed=n)

    two, three, elsewhere = converted(2, "3"), converted(3, "2", "4"), converted(2, "4")
    save_state(three, tmp_path / "three")
    save_sharded(three, tmp_path / "shards")
    before = gather_state_dict(two)
    for load, told in (
        (lambda: load_state(two, tmp_path / "three"), "of another plan: plan.n: 3 there, 2 here"),
        (lambda: load_sharded(two, tmp_path / "shards"), "of another plan: plan.n: 3 there, 2 here"),
        (lambda: load_state(elsewhere, tmp_path / "three"), "of another plan: plan.n"),
        (lambda: load_state(two, three.state_dict()), r"2 unknown \(adapters.C3.project.weight"),
        (lambda: load_state(nn.Sequential(nn.Linear(4, 4)), three.state_dict()), r"unknown \(1.weight"),
    ):
        with pytest.raises(CheckpointError, match=told):
            load()
    assert same(gather_state_dict(two), before)
    for load in (
        lambda: load_state(two, tmp_path / "three", strict=False),
        lambda: load_sharded(two, tmp_path / "shards", strict=False),
    ):
        load()
        assert same(two.original_state_dict(), three.original_state_dict())
        assert torch.equal(two.get_parameter("adapters.C2.project.weight"), before["adapters.C2.project.weight"])


@pytest.mark.parametrize("dtype", [torch.int32, torch.complex64, torch.bool])
def test_numbers_of_another_kind_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    network, other = nn.BatchNorm1d(3), nn.BatchNorm1d(3).double()
    state = network.state_dict()
    save_file(state | {"weight": state["weight"].to(dtype)}, tmp_path / "file")
    save_state(other, tmp_path / "precise")
    for source in (tmp_path / "file", load_file(tmp_path / "file")):
        with pytest.raises(
            CheckpointError, match=rf"another shape or type \(weight: {dtype} there, torch.float32 here"
        ):
            load_state(network, source)
    load_state(network, tmp_path / "precise")  # another precision


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    network = rank_networks.Network()
    before = gather_state_dict(network)
    state = gather_state_dict(rank_networks.Network(1))
    save_file({**state, "shared": torch.zeros(6)}, tmp_path / "shape")
    del state["head.bias"]
    save_file(state, tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"1 of another shape or type \(shared: \(6,\) there, \(5,\) here\)"):
        load_state(network, tmp_path / "shape")
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\)"):
        load_state(network, tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"1 missing \(head.bias\)"):
        load_state(network, state)
    assert same(gather_state_dict(network), before)
    load_state(network, tmp_path / "missing", strict=False)
    assert torch.equal(network.head.bias, before["head.bias"])
    assert torch.equal(network.head.weight, state["head.weight"])


def test_a_wrong_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tensors")
    os.mkfifo(tmp_path / "fifo")
    for path, told in (
        ("text", "cannot be read as a safetensors file or one of torch.save"),
        ("nothing", "No such file"),
        ("", "it is a folder and no file; .*load_sharded"),
        ("fifo", "it is a FIFO and no file"),
        ("a\0b", "NUL"),
        ("x" * 300, "File name too long"),
        ("\udcff", "this path is not UTF-8"),
    ):
        with pytest.raises(CheckpointError, match=told):
            load_state(rank_networks.Network(), tmp_path / path)
    with pytest.raises(CheckpointError, match=r"stem\.weight: a int there, a tensor here"):
        load_state(rank_networks.Network(), {"stem.weight": 1})
    with pytest.raises(OutputError, match="NUL"):
        save_state(rank_networks.Network(), tmp_path / "a\0b")


def test_what_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 1}

    with pytest.raises(CheckpointError, match="_extra_state no tensors"):
        save_state(Odd(), tmp_path / "odd")
    with pytest.raises(CheckpointError, match="on the meta device"):
        save_state(nn.Linear(1, 1, device="meta"), tmp_path / "odd")
    with pytest.raises(OutputError, match="cannot write"):
        save_state(nn.Linear(1, 1), tmp_path)


def test_a_tied_tensor_may_stand_under_one_of_its_names(tmp_path: Path) -> None:
    def tied(seed: int) -> nn.Module:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
        model[1].weight = model[0].weight
        return model

    model, other = tied(0), tied(1)
    for once, count in ((False, 2), (True, 1)):
        save_state(model, tmp_path / "file", once=once)
        assert len(load_file(tmp_path / "file")) == count
        load_state(other, tmp_path / "file")
        assert same(dict(other.state_dict()), dict(model.state_dict()))
        other = tied(2)
    save_model(model, tmp_path / "other", metadata={"format": "pt"})
    load_state(other, tmp_path / "other")
    assert same(dict(other.state_dict()), dict(model.state_dict()))
