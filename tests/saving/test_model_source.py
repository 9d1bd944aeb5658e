"""How an original is built: registries by themselves, the user's own code by its digest, everything else passed."""

import pytest
import torch
from torch import nn

from pararealize import models
from pararealize.errors import CheckpointError, ModelError
from pararealize.saving.model_source import ModelSource, build_original, source_of

CODE = "from torch import nn\ndef deep(width=4): return nn.Sequential(nn.Linear(width, width))\nMARK.append(1)\n"


def test_registries():
    net = models.build("resnet20", num_classes=7)
    assert models.built_as(net) == ("resnet20", {"num_classes": 7})
    source = source_of("PreActResNet", *models.built_as(net), net.state_dict())
    assert str(source) == "resnet20(num_classes=7)"
    assert build_original(source, None).fc.out_features == 7
    assert models.built_as(models.resnet32()) == ("resnet32", {})
    with pytest.raises(ModelError, match=r"resnet32\(num_classes=7\) is not this model: \d+ tensors differ \(stage1"):
        source_of("PreActResNet", "resnet32", {"num_classes": 7}, net.state_dict())


@pytest.mark.parametrize(
    "arguments", [{"pretrained": True}, {"weights_backbone": 1}, {"act": "relu"}, {"f": object()}, {1: 2.5}]
)
def test_a_file_decides_on_numbers_alone(arguments):
    with pytest.raises(ModelError, match="a file may decide on numbers alone"):
        source_of("Net", "resnet20", arguments, {})
    plain = {name: value for name, value in arguments.items() if isinstance(value, int)}
    if plain:
        source = ModelSource(kind="registry", class_name="Net", name="resnet20", arguments=plain)
        with pytest.raises(CheckpointError, match="which a file may not decide"):
            build_original(source, None)


def test_a_file_of_the_users(tmp_path):
    """Its folder is not written; nothing of it runs by itself, and nothing at all where it has changed."""
    file = tmp_path / "nets.py"
    file.write_text(CODE.replace("MARK.append(1)\n", ""))
    source = source_of("Sequential", f"{file}:deep", {"width": 3}, nn.Sequential(nn.Linear(3, 3)).state_dict())
    assert (source.kind, source.name) == ("file", "nets.py:deep")
    assert build_original(source, f"{file}:deep")[0].in_features == 3
    with pytest.raises(CheckpointError, match=r"was built by 'nets.py:deep', which no file may run by itself; pass"):
        build_original(source, None)
    with pytest.raises(CheckpointError, match=r"was built by 'nets.py:deep', and model= names"):
        build_original(source, f"{file}:wide")
    file.write_text(CODE)  # it would fail if it ran: there is no MARK
    with pytest.raises(CheckpointError, match=r"is not the code .*: the SHA-256 of nets.py was \w{12}… and is \w{12}…"):
        build_original(source, f"{file}:deep")
    own = nn.Linear(2, 2)
    assert build_original(source, own) is own


def test_code_that_builds_another_model_is_told_where_it_is_saved(tmp_path):
    """Also where it does not run on the meta device, or takes no such arguments; random states stay."""
    file = tmp_path / "nets.py"
    file.write_text(
        "import torch\nfrom torch import nn\n"
        "def deep(width=4): torch.manual_seed(0); return nn.Sequential(nn.Linear(width, width))\n"
        "def drawn(width=4): torch.ones(width).tolist(); return deep(width)\n"
    )
    tensors = nn.Sequential(nn.Linear(3, 3)).state_dict()
    state = torch.get_rng_state()
    for name in ("deep", "drawn"):
        assert source_of("Sequential", f"{file}:{name}", {"width": 3}, tensors).arguments == {"width": 3}
        with pytest.raises(ModelError, match=rf"{name}\(\) is not this model: 2 tensors differ \(0.weight, 0"):
            source_of("Sequential", f"{file}:{name}", {}, tensors)
        with pytest.raises(ModelError, match=r"it cannot be built: .* unexpected keyword argument 'zz'"):
            source_of("Sequential", f"{file}:{name}", {"zz": 1}, tensors)
    with pytest.raises(ModelError, match=r"resnet20\(zz=1\) is not this model: it cannot be built"):
        source_of("PreActResNet", "resnet20", {"zz": 1}, tensors)
    assert torch.equal(state, torch.get_rng_state())


def test_names_that_pass_for_a_registrys():
    source = ModelSource(kind="registry", class_name="Net", name="os:getcwd")
    with pytest.raises(CheckpointError, match="calls 'os:getcwd' a registry's model, and it is none"):
        build_original(source, None)


def test_a_module_by_its_name():
    source = source_of("PreActResNet", "pararealize.models:resnet20", {}, models.resnet20().state_dict())
    assert (source.kind, len(source.sha256)) == ("module", 64)
    with torch.device("meta"):
        assert isinstance(build_original(source, "pararealize.models:resnet20"), nn.Module)
    with pytest.raises(CheckpointError, match="which no file may run by itself"):
        build_original(source, None)
