"""What a restacking did, in words and as plain data."""

import json

import torch
import torchvision

from pararealize import restack
from pararealize.models import PreActBasic, PreActResNet


def test_what_is_left_is_listed() -> None:
    net = restack(PreActResNet(PreActBasic, 5), "rk4")
    left = {other.name: other.reason for other in net.restacking.left}
    assert left["stage1.4"] == "the rest of a chain of 5, fewer than the 4 stages of rk4"
    assert left["stage2.0"].startswith("its shortcut is not the identity")
    short = restack(PreActResNet(PreActBasic, 4), "rk4").restacking
    assert {other.reason for other in short.left if other.name == "stage2.1"} == {
        "its chain of 3 is shorter than the 4 stages of rk4"
    }


def test_it_prints_and_survives_json() -> None:
    model = torchvision.models.resnet18()
    made = restack(model, "midpoint", h=0.5, adaptive="output", example_inputs=torch.randn(2, 3, 32, 32)).restacking
    assert str(made).splitlines() == [
        "ResNet as midpoint (2 stages, order 2), h = 0.5, learnable (output): 1 step of 2 residual blocks",
        "  step 1: layer1.0 – layer1.1, then ReLU",
        *(f"  left layer{i}.0: its shortcut is not the identity but layer{i}.0.downsample.1" for i in (2, 3, 4)),
        "  left layer2.1, layer3.1, layer4.1: its chain of 1 is shorter than the 2 stages of midpoint",
    ]
    again = json.loads(json.dumps(made.to_dict()))
    assert again["groups"] == [{"blocks": ["layer1.0", "layer1.1"], "post": True}]
    assert again["left"][0] == {"name": "layer2.0", "reason": made.left[0].reason}
