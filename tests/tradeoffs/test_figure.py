"""The picture of a trade-off."""

from pathlib import Path

import pytest

from pararealize.errors import CalibrationError, OutputError
from pararealize.tradeoffs.figure import draw_tradeoff
from pararealize.tradeoffs.report import Tradeoff

from .test_report import front  # noqa: F401 - the fixture


def test_it_is_written_whole_or_not_at_all(front: Tradeoff, tmp_path: Path) -> None:  # noqa: F811
    drawn = draw_tradeoff(front, tmp_path / "front.svg", title="a network")
    text = drawn.read_text()
    assert "a network: speed-up against error" in text
    assert "2 devices" in text
    with pytest.raises(OutputError):
        draw_tradeoff(front, tmp_path / "front.pdf")
    with pytest.raises(CalibrationError):
        draw_tradeoff("front", tmp_path / "other.svg")  # type: ignore[arg-type]
    assert [entry.name for entry in tmp_path.iterdir()] == ["front.svg"]
