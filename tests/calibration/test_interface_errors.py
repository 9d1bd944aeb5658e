"""Errors over several batches are those over all samples at once, and hits are counted where there are classes."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from pararealize import calibrate, pararealize
from pararealize.calibration.interface_errors import ErrorSums, SquareSums, measure_errors
from pararealize.calibration.interfaces import Interfaces
from pararealize.calibration.output_kind import ClassScores, OutputKind
from pararealize.errors import CalibrationError
from tests.models import SmallResNet

BATCHES = [(torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])), (torch.randn(6, 3, 8, 8), torch.tensor([1] * 6))]
CLASSES = OutputKind(scores=(ClassScores(path=(), form="logits", axis=1),), why="")
VALUES = OutputKind(scores=(), why="")


def interfaces(n: int = 3) -> Interfaces:
    torch.manual_seed(0)
    return Interfaces(pararealize(SmallResNet().eval(), n, example_inputs=BATCHES[0][0], coarse="linear"))


def relative(value: torch.Tensor, true: torch.Tensor) -> float:
    return float((value.double() - true.double()).norm() / true.double().norm())


def test_sums_over_batches_are_norms_over_all_samples() -> None:
    value, true = torch.randn(10, 3), torch.randn(10, 3)
    sums = SquareSums()
    for part in (slice(0, 3), slice(3, 10)):
        sums.add(value[part], true[part])
    assert sums.relative == pytest.approx(relative(value, true))
    tokens, mask = torch.randn(2, 10, 3), torch.arange(10).expand(2, 10) < 4
    sums = SquareSums()
    sums.add(tokens, true.expand(2, 10, 3), mask)
    assert sums.relative == pytest.approx(relative(tokens[:, :4], true[:4].expand(2, 4, 3)))


def test_zero_and_infinite_errors() -> None:
    zeros, ones = torch.zeros(2), torch.ones(2)
    for value, true, expected in ((zeros, zeros, 0.0), (ones, ones, 0.0), (ones, zeros, math.inf)):
        sums = SquareSums()
        sums.add(value, true)
        assert sums.relative == expected
    assert math.isnan(SquareSums().relative), "of nothing there is no error"


def test_errors_are_against_the_network_in_sequence() -> None:
    parts = interfaces()
    errors = measure_errors(parts, map(parts.in_sequence, BATCHES), CLASSES).errors("before")
    x = torch.cat([x for x, _ in BATCHES])
    net = parts.net.eval()
    with torch.no_grad():
        u = [net.stem(x)]
        for segment in net.segments.values():
            u.append(segment(u[-1]))
        x_2, x_3 = net.adapters["C2"](x), net.adapters["C3"](x)
        z_2 = net.segments["g2"](x_2) + net.coarse["F1"](u[1] - x_2)
        z_3 = net.segments["g3"](x_3) + net.coarse["F2"](z_2 - x_3)
        output, true = net(x), net.head(u[-1])
    assert errors.stage == "before"
    assert errors.adapters == pytest.approx((relative(x_2, u[1]), relative(x_3, u[2])), rel=1e-5)
    assert errors.interfaces == pytest.approx((0.0, relative(z_2, u[2]), relative(z_3, u[3])), rel=1e-5)
    assert errors.output == pytest.approx(relative(output, true), rel=1e-5)
    labels = torch.cat([labels for _, labels in BATCHES])
    assert errors.accuracy == pytest.approx((output.argmax(1) == labels).double().mean().item())
    assert errors.agreement == pytest.approx((output.argmax(1) == true.argmax(1)).double().mean().item())


def test_values_stay_as_they_are() -> None:
    parts = interfaces()
    values = parts.in_sequence(BATCHES[0])
    values.y[0, 1] = marker = torch.full((1,), 7.0)
    measure_errors(parts, [values], CLASSES)
    assert values.y == {(0, 1): marker}
    assert (values.x, values.z) == ({}, {})


def test_another_network_may_be_the_reference() -> None:
    parts = interfaces()
    before = Interfaces(copy.deepcopy(parts.net))
    with torch.no_grad():
        for parameter in parts.net.segments["g1"].parameters():
            parameter.mul_(1.5)
    values = [parts.in_sequence(batch) for batch in BATCHES]
    reference = [before.in_sequence(batch) for batch in BATCHES]
    errors = measure_errors(parts, values, VALUES, reference=reference).errors("fine-tuned")
    expected = relative(torch.cat([v.true[0, 1] for v in values]), torch.cat([v.true[0, 1] for v in reference]))
    assert errors.interfaces[0] == pytest.approx(expected, rel=1e-5)
    assert measure_errors(parts, values, VALUES).errors("after").interfaces[0] == 0.0


def test_hits_are_counted_where_there_are_classes() -> None:
    logits, labels = torch.eye(3), torch.tensor([0, 1, 1])
    sums = ErrorSums([1], CLASSES)
    sums.add_output(logits, logits.flip(0), labels, 3)
    assert sums.accuracy == pytest.approx(1 / 3)
    assert (sums.errors("").agreement, sums.errors("").accuracy) == pytest.approx((1 / 3, 2 / 3))
    assert sums.errors("").cosine is None
    sums.add_output(logits, logits, None, 3)
    assert sums.accuracy is sums.errors("").accuracy is None
    assert sums.errors("").agreement == pytest.approx(4 / 6)


def test_samples_that_a_mask_excludes_have_no_label() -> None:
    logits, labels, mask = torch.eye(3), torch.tensor([0, 2, -100]), torch.tensor([True, True, False])
    sums = ErrorSums([1], CLASSES)
    sums.add_output(logits, logits.flip(0), labels, 3, mask)
    sums.add_output(logits, logits, labels, 3, mask & False)
    assert (sums.accuracy, sums.errors("").accuracy) == (0.0, 0.5)


def test_values_have_no_classes_whatever_their_shape() -> None:
    """An embedding with labels beside it was reported as "same class", one number a sample as 100 %."""
    sums = ErrorSums([1], VALUES)
    sums.add_output(torch.eye(3), torch.eye(3).flip(0), torch.tensor([0, 1, 1]), 3)
    errors = sums.errors("")
    assert (sums.accuracy, errors.agreement, errors.accuracy) == (None, None, None)
    assert errors.cosine == pytest.approx(1 / 3)
    sums = ErrorSums([1], VALUES)
    sums.add_output(torch.ones(3, 1), torch.ones(3, 1), torch.tensor([0, 1, 1]), 3)
    assert (sums.errors("").agreement, sums.errors("").cosine) == (None, None)


def test_excluded_positions_count_in_no_error() -> None:
    true, mask = torch.randn(2, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]]) != 0
    figures = []
    for padding in (0.0, 1e6):
        value = torch.where(mask[..., None], true + 1, torch.full_like(true, padding))
        scores = (ClassScores(path=("logits",), form="logits", axis=2),)
        for kind in (OutputKind(scores=scores, why=""), VALUES):
            sums = ErrorSums([1], kind)
            sums.add_output({"logits": value}, {"logits": true}, None, 2, mask)
            figures.append(sums.errors(""))
    assert figures[:2] == figures[2:]
    assert figures[0].agreement == 1


def test_padding_of_numbers_a_position_counts_nowhere() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    true, path = torch.randn(2, 3), ("start_logits",)
    figures = []
    for padding in (0.0, 1e6):
        value, wanted = (torch.where(mask, of, other * padding) for of, other in ((true + 1, 1), (true, -1)))
        for scores in ((ClassScores(path=path, form="logits", axis=1),), ()):
            sums = ErrorSums([1], OutputKind(scores=scores, why="", by_position=frozenset({path})))
            sums.add_output({"start_logits": value}, {"start_logits": wanted}, None, 2, mask)
            figures.append(sums.errors(""))
    assert figures[:2] == figures[2:]
    assert figures[0].agreement == 1
    assert figures[1].cosine is not None


def test_complex_outputs_are_pairs_of_numbers_and_integers_are_told_to_have_no_error() -> None:
    value, true, mask = *torch.randn(2, 2, 5, dtype=torch.complex64), torch.arange(5).expand(2, 5) < 3
    sums = ErrorSums([1], VALUES)
    sums.add_output({"z": value.conj(), "ids": mask}, {"z": true.conj(), "ids": mask}, None, 2, mask)
    wanted = (value - true)[mask].norm() / true[mask].norm()
    assert sums.errors("").output == pytest.approx(float(wanted), rel=1e-6)
    assert sums.warnings == ("of integers there are no errors: ids of torch.bool",)


@pytest.mark.parametrize(
    "end, text", [(lambda y: y.argmax(1), r" \(the output of torch.int64\)"), (lambda y: {"loss": y.sum()}, "")]
)
def test_where_nothing_can_be_compared_there_is_no_error(end: Callable[[torch.Tensor], Any], text: str) -> None:
    """Such networks were "usable at this error: output error 0"."""

    class Ended(SmallResNet):
        def forward(self, x: torch.Tensor) -> Any:
            return end(super().forward(x))

    net = pararealize(Ended().eval(), 2, example_inputs=BATCHES[0][0], coarse="linear")
    with pytest.raises(CalibrationError, match=f"nothing is compared: .* but a loss{text}; convert a model that"):
        calibrate(net, BATCHES)


def test_identities_that_are_worse_than_none_are_told() -> None:
    sums = ErrorSums([3], VALUES)
    for index, error, without in (((0, 2), 0.5, 0.25), ((0, 3), 0.5, 0.75)):
        sums.interfaces[index].error, sums.interfaces[index].whole = error, 1.0
        sums.without[index] = SquareSums(without, 1.0)
    (warning,) = sums.warnings
    assert "larger error than none: F1 (0.71, without it 0.50); choose" in warning


@pytest.mark.parametrize("label", [-1, 3])
def test_labels_of_another_data_set_are_refused(label: int) -> None:
    with pytest.raises(CalibrationError, match="and the network tells 3 classes"):
        ErrorSums([1], CLASSES).add_output(torch.eye(3), torch.eye(3), torch.tensor([0, 1, label]), 3)
