"""Which samples are fitted to and which are held out: never the same, and none is left out."""

from __future__ import annotations

import pytest
import torch

from pararealize import calibrate, pararealize
from pararealize.calibration.held_out import HeldOut
from pararealize.calibration.interfaces import InterfaceRecord, Interfaces
from pararealize.errors import CalibrationError, ExampleError
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


@pytest.mark.parametrize(
    "masks, tested, which",
    [
        ([0, 0, 0], [1], "the batches that are fitted to"),
        ([0, 0, 1], [], "the batches that are fitted to"),
        ([1, 0, 0], [], "the last 1 of 3 batches, which are held out"),
        ([1, 1, 1], [0, 0], "the test batches"),
        ([4], [], "the last 2 of 8 samples, which are held out, or of the others"),
        ([0, 1, 1], [0, 1], ""),
        ([8], [], ""),
    ],
)
def test_masks_leave_something_in(masks: list[int], tested: list[int], which: str) -> None:
    """Where nothing was compared, errors were nought, and the network usable."""
    net = pararealize(Perceptron(), 2, example_inputs=torch.randn(2, 8), coarse="linear")
    batches, test = ([torch.cat([torch.ones(k, 8), torch.zeros(8 - k, 8)]) for k in some] for some in (masks, tested))

    def run() -> float:
        return calibrate(net, batches, test=test or None, mask=lambda batch: batch[:, 0]).stage("before").output

    if not which:
        assert run() > 0
        return
    with pytest.raises(CalibrationError, match=f"leaves out every position of {which}, so that nothing is compared"):
        run()


def test_a_later_pass_has_all_batches() -> None:
    """A function that gave an iterator that was read already left nothing to fit to and no error."""
    net = pararealize(Perceptron(), 2, example_inputs=torch.randn(2, 8), coarse="linear")
    iterator = iter([torch.randn(4, 8) for _ in range(4)])
    with pytest.raises(ExampleError, match=r"first pass over the batches gave 4, and a later one 0; .* new iterator"):
        calibrate(net, lambda: iterator, keep=0)
