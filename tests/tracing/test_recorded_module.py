"""A recorded module is called as the original is, whichever recording runs."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from pararealize import layer_parallel, pararealize, restack, run_local
from pararealize.errors import ExampleError, ModelError, RecordingWarning
from tests.models import Perceptron

X = torch.randn(4, 8)


def test_a_network_without_values_is_told_as_such() -> None:
    net = pararealize(Perceptron().to("meta"), n=2, example_inputs=X.to("meta"))
    assert net(X.to("meta")).is_meta
    with pytest.raises(ModelError, match=r"tensors of the network are on the meta device.* \(0.weight.*to_empty"):
        net(X)
    with pytest.raises(RuntimeError, match="meta"):  # torch's own, where the network has values
        pararealize(Perceptron(), n=2, example_inputs=X)(X.to("meta"))


def test_hooks_run_once_around_every_recording() -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    net(X)
    with pytest.warns(RecordingWarning):
        net(X.unsqueeze(1))
    net(X.unsqueeze(1))
    assert len(calls) == 3
    assert len(net.recorded_guards) == 2
    assert net.recording_of(X) is net
    assert net.recording_of(X.unsqueeze(1)) is not net


def test_its_signature_is_the_graphs() -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    assert [*inspect.signature(net.forward).parameters] == ["input"]
    net.recording_limit = 3
    assert net.recording_limit == 3


def test_errors_come_alone(capsys: pytest.CaptureFixture[str]) -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    with pytest.raises(ExampleError, match="shapes cannot be multiplied"):
        net(torch.randn(4, 9))
    with pytest.raises(ExampleError, match="missing a required argument"):
        net()
    assert "Traceback" not in capsys.readouterr().err


class Guarded(nn.Module):
    """A branch that is one call, and asks the model itself for its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.parents = nn.Linear(6, 6), []

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.linear(x))
        return 2 * h if self.parents[0].training else h


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Guarded()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Family(nn.Module):
    """A model whose blocks hold it in a list, where it is no submodule of theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Branch() for _ in range(4)))
        for block in self.blocks:
            block.inner.parents.append(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


CONVERSIONS = {
    "pararealize": lambda model, x: pararealize(model, n=1, example_inputs=x, leaf_modules=[Guarded]),
    "run_local": lambda model, x: run_local(pararealize(model, n=1, example_inputs=x, leaf_modules=[Guarded])),
    "restack": lambda model, x: restack(model, "euler", example_inputs=x, leaf_modules=[Guarded]),
    "layer_parallel": lambda model, x: layer_parallel(
        model, example_inputs=x, leaf_modules=[Guarded], forward_iterations=4
    ),
}


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_a_block_that_holds_the_model_reads_the_networks_mode(conversion: str, copied: bool) -> None:
    """The root that the block refers to was left in the mode of the conversion, whatever the network's was."""
    torch.manual_seed(0)
    model, x = Family(), torch.randn(3, 6)
    net = CONVERSIONS[conversion](model, x)
    if copied:
        twin = copy.deepcopy(net)
        net.eval()  # of which the copy is told nothing
        net = twin
    for training in (True, False, True):
        net.train(training)
        assert net.training is training
        assert torch.allclose(net(x), model.train(training)(x), atol=1e-5)
