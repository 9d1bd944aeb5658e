"""A step in time of a network in this process: predicted on all devices and on one, recorded on one."""

from __future__ import annotations

import torch
from torch import nn

from pararealize import pararealize
from pararealize_cli import step_timelines
from tests.reports.pages import small_net


def test_a_training_step_and_a_forward_pass() -> None:
    x, labels = torch.randn(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64)
    net = pararealize(small_net(), 2, coarse="linear", example_inputs=x)
    for target, directions in ((labels, {"forward", "backward"}), (None, {"forward"})):
        timelines = step_timelines.of_this_process(net, x, target)
        assert [(t.origin, t.ranks) for t in timelines] == [("simulated", 2), ("simulated", 1), ("recorded", 1)]
        assert all({action.direction for action in t.actions} == directions for t in timelines)
        names = [{str(a) for a in t.actions if a.kind in ("fine", "coarse")} for t in timelines]
        assert names[0] == names[1] == names[2]
    assert not torch.distributed.is_initialized()


def test_other_networks_have_none() -> None:
    assert step_timelines.of_this_process(nn.Linear(2, 2), torch.randn(3, 2)) == []
