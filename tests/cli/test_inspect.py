"""``pararealize inspect``: blocks and refused cut points, as a table and as JSON."""

import json

from tests.command import run


def test_inspect():
    result = run("inspect", "resnet20")
    assert result.exit_code == 0
    assert "9 blocks in 3 stages" in result.stdout
    assert "cut points refused" in result.stdout
    value = json.loads(run("inspect", "resnet20", "--json").stdout)
    assert len(value["blocks"]) == 9
