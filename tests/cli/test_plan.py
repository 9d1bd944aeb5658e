"""``pararealize plan``: the library's comparison, printed and written."""

import json

from tests.command import run

SMALL = ("resnet20", "--devices", 2, "--batch-size", 4, "--device", "a100", "--input-shape", "3,8,8")


def test_plan_writes_its_files(tmp_path):
    result = run("plan", *SMALL, "--out", tmp_path / "plans", "--coarse", "linear")
    assert result.exit_code == 0, result.output
    assert "resnet20: a training step of 4 samples on 2 devices (a100" in result.stdout
    assert "advice: " in result.stdout
    assert sorted(path.name for path in (tmp_path / "plans").iterdir()) == ["strategies.json", "strategies.svg"]
    document = json.loads((tmp_path / "plans" / "strategies.json").read_text())
    assert document["model"] == "resnet20"


def test_faults_in_the_words_of_the_command():
    for words, message in (
        (("--devices", 0), "--devices is 0; pass 1 to 1024"),
        (("--batch-size", 7), "--batch-size is 7, which does not divide among 2 devices"),
        (("--device", "h10"), "did you mean 'h100'"),
        (("--link", "string"), "no link 'string'"),
    ):
        result = run("plan", *SMALL, *words, "--json")
        assert result.exit_code == 2
        assert message in json.loads(result.stdout)["error"]["message"]
