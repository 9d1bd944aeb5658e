import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from torch import Tensor, nn

from pararealize import pararealize
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
    with pytest.raises(CheckpointError, match=r"missing .*load_original_state_dict"):
        load_state(three, tmp_path / "two.safetensors")
    three.load_original_state_dict(load_file(tmp_path / "two.safetensors"))
    assert same(three.original_state_dict(), two.original_state_dict())


def test_a_file_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    network = rank_networks.Network()
    before = gather_state_dict(network)
    state = gather_state_dict(rank_networks.Network(1))
    save_file({**state, "shared": torch.zeros(6)}, tmp_path / "shape")
    del state["head.bias"]
    save_file(state, tmp_path / "missing")
    with pytest.raises(CheckpointError, match=r"1 of another shape \(shared: \(6,\) there, \(5,\) here\)"):
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
    ):
        with pytest.raises(CheckpointError, match=told):
            load_state(rank_networks.Network(), tmp_path / path)
    with pytest.raises(CheckpointError, match=r"holds no tensors under stem\.weight"):
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
