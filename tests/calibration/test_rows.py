"""Rows of a report: the numbers of segments, and names of kinds."""

from pararealize.calibration.rows import CorrectionChoice, indices


def test_segments_are_numbered_as_parts_are() -> None:
    assert list(indices([3])) == [(0, 1), (0, 2), (0, 3)]
    assert list(indices([2, 1, 2])) == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]


def test_kinds_are_called_as_they_are_asked_for() -> None:
    choice = CorrectionChoice(m=1, kind="low-rank", rank=16, used=True, errors={})
    assert choice.name == "low-rank:16"
    assert CorrectionChoice(m=1, kind="dense", rank=0, used=True, errors={}).name == "dense"
