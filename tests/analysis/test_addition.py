"""One addition: what is x + f(x), in whatever way it is written, and the reason where it is not."""

import pytest
import torch
from torch import Tensor, nn

from pararealize import capture
from pararealize.analysis.flow import flow_of
from pararealize.analysis.residual import Residuals, find_residuals


def found(model: nn.Module, x: Tensor) -> Residuals:
    return find_residuals(flow_of(capture(model, x)))


class One(nn.Module):
    """A stem, one step that a function writes, and a head."""

    def __init__(self, step) -> None:
        super().__init__()
        self.stem, self.head, self.step = nn.Linear(4, 4), nn.Linear(4, 2), step
        self.a, self.b, self.norm = nn.Linear(4, 4), nn.Linear(4, 1), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.step(self, self.stem(x)))


@pytest.mark.parametrize(
    "step",
    [
        lambda m, x: x + m.a(x),
        lambda m, x: m.a(x) + x,
        lambda m, x: torch.add(x, m.a(x)),
        lambda m, x: torch.add(x, m.a(x), alpha=1),
        lambda m, x: m.a(x).add_(x),
        lambda m, x: m.a(x).add(other=x),
        lambda m, x: x.__iadd__(m.a(x)),
        lambda m, x: x + m.a(x) * m.b(x),
        lambda m, x: x + m.a(x + 1).reshape(x.shape[0], -1),
    ],
)
def test_ways_to_write_one(step) -> None:
    result = found(One(step), torch.randn(3, 4))
    assert [residual.post for residual in result.blocks] == [None]
    assert not result.refusals


def read_inside(m: One, x: Tensor) -> Tensor:
    inside = m.norm(x)
    return (x + m.a(inside)) * inside


def read_outside(m: One, x: Tensor) -> Tensor:
    branch = m.a(x)
    return (x + branch) * branch


@pytest.mark.parametrize(
    "step, reason",
    [
        (lambda m, x: m.a(x) + m.norm(x), "its shortcut is not the identity"),
        (lambda m, x: x + m.b(x), "of different shapes or types: 4, 1, 4"),
        (read_inside, "norm inside f is read elsewhere, by mul"),
        (lambda m, x: x + 0.04 * x**3, "f has no parameters"),
        (read_outside, "f's value a is read elsewhere, by mul"),
    ],
)
def test_what_is_none(step, reason: str) -> None:
    result = found(One(step), torch.randn(3, 4))
    assert not result.blocks
    assert [refusal.name for refusal in result.refusals] == [""]
    assert reason in result.refusals[0].reason


@pytest.mark.parametrize(
    "step",
    [
        lambda m, x: torch.add(x, m.a(x), alpha=2),
        lambda m, x: x - m.a(x),
        lambda m, x: m.a(x) + m.a.bias,
        lambda m, x: x + x,
        lambda m, x: m.a(x) + 1,
    ],
)
def test_what_is_no_candidate(step) -> None:
    result = found(One(step), torch.randn(3, 4))
    assert not result.blocks
    assert not result.refusals


def test_f_reads_another_activation() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            first = self.a(x)
            second = self.b(first)
            return second + self.c(second) * first

    (refusal,) = found(Two(), torch.randn(3, 4)).refusals
    assert refusal.reason == "f reads another activation besides x, a"


@pytest.mark.parametrize(
    "drop",
    [
        lambda m, x: m.drop(x),
        lambda m, x: nn.functional.dropout(x, 0.5, m.training),
        lambda m, x: torch.dropout(x, 0.5, train=m.training),
    ],
)
def test_in_place_change_of_x_in_one_mode_alone_is_refused(drop) -> None:
    """Dropout hands its input on in eval mode, so that an operation in place behind it changes x."""
    model = One(lambda m, x: x + m.a(torch.relu_(drop(m, x))))
    model.drop = nn.Dropout(0.5)
    result = found(model, torch.randn(3, 4))
    assert not result.blocks
    assert "changes x in place; build it with inplace=False" in result.refusals[0].reason


def test_identities_on_the_way_are_passed_through() -> None:
    """``self.skip(x)`` and ``self.act(sum)`` that do nothing hide no block, and end no chain."""

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.act, self.a = nn.Identity(), nn.Identity(), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.act(self.a(x) + self.skip(x))

    result = found(nn.Sequential(nn.Linear(4, 4), Layer(), Layer()), torch.randn(3, 4))
    first, second = (residual.additions[0] for residual in result.blocks)
    assert second.x is first.output
    assert [node.target for node in (*first.shortcut, *first.tail)] == ["1.skip", "1.act"]
    assert first.post is None


def test_a_shortcut_that_is_read_elsewhere() -> None:
    model = One(lambda m, x: (lambda s: (m.a(x) + s) * s)(m.same(x)))  # noqa: PLC3002
    model.same = nn.Identity()
    (refusal,) = found(model, torch.randn(3, 4)).refusals
    assert refusal.reason == "its shortcut same is read elsewhere"


@pytest.mark.parametrize("post", [torch.relu, torch.relu_, nn.functional.relu, lambda y: y.relu(), lambda y: y.relu_()])
def test_ways_to_write_the_relu_behind_it(post) -> None:
    (residual,) = found(One(lambda m, x: post(x + m.a(x))), torch.randn(3, 4)).blocks
    part = residual.additions[0]
    assert part.output is part.post is not None
    assert part.without_post().output is part.sum


class Shifted(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x - 0.5)


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, output: output * 2)
    return module


@pytest.mark.parametrize(
    "make", [nn.ReLU, nn.Identity, lambda: hooked(nn.ReLU()), lambda: hooked(nn.Identity()), Shifted]
)
def test_modules_behind_it_that_do_more_than_their_class(make) -> None:
    model = One(lambda m, x: m.last(x + m.a(x)))
    model.last = make()
    captured = capture(model, torch.randn(3, 4), leaf_modules=[Shifted])
    (residual,) = find_residuals(flow_of(captured)).blocks
    plain = type(model.last) is not Shifted and not model.last._forward_hooks
    assert [node.target for node in residual.additions[0].tail] == (["last"] if plain else [])


def test_a_shortcut_with_hooks_is_called() -> None:
    model = One(lambda m, x: m.a(x) + m.same(x))
    model.same = hooked(nn.Identity())
    (refusal,) = found(model, torch.randn(3, 4)).refusals
    assert refusal.reason.startswith("its shortcut same has a forward hook hooked.<lambda> (")
