"""What is taken for a classification: what is said to be one, what a model says, what labels show; never a shape."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pararealize import pararealize
from pararealize.analysis.space import Space
from pararealize.calibration.interfaces import Interfaces
from pararealize.calibration.output_kind import (
    LabelEvidence,
    OutputKind,
    class_axis,
    find_output_kind,
    named_leaves,
    position_outputs,
)
from pararealize.errors import CalibrationError


class Head(nn.Module):
    """Blocks, then a head of three numbers, and what a function makes of them."""

    def __init__(self, end: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.head, self.softmax, self.end = nn.Linear(4, 3), nn.LogSoftmax(dim=1), end

    def forward(self, x: Tensor) -> Any:
        return self.end(self, self.head(self.blocks(x)))


@functools.cache
def converted(end: Any) -> nn.Module:
    return pararealize(Head(end), 2, example_inputs=torch.randn(5, 4), coarse="linear")


def kind_of(end: Any, outputs: str = "auto", evidence: LabelEvidence | None = None) -> OutputKind:
    net = converted(end)
    return find_output_kind(net, net(torch.randn(5, 4)), outputs, evidence or LabelEvidence())


def plain(_: nn.Module, y: Tensor) -> Tensor:
    return y


def softmax(_: nn.Module, y: Tensor) -> Tensor:
    return y.softmax(-1)


def log_softmax(net: Head, y: Tensor) -> Tensor:
    return net.softmax(y)


@pytest.mark.parametrize(
    "end, form, path",
    [
        (softmax, "probabilities", ()),
        (log_softmax, "log-probabilities", ()),
        (lambda m, y: (y, functional.softmax(y, dim=1)), "probabilities", (1,)),
        (lambda m, y: {"logits": y, "hidden": y}, "logits", ("logits",)),
    ],
)
def test_a_model_says_what_it_is(end: Any, form: str, path: tuple[Any, ...]) -> None:
    (scores,) = kind_of(end).scores
    assert (scores.form, scores.path, scores.axis) == (form, path, 1)


def test_a_shape_says_nothing() -> None:
    assert kind_of(plain).scores == ()
    assert kind_of(softmax, "values").scores == ()
    (scores,) = kind_of(plain, "logits").scores
    assert scores.form == "logits"
    with pytest.raises(
        CalibrationError, match=r"said to be logits, and the network gives \(5,\); pass outputs='values'"
    ):
        kind_of(lambda m, y: y[:, 0], "logits")


def test_scores_as_logarithms() -> None:
    y = torch.randn(5, 3)
    for end, value in ((softmax, y.softmax(-1)), (log_softmax, y.log_softmax(-1))):
        (scores,) = kind_of(end).scores
        torch.testing.assert_close(scores.log_scores(value).softmax(-1), y.softmax(-1))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12), st.booleans())
def test_labels_show_classes_where_they_are_met_more_often_than_chance(seed: int, classes: int, met: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(200) % classes
    output = torch.randn(200, classes, generator=generator) + (2.5 * torch.eye(classes)[labels] if met else 0)
    evidence = LabelEvidence()
    for part in (slice(0, 120), slice(120, 200)):
        evidence.add(output[part], labels[part])
    assert evidence.shows_classes == met
    assert bool(kind_of(plain, evidence=evidence).scores) == met


def test_labels_that_show_nothing() -> None:
    embedding = torch.randn(40, 8)
    embedding[:, 0] += 9
    for output, labels in (
        (embedding, torch.zeros(40, dtype=torch.int64)),  # dummy labels, always met
        (torch.ones(40, 1), torch.zeros(40, dtype=torch.int64)),
        (torch.eye(4), torch.tensor([0, 1, 2, 9])),
        (torch.randn(4, 3, 2), torch.tensor([0, 1, 0, 1])),
        (torch.eye(4), None),
    ):
        evidence = LabelEvidence()
        evidence.add(output, labels)
        assert not evidence.shows_classes


SIGNAL, TOKENS = Space(shape=(4, 9), channel=0), Space(shape=(9, 4), channel=1)
IMAGE, MAP = Space(shape=(4, 9, 9), channel=0), Space(shape=(9, 9, 4), channel=2)


@pytest.mark.parametrize(
    "shape, space, axis",
    [
        ((2, 3), SIGNAL, 1),
        ((2, 3, 9), SIGNAL, 1),
        ((2, 9, 3), SIGNAL, 2),  # turned in the head
        ((2, 9, 9), SIGNAL, 1),
        ((2, 3, 8), SIGNAL, 1),  # of another length than the example
        ((2, 9, 3), TOKENS, 2),
        ((2, 3, 9), TOKENS, 1),
        ((2, 9, 9), TOKENS, 2),
        ((2, 8, 3), TOKENS, 2),
        ((2, 8, 3), None, 2),
        ((2, 4, 3), IMAGE, 2),
        ((2, 3, 9, 9), IMAGE, 1),
        ((2, 3, 9, 9), MAP, 1),
        ((2, 9, 9, 3), MAP, 3),
        ((2, 9, 9, 9), MAP, 3),
        ((2, 3, 36, 36), MAP, 1),
        ((2, 3, 5, 5), None, 1),
    ],
)
def test_classes_stand_where_positions_do_not(shape: tuple[int, ...], space: Space | None, axis: int) -> None:
    assert class_axis(torch.zeros(shape), space) == axis


def test_classes_of_a_signal_are_its_channels() -> None:
    blocks = [nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.Tanh()) for _ in range(3)]
    x = torch.randn(5, 4, 9)
    net = pararealize(nn.Sequential(*blocks, nn.Conv1d(4, 3, 1)), 2, example_inputs=x, coarse="linear")
    (scores,) = find_output_kind(net, net(x), "logits", LabelEvidence()).scores
    assert scores.axis == 1


class Scored(nn.Module):
    """Blocks over four tokens of width four, and a head, which may read a mask."""

    def __init__(self, head: Any) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.Tanh()) for _ in range(3)))
        self.out, self.wide, self.head = nn.Linear(4, 1), nn.Linear(4, 4), head

    def forward(self, x: Tensor, mask: Tensor) -> Any:
        return self.head(self, self.blocks(x), mask)


@pytest.mark.parametrize(
    "head, paths",
    [
        (lambda m, x, _: m.out(x).squeeze(-1), {()}),
        (lambda m, x, _: {"a": m.wide(x)[..., 1], "b": m.wide(x[:, 0]), "c": m.out(x).mean(1)}, {("a",)}),
        (lambda m, x, _: m.wide(x.mean(1)), set()),  # as many classes as there are tokens
        (lambda m, x, _: m.wide(x[:, -1]), set()),
        (lambda m, x, mask: m.out(x).squeeze(-1).masked_fill(mask == 0, -1e4), {()}),
        (lambda m, x, mask: m.wide((x * mask[..., None]).mean(1)), set()),
    ],
)
def test_numbers_of_positions_are_told_from_classes(head: Any, paths: set[Any]) -> None:
    x, mask = torch.randn(5, 4, 4), torch.tensor([[1, 1, 1, 0]] * 5)
    net = pararealize(Scored(head), 2, example_inputs={"x": x, "mask": mask}, coarse="linear").eval()
    context = Interfaces(net).in_sequence({"x": x, "mask": mask}).context["head"]
    assert position_outputs(net, (x, *context)) == paths
    assert position_outputs(net) == (set() if context else paths)


def test_excluded_positions_are_nought_or_no_class() -> None:
    value, mask = torch.randn(2, 3), torch.tensor([[True, False, True], [True, True, False]])
    kind = OutputKind(scores=(), why="", by_position=frozenset({("a",)}))
    assert torch.equal(kind.counted(("a",), value, mask), torch.where(mask, value, 0.0))
    assert torch.equal(kind.counted(("a",), value, mask, of_classes=True).softmax(1) > 0, mask)
    assert kind.counted(("b",), value, mask) is value
    assert kind.counted(("a",), value, None) is value


def test_leaves_of_outputs_have_the_keys_that_lead_to_them() -> None:
    x = torch.ones(2)
    output = {"loss": x, "a": (x, [x.long(), x]), "b": None, "c": SimpleNamespace(x=x)}
    assert [path for path, _ in named_leaves(output)] == [("a", 0), ("a", 1, 1)]
    number = {"z": torch.tensor([1 + 2j]).conj(), "loss": torch.ones(1)}
    assert [value.tolist() for _, value in named_leaves(number)] == [[[1, -2]]]
    assert not list(named_leaves(number, real=True))
