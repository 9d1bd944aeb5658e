"""Networks whose original was changed by a fine-tuning or a calibration: nothing is fitted to what it is by then."""

from __future__ import annotations

import copy
import itertools
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pararealize import calibrate, fine_tune, load, pararealize
from pararealize.calibration.window_fitting import WindowFitting
from pararealize.errors import CalibrationError, ModelError, OriginalWarning
from pararealize.models import resnet20
from pararealize.network.module import PararealModule
from pararealize.network.state import changes_of

BATCHES = [torch.randn(24, 8, generator=torch.Generator().manual_seed(i)) for i in range(5)]
IMAGES = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(i)) for i in range(5)]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.down(self.up(self.norm(x)).relu())
        return result


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(Block() for _ in range(4)), nn.Linear(8, 3)).eval()


def convert(model: nn.Module, coarse: str = "low-rank:2") -> PararealModule:
    return pararealize(model, n=2, windows=2, example_inputs=BATCHES[0], coarse=coarse).eval()


@pytest.mark.parametrize("coarse, train", [("linear", "all"), ("low-rank:2", "lora:2"), ("folded", ["4"])])
def test_weights_that_were_fine_tuned_are_no_teacher(model: nn.Module, coarse: str, train: object) -> None:
    """A second fine-tuning taught what the first had left: the error of the original's outputs rose from 13% to 18%."""
    net = convert(model, coarse)
    calibration = calibrate(net, BATCHES)
    tuning = fine_tune(net, BATCHES, calibration, test=BATCHES, steps=30, train=train, lr=1e-3)  # type: ignore[arg-type]
    assert tuning.best
    fact = "the original's weights were fine-tuned"
    for later in (net, copy.deepcopy(net)):
        with pytest.raises(CalibrationError, match=f"{fact}.*; pass teacher=model"):
            fine_tune(later, BATCHES, steps=2)
        with pytest.raises(CalibrationError, match=f"{fact}.*load_original_state_dict.*teacher=model"):
            calibrate(later, BATCHES)
    again = fine_tune(net, BATCHES, steps=5, train="all", lr=1e-3, teacher=model)
    with torch.no_grad():
        error = (net(BATCHES[4]) - model(BATCHES[4])).norm() / model(BATCHES[4]).norm()
    torch.testing.assert_close(again.after.output, float(error), rtol=1e-3, atol=1e-6)
    net.load_original_state_dict(model.state_dict())
    assert calibrate(net, BATCHES).stage("after") == calibration.stage("after")


def test_added_weights_may_be_trained_again_and_again(model: nn.Module) -> None:
    net = convert(model)
    calibration = calibrate(net, BATCHES)
    for _ in range(2):
        fine_tune(net, BATCHES, calibration, steps=3, train="added", lr=1e-2)
    assert not changes_of(net)
    assert torch.equal(net.iterate(BATCHES[0], 1), model(BATCHES[0]))
    calibrate(net, BATCHES)


def test_a_folder_says_that_weights_were_fine_tuned(model: nn.Module, tmp_path: Path) -> None:
    net = convert(model)
    fine_tune(net, BATCHES, steps=10, lr=1e-3)
    loaded = load(net.save(tmp_path / "tuned", original=model), copy.deepcopy(model))
    with pytest.raises(CalibrationError, match="the original's weights were fine-tuned"):
        fine_tune(loaded, BATCHES, steps=2)
    with pytest.warns(OriginalWarning, match="the original's weights were fine-tuned"):
        assert not torch.equal(loaded.iterate(BATCHES[0], 1), model(BATCHES[0]))
    fine_tune(loaded, BATCHES, steps=2, teacher=model)


def test_a_fine_tuning_that_is_stopped_leaves_the_note(model: nn.Module) -> None:
    net = convert(model)

    def stop(text: str) -> None:
        if "step 9 " in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(net, BATCHES, steps=10, lr=1e-3, report=stop)
    changed = any(not torch.equal(value, net.state_dict()[key]) for key, value in model.state_dict().items())
    assert changed == ("weights" in changes_of(net)) is True


def test_renewed_statistics_are_known_where_they_were_renewed_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy, and a network that was loaded, took renewed statistics for the original's."""
    errors = itertools.count(0, -1)
    monkeypatch.setattr(WindowFitting, "_error", lambda *_: next(errors))  # new statistics are always better
    model = resnet20().eval()
    net = pararealize(model, n=2, windows=4, example_inputs=IMAGES[0], coarse="low-rank:4").eval()
    first = calibrate(net, IMAGES)
    assert first.renewed
    assert changes_of(net) == {"statistics"}
    assert calibrate(net, IMAGES).stage("after") == first.stage("after")
    others = copy.deepcopy(net), load(net.save(tmp_path / "renewed"))
    for other in (net, *others):
        with pytest.raises(ModelError, match=r"running statistics were renewed .*load_original_state_dict"):
            other.iterate(IMAGES[0], 1)
        with pytest.warns(OriginalWarning, match=r"running statistics were renewed .*net\.save"):
            state = other.original_state_dict()
        assert any(not torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for other in others:
        with pytest.raises(CalibrationError, match=r"running statistics were renewed, .* pass teacher=model"):
            fine_tune(other, IMAGES, steps=1)
        with pytest.raises(CalibrationError, match=r"running statistics were renewed, .*load_original_state_dict"):
            calibrate(other, IMAGES)
        other.load_original_state_dict(model.state_dict())
        assert torch.equal(other.iterate(IMAGES[0], 1), model(IMAGES[0]))
        assert calibrate(other, IMAGES).stage("after") == first.stage("after")
    assert not changes_of(pararealize(model, n=2, example_inputs=IMAGES[0], coarse="linear"))


def test_weights_with_maps_are_told(model: nn.Module) -> None:
    """Another conversion took them for the original's: its n - 1 iterations were off by 15%."""
    net = convert(model, "folded")
    for key, value in net.original_state_dict().items():
        assert torch.equal(value, model.state_dict()[key])
    calibrate(net, BATCHES)
    with pytest.warns(OriginalWarning, match=r"maps are folded into 0\.down, 1\.down, 2\.down and 1 more: .*net\.save"):
        state = net.original_state_dict()
    assert not torch.equal(state["0.down.weight"], model.state_dict()["0.down.weight"])
    net.load_original_state_dict(model.state_dict())
    net.original_state_dict()
