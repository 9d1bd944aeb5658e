"""Which samples are fitted to and which are held out: never the same, and none is left out."""

from __future__ import annotations

import pytest
import torch

from pararealize import pararealize
from pararealize.calibration.held_out import HeldOut
from pararealize.calibration.interfaces import InterfaceRecord, Interfaces
from tests.models import Perceptron


@pytest.mark.parametrize(
    "sizes, test, keep, fitted, held_out, text",
    [
        ([4] * 10, [], 1 << 20, [4] * 8, [4] * 2, "the last 2 of 10 batches"),
        ([4] * 3, [], 0, [4] * 2, [4], "the last 1 of 3 batches"),
        ([10], [], 0, [8], [2], "the last 2 of 10 samples"),
        ([1], [], 0, [1], [1], ""),
        ([4] * 3, [2, 2], 0, [4] * 3, [2, 2], "the test samples"),
    ],
)
def test_parts(sizes: list[int], test: list[int], keep: int, fitted: list[int], held_out: list[int], text: str) -> None:
    net = pararealize(Perceptron(), 2, example_inputs=torch.randn(2, 8), coarse="linear")
    interfaces = Interfaces(net)
    batches, others = ([torch.randn(size, 8) for size in some] for some in (sizes, test))
    record = InterfaceRecord(interfaces, batches, keep=keep)
    parts = HeldOut(record, InterfaceRecord(interfaces, others, keep=keep) if test else None)
    assert (str(parts), bool(parts)) == (text, bool(text))

    def outputs(name: str) -> list[torch.Tensor]:
        chosen = [(part.values.output, getattr(part, name)) for part in parts.all()]
        return [output[samples] for output, samples in chosen if samples is not None]

    assert [len(output) for output in outputs("fitted")] == fitted
    assert [len(part.values.output[part.fitted]) for part in parts.fitted()] == fitted
    assert [len(part.values.output[part.held_out]) for part in parts.held_out()] == held_out
    if text:
        assert [len(output) for output in outputs("held_out")] == held_out
        seen = torch.cat([*outputs("fitted"), *outputs("held_out")])
        assert torch.equal(seen, torch.cat([interfaces.in_sequence(x).output for x in (*batches, *others)]))
