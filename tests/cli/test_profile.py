"""``pararealize profile``: a published profile, or this machine's, in a file that ``plan`` reads."""

import dataclasses
import json
import os

import pytest
import torch.distributed as dist

from pararealize import profiles, strategies
from pararealize.profiles import PROFILES, DeviceProfile, HostCosts, Link, machine
from tests.command import run


def test_a_published_profile(tmp_path):
    file = tmp_path / "mine.json"
    result = run("profile", "--show", "h100", "--out", file)
    assert result.exit_code == 0, result.output
    assert "h100: NVIDIA H100 datasheet" in result.stdout
    assert DeviceProfile.load(file) == PROFILES["h100"]
    again = run("profile", "--show", file, "--out", file, "--json")
    assert again.exit_code == 2
    assert "is there already" in json.loads(again.stdout)["error"]["message"]
    assert run("profile", "--show", file, "--out", file, "--force", "--name", "mine").exit_code == 0
    assert DeviceProfile.load(file) == dataclasses.replace(PROFILES["h100"], name="mine")
    nothing = run("profile", "--show", "h100", "--on", "cpu")
    assert (nothing.exit_code, "--on cpu says what is measured" in nothing.stderr) == (2, True)
    folder = run("profile", "--show", "h100", "--out", tmp_path, "--force")
    assert (folder.exit_code, "is a folder and not a file" in " ".join(folder.stderr.split())) == (2, True)


@pytest.fixture
def quick(monkeypatch):
    """Measurements that take next to no time."""
    monkeypatch.setattr(machine, "SECONDS", 0.001)
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(machine, "VALUES", {"cpu": 2**14, "cuda": 2**14})


@pytest.mark.usefixtures("quick")
def test_this_machine():
    value = json.loads(run("profile", "--on", "cpu", "--name", "here", "--json").stdout)
    assert value["profile"]["name"] == "here"
    assert value["profile"]["links"] == []
    assert run("profile", "--on", "abacus").exit_code == 2


@pytest.mark.usefixtures("quick")
def test_ranks_have_their_link_and_hosts_and_the_first_writes(monkeypatch, tmp_path):
    """Hosts are measured by the device's own figures; the other ranks take part, and say nothing."""
    began, link = [], Link(name="gloo", latency=1e-5, bandwidth=1e9)
    monkeypatch.setattr(dist, "init_process_group", began.append)
    monkeypatch.setattr(dist, "get_rank", lambda: int(os.environ["RANK"]))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: began.append("ended"))
    monkeypatch.setattr(profiles, "measure_link", lambda device: link)

    def hosts(link, profile):
        return dataclasses.replace(link, host=HostCosts(step=profile.launch))

    monkeypatch.setattr(strategies, "measure_ranks", hosts)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in (0, 1):
        monkeypatch.setenv("RANK", str(rank))
        result = run("profile", "--on", "cpu", "--out", tmp_path / f"{rank}.json", "--json")
        assert result.exit_code == 0, result.output
        assert bool(result.stdout) == (tmp_path / f"{rank}.json").exists() == (rank == 0)
    saved = DeviceProfile.load(tmp_path / "0.json")
    assert saved.links == (dataclasses.replace(link, host=HostCosts(step=saved.launch)),)
    assert began == ["gloo", "ended"] * 2
