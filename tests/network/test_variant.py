"""A network that is recorded anew has the same weights, the original's output after n - 1 iterations, and its modes."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.errors import GuardError, RecordingWarning
from tests.models import Perceptron

pytestmark = pytest.mark.filterwarnings("ignore::pararealize.errors.RecordingWarning")

X, Y = torch.randn(4, 8), torch.randn(3, 5, 8)  # of two and of three dimensions: a guard that every recording has


class Normed(nn.Module):
    """Blocks with dropout, layer norm and running statistics, which depend on how many dimensions there are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Dropout(0.5)) for _ in range(4))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x) / x.dim()
        return self.head(x)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"flat": Perceptron, "residual": Normed}


def converted(name: str, n: int = 3, **options: object) -> tuple[nn.Module, PararealModule]:
    model = NETWORKS[name]().eval()
    return model, pararealize(model, n=n, example_inputs=X, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("coarse", ["linear", "bottleneck", "block", "exact"])
def test_alternating_sizes_are_right(name: str, coarse: str) -> None:
    model, net = converted(name, coarse=coarse)
    one = pararealize(model, n=1, example_inputs=X)
    for x in (X, Y, X[:1], Y[:1], Y, torch.randn(2, 2, 2, 8)):
        torch.testing.assert_close(net.iterate(x, 2), model(x))
        torch.testing.assert_close(one(x), model(x))
        assert net(x).shape == model(x).shape


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_reach_the_networks_own_parameters(name: str) -> None:
    model, net = converted(name)
    one = pararealize(model, n=1, example_inputs=X)
    for network in (net, one):
        network(Y).square().sum().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    model(Y).square().sum().backward()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(one.get_parameter(key).grad, parameter.grad)


def test_a_variant_follows_what_is_done_to_the_network() -> None:
    model, net = converted("residual")
    net(Y)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.1)
        for parameter in model.parameters():
            parameter.mul_(1.1)
    torch.testing.assert_close(net.iterate(Y, 2), model(Y))
    net.train()
    assert not torch.equal(net(Y), net(Y))
    net.eval()
    assert torch.equal(net(Y), net(Y))
    net.double()
    torch.testing.assert_close(net.iterate(Y.double(), 2), model.double()(Y.double()))
    net.load_state_dict({key: torch.zeros_like(value) for key, value in net.state_dict().items()})
    assert not net(Y.double()).any()


def test_keys_and_parameters_are_those_of_the_first_recording() -> None:
    _, net = converted("residual")
    keys, parameters, code = list(net.state_dict()), list(map(id, net.parameters())), net.code
    net(Y)
    assert (list(net.state_dict()), list(map(id, net.parameters())), net.code) == (keys, parameters, code)
    assert len(list(net.modules())) == len({id(module) for module in net.modules()})


def test_a_deep_copy_records_for_itself() -> None:
    model, net = converted("residual")
    net.recording_limit = 3
    net(Y)
    twin = copy.deepcopy(net)
    assert twin.recording_limit == 3
    with torch.no_grad():
        twin.get_parameter("head.bias").add_(1)
    torch.testing.assert_close(twin.iterate(Y, 2), model(Y) + 1)
    torch.testing.assert_close(net.iterate(Y, 2), model(Y))


def test_autocast() -> None:
    model, net = converted("residual")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(net.iterate(Y, 2), model(Y))
        assert net(Y).dtype == torch.bfloat16


def test_threads_call_one_network_with_different_sizes() -> None:
    model, net = converted("residual")
    inputs = [X, Y, torch.randn(2, 2, 2, 8)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
    wrong: list[object] = []
    barrier = threading.Barrier(6)

    def call(i: int) -> None:
        try:
            barrier.wait()
            with torch.no_grad():
                for _ in range(10):
                    torch.testing.assert_close(net.iterate(inputs[i], 2), expected[i])
        except BaseException as error:  # noqa: BLE001
            wrong.append(error)

    threads = [threading.Thread(target=call, args=(i % 3,)) for i in range(6)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert not any(module.training for module in net.modules())
    assert len(net.recorded_guards) == 3


def test_other_blocks_are_refused() -> None:
    class Shorter(Normed):
        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks if x.dim() == 2 else self.blocks[1:]:
                x = x + block(x)
            return self.head(x)

    net = pararealize(Shorter(), n=2, example_inputs=X)
    with pytest.raises(GuardError, match=r"x.dim\(\) == 2.*4 blocks, not 5"):
        net(Y)


def test_a_note_says_so_the_first_time() -> None:
    _, net = converted("residual")
    with pytest.warns(RecordingWarning, match=r"Normed was recorded anew for x \(3, 5, 8\)"):
        net(Y)


def test_compiled() -> None:
    model, net = converted("residual")
    compiled = torch.compile(net, backend="eager")
    with torch.no_grad():
        for x in (X, Y, X[:2], Y):
            torch.testing.assert_close(compiled(x), net(x))
            assert compiled(x).shape == model(x).shape


def test_functional_calls_reach_what_the_models_own_head_has() -> None:
    _, net = converted("residual")
    zeros = {key: torch.zeros_like(value) for key, value in net.state_dict().items()}
    for x in (X, Y, X):
        assert not torch.func.functional_call(net, zeros, (x,)).any()
        assert net(x).any()


def test_exported_within_the_guards_alone() -> None:
    _, net = converted("residual")
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(net, (X,), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(exported.module()(X[:3]), net(X[:3]))


class OneOrMore(nn.Module):
    """Does one thing for a batch of one and another for all others, as decoders do where positions are not expanded."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        shift = torch.ones(1, 4)
        if shift.shape[0] != x.shape[0]:
            shift = 2 * shift.expand(x.shape[0], -1)
        for layer in self.layers:
            x = x + torch.tanh(layer(x + shift))
        return x


@pytest.mark.parametrize("batch", [1, 3])
def test_a_rule_for_a_batch_of_one_holds_for_it(batch: int) -> None:
    """The example's own batch was not among those for which its recording held, nor could it be recorded anew."""
    model = OneOrMore().eval()
    net = pararealize(model, n=2, example_inputs=torch.randn(batch, 4))
    net.guards.check({"x": torch.randn(batch, 4)})
    for rows in (batch, 1, 2, 5, 1):
        x = torch.randn(rows, 4)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RecordingWarning)
            assert torch.allclose(net.eval().iterate(x, 1), model(x), atol=1e-6)
