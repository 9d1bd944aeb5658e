"""Runs by the equation: the network's own output, ends of windows as calibration has them, gradients, refusals."""

from __future__ import annotations

import pytest
import torch

from pararealize.calibration.graph_run import GraphRun
from pararealize.calibration.interfaces import Interfaces
from pararealize.errors import ExampleError
from tests.tuning_networks import padded_batches, token_net


def test_output_and_ends() -> None:
    _, net = token_net()
    batch = padded_batches(1)[0]
    run, output = GraphRun(net)(batch), net(**batch)
    assert torch.equal(run.output.hidden, output.hidden)
    interfaces = Interfaces(net)
    values = interfaces.in_sequence(batch)
    for end, window in zip(run.ends, interfaces.windows, strict=True):
        torch.testing.assert_close(end, interfaces.end(values, window))
    run.output.pooled.sum().backward()
    assert net.embed.weight.grad.abs().sum() > 0


def test_refusals() -> None:
    _, net = token_net()
    batch = padded_batches(1)[0]
    with pytest.raises(ExampleError, match="no input 'ids'"):
        GraphRun(net)({"attention_mask": batch["attention_mask"]})
    with pytest.raises(ExampleError, match="does not take this batch"):
        GraphRun(net)(batch | {"ids": batch["ids"] + 100})
