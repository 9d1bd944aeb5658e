"""Norms of residuals, against the network's own parts called by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pararealize import pararealize
from pararealize_cli.residual_norms import section_of_residuals
from tests.reports.pages import small_net


def test_residuals_are_those_of_the_equation() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = pararealize(small_net(), 2, coarse="linear", example_inputs=x, source="stem").eval()
    section = section_of_residuals(net, x)
    assert section is not None
    (chart,) = section.figures
    with torch.no_grad():
        z = net.segments["g1"](net.stem(x))
        r = z - net.adapters["C2"](net.stem(x))
    missed, left = (series.points for series in chart.series)
    assert missed == ((0, pytest.approx(float(r.norm() / z.norm()), rel=1e-5)),)
    assert left == ()  # the first segment has the value of the sequence
    assert chart.names == ("z1",)


def test_windows_have_interfaces_of_their_own_and_other_networks_none() -> None:
    x = torch.randn(4, 3, 8, 8)
    net = pararealize(small_net(), 2, windows=2, coarse="linear", example_inputs=x)
    section = section_of_residuals(net, x)
    assert section is not None
    assert section.figures[0].names == ("z1,1", "z2,1")
    assert [place for place, _ in section.figures[0].series[1].points] == [1]
    assert section_of_residuals(nn.Linear(2, 2), x) is None
