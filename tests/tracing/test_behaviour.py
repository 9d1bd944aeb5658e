"""What a network does in a setting is what autograd says, and differences are found, named and measured."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pararealize.tracing.behaviour import Setting, first_difference, observe
from pararealize.tracing.example import Example

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


@dataclasses.dataclass
class Result:
    hidden: Tensor
    size: int


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.frozen, self.idle = nn.Linear(4, 4), nn.Linear(4, 4).requires_grad_(False), nn.Linear(4, 4)

    def forward(self, x: Tensor, scale: float = 2.0) -> Any:
        x = x.mul_(scale)
        return {"result": Result(self.frozen(self.linear(x)), len(x)), "none": None, "list": [x.detach(), True]}


def look(model: nn.Module, setting: Setting, **options: Any) -> Any:
    example = Example.of(model, X)
    return observe(options.pop("run", model), model, example, setting, by_name=options.pop("by_name", False))


def test_outputs_and_gradients_by_name() -> None:
    model, before = Net(), X.clone()
    behaviour = look(model, Setting(training=True, gradients=True))
    assert behaviour.error is None
    assert {name for name in behaviour.outputs if "requires" not in name} == {
        "output['result']['hidden']", "output['result']['size']", "output['list'][0]", "output['list'][1]",
    }  # fmt: skip
    assert behaviour.outputs["requires_grad of output['result']['hidden']"] is True
    assert behaviour.outputs["requires_grad of output['list'][0]"] is False
    named = {name.removeprefix("the gradient of "): gradient for name, gradient in behaviour.gradients.items()}
    assert set(named) == {"x", "linear.weight", "linear.bias", "idle.weight", "idle.bias"}
    x = X.clone().requires_grad_()
    output = model.frozen(model.linear(2 * x))
    numbers = torch.randn(output.shape, generator=torch.Generator().manual_seed(output.numel()))
    expected = torch.autograd.grad(output, [x, model.linear.weight], numbers)
    assert torch.allclose(named["x"], expected[0])
    assert torch.allclose(named["linear.weight"], expected[1])
    assert named["idle.weight"] is None
    assert torch.equal(X, before), "the example is copied"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_setting_is_in_force() -> None:
    seen: list[Any] = []

    class Seeing(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            autocast = torch.is_autocast_enabled("cpu")
            seen.append((self.training, torch.is_grad_enabled(), autocast, tuple(x.shape), x.dtype, x.requires_grad))
            return super().forward(x)

    model = Seeing(4, 4)
    look(model, Setting(training=False))
    look(model, Setting(training=True, gradients=True, autocast=True, shapes={"x": (5, 4)}))
    model.double()
    look(model, Setting(training=True, dtype=torch.float64))
    assert seen == [
        (False, False, False, (3, 4), torch.float32, False),
        (True, True, True, (5, 4), torch.float32, True),
        (True, False, False, (3, 4), torch.float64, False),
    ]
    values = observe(
        lambda x: x, model, Example.of(model, X), Setting(training=True, shapes={"x": (5, 4)}), by_name=True
    )
    assert torch.equal(values.outputs["output"], X[[0, 1, 2, 0, 1]])


def test_flags_that_differ_by_module() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.ReLU())), nn.Linear(2, 2))
    paths = [name for name, _ in model.named_modules()]
    by_level = Setting(training="level").flags(paths)
    parents = {path: path.rpartition(".")[0] for path in paths if path}
    assert all(by_level[path] != by_level[parent] for path, parent in parents.items())
    assert len(set(Setting(training="name").flags(map(str, range(20))).values())) == 2
    assert set(Setting(training=True).flags(paths).values()) == {True}
    assert [str(Setting(training=t)) for t in (True, "level")] == [
        "in train mode, under torch.no_grad",
        "with each second level of modules in train mode, under torch.no_grad",
    ]


@pytest.mark.parametrize("reentrant", [True, False])
def test_errors_and_checkpoints(reentrant: bool) -> None:
    class Stored(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = checkpoint(super().forward, x, use_reentrant=reentrant)
            return result

    behaviour = look(Stored(4, 4), Setting(training=True, gradients=True))
    assert behaviour.error is None
    assert behaviour.gradients["the gradient of weight"] is not None
    failing = look(nn.Linear(4, 4), Setting(training=True), run=lambda _: 1 / 0)
    assert isinstance(failing.error, ZeroDivisionError)


A = torch.randn(50, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        (A, A.clone(), ""),
        (A, A * (1 + 1e-6), ""),
        (A, A * 1.01, "value is off by 0.01 of its norm"),
        (A, A[:3], r"value is (50,) float32 and became (3,) float32"),
        (A, A.double(), r"value is (50,) float32 and became (50,) float64"),
        (A, None, r"value is (50,) float32 and became None"),
        (None, A, r"value is None and became (50,) float32"),
        (None, None, ""),
        (3, 3, ""),
        (3, 4, "value is 3 and became 4"),
        (True, A, r"value is True and became (50,) float32"),
        (A * torch.nan, A * torch.nan, ""),
        (A, A * torch.nan, "value is off by nan of its norm"),
        (A / 0, A / 0, ""),
        (A * 0, A * 0 + 1e-3, "from zero"),
        (torch.arange(3), torch.arange(3), ""),
        (torch.arange(3), torch.arange(3) * 2, "value differs in 2 of 3 entries"),
        (torch.tensor(3), torch.tensor(4), "value differs: 3 and 4"),
        (torch.empty(0), torch.empty(0), ""),
        (A + 1j, A + 1j, ""),
        (A + 1j, A + 2j, "value is another"),
        (torch.eye(3).to_sparse(), torch.eye(3).to_sparse(), ""),
        (torch.eye(3).to_sparse(), 2 * torch.eye(3).to_sparse(), "value is another"),
        (torch.eye(3).to_sparse(), torch.eye(3), "became torch.strided"),
        (A.bfloat16() * 1e30, A.bfloat16() * 1e30, ""),
    ],
)  # fmt: skip
def test_differences(ours: Any, theirs: Any, message: str) -> None:
    difference = first_difference([("same", A, A), ("value", ours, theirs)], close=1e-4)
    assert message in str(difference) if message else difference is None


def test_rounding_of_what_is_nearly_zero_is_no_difference() -> None:
    """A bias before a batch norm has a gradient of rounding errors alone."""
    assert first_difference([("large", A, A), ("tiny", A * 1e-9, -A * 1e-9)], close=1e-4) is None
    assert first_difference([("tiny", A * 1e-9, -A * 1e-9)], close=1e-4) is not None
