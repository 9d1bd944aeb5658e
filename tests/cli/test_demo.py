"""``pararealize demo``: a loss that falls."""

import json

from tests.command import run


def test_demo(tmp_path):
    words = ["demo", "--model", "resnet20", "--n", "3", "--steps", "25", "--image-size", "16", "--lr", "0.003"]
    result = run(*words, "--plot", tmp_path / "loss.svg")
    assert result.exit_code == 0
    assert "step 25 of 25" in result.stdout
    assert (tmp_path / "loss.svg").exists()
    value = json.loads(run(*words, "--json").stdout)
    losses = value["losses"]
    assert len(losses) == 25
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])
