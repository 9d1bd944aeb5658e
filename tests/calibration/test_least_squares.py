"""Closed forms: against torch.linalg.lstsq on the explicit design matrix, and against weights that are known."""

import pytest
import torch
from torch import Tensor, nn

from pararealize.analysis.space import Space
from pararealize.calibration.least_squares import NormalEquations, Regression, linear_part, unfold
from pararealize.coarse.adapter import build_adapter
from pararealize.coarse.resampling import Move, Resample
from pararealize.coarse.units import linear_map
from pararealize.errors import CalibrationError

DOUBLE = {"dtype": torch.float64}

LAYERS = {
    "linear": lambda: nn.Linear(5, 3, **DOUBLE),
    "linear without bias": lambda: nn.Linear(5, 3, bias=False, **DOUBLE),
    "tokens": lambda: nn.Linear(6, 3, **DOUBLE),
    "conv 1d": lambda: nn.Conv1d(2, 3, 3, padding=1, **DOUBLE),
    "conv 1×1": lambda: nn.Conv2d(4, 3, 1, bias=False, **DOUBLE),
    "conv 3×3/2": lambda: nn.Conv2d(4, 3, 3, stride=2, padding=1, **DOUBLE),
    "conv dilated": lambda: nn.Conv2d(4, 3, (3, 2), dilation=2, padding=(2, 0), bias=False, **DOUBLE),
    "conv grouped": lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, **DOUBLE),
    "conv depthwise": lambda: nn.Conv2d(4, 4, 5, groups=4, padding=2, bias=False, **DOUBLE),
    "conv reflect": lambda: nn.Conv2d(4, 3, 3, padding=1, padding_mode="reflect", **DOUBLE),
    "conv 3d": lambda: nn.Conv3d(2, 3, (1, 3, 3), padding=(0, 1, 1), **DOUBLE),
}
INPUTS = {"linear": (40, 5), "linear without bias": (40, 5), "tokens": (20, 7, 6), "conv 1d": (20, 2, 9),
          "conv 3d": (6, 2, 3, 5, 5)}  # fmt: skip


def case(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    return LAYERS[name](), torch.randn(INPUTS.get(name, (12, 4, 8, 8)), **DOUBLE)


def explicit(layer: nn.Module, x: Tensor) -> Tensor:
    """The design matrix column by column: the output for each unit weight."""
    columns = []
    with torch.no_grad():
        for parameter in layer.parameters():
            for i in range(parameter.numel()):
                for other in layer.parameters():
                    other.zero_()
                parameter.view(-1)[i] = 1
                columns.append(layer(x).flatten())
    return torch.stack(columns, 1)


@pytest.mark.parametrize("name", LAYERS)
def test_it_is_lstsq_on_the_explicit_design(name: str) -> None:
    layer, x = case(name)
    target = torch.randn_like(layer(x))
    wanted = torch.linalg.lstsq(explicit(layer, x), target.flatten().unsqueeze(1)).solution.flatten()
    equations = NormalEquations(layer)
    for some, t in zip(x.split(5), target.split(5), strict=True):
        equations.add(some, t)
    equations.solve(ridge=0.0)
    found = torch.cat([parameter.flatten() for parameter in layer.parameters()])
    torch.testing.assert_close(found.detach(), wanted, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_are_there_are_found(name: str) -> None:
    layer, x = case(name)
    target, before = layer(x).detach(), [p.detach().clone() for p in layer.parameters()]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    equations = NormalEquations(layer)
    equations.add(x, target)
    equations.solve(ridge=0.0)
    for parameter, value in zip(layer.parameters(), before, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-9, atol=1e-10)


def test_ridge_is_the_minimum_of_its_penalised_sum() -> None:
    layer, x = case("linear")
    target = torch.randn(40, 3, **DOUBLE)
    equations = NormalEquations(layer)
    equations.add(x, target)
    equations.solve(ridge=0.3)
    centred = x - x.mean(0)
    penalty = 0.3 * centred.square().sum(0).mean()
    loss = (layer(x) - target).square().sum() + penalty * layer.weight.square().sum()
    gradients = torch.autograd.grad(loss, list(layer.parameters()))
    assert max(gradient.abs().max().item() for gradient in gradients) < 1e-9


def test_features_that_repeat_give_the_smallest_weights() -> None:
    layer = nn.Linear(4, 1, bias=False, **DOUBLE)
    x = torch.randn(30, 2, **DOUBLE).repeat(1, 2)
    equations = NormalEquations(layer)
    equations.add(x, x[:, :1] + 2 * x[:, 1:2])
    equations.solve(ridge=0.0)
    torch.testing.assert_close(layer.weight.detach()[0], torch.tensor([0.5, 1.0, 0.5, 1.0], **DOUBLE))


def test_chunks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for chunk in (1, 1 << 22):
        monkeypatch.setattr("pararealize.calibration.least_squares.CHUNK", chunk)
        layer, x = case("conv 3×3/2")
        equations = NormalEquations(layer)
        assert len(list(equations._rows(x, layer(x), None))) == (12 if chunk == 1 else 1)
        equations.add(x, torch.linspace(-1, 1, layer(x).numel(), **DOUBLE).view_as(layer(x)))
        equations.solve(ridge=0.1)
        found.append(layer.weight.detach())
    torch.testing.assert_close(*found)


def test_unfolded_windows_times_the_weights_are_the_convolution() -> None:
    layer, x = case("conv dilated")
    patches = unfold(layer, x)
    torch.testing.assert_close(torch.einsum("nkhw,ok->nohw", patches, layer.weight.flatten(1)), layer(x))


def test_a_tail_changes_places_with_a_pointwise_layer() -> None:
    """An adapter that enlarges a map projects first and repeats then."""
    small = Space(shape=(2, 4, 4), channel=0, dtype="float64")
    large = Space(shape=(3, 8, 8), channel=0, dtype="float64")
    adapter = build_adapter(small, large, reads="stem")
    layer, tail = linear_part(adapter)
    assert [type(step) for step in tail] == [Resample]
    x = torch.randn(20, 2, 4, 4, **DOUBLE)
    target, weight = adapter(x).detach(), layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.zero_()
    regression = Regression(adapter, layer, tail)
    regression.take(x, (), target)
    regression.solve(ridge=0.0)
    torch.testing.assert_close(layer.weight.detach(), weight)


def test_which_modules_are_linear() -> None:
    image, small = Space(shape=(4, 8, 8), channel=0), Space(shape=(6, 4, 4), channel=0)
    assert linear_part(nn.Linear(2, 2))[1] == ()
    assert linear_part(linear_map(image, small))[0].weight.shape == (6, 4, 1, 1)
    assert linear_part(nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 3))) is not None  # features in front
    for module in (
        nn.Identity(),
        nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
        nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        nn.Sequential(nn.Conv2d(2, 2, 3), Resample((4, 4), (2, 2))),  # not pointwise: they do not change places
        nn.Bilinear(2, 2, 2),
        nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
    ):
        assert linear_part(module) is None


@pytest.mark.parametrize("move", [False, True])
def test_excluded_positions_are_no_rows(move: bool) -> None:
    """Fitted with padding it is what the same rows without padding give, whatever the padding holds."""
    torch.manual_seed(0)
    x, mask = torch.randn(3, 5, 4, **DOUBLE), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]) != 0
    target = torch.randn(3, 5, 2, **DOUBLE)
    layer: nn.Module = nn.Conv1d(4, 2, 1, **DOUBLE) if move else nn.Linear(4, 2, **DOUBLE)
    tail = (Move(0, 1),) if move else ()
    weights = []
    for padding in (0.0, 1e3, torch.nan):
        values, wanted = (torch.where(mask[..., None], value, padding) for value in (x, target))
        equations = NormalEquations(layer, tail)
        equations.add(values.movedim(2, 1) if move else values, wanted, mask)
        equations.solve(ridge=1e-3)
        weights.append(torch.cat([layer.weight.flatten(), layer.bias]).detach().clone())
    dense = nn.Linear(4, 2, **DOUBLE)
    equations = NormalEquations(dense)
    equations.add(x[mask], target[mask])
    equations.solve(ridge=1e-3)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])
    torch.testing.assert_close(weights[0], torch.cat([dense.weight.flatten(), dense.bias]).detach())


def test_masks_of_all_positions_are_refused() -> None:
    equations = NormalEquations(nn.Linear(2, 2))
    equations.add(torch.ones(1, 3, 2), torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(CalibrationError, match="exclude every position"):
        equations.solve(ridge=0.0)
