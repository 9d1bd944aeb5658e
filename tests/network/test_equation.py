"""The network's own graph says equation (3), moves what it must, and computes what `parareal.py` says."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from pararealize import PararealModule, pararealize
from pararealize.network.parareal import correction
from tests.models import Perceptron, SmallResNet

IMAGES = torch.randn(4, 3, 8, 8)


def small(n: int, **options: object) -> PararealModule:
    return pararealize(SmallResNet(), n=n, example_inputs=IMAGES, **options)  # type: ignore[arg-type]


def test_the_code_reads_as_equation_3() -> None:
    lines = [re.sub(r";.*", "", line).strip() for line in small(2).code.strip().splitlines()]
    assert lines == [
        "def forward(self, x):",
        "x_1 = self.stem(x)",
        "x_2 = self.adapters.C2(x)",
        "y_1 = self.segments.g1(x_1)",
        "y_2 = self.segments.g2(x_2)",
        "r_1 = y_1 - x_2",
        "F_1 = self.coarse.F1(r_1)",
        "z_2 = y_2 + F_1",
        "output_1 = self.head(z_2)",
        "return output_1",
    ]


@pytest.mark.parametrize("n", [1, 2, 4])
def test_it_computes_what_the_mathematics_says(n: int) -> None:
    net = small(n).double().eval()
    x = IMAGES.double()
    adapters = [net.stem, *net.adapters.values()]
    y = correction(x, adapters, list(net.segments.values()), list(net.coarse.values()))
    assert torch.allclose(net(x), net.head(y), rtol=1e-12, atol=1e-12)


def test_transfers_are_written_out_and_devices_wrap_round() -> None:
    net = small(4, devices=["cpu", "meta"])
    devices = {key.split(".")[1]: p.device.type for key, p in net.named_parameters() if key.startswith("coarse")}
    assert devices == {"F1": "meta", "F2": "cpu", "F3": "meta"}
    assert "y_1_to_2 = y_1.to(device(type='meta')" in net.code
    assert [segment.device for segment in net.plan.segments] == ["cpu", "meta", "cpu", "meta"]


def test_an_input_that_nothing_reads_feeds_no_adapter() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Perceptron()

        def forward(self, unread: Tensor, x: Tensor) -> Tensor:
            return self.net(x)

    net = pararealize(Unread(), n=2, example_inputs=(torch.randn(4, 3, 5), torch.randn(4, 8)), coarse="linear")
    assert "adapters.C2(x)" in net.code
    assert net(torch.randn(2, 3, 5), torch.randn(2, 8)).shape == (2, 2)
