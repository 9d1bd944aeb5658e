"""A model's own ``train()`` and ``eval()``: what of them is lost in a converted network is told, and nothing else."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize.errors import ModeWarning


class FrozenNorm(nn.BatchNorm1d):
    """Stays in eval mode, whatever its network does."""

    def train(self, mode: bool = True) -> FrozenNorm:
        return super().train(False)


class FrozenNorms(nn.Sequential):
    """Keeps the batch norms within it in eval mode."""

    def train(self, mode: bool = True) -> FrozenNorms:
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self


class Told(nn.Sequential):
    """Does what torch does, and something besides, as models of libraries do."""

    kernels = False

    def train(self, mode: bool = True) -> Told:
        changed = self.training != mode
        out = super().train(mode)
        if self.kernels and changed:
            raise AssertionError
        return out

    def eval(self) -> Told:
        return self.train(False)


class Switch(nn.Sequential):
    """Has a function for each mode."""

    def train(self, mode: bool = True) -> Switch:
        self.function = torch.relu if mode else torch.tanh
        return super().train(mode)


class Values(nn.Sequential):
    """Looks at its weights, and leaves no trace."""

    def train(self, mode: bool = True) -> Values:
        super().train(mode)
        if float(self[0].weight.detach().sum()) > 1e9:  # type: ignore[arg-type]
            self[1].eval()
        return self


def layers(norm: type[nn.Module] = nn.BatchNorm1d) -> list[nn.Module]:
    return [layer for _ in range(3) for layer in (nn.Linear(4, 4), norm(4))]


def test_modes_that_are_lost_are_told() -> None:
    x, model = torch.randn(5, 4), FrozenNorms(*layers()).train()
    weight = model[0].weight
    with pytest.warns(
        ModeWarning, match=r"FrozenNorms has its own train\(\), after which 1 and 2 other modules are in eval"
    ):
        net = pararealize(model, n=1, example_inputs=x)
    assert not any(norm.training for norm in net.modules() if isinstance(norm, nn.BatchNorm1d))
    assert model.training
    assert model[0].weight is weight
    plain = nn.Sequential(*layers())
    plain.eval = lambda: plain  # type: ignore[method-assign]
    with pytest.warns(
        ModeWarning, match=r"Sequential has its own eval\(\), after which 0 and 5 other modules are in train"
    ):
        pararealize(plain, n=1, example_inputs=x)


def test_other_state_that_a_mode_is_of_is_told() -> None:
    with pytest.warns(
        ModeWarning, match=r"Switch has its own train\(\), after which its attribute 'function' is another"
    ):
        pararealize(Switch(*layers()), n=1, example_inputs=torch.randn(5, 4))


@pytest.mark.parametrize("model", [Told(*layers()), Values(*layers()), nn.Sequential(*layers(FrozenNorm))])
def test_no_warning_where_nothing_is_lost(model: nn.Module) -> None:
    x = torch.randn(5, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net = pararealize(model, n=1, example_inputs=x)
    model.train(), net.train()
    assert torch.equal(net(x), model(x))
    model.eval(), net.eval()
    assert torch.equal(net(x), model(x))


def test_modules_within_keep_theirs() -> None:
    x, model = torch.randn(5, 4), nn.Sequential(FrozenNorms(*layers()), nn.Linear(4, 4))
    net = pararealize(model, n=1, example_inputs=x)
    model.train(), net.train()
    assert torch.equal(net(x), model(x))
    assert not any(norm.training for norm in net.modules() if isinstance(norm, nn.BatchNorm1d))


def test_models_of_transformers_lose_nothing() -> None:
    transformers = pytest.importorskip("transformers")
    settings = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    model = transformers.BertModel(
        transformers.BertConfig(**settings, vocab_size=50, max_position_embeddings=16), add_pooling_layer=False
    )
    ids = torch.randint(1, 50, (3, 7))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModeWarning)
        pararealize(model.eval(), n=3, example_inputs={"input_ids": ids}, coarse="linear")
