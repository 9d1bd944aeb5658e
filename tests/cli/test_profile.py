"""``pararealize profile``: a published profile, or this machine's, in a file that ``plan`` reads."""

import json

from pararealize.profiles import PROFILES, DeviceProfile, machine
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
    assert run("profile", "--show", file, "--out", file, "--force").exit_code == 0


def test_this_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "SECONDS", 0.001)
    monkeypatch.setattr(machine, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(machine, "VALUES", {"cpu": 2**14, "cuda": 2**14})
    value = json.loads(run("profile", "--on", "cpu", "--name", "here", "--json").stdout)
    assert value["profile"]["name"] == "here"
    assert value["profile"]["links"] == []
    assert run("profile", "--on", "abacus").exit_code == 2
