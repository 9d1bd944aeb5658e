"""load(save(net)) is net: to the bit in outputs and gradients, with its modes, its types and what it can do."""

import copy
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._pytree import tree_leaves

from pararealize import load, load_original, models, pararealize
from pararealize.errors import CheckpointError, CoarseError, ExampleError, ModelError, OriginalWarning, PlanError
from pararealize.models import copy_built
from pararealize.saving import save_model
from tests.models import LanguageModel, MaskedTransformer, Perceptron, SmallResNet


class Blocks(nn.Module):
    """Residual blocks of one width, with batch norm or without, dropout, and a buffer that no state dict has."""

    def __init__(self, width, depth, norm, dropout):
        super().__init__()
        self.enter = nn.Linear(3, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width) if norm == "layer" else nn.BatchNorm1d(width),
                nn.Linear(width, width),
                nn.Tanh(),
                nn.Dropout(dropout),
            )
            for _ in range(depth)
        )
        self.leave = nn.Linear(width, 2)
        self.register_buffer("gain", torch.rand(()), persistent=False)

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x) * self.gain


@st.composite
def conversions(draw):
    depth = draw(st.integers(3, 6))
    norm, dropout = draw(st.sampled_from(["layer", "batch"])), draw(st.sampled_from([0, 0.5]))
    settings = draw(st.integers(2, 4)), depth, norm, dropout
    windows = draw(st.integers(1, 2))
    n = draw(st.integers(1, depth // windows))
    kinds = ["linear", "block", "exact", "scale", "low-rank:1", "dense", "paper"]
    granularity = draw(st.sampled_from(["repeated", "finest"]))
    arguments = {"n": n, "windows": windows, "coarse": draw(st.sampled_from(kinds)), "granularity": granularity}
    if windows == 1 and n < depth:
        arguments["sequential"] = draw(st.integers(0, 1))
    return settings, arguments


def outcome(net, x):
    """Output, gradients by name, and the buffers afterwards."""
    torch.manual_seed(3)
    net.zero_grad()
    output = net(x)
    output.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in net.named_parameters()}
    return {"output": output, **gradients, **{f"{name} after": value.clone() for name, value in net.named_buffers()}}


def assert_same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        same = value is two[name] is None or torch.equal(value, two[name])
        assert same, name


@settings(max_examples=8)
@given(conversions(), st.sampled_from([torch.float32, torch.float64]), st.integers(0, 1 << 30))
def test_what_is_loaded_is_what_was_saved(tmp_path_factory, conversion, dtype, seed):
    torch.manual_seed(seed)
    arguments, asked = conversion
    folder = tmp_path_factory.mktemp("saved") / "net"
    net = pararealize(Blocks(*arguments), example_inputs=torch.randn(4, 3), seed=seed % 7, **asked).to(dtype)
    with torch.no_grad():  # as if calibrated: nothing is as it was drawn
        for parameter in net.parameters():
            parameter.add_(torch.rand_like(parameter))
    net.blocks[0].eval()
    net.leave.bias.requires_grad_(False)
    net.save(folder)
    again = load(folder, Blocks(*arguments))
    assert (again.plan, again.code) == (net.plan, net.code)
    x = torch.randn(5, 3, dtype=dtype)
    assert_same(outcome(net, x), outcome(again, x))
    assert_same(outcome(net.eval(), x), outcome(again.eval(), x))
    assert_same(net.original_state_dict(), again.original_state_dict())


def test_other_sizes_copies_and_tied_weights(tmp_path):
    """What a converted network can do, the loaded one can: masks, guards, lengths, deep copies, iterations."""
    torch.manual_seed(1)
    ids = torch.randint(1, 11, (2, 7))
    for make, name, blocks in ((partial(MaskedTransformer, 4), "masked", 4), (partial(LanguageModel, 3), "tied", 6)):
        net = pararealize(make(), 2, coarse="low-rank:2", example_inputs=ids, granularity="finest").eval()
        assert sum(segment.blocks for segment in net.plan.segments) == blocks
        net.save(tmp_path / name)
        again = copy.deepcopy(load(tmp_path / name, make()))
        for length in (7, 5):
            x = torch.randint(1, 11, (3, length))
            outputs = [tree_leaves(one(x))[0] for one in (net, again)]
            assert torch.equal(*outputs), (name, length)
        assert torch.equal(*(tree_leaves(one.iterate(ids, 1))[0] for one in (net, again)))
        assert not again.training
    assert again.head.weight is again.embed.weight
    with pytest.raises(ExampleError):
        again(torch.zeros(2, 7, 3, dtype=torch.long))


def test_the_random_state_stays_and_so_does_the_model_that_is_passed(tmp_path):
    folder = pararealize(Perceptron(depth=3), 2, example_inputs=torch.randn(2, 8)).save(tmp_path / "net")
    model = Perceptron(depth=3)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    load(folder, model)
    assert torch.equal(state, torch.get_rng_state())
    assert_same(before, model.state_dict())
    assert load_original(folder, model) is model  # this one is asked for
    assert not torch.equal(before["0.weight"], model[0].weight)


def test_a_network_in_double_precision_from_the_start(tmp_path):
    """Recorded in another type than the registry builds: it is recorded so again."""
    x = torch.randn(2, 8, dtype=torch.float64)
    net = pararealize(Perceptron(depth=3).double(), 2, example_inputs=x)
    folder = net.save(tmp_path / "net")
    assert torch.equal(load(folder, Perceptron(depth=3))(x), net(x))
    model = copy_built(models.build("resnet20").double())  # a registry's is known as such, though a copy is loaded
    pararealize(model, 2, example_inputs=torch.randn(2, 3, 8, 8).double()).save(tmp_path / "built")
    assert load(tmp_path / "built").saved_record().model.name == "resnet20"
    assert load_original(folder, Perceptron(depth=3))[0].weight.dtype is torch.float64


def test_a_network_without_memory(tmp_path):
    with torch.device("meta"):
        model = Perceptron(depth=3)
    folder = pararealize(model, 3, example_inputs=torch.zeros(2, 8, device="meta")).save(tmp_path / "net")
    assert not (folder / "weights.safetensors").exists()
    assert all(parameter.is_meta for parameter in load(folder, model).parameters())
    with pytest.raises(CheckpointError, match="has no weights"):
        load_original(folder)


def test_a_model_that_is_none_is_a_typed_error(tmp_path):
    folder = save_model(Perceptron(2), tmp_path / "net")
    for wrong in (3, b"x", Perceptron):
        for function in (load, load_original):
            with pytest.raises(ModelError, match=r"^model is .*; pass a Module, a string or None"):
                function(folder, wrong)


def test_what_has_to_be_passed(tmp_path):
    """Code of the user's: the original, a coarse block of one's own, inputs that are objects."""

    def block(segment, x, y):
        return nn.Conv2d(x[0], y[0], 1, stride=x[1] // y[1])

    net = pararealize(SmallResNet(2), 2, coarse=block, example_inputs=torch.randn(2, 3, 8, 8))
    folder = net.save(tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"the original is a SmallResNet, which no file may run by itself; pass"):
        load(folder)
    with pytest.raises(CoarseError, match="was built by a callable, which no plan holds"):
        load(folder, SmallResNet(2))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(folder, SmallResNet(2), coarse=block)(x), net(x))
    with pytest.raises(PlanError, match="this plan is for another network"):
        load(folder, SmallResNet(3), coarse=block)


def test_a_model_on_the_meta_device_gets_the_weights_of_the_folder(tmp_path):
    """Buffers that no state dict has, and ties, too; the model that load gets is left as found."""
    net = pararealize(Blocks(3, 3, "batch", 0.0), 2, example_inputs=torch.randn(4, 3)).double().eval()
    folder, x = net.save(tmp_path / "net"), torch.randn(5, 3).double()
    with torch.device("meta"):
        model = Blocks(3, 3, "batch", 0.0)
    again = load(folder, model)
    assert torch.equal(again(x), net(x))
    assert model.enter.weight.is_meta
    with pytest.warns(OriginalWarning, match="or another element type"):
        assert load_original(folder, model) is model
    assert torch.equal(model(x), net.iterate(x, 1))  # n - 1 iterations are the original
    with torch.device("meta"):
        model = LanguageModel(2)
    folder = pararealize(LanguageModel(2), 2, example_inputs=torch.ones(2, 7).long()).save(tmp_path / "tied")
    assert load_original(folder, model).head.weight is model.embed.weight
    assert load(folder, LanguageModel(2).double()).head.weight.dtype is torch.float32
    with torch.device("meta"):
        model = LanguageModel(2)
        model.shift = torch.zeros(1)
    with pytest.raises(CheckpointError, match=r"no values for shift, which its constructor computes; build"):
        load(folder, model)


def residuals(act=nn.ReLU, eps=1e-5):
    """A chain of residual blocks by a plain function: other operations have tensors of the same names and shapes."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear, self.act = nn.LayerNorm(8, eps), nn.Linear(8, 8), act()

        def forward(self, x):
            return x + self.act(self.linear(self.norm(x)))

    return nn.Sequential(nn.Linear(8, 8), *(Block() for _ in range(3)), nn.Linear(8, 2))


@pytest.mark.parametrize("other", [{"act": nn.Tanh}, {"eps": 1e-2}])
def test_an_original_of_other_operations_is_refused(other, tmp_path):
    folder = pararealize(residuals(), 3, example_inputs=torch.randn(2, 8)).save(tmp_path / "net")
    model = residuals(**other)
    before = copy.deepcopy(model.state_dict())
    for function in (load, load_original):
        with pytest.raises(
            PlanError, match=r"net': this plan is for another network.*pass the original that was saved"
        ):
            function(folder, model)
        with pytest.raises(PlanError, match="this plan is for another network"):  # at other sizes, too
            function(folder, model, example_inputs=torch.randn(2, 5, 8))
        with pytest.raises(PlanError, match="this plan is for another network"):  # and not that values are missing
            function(folder, residuals().append(nn.Linear(2, 2)).to("meta"))
        with pytest.raises(
            ExampleError, match=r"Linear does not accept the .*; pass the original that was saved as mod"
        ):
            function(folder, nn.Linear(2, 2))
    assert_same(before, model.state_dict())


def test_weights_that_are_not_the_originals_own_are_told(tmp_path):
    """Of a trained network, of one that a loaded network was saved into, of one of another version; not of others."""
    net = pararealize(residuals(), 2, example_inputs=torch.randn(2, 8))
    own = copy.deepcopy(net.original_state_dict())
    load(net.save(tmp_path / "own"), residuals()).save(tmp_path / "again")
    for name in ("own", "again"):
        assert_same(own, load_original(tmp_path / name, residuals()).state_dict())
    with torch.no_grad():
        net.get_submodule("0").weight.add_(1)
    load(net.save(tmp_path / "trained"), residuals()).save(tmp_path / "trained again")
    for name in ("trained", "trained again"):
        with pytest.warns(
            OriginalWarning, match="have changed since it was converted .* save the network with original="
        ):
            load_original(tmp_path / name, residuals())
    original = residuals()
    original.load_state_dict(own)
    net.save(tmp_path / "both", original=original)
    assert_same(own, load_original(tmp_path / "both", residuals()).state_dict())
    net.load_original_state_dict(own)
    load_original(net.save(tmp_path / "back"), residuals())


def test_the_element_type_is_the_one_that_was_saved(tmp_path):
    """Also where the network was cast after it was converted, and of a model that is not converted."""
    net = pararealize(residuals(), 2, example_inputs=torch.randn(2, 8)).double()
    net.save(tmp_path / "net")
    save_model(residuals().double(), tmp_path / "original")
    with pytest.warns(OriginalWarning):
        model = load_original(tmp_path / "net", residuals())
    assert_same(net.original_state_dict(), model.state_dict())
    assert {value.dtype for value in load_original(tmp_path / "original", residuals()).parameters()} == {torch.float64}


def test_finest_blocks_of_a_model_on_the_meta_device(tmp_path):
    """Its operations are compared with the plan's before the folder's weights are given to it, block by block."""
    ids = torch.randint(1, 11, (2, 7))
    net = pararealize(LanguageModel(3), 2, coarse="linear", example_inputs=ids, granularity="finest").eval()
    net.save(tmp_path / "net")
    with torch.device("meta"):
        model = LanguageModel(3)
    again = load(tmp_path / "net", model).eval()
    assert again.plan == net.plan
    assert torch.equal(again(ids)["logits"], net(ids)["logits"])


class Gated(nn.Module):
    """Reads a tensor that is neither a parameter nor a buffer: its own, or one of a list."""

    def __init__(self, listed: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.gate = [torch.rand(6)] if listed else torch.rand(6)

    def forward(self, x):
        return x + torch.tanh(self.linear(x)) * (self.gate[0] if isinstance(self.gate, list) else self.gate)


def test_an_original_has_its_plain_tensors_or_is_told_to_lack_them(tmp_path):
    x = torch.randn(3, 6)

    def original(listed):
        return nn.Sequential(*(Gated(listed) for _ in range(3))).eval()

    model = original(False)
    folder = pararealize(model, 3, example_inputs=x).save(tmp_path / "named")
    assert torch.equal(load_original(folder, original(False))(x), model(x))
    net = pararealize(model, 3, example_inputs=x, leaf_modules=[Gated])
    assert torch.equal(load(net.save(tmp_path / "leaves"), original(False))(x), net(x)), "of a module not looked into"
    model = original(True)
    folder = pararealize(model, 3, example_inputs=x).save(tmp_path / "listed")
    assert torch.equal(load_original(folder, original(True))(x), model(x))


class Scaled(nn.Module):
    """The model itself holds a tensor, which no folder has by its name."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.scale = nn.Sequential(*(Gated(False) for _ in range(3))), torch.rand(6)

    def forward(self, x):
        return self.layers(x) * self.scale


def test_tensors_without_a_name_are_told(tmp_path):
    model, x = Scaled().eval(), torch.randn(3, 6)
    folder = pararealize(model, 3, example_inputs=x).save(tmp_path / "net")
    assert torch.equal(load(folder, Scaled())(x), load(folder, model)(x))
    with pytest.warns(OriginalWarning, match="does not say which values scale had"):
        assert not torch.equal(load_original(folder, Scaled())(x), model(x))
    assert torch.equal(load_original(folder, copy.deepcopy(model))(x), model(x))


def test_channels_stay_last(tmp_path):
    """By the memory of its weights torch chooses how to convolve, and how it rounds."""
    model = SmallResNet().eval().to(memory_format=torch.channels_last)
    x = torch.randn(4, 3, 8, 8).to(memory_format=torch.channels_last)
    net = pararealize(model, 3, example_inputs=x).eval()
    folder = net.save(tmp_path / "net")
    again = load(folder, SmallResNet())
    for name, tensor in net.named_parameters():
        if tensor.ndim == 4:
            last = tensor.is_contiguous(memory_format=torch.channels_last)
            assert again.get_parameter(name).is_contiguous(memory_format=torch.channels_last) == last
    assert again.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(again(x), net(x))
    assert torch.equal(load_original(folder, SmallResNet())(x), model(x))
