"""Fine-tuning without labels: from the very batches of a calibration, never worse, padding nowhere, norms by trial."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from pararealize import pararealize
from pararealize.calibration.fine_tuning import fine_tune
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.tuning_report import FineTuning
from pararealize.calibration.tuning_run import TuningRun
from pararealize.calibration.window_fitting import WindowFitting
from pararealize.data.catalogue import load
from pararealize.errors import CalibrationError, ExampleError, RecipeError, TrainingError
from pararealize.train.recipe import Recipe
from tests.models import SmallResNet
from tests.tuning_networks import padded_batches, token_net

DATA = load("digits", batch_size=50, image_size=8, count=(140, 40))
STILL = Recipe(lr=1e-20, momentum=0, weight_decay=0)


@functools.cache
def converted_resnet(windows: int = 1) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    model = SmallResNet(classes=10)
    for x, _ in DATA.batches(2):
        model(x)
    n, coarse = (3, "linear") if windows == 1 else (2, "scale")
    return model, pararealize(model, n, windows=windows, example_inputs=DATA.example(), coarse=coarse)


@pytest.fixture
def net() -> nn.Module:
    return copy.deepcopy(converted_resnet()[1])


@pytest.mark.parametrize("end", ["dataclass", "tuple"])
def test_the_batches_of_a_calibration_without_labels(end: str) -> None:
    """Dicts with masks were an AttributeError, and whatever has two axes was cross-entropied."""
    _, net = token_net(end=end)
    calibration = calibrate(net, padded_batches())
    tuning = fine_tune(net, padded_batches(), calibration, steps=12, train="added", match=0.1, lr=1e-3)
    assert (tuning.loss, tuning.why) == ("mse", "nothing says that it is a classification")
    assert tuning.loss_after <= tuning.loss_before
    assert tuning.after.agreement is tuning.accuracy is None
    assert [errors.stage for errors in tuning.calibration.stages] == ["before", "after", "fine-tuned"]
    assert tuning.calibration.stages[:2] == calibration.stages
    assert tuning.held_out == "the last 1 of 5 batches"
    assert FineTuning.from_json(tuning.to_json()) == tuning


@settings(max_examples=3, deadline=None)
@given(st.integers(1, 19), st.sampled_from(["all", "added", "lora:2"]))
def test_the_content_of_padding_changes_nothing(padding: int, train: str) -> None:
    """Calibrated and fine-tuned with other numbers in the padding, the weights are the same, bit for bit."""
    states, reports = [], []
    for number in (0, padding):
        _, net = token_net()
        calibration = calibrate(net, padded_batches(padding=number))
        tuning = fine_tune(net, padded_batches(padding=number), calibration, steps=3, train=train, match=0.5)
        states.append(net.state_dict())
        reports.append((dataclasses.replace(tuning, seconds=0.0, calibration=None), tuning.calibration.stages))
    used = [key for key in states[0] if key != "embed.weight"]  # AdamW sees the padding's own row
    assert all(torch.equal(states[0][key], states[1][key]) for key in used)
    assert reports[0] == reports[1]


def test_a_network_that_is_its_own_teacher_stays_at_zero() -> None:
    model, _ = token_net()
    exact = pararealize(model, 1, windows=4, example_inputs=padded_batches(1)[0], coarse="linear")
    before = {key: value.clone() for key, value in exact.state_dict().items()}
    tuning = fine_tune(exact, padded_batches(), steps=2)
    assert tuning.loss_before == tuning.loss_after == tuning.after.output == tuning.best == 0
    assert all(torch.equal(value, before[key]) for key, value in exact.state_dict().items())


@pytest.mark.parametrize("lr, loss, seed", [(1e-3, "mse", 0), (0.1, "cosine", 1), (0.5, "mse", 2)])
def test_it_never_ends_worse_than_it_began(lr: float, loss: str, seed: int) -> None:
    _, net = token_net()
    recipe = Recipe(optimizer="sgd", lr=lr, schedule="constant")
    tuning = fine_tune(net, padded_batches(), steps=4, loss=loss, recipe=recipe, seed=seed)
    assert tuning.loss_after == min(row.held_out for row in tuning.rows) <= tuning.loss_before
    again = fine_tune(net, padded_batches(), steps=1, loss=loss, recipe=STILL, teacher=token_net()[0], seed=seed)
    assert again.loss_before == pytest.approx(tuning.loss_after, rel=1e-4)  # these are the weights that it has


def test_only_what_was_added_or_named_is_trained() -> None:
    for train, wanted in (("added", ("adapters.", "coarse.")), (["head"], ("head.",))):
        _, net = token_net()
        before = {key: value.clone() for key, value in net.state_dict().items()}
        fine_tune(net, padded_batches(), steps=4, train=train, lr=1e-2)
        changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
        assert changed
        assert all(key.startswith(wanted) for key in changed)


@pytest.mark.parametrize(
    "loss, name", [("auto", "kl"), ("kl", "kl"), ("cross_entropy", "cross_entropy"), ("mse", "mse")]
)
def test_a_data_set_tells_classes(net: nn.Module, loss: str, name: str) -> None:
    tuning = fine_tune(net, DATA, steps=2, loss=loss, norms="keep")
    assert (tuning.loss, tuning.held_out, tuning.tested) == (name, "the test batches", 40)
    assert 0 <= tuning.after.agreement <= 1
    assert tuning.accuracy is not None


@pytest.mark.parametrize("norms", ["keep", "train"])
def test_everything_is_trained_and_measured(net: nn.Module, norms: str) -> None:
    calibration = calibrate(net, DATA)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    net.train()
    recipe = Recipe(lr=0.02, schedule="constant")
    tuning = fine_tune(net, DATA, calibration, steps=6, norms=norms, recipe=recipe, loss="cross_entropy")
    assert (tuning.norms, tuning.trials) == (norms, {})
    changed = {key for key, value in net.state_dict().items() if not torch.equal(value, before[key])}
    if tuning.best:
        assert {name for name, _ in net.named_parameters()} <= changed
        assert any(key.endswith("running_mean") for key in changed) == (norms == "train")
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert tuning.calibration.fine_tune_steps == 6
    assert tuning.calibration.stages[:2] == calibration.stages


def test_norms_are_chosen_by_trying_both(net: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """A threshold on the error cost 14 points of accuracy."""
    again = copy.deepcopy(net)
    tuning = fine_tune(net, DATA, steps=3)
    assert tuning.norms == min(tuning.trials, key=tuning.trials.get)
    assert set(tuning.trials) == {"keep", "train"}
    assert not any(module.training and isinstance(module, nn.BatchNorm2d) for module in net.eval().modules())
    look = TuningRun.look

    def better(run: TuningRun) -> float:
        loss = look(run)
        run.best = (run.best[0] - 100 * run.by_batch, run.best[1])
        return loss

    monkeypatch.setattr(TuningRun, "look", better)
    assert fine_tune(again, DATA, steps=2).norms == "train"


@pytest.mark.parametrize("held_out", [True, False])
def test_without_a_step_that_moves_the_errors_stay(net: nn.Module, held_out: bool) -> None:
    calibration = calibrate(net, DATA.batches, test=DATA.test_batches if held_out else None, outputs="logits")
    tuning = fine_tune(net, DATA, calibration, steps=1, norms="keep", recipe=STILL)
    last = dataclasses.replace(tuning.calibration.stage("fine-tuned"), stage="after")
    assert last == calibration.stage("after")


def test_errors_are_those_of_the_same_batches_however_a_loader_shuffles() -> None:
    """Each batch was compared with what the original gives for another one: errors were above 1."""
    _, net = token_net()
    given = padded_batches(6)
    order = random.Random(0)
    shuffled = DataLoader(given, batch_size=None, shuffle=True)
    own = DataLoader(given, batch_size=None, shuffle=True, generator=torch.Generator())
    reports = [
        fine_tune(copy.deepcopy(net), given, steps=1, test=test, recipe=STILL)
        for test in (given, shuffled, own, lambda: order.sample(given, len(given)))
    ]
    for tuning in reports[1:]:
        assert tuning.before.output == pytest.approx(reports[0].before.output, rel=1e-6)
        assert tuning.after.interfaces == pytest.approx(reports[0].after.interfaces, rel=1e-6)
        assert tuning.loss_after == pytest.approx(reports[0].loss_after, rel=1e-5)


def test_stages_are_of_the_same_samples_or_the_report_says_it() -> None:
    """The stage fine-tuned, and with it the verdict, was of samples that had been fitted to."""
    nets = [token_net()[1] for _ in range(2)]
    given, test = padded_batches(6), padded_batches(2, samples=3)
    held_out, same = calibrate(nets[0], given, test=test, steps=0), calibrate(nets[1], given, steps=0)
    with pytest.raises(CalibrationError, match=r"measured on 6 test samples, and there are none here: .*same test="):
        fine_tune(nets[0], given, held_out, steps=1, recipe=STILL)
    for net, calibration in zip(nets, (held_out, same), strict=True):
        tuning = fine_tune(net, given, calibration, steps=1, recipe=STILL, test=test)
        assert tuning.calibration.warnings == calibration.warnings
        assert tuning.calibration.stage("fine-tuned").output == pytest.approx(calibration.stages[1].output)
    tuning = fine_tune(nets[1], given[:4], same, steps=1, recipe=STILL)
    assert tuning.calibration.warnings[-1].startswith("fine-tuned, errors are of 16 samples, and before of 24 others")
    again = fine_tune(nets[1], given[:4], tuning.calibration, steps=1, recipe=STILL)
    assert again.calibration.warnings == tuning.calibration.warnings


def test_a_run_that_fails_leaves_flags_and_weights(net: nn.Module) -> None:
    list(net.train().modules())[-1].eval()
    modes, before = [module.training for module in net.modules()], [p.clone() for p in net.parameters()]
    with pytest.raises(TrainingError, match="pass a smaller lr than 1e"):
        fine_tune(net, DATA, steps=3, lr=1e30, norms="keep")
    assert [module.training for module in net.modules()] == modes
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_with_windows_the_teacher_is_the_original_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms have new statistics by then: the network in sequence is another one than the original."""
    model, net = converted_resnet(2)
    net = copy.deepcopy(net)
    errors = itertools.count(0, -1)
    monkeypatch.setattr(WindowFitting, "_error", lambda *_: next(errors))  # new statistics are always better
    calibration = calibrate(net, DATA)
    assert calibration.renewed
    after = calibration.stage("after")
    for teacher in (None, model):
        tuning = fine_tune(net, DATA, calibration, steps=1, norms="keep", recipe=STILL, teacher=teacher)
        assert tuning.after.output == pytest.approx(after.output, rel=1e-5)
    reloaded = copy.deepcopy(net)
    with pytest.raises(CalibrationError, match=r"statistics were renewed in g.*; pass teacher=model"):
        fine_tune(reloaded, DATA, calibration, steps=1)


def test_a_loss_of_ones_own_and_another_teacher() -> None:
    model, net = token_net(end="tensor")
    seen: list[Any] = []

    def loss(student: torch.Tensor, teacher: torch.Tensor, batch: Any) -> torch.Tensor:
        seen.append(set(batch))
        return functional.l1_loss(student, teacher)

    tuning = fine_tune(net, padded_batches(), steps=2, loss=loss, teacher=model)
    assert tuning.loss == "loss"
    assert seen[0] == {"ids", "attention_mask"}
    with pytest.raises(CalibrationError, match=r"the network gives output .*and its teacher"):
        fine_tune(net, padded_batches(), steps=1, teacher=Wide())
    with pytest.raises(CalibrationError, match="match=1 compares the ends of windows"):
        fine_tune(net, padded_batches(), steps=1, teacher=Wide(), match=1.0)


class Wide(nn.Module):
    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(ids), 9)


def test_refusals() -> None:
    _, net = token_net()
    batches = padded_batches()
    with pytest.raises(
        CalibrationError, match=r"steps is 0; pass 1 or more .*; and temperature is 0; .*; and match is -1"
    ):
        fine_tune(net, batches, steps=0, temperature=0, match=-1)
    with pytest.raises(CalibrationError, match="norms is 'all'; pass 'keep', 'train' or None"):
        fine_tune(net, batches, steps=1, norms="all")
    with pytest.raises(CalibrationError, match="loss is 'hinge'; pass 'auto', 'kl'"):
        fine_tune(net, batches, steps=1, loss="hinge")
    with pytest.raises(CalibrationError, match="'cross_entropy' needs labels"):
        fine_tune(net, batches, steps=1, loss="cross_entropy")
    with pytest.raises(ExampleError, match="there is no batch"):
        fine_tune(net, [], steps=1)
    with pytest.raises(ExampleError, match="there is no test batch"):
        fine_tune(net, batches, steps=1, test=[])
    with pytest.raises(CalibrationError, match="the mask leaves out every position"):
        fine_tune(net, batches, steps=1, mask=lambda batch: torch.zeros_like(batch["ids"]))
    with pytest.raises(CalibrationError, match="gives a number without gradients"):
        fine_tune(token_net(end="tensor")[1], batches, steps=1, loss=lambda s, t: torch.tensor(1.0))
    with pytest.raises(RecipeError, match="draws no weights"):
        fine_tune(net, batches, steps=1, recipe=Recipe(initialise="he"))
