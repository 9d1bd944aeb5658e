"""``pararealize ls``: the models that can be named."""

import json

from tests.command import run


def test_ls():
    names = json.loads(run("ls", "--json").stdout)
    assert "resnet1001" in names["built-in"]
    assert len(names["torchvision"]) >= 80
    printed = run("ls").stdout
    assert "resnet1001" in printed
    assert "vit_b_16" in printed
