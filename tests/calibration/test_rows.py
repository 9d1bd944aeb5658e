"""Rows of a report: the numbers of segments, and names of kinds."""

import math

import pytest
import torch

from pararealize.calibration.channel_maps import Regressions
from pararealize.calibration.rows import CorrectionChoice, indices

from .test_channel_maps import moments


def test_segments_are_numbered_as_parts_are() -> None:
    assert list(indices([3])) == [(0, 1), (0, 2), (0, 3)]
    assert list(indices([2, 1, 2])) == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]


def test_kinds_are_called_as_they_are_asked_for() -> None:
    choice = CorrectionChoice(m=1, kind="low-rank", rank=16, used=True, errors={})
    assert choice.name == "low-rank:16"
    assert CorrectionChoice(m=1, kind="dense", rank=0, used=True, errors={}).name == "dense"
    assert math.isnan(choice.error)


@pytest.mark.parametrize("count, tolerance", [(4_000, 0.02), (100, 0.05), (40, 0.12)])
def test_few_rows_tell_what_many_would_leave(count: int, tolerance: float) -> None:
    """A map of 16 features and noise of size 1, which is what very many rows leave; ratios are of many draws."""
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int, weight: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        x = torch.randn(rows, 16, generator=generator, dtype=torch.float64)
        return [x], x @ weight + torch.randn(rows, 16, generator=generator, dtype=torch.float64)

    logarithms = []
    for _ in range(20):
        weight = torch.randn(16, 16, generator=generator, dtype=torch.float64)
        found = Regressions(moments(*drawn(count, weight)), moments(*drawn(count, weight)), (1e-9,)).dense()
        errors = [math.sqrt(error / (count * 16)) for error in (found.error, found.error_fitted)]
        choice = CorrectionChoice(
            m=1, kind="dense", rank=0, used=True, errors={"dense": errors[0]}, error_fitted=errors[1]
        )
        logarithms.append(math.log(choice.error_of_many))
    assert sum(logarithms) / len(logarithms) == pytest.approx(0.0, abs=tolerance)


def test_without_samples_held_out_an_error_stands_for_itself() -> None:
    choice = CorrectionChoice(m=1, kind="dense", rank=0, used=True, errors={"dense": 0.25})
    assert choice.error_of_many == choice.error == 0.25
