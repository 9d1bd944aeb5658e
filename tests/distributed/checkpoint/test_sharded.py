import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state, load_optimizer_state
from pararealize.distributed.checkpoint.sharded import HOLDS, load_sharded, save_sharded
from pararealize.distributed.checkpoint.state import gather_state_dict, load_state
from pararealize.errors import CheckpointError, OutputError
from pararealize.manifest import read_manifest
from tests import failing_ranks, rank_networks
from tests.distributed.checkpoint.test_state import same
from tests.rank_comparison import TIGHT, converted, furthest, mean_square, mesh_of
from tests.ranks import on_ranks


@pytest.fixture(scope="module", params=[(2, 1), (3, 1), (4, 2)], ids=["2 ranks", "3 ranks", "2 replicas of 2 ranks"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    ranks, dp = request.param
    folder = tmp_path_factory.mktemp("saved")
    ends = failing_ranks.launch(ranks, folder, dp, seconds=60, target=rank_networks.save_all)
    assert [end["code"] for end in ends] == [0] * ranks
    return folder


def alone(steps: int) -> tuple[rank_networks.Network, torch.optim.Optimizer]:
    """The one-process network after so many steps."""
    network = rank_networks.Network()
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    rank_networks.train(network, optimizer, steps)
    return network, optimizer


def test_what_ranks_save_is_the_one_process_network(saved: Path) -> None:
    network, optimizer = alone(2)
    expected = gather_state_dict(network)
    assert same(load_file(saved / "one.safetensors"), expected)
    state = gather_optimizer_state(network, optimizer)
    assert "stem.bias" not in state["state"]  # never had a gradient
    for path in saved.glob("gathered*"):
        whole, gathered = torch.load(path, weights_only=True)
        assert same(whole, expected)
        assert gathered["state"].keys() == state["state"].keys()
        for name, values in state["state"].items():
            assert same(gathered["state"][name], values), name
        assert sorted(gathered["groups"][0]["params"]) == sorted(state["groups"][0]["params"])
        assert gathered["groups"][0]["lr"] == 0.01
    for load, name in ((load_state, "one.safetensors"), (load_sharded, "many")):
        other = rank_networks.Network(1)
        load(other, saved / name)
        assert same(gather_state_dict(other), expected)


def test_every_tensor_is_written_once(saved: Path) -> None:
    keys = [key for path in (saved / "many").glob("*.safetensors") for key in load_file(path)]
    assert sorted(keys) == sorted(rank_networks.Network().state_dict())
    files = {path.name for path in (saved / "many").iterdir()}
    assert len(files) > 2
    assert files == {"manifest.json", *read_manifest(saved / "many", HOLDS).files}
    assert [path.name for path in saved.glob(".*")] == []


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_number_of_ranks_goes_on_as_one_process_would(saved: Path, tmp_path: Path, ranks: int) -> None:
    ends = failing_ranks.launch(ranks, tmp_path, str(saved), seconds=60, target=rank_networks.load_all)
    assert [end["code"] for end in ends] == [0] * ranks
    network, optimizer = alone(2)
    rank_networks.train(network, optimizer)
    assert same(load_file(tmp_path / "after.safetensors"), gather_state_dict(network))


@pytest.mark.parametrize("way, error, told", [
    ("there", "OutputError", "is there already; name another folder"),
    ("disk", "OutputError", "cannot write the checkpoint"),
    ("meta", "CheckpointError", "head.weight, head.bias on the meta device"),
])  # fmt: skip
def test_what_fails_on_one_rank_fails_on_all(tmp_path: Path, way: str, error: str, told: str) -> None:
    ends = failing_ranks.launch(2, tmp_path, way, seconds=60, target=rank_networks.fail)
    for end in ends:
        assert (end["code"], end["type"]) == (0, error), end
        assert told in end["error"], end
    left = {path.name for path in tmp_path.iterdir() if "rank" not in path.name and path.name != "store"}
    assert left == ({"many"} if way == "there" else set())


def test_a_crash_while_saving_leaves_no_checkpoint(tmp_path: Path) -> None:
    ends = failing_ranks.launch(2, tmp_path, "kill", seconds=60, target=rank_networks.fail)
    assert [end["code"] for end in ends] == [0, 1]
    assert "error" in json.loads((tmp_path / "rank0.json").read_text())
    assert not (tmp_path / "many").exists()


def test_one_process_saves_and_loads_the_same_way(tmp_path: Path) -> None:
    network, other = rank_networks.Network(0), rank_networks.Network(1)
    save_sharded(network, tmp_path / "a" / "many")
    load_sharded(other, tmp_path / "a" / "many")
    assert same(other.state_dict(), network.state_dict())
    with pytest.raises(OutputError, match="is there already"):
        save_sharded(network, tmp_path / "a" / "many")


def test_a_folder_that_does_not_fit_changes_nothing(tmp_path: Path) -> None:
    network, other = rank_networks.Network(0), rank_networks.Network(1)
    before = gather_state_dict(other)
    network.shared = torch.nn.Parameter(torch.zeros(6))
    del network.head
    save_sharded(network, tmp_path / "many")
    expected = r"2 missing \(head.weight, head.bias\), 1 of another shape or type \(shared: \(6,\) there, \(5,\) here\)"
    with pytest.raises(CheckpointError, match=expected):
        load_sharded(other, tmp_path / "many")
    assert same(gather_state_dict(other), before)


def test_wrong_folders_are_refused(tmp_path: Path) -> None:
    for path, told in ((tmp_path, "manifest.json' cannot be read: No such file"), (tmp_path / "no", "is not there")):
        with pytest.raises(CheckpointError, match=rf"{told}.*; name a folder that save_sharded wrote"):
            load_sharded(rank_networks.Network(), path)
    (tmp_path / "x.safetensors").write_text("no tensors")
    with pytest.raises(CheckpointError, match=r"manifest.json' cannot be read.*one by one with load_state"):
        load_sharded(rank_networks.Network(), tmp_path)
    for path in ("a\0b", "x" * 300):
        with pytest.raises(CheckpointError, match=r"cannot be read: (there is a NUL|File name too long)"):
            load_sharded(rank_networks.Network(), path)
        with pytest.raises(OutputError, match=r"cannot write the checkpoint.*(there is a NUL|File name too long)"):
            save_sharded(rank_networks.Network(), path)


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("steps")
    for step in (1, 2):
        save_sharded(rank_networks.Network(step), folder / f"step-{step}")
    return folder


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def of_another_step(file: Path) -> None:
    file.write_bytes((file.parent.parent / "step-1" / file.name).read_bytes())


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link(file: Path) -> None:
    file.rename(file.parent / "elsewhere")
    file.symlink_to("elsewhere")


DAMAGES = {
    "is not what was written: its SHA-256 was": flip,
    r"which is shard-00001.*safetensors of step-1": of_another_step,
    "it is a FIFO and no file": fifo,
    "it is a link and no file": link,
    "is missing": Path.unlink,
    "it had .* bytes and has 0": lambda file: file.write_bytes(b""),
}


@pytest.mark.parametrize("told", DAMAGES)
def test_damaged_shards_are_named_and_change_nothing(steps: Path, tmp_path: Path, told: str) -> None:
    shutil.copytree(steps, tmp_path / "all")
    (shard,) = (tmp_path / "all" / "step-2").glob("*.safetensors")
    DAMAGES[told](shard)
    network = rank_networks.Network(5)
    with pytest.raises(CheckpointError, match=rf"step-2' is damaged: {shard.name}.*{told}.*take an earlier"):
        load_sharded(network, shard.parent)
    assert same(gather_state_dict(network), gather_state_dict(rank_networks.Network(5)))


def test_real_stages_of_any_number_of_ranks_go_on_with_each_others_checkpoints(tmp_path: Path) -> None:
    """Training that changes its number of ranks in the middle, against one process that trains all along."""
    folders = [tmp_path / name for name in ("two", "three", "four")]
    saved = ""
    for folder, ranks, dp in zip(folders, (2, 3, 4), (1, 1, 2), strict=True):
        folder.mkdir()
        ends = failing_ranks.launch(ranks, folder, dp, str(saved), seconds=100, target=rank_networks.real_stages)
        assert [end["code"] for end in ends] == [0] * ranks
        saved = folder
    network = rank_networks.real(seed=1)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(6):
        optimizer.zero_grad()
        output = network(torch.arange(10).reshape(2, 5))
        rank_networks.square(output, torch.zeros(2, 5, 11)).backward()
        optimizer.step()
    expected = network.state_dict()
    one, many = rank_networks.real(), rank_networks.real()
    load_state(one, folders[-1] / "one.safetensors")
    load_sharded(many, folders[-1] / "many")
    for key, value in expected.items():
        assert torch.equal(one.state_dict()[key], many.state_dict()[key]), key
        assert torch.allclose(one.state_dict()[key], value, rtol=1e-4, atol=1e-5), key


def _two_steps(network, optimizer, batch, seed):
    torch.manual_seed(seed)
    for _ in range(2):
        inputs = batch(4)
        optimizer.zero_grad()
        if hasattr(network, "step"):
            network.step(inputs, target=torch.ones(4, 8), loss_fn=mean_square)
        else:
            mean_square(network(inputs), torch.ones(4, 8)).backward()
        optimizer.step()


def trained_in_windows(folder):
    """Two steps of a network in windows, with corrections, on two ranks: the first two, or the next ones."""
    net, batch = converted("windows, corrected outputs")
    stage = net.distribute(mesh_of(2), timeout=30)
    optimizer = torch.optim.Adam(stage.parameters(), lr=0.01)
    if goes_on := (folder / "before").exists():
        load_sharded(stage, folder / "before")
        load_optimizer_state(stage, optimizer, torch.load(folder / "optimizer", weights_only=True))
    _two_steps(stage, optimizer, batch, seed=6 if goes_on else 5)
    save_sharded(stage, folder / ("after" if goes_on else "before"))
    if not goes_on and (state := gather_optimizer_state(stage, optimizer)):
        torch.save(state, folder / "optimizer")


def test_ranks_of_windows_go_on_as_one_process_would(tmp_path: Path) -> None:
    never_apart, batch = converted("windows, corrected outputs")
    optimizer = torch.optim.Adam(never_apart.parameters(), lr=0.01)
    _two_steps(never_apart, optimizer, batch, seed=5)
    on_ranks(2, trained_in_windows, tmp_path)
    loaded, _ = converted("windows, corrected outputs")
    load_sharded(loaded, tmp_path / "before")
    assert furthest(loaded, never_apart, "state") < TIGHT
    assert any(name.startswith("coarse.K") for name in loaded.state_dict())
    on_ranks(2, trained_in_windows, tmp_path)
    optimizer = torch.optim.Adam(loaded.parameters(), lr=0.01)
    load_optimizer_state(loaded, optimizer, torch.load(tmp_path / "optimizer", weights_only=True))
    _two_steps(loaded, optimizer, batch, seed=6)
    ranks, _ = converted("windows, corrected outputs")
    load_sharded(ranks, tmp_path / "after")
    assert furthest(ranks, loaded, "state") < TIGHT
