"""The copy that a network owns: everything of the original, nothing shared, and what cannot be copied is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pararealize.errors import ModelError
from pararealize.tracing.module_copy import check_model, copy_contents, copy_model, share_contents


class Parts(nn.Module):
    """Parameters and buffers of every kind: tied, absent, non-persistent, plain attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.second[0].weight = self.first.weight
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("left_out", torch.ones(2), persistent=False)
        self.register_parameter("absent", None)
        self.second.table = torch.arange(3.0)  # type: ignore[assignment]

    def get_extra_state(self) -> Any:
        return "of the class alone"

    def set_extra_state(self, state: Any) -> None: ...


def test_a_copy_shares_nothing_and_keeps_what_is_tied() -> None:
    model = Parts()
    owned, keys = copy_model(model, {})
    assert keys == [key for key in model.state_dict() if key != "_extra_state"]
    ours, theirs = dict(owned.named_parameters()), dict(model.named_parameters())
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    mine = {tensor.data_ptr() for tensor in (*owned.parameters(), *owned.buffers())}
    assert not mine & {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    assert owned.second[0].weight is owned.first.weight  # type: ignore[index, union-attr]


def test_constants_are_buffers_that_no_checkpoint_holds() -> None:
    model = Parts()
    constants = {"second.table": model.second.table, "_constant_0": torch.tensor([7.0])}
    owned, keys = copy_model(model, constants)
    buffers = dict(owned.named_buffers())
    for name, value in constants.items():
        assert torch.equal(buffers[name], value)
        assert buffers[name].data_ptr() != value.data_ptr()
        assert name not in owned.state_dict()
        assert name not in keys
    assert "table" not in vars(owned.second)
    assert torch.equal(owned.double().second.table, torch.arange(3.0).double())  # type: ignore[union-attr]
    assert "table" in vars(model.second)


@pytest.mark.parametrize("name", ["adapters", "coarse", "segments"])
@pytest.mark.parametrize("kind", ["module", "parameter", "buffer"])
def test_names_that_the_result_needs_for_itself(name: str, kind: str) -> None:
    model = nn.Module()
    if kind == "module":
        model.add_module(name, nn.Linear(2, 2))
    elif kind == "parameter":
        model.register_parameter(name, nn.Parameter(torch.zeros(2)))
    else:
        model.register_buffer(name, torch.zeros(2))
    check_model(model)
    with pytest.raises(ModelError, match=rf"top-level names \['{name}'\].*wrap the model"):
        copy_model(model, {})
    assert copy_model(nn.Sequential(model), {})[1] == list(nn.Sequential(model).state_dict())


def test_what_cannot_be_copied_says_why() -> None:
    model = Parts()
    model.seen = model.first.weight * 2  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"Parts cannot be copied \(RuntimeError: .*computed tensors as attributes"):
        copy_model(model, {})


def test_a_weight_that_a_hook_computes_is_copied_as_a_value() -> None:
    """It stands as an attribute that is no leaf, and is computed again before the next forward."""

    def double(module: nn.Module, args: Any) -> None:
        module.doubled = module.weight * 2  # type: ignore[assignment, operator]

    model = nn.Sequential(nn.Linear(2, 2))
    model[0].register_forward_pre_hook(double)
    model(torch.ones(1, 2))
    owned, _ = copy_model(model, {})
    copied = owned.get_submodule("0").doubled
    assert isinstance(copied, Tensor)
    assert torch.equal(copied, model[0].doubled)  # type: ignore[arg-type]
    assert not copied.requires_grad


@pytest.mark.parametrize("lazy", [nn.LazyLinear(5), nn.Sequential(nn.LazyBatchNorm1d(affine=False))])
def test_parameters_and_buffers_without_a_shape(lazy: nn.Module) -> None:
    model = nn.Sequential(nn.Linear(3, 3), lazy)
    with pytest.raises(ModelError, match=r"Sequential has parameters without a shape yet \(1\..*run it once"):
        check_model(model)
    model(torch.ones(2, 3))
    check_model(model)


def test_scripted_modules_are_named() -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(6, 6), nn.Tanh()))
    with pytest.raises(ModelError, match=r"has scripted modules \(\w*ScriptModule\)"):
        check_model(script)
    with pytest.raises(ModelError, match=r"Sequential has scripted modules \(1\)"):
        check_model(nn.Sequential(nn.Linear(6, 6), script))


@pytest.mark.parametrize("name", ["graph", "_graph", "code", "meta", "class", "lambda"])
def test_names_that_mean_something_to_torch_fx_or_python(name: str) -> None:
    model = nn.Module()
    model.add_module(name, nn.Linear(2, 2))
    with pytest.raises(ModelError, match=f"names.*'{name}'"):
        check_model(model)
    if name in ("class", "lambda"):
        with pytest.raises(ModelError, match=rf"with keywords of Python as names.*'0\.{name}'"):
            check_model(nn.Sequential(model))
    else:
        check_model(nn.Sequential(model))


class Styled(Parts):
    """A class with an attribute lookup of its own, which a tree of contents does not take over."""

    def __getattr__(self, name: str) -> Any:
        return "answered" if name == "unknown" else super().__getattr__(name)


def test_contents_are_shared_without_the_class() -> None:
    model = Styled().eval()
    bare = nn.Module()
    share_contents(bare, model)
    assert not bare.training
    assert model.unknown == "answered"
    assert not hasattr(bare, "unknown")
    assert list(bare.state_dict()) == [key for key in model.state_dict() if key != "_extra_state"]
    bare.register_buffer("later", torch.zeros(1))
    assert model.later is bare.later
    assert all(a is b for a, b in zip(bare.parameters(), model.parameters(), strict=True))


def test_contents_are_copied_with_what_is_tied() -> None:
    model = Styled().eval()
    memo: dict[int, Any] = {}
    tree = copy_contents(model, memo)
    assert type(tree) is nn.Module
    assert not tree.training
    assert memo[id(model.first.weight)] is tree.first.weight is tree.second[0].weight  # type: ignore[index, union-attr]
    assert tree.first.weight is not model.first.weight  # type: ignore[union-attr]
    assert list(tree.state_dict()) == [key for key in model.state_dict() if key != "_extra_state"]
