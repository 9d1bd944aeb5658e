"""Fine-tuning: so many batches, better than before, batch norms as asked for, the original as teacher."""

import contextlib
import dataclasses
import itertools

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize.calibration.fine_tuning import Excerpt, Guided, GuidedRecipe, fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.interfaces import Interfaces
from pararealize.calibration.window_fitting import WindowFitting
from pararealize.data.catalogue import load
from pararealize.errors import CalibrationError, TrainingError
from pararealize.train.recipe import Recipe
from tests.models import SmallResNet

DATA = load("digits", batch_size=50, image_size=8, count=(140, 40))


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    model = SmallResNet(classes=10)
    for x, _ in DATA.batches(2):
        model(x)
    return pararealize(model, 3, example_inputs=DATA.example(), coarse="linear")


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
def test_an_excerpt_is_the_first_batches(steps: int) -> None:
    part = Excerpt.of(DATA, steps)
    found, wanted = list(part.epoch(0)), [batch for batch, _ in zip(DATA.batches(None), range(steps), strict=False)]
    assert part.steps == len(found) == steps
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(found, wanted, strict=True))
    assert [len(y) for _, y in part.epoch(0, start=steps - 1)] == [len(found[-1][1])]


@pytest.mark.parametrize("norms", ["keep", "train"])
def test_everything_is_trained_and_measured(net: nn.Module, norms: str) -> None:
    calibration = calibrate(net, DATA.batches, test=DATA.test_batches)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    tuned = fine_tune(net, DATA, calibration, steps=8, norms=norms, recipe=Recipe(lr=0.02, schedule="constant"))
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    assert {name for name, _ in net.named_parameters()} <= changed
    assert any(key.endswith("running_mean") for key in changed) == (norms == "train")
    assert net.training
    assert all(module.training for module in net.modules())
    assert [errors.stage for errors in tuned.stages] == ["before", "after", "fine-tuned"]
    assert tuned.fine_tune_steps == 8
    assert tuned.stages[:2] == calibration.stages
    assert tuned.stage("fine-tuned").interfaces[0] > 0  # against the original as it was


def test_without_a_step_that_moves_the_errors_stay(net: nn.Module) -> None:
    calibration = calibrate(net, DATA.batches, test=DATA.test_batches)
    tuned = fine_tune(
        net, DATA, calibration, steps=1, norms="keep", recipe=Recipe(lr=1e-20, momentum=0, weight_decay=0)
    )
    last = dataclasses.replace(tuned.stage("fine-tuned"), stage="after")
    assert last == calibration.stage("after")


def test_errors_are_on_the_samples_of_the_stages_before(net: nn.Module) -> None:
    calibration = calibrate(net, DATA.batches)
    tuned = fine_tune(
        net, DATA, calibration, steps=1, norms="keep", recipe=Recipe(lr=1e-20, momentum=0, weight_decay=0)
    )
    last = dataclasses.replace(tuned.stage("fine-tuned"), stage="after")
    assert last == calibration.stage("after")


@pytest.mark.parametrize("lr", [1e-3, 1e30])
def test_training_flags_stay(net: nn.Module, lr: float) -> None:
    calibration = calibrate(net, DATA.batches, test=DATA.test_batches)
    list(net.train().modules())[-1].eval()
    modes = [module.training for module in net.modules()]
    with contextlib.suppress(TrainingError):
        fine_tune(net, DATA, calibration, steps=3, recipe=Recipe(lr=lr))
    assert [module.training for module in net.modules()] == modes


def test_the_loss_is_half_of_each(net: nn.Module) -> None:
    guided = Guided(net, Interfaces(net.eval()), keep_norms=True)
    x, labels = next(DATA.epoch(0))
    guided.train()
    output = guided(x)
    recipe = GuidedRecipe(guide=guided)
    net.eval()
    u = net.stem(x)
    for segment in net.segments.values():
        u = segment(u)
    teacher, own = net.head(u).softmax(1), output.log_softmax(1)
    wanted = -(own[torch.arange(len(labels)), labels].mean() + (teacher * own).sum(1).mean()) / 2
    torch.testing.assert_close(recipe.loss(output, labels), wanted)


def test_with_windows_the_teacher_is_the_original_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms have new statistics by then: the network in sequence is another one than the original."""
    torch.manual_seed(0)
    model = SmallResNet(classes=10)
    for x, _ in DATA.batches(2):
        model(x)
    net = pararealize(model, 2, windows=2, example_inputs=DATA.example(), coarse="scale")
    errors = itertools.count(0, -1)
    monkeypatch.setattr(WindowFitting, "_error", lambda *_: next(errors))  # new statistics are always better
    calibration = calibrate(net, DATA.batches, test=DATA.test_batches)
    assert calibration.renewed
    with pytest.raises(CalibrationError, match=r"statistics were renewed in g.*; pass original=model"):
        fine_tune(net, DATA, calibration, steps=1)
    still = Recipe(lr=1e-20, momentum=0, weight_decay=0)
    tuned = fine_tune(net, DATA, calibration, steps=1, norms="keep", recipe=still, original=model)
    last, after = tuned.stage("fine-tuned"), calibration.stage("after")
    assert last.output == pytest.approx(after.output, rel=1e-5)
    assert last.accuracy == after.accuracy


def test_refusals(net: nn.Module) -> None:
    calibration = calibrate(net, DATA.batches)
    with pytest.raises(CalibrationError, match="steps is 0; pass 1 or more"):
        fine_tune(net, DATA, calibration, steps=0)
    with pytest.raises(CalibrationError, match="norms is 'all'; pass 'keep', 'train' or None"):
        fine_tune(net, DATA, calibration, steps=1, norms="all")
