"""Losses of distillation: formulas, zero between equals, masks, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from pararealize.calibration.losses import OutputLoss, choose_loss, relative_error
from pararealize.calibration.output_kind import ClassScores, OutputKind
from pararealize.errors import CalibrationError

VALUES = OutputKind(scores=(), why="nothing says that it is a classification")


def classes(axis: int = 1, form: str = "logits") -> OutputKind:
    return OutputKind(scores=(ClassScores(path=(), form=form, axis=axis),), why="")


def value_of(name: str, s: object, t: object, kind: OutputKind, mask: Tensor | None = None, **more: float) -> Tensor:
    return OutputLoss(name=name, why="", kind=kind, **more)(s, t, None, None, mask)


def test_formulas() -> None:
    torch.manual_seed(0)
    s, t, T = torch.randn(6, 4), torch.randn(6, 4), 2.5
    p, q = (t / T).softmax(1), (s / T).softmax(1)
    torch.testing.assert_close(value_of("kl", s, t, classes(), temperature=T), T**2 * (p * (p / q).log()).sum(1).mean())
    torch.testing.assert_close(value_of("cosine", s, t, VALUES), (1 - functional.cosine_similarity(s, t)).mean())
    torch.testing.assert_close(value_of("mse", s, t, VALUES), (s - t).square().sum() / t.square().sum())
    both = value_of("mse", {"a": s, "b": s[:, 0]}, {"a": t, "b": t[:, 0]}, VALUES)
    torch.testing.assert_close(both, (relative_error(s, t) + relative_error(s[:, 0], t[:, 0])) / 2)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    hard = OutputLoss(name="cross_entropy", why="", kind=classes())(s, t, None, labels, None)
    own = s.log_softmax(1)
    torch.testing.assert_close(hard, -(own[range(6), labels].mean() + (t.softmax(1) * own).sum(1).mean()) / 2)


def test_probabilities_are_compared_as_such_and_not_softened_again() -> None:
    s, t = torch.randn(6, 4), torch.randn(6, 4)
    wanted = value_of("kl", s, t, classes())
    torch.testing.assert_close(value_of("kl", s.softmax(1), t.softmax(1), classes(form="probabilities")), wanted)
    torch.testing.assert_close(
        value_of("kl", s.log_softmax(1), t.log_softmax(1), classes(form="log-probabilities")), wanted
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 9999), st.sampled_from(["kl", "cosine", "mse"]), st.floats(0.5, 8), st.booleans())
def test_equal_outputs_are_at_zero_and_padding_counts_nowhere(seed: int, name: str, T: float, padded: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    s, t = (torch.randn(3, 5, 4, generator=generator) for _ in range(2))
    mask = (torch.rand(3, 5, generator=generator) < 0.6) if padded else None
    kind = classes(axis=2) if name == "kl" else VALUES
    assert value_of(name, t, t.clone(), kind, mask, temperature=T) == 0
    loss = value_of(name, s, t, kind, mask, temperature=T)
    assert loss >= 0
    if mask is not None:
        junk = torch.where(mask[..., None], s, torch.nan)
        assert torch.equal(value_of(name, junk, t, kind, mask, temperature=T), loss)
        parts = value_of(name, s[mask], t[mask], classes() if name == "kl" else VALUES, temperature=T)
        torch.testing.assert_close(loss, parts)


@pytest.mark.parametrize("name", ["kl", "mse", "cosine"])
def test_padding_of_numbers_a_position_counts_nowhere(name: str) -> None:
    """``(batch, length)``: values, or scores of a position, as of where an answer starts."""
    s, t = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[True, True, False, False], [True, False, True, True], [False] * 4])
    scores = (ClassScores(path=(), form="logits", axis=1),) if name == "kl" else ()
    kind = OutputKind(scores=scores, why="", by_position=frozenset({()}))
    losses, gradients = [], []
    for padding in (0.0, 1e4, torch.nan):
        value = torch.where(mask, s[0], padding).requires_grad_()
        losses.append(value_of(name, value, torch.where(mask, t[0], -padding), kind, mask))
        losses[-1].backward()
        gradients.append(value.grad)
    assert losses[0] > 0
    assert torch.equal(losses[0], losses[1])
    assert torch.equal(losses[0], losses[2])
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)
    assert not gradients[0][~mask].any()
    assert (
        choose_loss("auto", OutputKind(scores=(), why="", by_position=frozenset({()})), t[0], mask=mask).name == "mse"
    )


def test_labels_are_among_the_positions_that_count() -> None:
    """Where positions are the classes, smoothing spreads over those that a mask leaves in."""
    s, t, labels = torch.randn(2, 4, requires_grad=True), torch.randn(2, 4), torch.tensor([0, 1])
    mask = torch.tensor([[True, True, False, False], [True, True, False, False]])
    kind = OutputKind(scores=(ClassScores(path=(), form="logits", axis=1),), why="", by_position=frozenset({()}))
    for smoothing in (0.0, 0.1):
        loss = OutputLoss(name="cross_entropy", why="", kind=kind, label_smoothing=smoothing)
        short = OutputLoss(name="cross_entropy", why="", kind=classes(), label_smoothing=smoothing)
        torch.testing.assert_close(loss(s, t, None, labels, mask), short(s[:, :2], t[:, :2], None, labels, None))
        with pytest.raises(CalibrationError, match="a label is at a position that the mask excludes"):
            loss(s, t, None, torch.tensor([0, 3]), mask)


def test_samples_that_a_mask_excludes_have_no_label() -> None:
    s, t, labels = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4), torch.tensor([0, 2, -100])
    loss, mask = OutputLoss(name="cross_entropy", why="", kind=classes()), torch.tensor([True, True, False])
    assert torch.equal(loss(s, t, None, labels, mask), loss(s[:2], t[:2], None, labels[:2], None))
    nothing = loss(s, t, None, labels, mask & False)
    nothing.backward()
    assert nothing == 0 == s.grad.abs().max()


def test_classes_that_the_teacher_rules_out_have_finite_gradients() -> None:
    s, t = torch.randn(2, 3, requires_grad=True), torch.tensor([[0.0, 1.0, -torch.inf]] * 2)
    value_of("kl", s, t, classes()).backward()
    assert s.grad.isfinite().all()


def test_the_loss_follows_from_the_outputs() -> None:
    values, unit = torch.randn(5, 3), functional.normalize(torch.randn(5, 3))
    assert choose_loss("auto", classes(), values).name == "kl"
    assert choose_loss("auto", VALUES, values, has_labels=True).name == "mse"
    assert choose_loss("auto", VALUES, {"embedding": 3 * unit}).name == "cosine"
    assert choose_loss("auto", VALUES, {"embedding": unit, "hidden": values}).name == "mse"
    padded = torch.cat([unit[:, None], 9 * unit[:, None]], 1)
    assert choose_loss("auto", VALUES, padded, mask=torch.tensor([[True, False]] * 5)).name == "cosine"
    own = choose_loss(lambda s, t: (s - t).abs().mean(), VALUES, values)
    assert own(values, values + 2, None, None, None) == pytest.approx(2)
    assert choose_loss(nn.MSELoss(), VALUES, values)(values, values + 2, None, None, None) == pytest.approx(4)
    with_batch = choose_loss(lambda s, t, batch: (s - batch).mean(), VALUES, values)
    assert with_batch(values, values, values - 1, None, None) == pytest.approx(1)


def test_refusals() -> None:
    x = torch.randn(5, 3)
    for name in ("kl", "cross_entropy"):
        with pytest.raises(CalibrationError, match=rf"loss='{name}' compares classes, and the outputs are none"):
            choose_loss(name, VALUES, x, has_labels=True)
    with pytest.raises(CalibrationError, match="'cross_entropy' needs labels"):
        choose_loss("cross_entropy", classes(), x)
    with pytest.raises(CalibrationError, match="no floating-point or complex tensor to compare, but for a loss"):
        choose_loss("mse", VALUES, x.long())
    with pytest.raises(
        CalibrationError, match=r"gives output \(5, 3\) and its teacher output \(5, 2\); pass a teacher"
    ):
        value_of("mse", x, x[:, :2], VALUES)
    with pytest.raises(CalibrationError, match="the network tells 3 classes"):
        OutputLoss(name="cross_entropy", why="", kind=classes())(x, x, None, torch.tensor([0, 1, 2, 3, 0]), None)
    for wrong in (lambda s, t: 3.0, lambda s, t: s - t):
        with pytest.raises(CalibrationError, match="return one number with gradients"):
            choose_loss(wrong, VALUES, x)(x, x, None, None, None)
