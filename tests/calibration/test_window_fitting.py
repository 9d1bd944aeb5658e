"""Windows are fitted one after the other, each on what the one before gives, with the better of two statistics."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pararealize import pararealize
from pararealize.calibration.fitting import calibrate
from pararealize.calibration.held_out import HeldOut
from pararealize.calibration.interfaces import InterfaceRecord, Interfaces
from pararealize.calibration.output_kind import find_output_kind
from pararealize.calibration.window_fitting import FitSettings, WindowFitting
from pararealize.errors import ModelError, OriginalWarning
from tests.calibration.test_window_corrections import DOUBLE, chain, converted
from tests.models import SmallResNet


def test_a_window_corrects_what_the_one_before_left() -> None:
    """The first window is left as it is, and bad; a full map of the second gives back what it lacks."""
    batches = [torch.randn(40, 6, **DOUBLE) for _ in range(5)]
    model = chain("dense")
    net = converted(model, batches[0], "dense")
    for module in (net.coarse.K1_1, net.coarse.K1_2, net.adapters.C1_2):
        module.requires_grad_(False)
    calibration = calibrate(net, batches)
    _, first, _, last = calibration.stage("after").interfaces
    assert last < 1e-6 < 1e-2 < first
    x = torch.randn(7, 6, **DOUBLE)
    torch.testing.assert_close(net(x), model(x), rtol=1e-6, atol=1e-6)


class Normalised(nn.Module):
    """``x + 2 f(norm(x))``: with the statistics of the original, the sums of a window are of another size."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + 2 * self.linear(self.norm(x).relu())


def vectors(count: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(64, 6, generator=generator) for _ in range(count)]


def normalised() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(*(Normalised(6) for _ in range(7)), nn.Linear(6, 3))
    with torch.no_grad():
        for _ in range(4):
            for x in vectors():
                model(x)
    return model.eval()


@pytest.mark.parametrize("keep", [0, 1 << 30])
def test_statistics_are_renewed_where_that_helps_and_targets_stay(keep: int) -> None:
    batches = vectors()
    model = normalised()
    plain = pararealize(model, 2, windows=3, example_inputs=batches[0], coarse="linear", sequential=1)
    net = copy.deepcopy(plain)
    unchanged = calibrate(plain, batches, keep=keep, renew_statistics=False)
    assert all(torch.equal(v, plain.original_state_dict()[k]) for k, v in model.state_dict().items())
    calibration = calibrate(net, batches, keep=keep)
    assert calibration.renewed
    assert unchanged.renewed == ()
    assert calibration.held_out_part == "the last 1 of 5 batches"
    assert calibration.stage("before") == unchanged.stage("before")
    with pytest.warns(OriginalWarning, match="running statistics were renewed"):
        state = net.original_state_dict()
    changed = [k for k, v in state.items() if not torch.equal(v, model.state_dict()[k])]
    assert changed
    assert all("running_" in key or "num_batches" in key for key in changed)
    true = model(batches[-1])
    errors = [((each.eval()(batches[-1]) - true).norm() / true.norm()).item() for each in (plain, net)]
    assert errors[1] < errors[0]
    assert torch.equal(plain.iterate(batches[0], 1), model(batches[0]))
    with pytest.raises(ModelError, match="running statistics were renewed"):
        net.iterate(batches[0], 1)


def test_statistics_that_are_worse_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = vectors()
    model = normalised()
    net = pararealize(model, 2, windows=2, example_inputs=batches[0], coarse="scale")
    other = copy.deepcopy(net)
    calibrate(other, batches, renew_statistics=False)
    monkeypatch.setattr("pararealize.calibration.window_fitting.WindowFitting._error", lambda *_: 1.0)
    calibration = calibrate(net, batches)
    assert calibration.renewed == ()
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, other.state_dict()[key], msg=key)


def test_a_second_calibration_ends_where_the_first_did() -> None:
    """Statistics that it renews again and finds no better are those of the first, to which parts were fitted."""
    batches = vectors()
    net = pararealize(normalised(), 2, windows=3, example_inputs=batches[0], coarse="linear", sequential=1)
    first = calibrate(net, batches)
    assert first.renewed
    for renews in (None, False, None):
        again = calibrate(net, batches, renew_statistics=renews)
        assert again.stage("after") == first.stage("after")
        assert again.renewed == first.renewed


@pytest.mark.parametrize("coarse", ["dense", "block"])
def test_frozen_coarse_blocks_are_told_as_such(coarse: str) -> None:
    """Those without weights have nothing to fit; the table of several windows leaves out these alone."""
    batches = vectors()
    net = pararealize(normalised(), 2, windows=2, example_inputs=batches[0], coarse=coarse)
    net.coarse.requires_grad_(False)
    calibration = calibrate(net, batches, renew_statistics=False)
    methods = {fit.part: fit.method for fit in calibration.fits}
    assert methods["F1_1"] == ("left: frozen" if coarse == "block" else "left: nothing to fit")
    assert ("corrected by" in str(calibration)) == (coarse == "block")


@pytest.mark.parametrize("coarse", ["linear", "block"])
def test_a_batch_of_one_sample_is_left_out_of_statistics(coarse: str) -> None:
    batches = vectors()
    net = pararealize(normalised(), 2, windows=3, example_inputs=batches[0], coarse=coarse, sequential=1)
    calibration = calibrate(net, [batches[0][:1], *batches, batches[0][:1]], steps=2, test=batches[-1:])
    assert calibration.renewed or coarse == "block"  # two steps leave too much to find statistics better
    assert calibration.warnings == ()


@pytest.mark.parametrize("coarse, parts", [("linear", "g1_2, g2_1, g2_2"), ("block", "F1_1, g1_2, F2_1, g2_1, g2_2")])
def test_batches_of_one_sample_have_no_statistics_to_renew(coarse: str, parts: str) -> None:
    """Batch norms of vectors refuse a batch of one; what was there stays, and that is told."""
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(4)]
    model = nn.Sequential(*blocks, nn.Linear(4, 2)).eval()
    net = pararealize(model, 2, windows=2, example_inputs=torch.randn(2, 4), coarse=coarse)
    calibration = calibrate(net, [torch.randn(1, 4) for _ in range(3)], steps=2)
    assert calibration.renewed == ()
    assert all(torch.equal(v, net.original_state_dict()[k]) for k, v in model.state_dict().items())
    (warning,) = (each for each in calibration.warnings if "batch norms" in each)
    assert warning.startswith(f"batch norms of {parts} keep their running statistics: every batch has one value")


def test_the_error_on_the_samples_held_out_leaves_padding_out() -> None:
    """Of an output with a number a position, too."""
    torch.manual_seed(0)
    x, mask = torch.randn(4, 5, 6), torch.tensor([[1, 1, 1, 0, 0]] * 4)
    blocks = [nn.Sequential(nn.Linear(6, 6), nn.Tanh()) for _ in range(4)]
    net = pararealize(nn.Sequential(*blocks, nn.Linear(6, 1), nn.Flatten(1)), 2, windows=2, example_inputs=x).eval()
    errors = []
    for padding in (0.0, 30.0):
        batch = {"input": torch.where(mask[..., None] != 0, x, padding), "attention_mask": mask}
        interfaces = Interfaces(net)
        record = InterfaceRecord(interfaces, [batch], keep=1 << 20)
        kind = find_output_kind(net, record.output, "auto", record.evidence)
        settings = FitSettings(steps=1, lr=1e-2, ridge=1e-4, keep=1 << 20, seed=0)
        fitting = WindowFitting(record, HeldOut(record, None), settings, kind, lambda _: None)
        errors.append(fitting._error(interfaces.windows[0]))
    assert errors[0] == errors[1] > 0


def test_values_of_windows_are_those_of_the_network() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = pararealize(SmallResNet(depth=4).eval(), 3, windows=2, example_inputs=x, coarse="paper", devices=["cpu"] * 3)
    interfaces = Interfaces(net.eval())
    with torch.no_grad():
        assert torch.equal(interfaces.result(interfaces.in_sequence(x)), net(x))
