"""Modules that are replaced, and hooks that containers get, after a conversion: they act, or are refused."""

from __future__ import annotations

import copy
import tempfile
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pararealize import layer_parallel, pararealize, prolong, restack, run_local
from pararealize.errors import ModelError
from pararealize.tracing.front_end import capture
from pararealize.tracing.tree_watch import TreeWatch

X = torch.randn(4, 8)


def weight_norm(module: nn.Module, name: str = "weight", **changes: Any) -> None:
    """By hooks, as it was before parametrizations."""
    with pytest.warns(FutureWarning, match="deprecated"):
        nn.utils.weight_norm(module, name, **changes)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.inner(x)) * self.scale


class Scaled(Block):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


class Adapted(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.delta = inner, nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.delta(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Block() for _ in range(4)])
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x))


KINDS: dict[str, Callable[..., Any]] = {
    "pararealize": lambda: pararealize(Net(), n=2, coarse="linear", example_inputs=X),
    "local": lambda: run_local(pararealize(Net(), n=2, coarse="linear", example_inputs=X)),
    "layer_parallel": lambda: layer_parallel(Net(), coarsening=2, example_inputs=X),
    "serial": lambda: layer_parallel(Net(), coarsening=2, exact=True, example_inputs=X),
    "restack": lambda: restack(Net(), "midpoint", example_inputs=X),
    "prolong": lambda: prolong(Net(), 2, X),
}


def new_head(net: Any) -> None:
    net.fc = nn.Linear(8, 11)


def adapter(net: Any) -> None:
    block = net.get_submodule("blocks.1")
    block.inner = Adapted(block.inner)


def other_block(net: Any) -> None:
    net.get_submodule("blocks")[1] = Scaled()


def deleted(net: Any) -> None:
    del net.get_submodule("blocks")[3]


def hook(net: Any) -> None:
    net.get_submodule("blocks.1").register_forward_hook(lambda module, args, output: output * 2)


def own_forward(net: Any) -> None:
    block = net.get_submodule("blocks.1")
    block.forward = types.MethodType(lambda self, x: x, block)


def own_class(net: Any) -> None:
    parametrizations.weight_norm(net.get_submodule("blocks.1"), "scale", dim=None)


CHANGES: dict[Callable[[Any], None], str] = {
    new_head: r"^fc \(Linear\) is another module \(Linear\), since the network was converted",
    adapter: r"^blocks.1.inner \(Linear\) is another module \(Adapted\)",
    other_block: r"^blocks.1 \(Block\) is another module \(Scaled\)",
    deleted: r"^blocks.3 \(Block\) is not there any more",
    hook: r"^blocks.1 \(Block\) has got a forward hook hook.<lambda> \(.*convert that anew$",
    own_forward: r"^blocks.1 \(Block\) has another forward",
    own_class: r"^blocks.1 \(Block\) is of another class \(ParametrizedBlock\)",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_no_recording_would_run_is_refused(kind: str, change: Callable[[Any], None]) -> None:
    net = KINDS[kind]()
    net(X)
    change(net)
    if kind in ("restack", "prolong") and change in (new_head, adapter):  # whose graphs look layers up as they run
        net(X).sum().backward()
        assert all(parameter.grad is not None for parameter in net.parameters())
        return
    for call in (lambda: net(X), lambda: copy.deepcopy(net)):
        with pytest.raises(ModelError, match=CHANGES[change]):
            call()


def test_no_folder_and_no_iteration_of_another_network() -> None:
    net = KINDS["pararealize"]()
    head = net.fc
    new_head(net)
    with tempfile.TemporaryDirectory() as folder:
        for call in (lambda: net.iterate(X, 1), lambda: net.save(folder, replace=True)):
            with pytest.raises(ModelError, match=r"fc .Linear. is another module"):
                call()
    net.fc = head
    assert net(X).shape == (4, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_acts_in_place_is_no_change(kind: str) -> None:
    net = KINDS[kind]()
    inner = net.get_submodule("blocks.1.inner")
    calls: list[Any] = []
    inner.register_forward_hook(lambda *args: calls.append(args))
    parametrizations.spectral_norm(inner)
    weight_norm(net.get_submodule("blocks.2.inner"))
    net.double().load_state_dict(net.state_dict(), assign=True)
    net.requires_grad_(False).eval()
    blocks = net.get_submodule("blocks")
    del blocks[len(blocks) :]  # which gives it another dictionary of the same modules
    for network in (net, copy.deepcopy(net), net):
        assert network(X.double()).dtype == torch.float64
    assert calls


def test_recordings_made_later_are_watched_too() -> None:
    class Sized(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.ndim == 2 else self.other(super().forward(x))

        def __init__(self) -> None:
            super().__init__()
            self.other = nn.Linear(3, 3)

    nets = [
        pararealize(Sized(), n=2, coarse="linear", example_inputs=X),
        layer_parallel(Sized(), coarsening=2, example_inputs=X),
        restack(Sized(), "midpoint", example_inputs=X),
    ]
    for net in nets:
        net(X)
        net.other = nn.Linear(3, 5)  # no recording reads it
        assert net(X).shape == (4, 3)
        with pytest.warns(UserWarning, match="recorded anew"):
            assert net(X.expand(2, 4, 8)).shape == (2, 4, 5)
        net.other = nn.Linear(3, 3)
        with pytest.raises(ModelError, match=r"^other .Linear. is another module"):
            net(X.expand(2, 4, 8))


def test_compiled_code_looks_as_well() -> None:
    net = KINDS["pararealize"]()
    compiled = torch.compile(net, backend="eager")
    torch.testing.assert_close(compiled(X), net(X))
    handle = net.get_submodule("blocks.1").register_forward_hook(lambda module, args, output: output * 2)
    with pytest.raises(ModelError, match=r"^blocks.1 .Block. has got a forward hook"):
        compiled(X)
    handle.remove()
    torch.testing.assert_close(compiled(X), net(X))
    new_head(net)
    with pytest.raises(ModelError, match=r"^fc .Linear. is another module"):
        compiled(X)


def test_hooks_that_were_there_may_stay_and_others_are_told() -> None:
    model = nn.Sequential(Block(), nn.Linear(8, 3))
    graph = capture(model, X).graph
    weight_norm(model[0], "scale", dim=None)
    watch = TreeWatch(model, [graph])
    watch.check()
    handle = model[0].register_forward_pre_hook(lambda module, args: None)
    assert watch.fault().startswith("0 (Block) has got a forward-pre hook")
    handle.remove()
    nn.utils.remove_weight_norm(model[0], "scale")
    assert watch.fault() == "0 (Block) has lost a forward-pre hook"


class Post(Block):
    def __init__(self) -> None:
        super().__init__()
        self.relu, self.out = nn.ReLU(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.relu(x + self.relu(self.inner(x))))


class PostNet(Net):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*[Post() for _ in range(4)])


def halve(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return output * 0.5


@pytest.mark.parametrize(
    "kind, place",
    [("layer_parallel", "relu"), ("layer_parallel", "out"), ("restack", "out"), ("euler", "out"), ("prolong", "out")],
)
def test_modules_that_steps_compute_without_a_call(kind: str, place: str) -> None:
    make = {
        "layer_parallel": lambda: layer_parallel(PostNet(), coarsening=2, example_inputs=X),
        "restack": lambda: restack(PostNet(), "midpoint", example_inputs=X),
        "euler": lambda: restack(PostNet(), "euler", example_inputs=X),
        "prolong": lambda: prolong(PostNet(), 2, X),
    }
    net = copy.deepcopy(make[kind]())
    net(X)
    handle = net.get_submodule(f"blocks.2.{place}").register_forward_hook(halve)
    with pytest.raises(ModelError, match=rf"^blocks.2.{place} \(\w+\) has got a forward hook halve"):
        net(X)
    handle.remove()
    net(X)
    setattr(net.get_submodule("blocks.2"), place, nn.Sigmoid())
    with pytest.raises(ModelError, match=rf"^blocks.2.{place} \(\w+\) is another module \(Sigmoid\)"):
        net(X)
