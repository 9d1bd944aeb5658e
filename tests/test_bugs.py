"""Models that once came out wrong, or were changed, or met an error that said nothing: each test tells its story."""

from __future__ import annotations

import copy
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import spectral_norm, weight_norm

from pararealize import pararealize
from pararealize.errors import CaptureError, CutError, ExampleError, ModelError, RecordingWarning
from pararealize.tracing.front_end import capture

X = torch.randn(4, 6)


class Layers(nn.Module):
    """A stem, four residual layers and a head over vectors; ``step`` is what a layer does with its input."""

    def __init__(self, make: Callable[[], nn.Module] = lambda: nn.Linear(6, 6)) -> None:
        super().__init__()
        self.first, self.layers, self.out = nn.Linear(6, 6), nn.ModuleList(make() for _ in range(4)), nn.Linear(6, 2)

    def body(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return x

    def forward(self, x: Tensor) -> Any:
        return self.out(self.body(x))


def same_steps(model: nn.Module, *inputs: Any) -> None:
    """Three forward passes in train mode and one in eval mode give the same bits, and leave the same buffers."""
    net = pararealize(model, n=1, example_inputs=inputs)
    ours = copy.deepcopy(model)
    for training in (True, True, True, False):
        results = []
        for network in (ours.train(training), net.train(training)):
            torch.manual_seed(3)
            results.append(network(*[i.clone() if isinstance(i, Tensor) else i for i in inputs]))
        assert torch.equal(*results)
        buffers = dict(net.named_buffers())
        assert all(torch.equal(buffer, buffers[name]) for name, buffer in ours.named_buffers())


# Side effects of the forward ----------------------------------------------------------------------------------------


class Average(nn.Module):
    """A layer that keeps a moving average of what it sees, in one of the ways in which people write it."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.linear, self.way = nn.Linear(6, 6), way
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        now = 0.1 * x.detach().mean(0)
        if self.way == "assigned":
            self.mean = 0.9 * self.mean + now
        elif self.way == "data":
            self.mean.data.mul_(0.9).add_(now)
        elif self.way == "view":
            self.mean.view(-1).mul_(0.9).add_(now)
        self.steps = self.steps + 1
        return self.linear(x) - self.mean


@pytest.mark.parametrize("way", ["assigned", "data", "view", "counted only"])
def test_moving_averages_go_on_moving(way: str) -> None:
    """A buffer that a forward assigned anew stayed at its first value after conversion: nothing wrote it down."""
    same_steps(Layers(lambda: Average(way)), X)


def test_a_buffer_that_is_only_a_cache_makes_no_module_opaque() -> None:
    """A table that depends on sizes alone may be made again: it is no side effect."""

    class Cached(Layers):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(1), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.table.numel() != x.shape[1]:
                self.table = torch.arange(x.shape[1], device=x.device) + x.new_zeros(x.shape[1])
            return super().forward(x * self.table)

    assert capture(Cached(), X).opaque == {}


@pytest.mark.parametrize("way", ["data", "no_grad"])
def test_weights_that_are_clipped_in_the_forward(way: str) -> None:
    """Clipping ran on the user's own weights while the graph was checked against the model."""

    class Clipped(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if way == "data":
                self.weight.data.clamp_(-0.1, 0.1)
            else:
                with torch.no_grad():
                    self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    model = Layers(lambda: Clipped(6, 6))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    same_steps(model, X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_norm_whose_result_nobody_reads_still_counts() -> None:
    """Dead code was removed, and with it the update of its running statistics."""

    class Watching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.watch = nn.Linear(6, 6), nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            self.watch(x)
            return self.linear(x)

    same_steps(Layers(Watching), X)
    net = pararealize(Layers(Watching), n=3, example_inputs=X, coarse="linear")
    net(X)
    assert [int(buffer) for name, buffer in net.named_buffers() if "num_batches" in name] == [1, 1, 1, 1]


# Random numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["of the input's shape", "constant", "of a parameter"])
def test_random_numbers_that_several_parts_read(kind: str) -> None:
    """Each part drew its own numbers where the model draws once: silently another network."""

    class Noisy(Layers):
        def forward(self, x: Tensor) -> Tensor:
            if kind == "constant":
                noise = torch.randn(6)
            else:
                noise = torch.randn_like(x) if "input" in kind else F.dropout(self.first.bias, 0.5)
            x = self.first(x + noise)
            for layer in self.layers:
                x = x + torch.tanh(layer(x) + noise)
            return self.out(x)

    with pytest.raises(CutError, match=r"random numbers are read by several parts.*(randn|dropout).*in stem"):
        pararealize(Noisy(), n=2, example_inputs=X)


@pytest.mark.parametrize("way", ["a layer", "a function", "attention", "noise", "noise of nothing"])
def test_random_numbers_that_nobody_reads_move_the_others(way: str) -> None:
    """They went with the dead code: refused, or worse, not seen where the outputs of the check were zeros anyway."""

    class Wasteful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(6, 6), nn.Dropout(0.5)
            self.attention = nn.MultiheadAttention(6, 2, dropout=0.5)

        def forward(self, x: Tensor) -> Tensor:
            if way == "a layer":
                self.dropout(x)
            elif way == "a function":
                F.dropout(x, 0.5, self.training)
            elif way == "attention":
                self.attention(x, x, x)
            elif way == "noise":
                torch.rand_like(x)
            else:
                torch.rand(3)
            return self.dropout(self.linear(x))

    same_steps(Layers(Wasteful), X)
    pararealize(Layers(Wasteful), n=3, example_inputs=X, coarse="linear")(X)


@pytest.fixture(params=["alone", "beside an idle thread"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whether there is a thread besides the one that converts, as progress bars and data loaders leave them."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait)
    if request.param != "alone":
        thread.start()
    yield
    over.set()
    if request.param != "alone":
        thread.join()


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("source", [random.random, np.random.rand])
def test_random_numbers_from_outside_torch(source: Callable[[], float]) -> None:
    """Layers dropped by Python's random numbers were recorded once, and kept or dropped for ever after."""

    class Dropping(Layers):
        def body(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x) if source() >= 0 else x
            return x

    states = random.getstate(), np.random.get_state()[1].tolist()
    with pytest.raises(CaptureError, match="random numbers from Python or NumPy, which a graph would freeze"):
        pararealize(Dropping(), n=2, example_inputs=X)
    assert states == (random.getstate(), np.random.get_state()[1].tolist())


@pytest.mark.usefixtures("threads")
def test_a_layer_with_random_numbers_from_outside_torch_is_one_node() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * random.choice([1.0, 1.0])

    model = Layers(lambda: Scaled(6, 6))
    assert set(capture(model, X).opaque) == {f"layers.{i}" for i in range(4)}


# Inputs -------------------------------------------------------------------------------------------------------------


def test_one_tensor_as_the_example_of_two_inputs() -> None:
    """Inputs were told apart by identity: ``(x, x)`` as an example made a network that reads its last input twice."""

    class Two(Layers):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return super().forward(a - 2 * b)

    model = Two().eval()
    net = pararealize(model, n=1, example_inputs=(X, X))
    a, b = torch.randn(3, 6), torch.randn(3, 6)
    assert torch.equal(net(a, b), model(a, b))


def test_a_plain_input_between_tensors_is_fixed_and_says_so() -> None:
    """It made code that Python cannot parse; and a plain input of another value was passed over in silence."""

    class Flagged(Layers):
        def forward(self, x: Tensor, negate: bool, y: Tensor) -> Tensor:
            return super().forward(y - x if negate else y + x)

    model = Flagged().eval()
    net = pararealize(model, n=1, example_inputs=(X, True, X + 1))
    assert torch.equal(net(X, True, 3 * X), model(X, True, 3 * X))
    with pytest.warns(RecordingWarning, match=r"'negate' is False.*captured with True"):
        assert torch.equal(net(X, False, X), model(X, False, X))


def test_an_object_as_an_input() -> None:
    with pytest.raises(ExampleError, match=r"an example input is a object; only tensors and plain values"):
        pararealize(Layers(), n=1, example_inputs=(X, object()))


def test_inputs_that_the_model_changes_are_the_users() -> None:
    """The example was normalised in place each time the model ran on it, and so was another one each time."""

    class Normalising(Layers):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.sub_(1).div_(2))

    x = torch.randn(2, 6)
    before = x.clone()
    net = pararealize(Normalising(), n=2, example_inputs=x, source="input", coarse="linear")
    assert torch.equal(x, before)
    net(x)
    assert torch.equal(x, before), "adapters read the raw input, whatever the stem does with it"


@pytest.mark.parametrize("what", ["a value", "an input"])
def test_context_that_changes_on_the_way(what: str) -> None:
    """All changes in place of a mask happened before the first block: every block read the last state of it."""

    class Fading(Layers):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            if what == "a value":
                mask = mask.clone()
            x = self.first(x)
            for layer in self.layers:
                x = x + torch.tanh(layer(x)) * mask
                mask.mul_(0.5)
            return self.out(x)

    model, mask = Fading().eval(), torch.rand(4, 6)
    with torch.no_grad():
        net = pararealize(model, n=1, example_inputs=(X, mask.clone())).eval()
        assert torch.equal(net(X, mask.clone()), model(X, mask.clone()))
        net = pararealize(model, n=4, example_inputs=(X, mask.clone()), coarse="linear", source="stem").eval()
        given = mask.clone()
        net(X, given)
        assert torch.equal(given, mask), "every segment reads it: none may change it"


def test_an_empty_batch() -> None:
    with pytest.raises(ExampleError, match=r"hold no sample: x \(0, 6\)"):
        pararealize(Layers(), n=1, example_inputs=torch.randn(0, 6))


def test_an_ordered_dictionary_as_the_output() -> None:
    """Torchvision's segmentation networks return one."""

    class Named(Layers):
        def forward(self, x: Tensor) -> Any:
            x = self.body(x)
            return OrderedDict(out=self.out(x), more={"deep": [x]})

    model = Named().eval()
    result = pararealize(model, n=1, example_inputs=X)(X)
    assert isinstance(result, OrderedDict)
    assert list(result) == ["out", "more"]
    assert torch.equal(result["out"], model(X)["out"])


# The caller's modes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_conversion_within_a_mode_of_the_caller(mode: Callable[[], Any]) -> None:
    """Under ``no_grad`` every layer was refused, since it seemed to switch gradients off by itself."""
    model = Layers()
    with mode():
        net = pararealize(model, n=2, example_inputs=X)
    assert net(X).dtype == torch.float32
    net(X).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


# Names and kinds of modules -----------------------------------------------------------------------------------------


def wrapped(name: str) -> nn.Module:
    """A network with a layer of that name."""
    return nn.Sequential(OrderedDict([(name, nn.Linear(6, 6)), *((f"l{i}", nn.Linear(6, 6)) for i in range(4))]))


@pytest.mark.parametrize(
    "name", ["origin", "shadowed", "plan", "stem", "head", "context", "lender", "device", "x", "0"]
)
def test_names_that_meant_something_to_us(name: str) -> None:
    """A layer called ``origin`` was the whole network: pieces kept their owner under that name."""
    for model in (wrapped(name), nn.Sequential(wrapped(name), nn.Tanh())):
        model.eval()
        assert torch.equal(pararealize(model, n=1, example_inputs=X)(X), model(X))
        assert pararealize(model, n=2, example_inputs=X)(X).shape == (4, 6)


@pytest.mark.parametrize("name", ["graph", "_graph", "code", "meta", "class", "lambda"])
def test_names_that_mean_something_to_torch_fx(name: str) -> None:
    """They ended in a ``TypeError`` or a ``SyntaxError`` from within torch.fx."""
    with pytest.raises(ModelError, match=f"names.*'{name}'"):
        pararealize(wrapped(name), n=1, example_inputs=X)
    if name not in ("class", "lambda"):
        assert pararealize(nn.Sequential(wrapped(name), nn.Tanh()), n=2, example_inputs=X)(X).shape == (4, 6)


def test_scripted_modules() -> None:
    """They were left with fake tensors as parameters; and their copies are not trained."""
    script = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    for model in (script, nn.Sequential(nn.Linear(6, 6), script)):
        before = model(X)
        with pytest.raises(ModelError, match="scripted modules"):
            pararealize(model, n=1, example_inputs=X)
        assert torch.equal(model(X), before)


def test_a_compiled_network() -> None:
    model = torch.compile(
        nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(3))), backend="eager"
    )
    net = pararealize(model, n=2, example_inputs=X)
    assert list(net.original_state_dict()) == list(model.state_dict())
    assert net(X).shape == (4, 6)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalise", [weight_norm, spectral_norm])
def test_weights_made_by_a_hook(normalise: Callable[[nn.Module], nn.Module]) -> None:
    """Counting a block's cost ran its hook, and left a tensor without memory as the user's weight."""
    model = nn.Sequential(*(nn.Sequential(normalise(nn.Linear(6, 6)), nn.Tanh()) for _ in range(3))).eval()
    kept = [layer[0].weight for layer in model]  # type: ignore[index]
    net = pararealize(model, n=1, example_inputs=X)
    assert all(layer[0].weight is weight for layer, weight in zip(model, kept, strict=True))  # type: ignore[index]
    assert torch.equal(net(X), model(X))


def test_extra_state_of_the_networks_own_class() -> None:
    """``original_state_dict`` asked for a key that only the class of the original knows."""

    class Extra(Layers):
        def get_extra_state(self) -> Any:
            return {"version": 1}

        def set_extra_state(self, state: Any) -> None: ...

    net = pararealize(Extra(), n=2, example_inputs=X)
    assert list(net.original_state_dict()) == list(Layers().state_dict())


@pytest.mark.parametrize("name", ["parts", "pieces", "devices", "setup", "runs", "messages", "settings"])
def test_names_of_submodules_are_the_users(name):
    """A network's own attributes have names that hardly any model gives to its top-level modules."""

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module(name, nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(6))))

        def forward(self, x):
            return self.get_submodule(name)(x)

    model, x = Named(), torch.randn(2, 4)
    net = pararealize(model, 3, example_inputs=x, coarse="linear")
    assert net.get_submodule(f"{name}.1.0").weight.equal(model.get_submodule(f"{name}.1.0").weight)
    net.register_buffer("mine", torch.zeros(1))
    assert torch.equal(net.iterate(x, 2), model(x))
