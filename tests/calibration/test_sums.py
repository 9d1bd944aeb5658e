"""Sums over rows, against rows written out: masks leave positions out, and maps share a pass."""

from __future__ import annotations

import pytest
import torch

from pararealize import pararealize
from pararealize.calibration.held_out import HeldOut
from pararealize.calibration.interfaces import InterfaceRecord, Interfaces, InterfaceValues
from pararealize.calibration.sums import Columns, RowValues, row_sums
from tests.added_branches import AddedLinear, chain_of

GENERATOR = torch.Generator().manual_seed(0)
BATCHES = [torch.randn(4, 3, 5, dtype=torch.float64, generator=GENERATOR) for _ in range(5)]
MASKS = [torch.rand(4, 3, generator=GENERATOR) > 0.3 for _ in BATCHES]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("count, tested", [(5, False), (1, False), (4, True)])
def test_rows_written_out(masked: bool, count: int, tested: bool) -> None:
    net = pararealize(chain_of(AddedLinear, 5, 4), 2, windows=2, example_inputs=BATCHES[0], coarse="linear").eval()
    of_batch = {id(batch): mask for batch, mask in zip(BATCHES, MASKS, strict=True)}
    interfaces = Interfaces(net, (lambda batch: of_batch[id(batch)]) if masked else None)
    record = InterfaceRecord(interfaces, BATCHES[:count], keep=1 << 30)
    held_out = HeldOut(record, InterfaceRecord(interfaces, BATCHES[4:], keep=1 << 30) if tested else None)
    index = net.plan.windows[0].segments[-1].index
    passes: list[int] = []

    def values_of(values: InterfaceValues) -> list[RowValues]:
        passes.append(1)
        w, true = values.begins[1], values.true[index]
        return [RowValues(features=features, given=w, true=true) for features in ([w], [true, w])]

    space, device = net.plan.segments[0].x, torch.device("cpu")
    maps = [Columns(groups=groups, space=space, device=device) for groups in (1, 2)]
    choices = row_sums(held_out.all(), maps, values_of)
    assert len(passes) == (5 if tested else count)
    pairs = list(zip(BATCHES, MASKS, strict=True))
    parts = [pairs[:4], pairs[4:]]
    if count == 1:  # a fifth of the samples is held out
        parts = [[(BATCHES[0][some], MASKS[0][some])] for some in (slice(3), slice(3, None))]
    for number, part in enumerate(parts):
        rows = [batch[mask] if masked else batch.reshape(-1, 5) for batch, mask in part]
        w = torch.cat(rows)
        segment = chain_of(AddedLinear, 5, 4)[: index[1]]
        true = torch.cat([segment(row).detach() for row in rows])
        for features, pair in zip(([w], [true, w]), choices, strict=True):
            columns = torch.cat([*features, true - w], 1)
            torch.testing.assert_close(pair[number].products, columns.T @ columns)
            torch.testing.assert_close(pair[number].sums, columns.sum(0))
            assert pair[number].count == len(w)
            assert pair[number].whole == pytest.approx(float(true.square().sum()))
