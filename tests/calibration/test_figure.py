"""The picture of a calibration."""

from pathlib import Path

import pytest

from pararealize.calibration.figure import draw_calibration
from pararealize.errors import OutputError
from tests.calibration.test_report import calibration, windows


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_it_is_written_and_the_same_twice(ending: str, tmp_path: Path) -> None:
    paths = [draw_calibration(calibration(), tmp_path / f"{i}.{ending}", title="A & B") for i in range(2)]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(paths[0].read_bytes()) > 5000


def test_windows_are_drawn(tmp_path: Path) -> None:
    text = draw_calibration(windows(), tmp_path / "windows.svg").read_text()
    assert "3 windows" in text


def test_stages_change_it(tmp_path: Path) -> None:
    one = calibration()
    less = calibration(stages=one.stages[:1], accuracy=None)
    paths = [draw_calibration(each, tmp_path / f"{i}.svg") for i, each in enumerate((one, less))]
    assert paths[0].read_bytes() != paths[1].read_bytes()


def test_other_endings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"an \.svg or a \.png"):
        draw_calibration(calibration(), tmp_path / "x.pdf")
