"""The built-in ResNets against the counts of their papers, and every way to name a model, right and wrong."""

import pytest
import torch
from torch import nn

from pararealize import models
from pararealize.errors import ModelError

DEPTHS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9, "resnet110": 18, "resnet164": 18}


def count(net):
    return sum(p.numel() for p in net.parameters())


def meta(name, **arguments):
    with torch.device("meta"):
        return models.build(name, **arguments)


def layers(net):
    """The depth as He et al. count it: convolutions on the longest path and the linear layer."""
    on_the_skip = sum(name.endswith("projection") for name, _ in net.named_modules())
    return sum(isinstance(m, nn.Conv2d | nn.Linear) for m in net.modules()) - on_the_skip


@pytest.mark.parametrize("name", models.names())
def test_depth_is_in_the_name(name):
    assert layers(meta(name)) == int(name.removeprefix("resnet"))


@pytest.mark.parametrize(
    "name, millions",
    # He et al. 2015, table 6 (the basic units' counts do not change with the order of their layers), and 2016, table 4
    [
        ("resnet20", 0.27),
        ("resnet32", 0.46),
        ("resnet44", 0.66),
        ("resnet56", 0.85),
        ("resnet110", 1.7),
        ("resnet164", 1.7),
    ],
)
def test_parameters_match_the_papers(name, millions):
    assert count(meta(name)) / 1e6 == pytest.approx(millions, abs=0.05 if millions > 1 else 0.01)


def test_resnet1001_is_the_network_of_the_paper():
    net = meta("resnet1001", num_classes=100)
    assert round(count(net) / 1e6, 2) == 10.35
    assert [len(stage) for stage in (net.stage1, net.stage2, net.stage3)] == [111, 111, 111]
    assert all(isinstance(unit, models.PreActBottleneck) for unit in net.stage2)
    assert net.stage3[0].conv1.stride == (2, 2)
    assert net.stage1[110].conv3.out_channels == 64


@pytest.mark.parametrize("unit", [models.PreActBasic, models.PreActBottleneck])
def test_shapes_and_initialisation(unit):
    torch.manual_seed(0)
    net = models.PreActResNet(unit, units=2, num_classes=7)
    sizes = []
    for stage in (net.stage1, net.stage2, net.stage3):
        stage.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[1:])))
    assert net(torch.randn(3, 3, 32, 32)).shape == (3, 7)
    e = unit.expansion
    assert sizes == [(16 * e, 32, 32), (32 * e, 16, 16), (64 * e, 8, 8)]
    weight = net.stage3[1].conv2.weight  # He: standard deviation sqrt(2 / fan_out)
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)


@pytest.mark.parametrize("unit", [models.PreActBasic, models.PreActBottleneck])
def test_unit_without_branch_is_the_identity(unit):
    module = unit(16 * unit.expansion, 16)
    last = module.conv3 if unit is models.PreActBottleneck else module.conv2
    nn.init.zeros_(last.weight)
    x = torch.randn(2, 16 * unit.expansion, 4, 4)
    before = x.clone()
    assert torch.equal(module(x), before)
    assert torch.equal(x, before)  # the ReLUs that work in place leave the input alone


def test_seed_decides_the_weights():
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(models.resnet20().fc.weight)
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


@pytest.mark.parametrize("wrong", [{"units": 0}, {"units": 1, "num_classes": 0}])
def test_impossible_resnet(wrong):
    with pytest.raises(ModelError, match="at least one unit"):
        models.PreActResNet(models.PreActBasic, **wrong)


@pytest.mark.parametrize("name", ["resnet18", "torchvision:resnet18", "googlenet", "torchvision:inception_v3"])
def test_torchvision(name):
    assert isinstance(meta(name), nn.Module)


def test_no_auxiliary_heads_unless_asked_for():
    assert meta("googlenet").aux1 is None
    assert meta("googlenet", aux_logits=True).aux1 is not None


def test_timm():
    pytest.importorskip("timm")
    assert type(meta("timm:resnet10t")).__module__.startswith("timm.")
    with pytest.raises(ModelError, match=r"'resnet10q' is not a model of timm's; did you mean .*resnet10t"):
        models.build("timm:resnet10q")


def test_timm_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(ModelError, match=r"needs timm, which is not installed; say pip install"):
        models.build("timm:resnet10t")


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "mynets.py"
    path.write_text(
        "from torch import nn\n"
        "def net(width=4):\n    return nn.Linear(width, width)\n"
        "ready = nn.Linear(2, 3)\n"
        "number = 3\n"
        "def text():\n    return 'net'\n"
        "def broken():\n    raise RuntimeError('boom')\n"
        "class Zoo:\n    @staticmethod\n    def small():\n        return nn.Linear(1, 1)\n"
    )
    return path


def test_file_and_package(user_file, monkeypatch):
    assert models.build(f"{user_file}:net", width=6).in_features == 6
    assert models.build(f"{user_file}:ready").out_features == 3
    assert models.build(f"{user_file}:Zoo.small").out_features == 1
    assert isinstance(models.build("torch.nn:Flatten"), nn.Flatten)
    monkeypatch.chdir(user_file.parent)
    assert models.build("mynets:net").in_features == 4
    assert models.build("mynets.py:net").in_features == 4


@pytest.mark.parametrize(
    "name, message",
    [
        ("resnet21", r"'resnet21' is not a built-in model or one of torchvision's; did you mean .*resnet20"),
        ("qqqqqqqq", r"nothing has a name like it.*pararealize ls"),
        ("torchvision:vgg17", r"'vgg17' is not a classification model of torchvision's; did you mean .*vgg16"),
        ("{file}:number", r"is a int, which cannot be called"),
        ("{file}:text", r"gives a str and not a torch.nn.Module"),
        ("{file}:broken", r"failed: RuntimeError: boom \(mynets.py, line 9\)"),
    ],
)
def test_bad_names(user_file, name, message):
    with pytest.raises(ModelError, match=message):
        models.build(name.format(file=user_file))


def test_default_input():
    assert models.default_input("resnet1001") == (3, 32, 32)
    assert models.default_input("torchvision:vit_b_16") == (3, 224, 224)
    assert models.default_input("inception_v3") == (3, 299, 299)
    assert models.default_input("somewhere:net") is None
    assert models.default_input("resnet51") is None
    pytest.importorskip("timm")
    assert models.default_input("timm:resnet10t") == (3, 176, 176)
    assert models.default_input("timm:nothing") is None
