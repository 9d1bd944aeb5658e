"""Layers with maps in them: the original while the network runs in sequence, and told apart after a reload."""

from __future__ import annotations

import pytest
import torch

from pararealize import PararealModule, calibrate, fine_tune, load, pararealize
from pararealize.calibration.folded_layers import FoldedLayers
from pararealize.calibration.interfaces import Interfaces
from pararealize.calibration.teacher import Teacher
from pararealize.errors import CalibrationError, CheckpointError, ModelError
from tests.added_branches import AddedLinear, batches_of, chain_of

MODEL, BATCHES = chain_of(AddedLinear, 5, 4, dropout=0.1), batches_of(AddedLinear, 5)


def folded(coarse: str = "folded") -> PararealModule:
    net = pararealize(MODEL, 2, windows=2, example_inputs=BATCHES[0], coarse=coarse, source="stem").eval()
    calibrate(net, BATCHES)
    return net


def test_the_original_is_there_for_as_long_as_it_is_asked_for() -> None:
    net = folded()
    layers = FoldedLayers(net)
    window = net.plan.windows[1]
    assert [one.row.layer for one in layers.of(window)] == ["2.down", "3.down"]
    with_maps = net.get_parameter("2.down.weight")
    with layers.as_found():
        assert torch.equal(net.get_parameter("2.down.weight"), MODEL.get_parameter("2.down.weight"))
        assert torch.equal(net.segments["g2_1"](BATCHES[0]), MODEL[2](BATCHES[0]))  # pieces see them, too
    assert net.get_parameter("2.down.weight") is with_maps
    one = layers.of(window)[0]
    u, e = MODEL[2].inner(BATCHES[0])
    with layers.as_found():
        torch.testing.assert_close(one.output(net.segments["g2_1"], BATCHES[0], ()), e)
    states = layers.state(window)
    layers.unfold()
    assert torch.equal(net.get_parameter("2.down.weight"), MODEL.get_parameter("2.down.weight"))
    layers.restore(window, states)
    torch.testing.assert_close(net.segments["g2_1"](BATCHES[0]) - u, one.layer(torch.tanh(MODEL[2].up(u))))


def test_windows_behind_one_run_in_sequence_without_their_maps() -> None:
    net = folded()
    interfaces = Interfaces(net)
    values, first = interfaces.in_sequence(BATCHES[0]), net.plan.windows[0]
    end = interfaces.end(values, first)
    assert not torch.allclose(end, MODEL[:2](BATCHES[0]))
    torch.testing.assert_close(interfaces.rest_in_sequence(values, first), MODEL[2:](end))


def test_the_teacher_is_the_original() -> None:
    net = folded()
    values = Teacher(net, None, renewed=(), mask=None)(BATCHES[0])
    assert torch.equal(values.output, MODEL(BATCHES[0]))
    tuning = fine_tune(net, BATCHES, steps=3, seed=0)
    assert tuning.loss_after <= tuning.loss_before


def test_after_training_nobody_knows_what_layers_had_before() -> None:
    net = folded("folded:2")
    fine_tune(net, BATCHES, steps=3, train="added")  # trains adapters alone
    calibrate(net, BATCHES)
    with torch.no_grad():
        net.get_parameter("2.down.weight").mul_(1.01)
    trained = net(BATCHES[0])
    with pytest.raises(CalibrationError, match=r"maps were folded into 2.down before .* or trained, .*load_original"):
        calibrate(net, BATCHES)
    with pytest.raises(CalibrationError, match=r"maps were folded into 2.down before .*; pass teacher=model"):
        fine_tune(net, BATCHES, steps=1)
    assert torch.equal(net(BATCHES[0]), trained)
    fine_tune(net, BATCHES, steps=1, teacher=MODEL)


def test_after_a_reload_nobody_knows_what_layers_had_before(tmp_path: object) -> None:
    net = folded()
    loaded = load(net.save(f"{tmp_path}/folded"), MODEL).eval()
    assert torch.equal(loaded(BATCHES[0]), net(BATCHES[0]))
    assert FoldedLayers(loaded).unknown == ["0.down", "1.down", "2.down", "3.down"]
    with pytest.raises(CalibrationError, match=r"maps were folded into 0.down, 1.down, 2.down before .*load_original"):
        calibrate(loaded, BATCHES)
    with pytest.raises(CalibrationError, match=r"maps were folded into .*; pass teacher=model"):
        fine_tune(loaded, BATCHES, steps=1)
    teacher = Teacher(loaded, MODEL, renewed=(), mask=None)
    assert torch.equal(teacher(BATCHES[0]).output, MODEL(BATCHES[0]))
    with pytest.raises(ModelError, match=r"maps are folded into the segments .*load_original_state_dict"):
        loaded.iterate(BATCHES[0], 1)
    plain = pararealize(MODEL, 2, windows=2, example_inputs=BATCHES[0], coarse="linear", source="stem")
    with pytest.raises(CheckpointError, match=r"4 with maps folded into layers \(coarse.K1_1.is_folded, "):
        plain.load_original_state_dict(net.state_dict())
    loaded.load_original_state_dict(MODEL.state_dict())
    plain.load_original_state_dict(loaded.state_dict())
    assert FoldedLayers(loaded).unknown == []
    assert torch.equal(loaded.iterate(BATCHES[0], 1), MODEL(BATCHES[0]))
    calibrate(loaded, BATCHES)
    torch.testing.assert_close(loaded(BATCHES[0]), net(BATCHES[0]))
