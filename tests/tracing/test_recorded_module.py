"""A recorded module is called as the original is, whichever recording runs."""

from __future__ import annotations

import inspect

import pytest
import torch

from pararealize import pararealize
from pararealize.errors import ExampleError, RecordingWarning
from tests.models import Perceptron

X = torch.randn(4, 8)


def test_hooks_run_once_around_every_recording() -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    net(X)
    with pytest.warns(RecordingWarning):
        net(X.unsqueeze(1))
    net(X.unsqueeze(1))
    assert len(calls) == 3
    assert len(net.recorded_guards) == 2
    assert net.recording_of(X) is net
    assert net.recording_of(X.unsqueeze(1)) is not net


def test_its_signature_is_the_graphs() -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    assert [*inspect.signature(net.forward).parameters] == ["input"]
    net.recording_limit = 3
    assert net.recording_limit == 3


def test_errors_come_alone(capsys: pytest.CaptureFixture[str]) -> None:
    net = pararealize(Perceptron(), n=2, example_inputs=X)
    with pytest.raises(ExampleError, match="shapes cannot be multiplied"):
        net(torch.randn(4, 9))
    with pytest.raises(ExampleError, match="missing a required argument"):
        net()
    assert "Traceback" not in capsys.readouterr().err
