"""Saving a figure: the right kind of file, whole or not there, the same for the same figure, and no display."""

from __future__ import annotations

import sys
from xml.etree import ElementTree as ET

import pytest
from matplotlib.figure import Figure

from pararealize.errors import OutputError
from pararealize.figure import STAGES, label, save_figure


def drawing() -> Figure:
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([1, 2], [3, 4], label="a curve")
    return figure


@pytest.mark.parametrize("ending, begin", [("svg", b"<?xml"), ("PNG", b"\x89PNG")])
def test_the_ending_says_the_kind(tmp_path, ending, begin):
    path = save_figure(drawing(), str(tmp_path / f"curve.{ending}"))
    assert path == tmp_path / f"curve.{ending}"
    assert path.read_bytes().startswith(begin)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_equal_figures_give_equal_files(tmp_path, ending):
    first, second = (save_figure(drawing(), tmp_path / f"{i}.{ending}").read_bytes() for i in (1, 2))
    assert first == second


def test_pyplot_stays_out(tmp_path):
    """No figure is registered anywhere, so that a long run with many pictures keeps no memory."""
    before = "matplotlib.pyplot" in sys.modules
    save_figure(drawing(), tmp_path / "curve.svg")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"ends in '\.jpg'"):
        save_figure(drawing(), tmp_path / "curve.jpg")
    with pytest.raises(OutputError, match="ends in 'nothing'"):
        save_figure(drawing(), tmp_path / "curve")
    with pytest.raises(OutputError, match=r"cannot write the picture .*; name a folder that exists"):
        save_figure(drawing(), tmp_path / "missing" / "curve.svg")


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = save_figure(drawing(), tmp_path / "curve.svg")
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(RuntimeError):
        save_figure(drawing(), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_stage_has_a_light_and_a_dark_colour():
    def brightness(colour: str) -> int:
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    assert all(brightness(light) > 600 > 500 > brightness(dark) for light, dark in STAGES)
    assert len({dark for _, dark in STAGES}) == len(STAGES)


def test_a_name_is_drawn_letter_by_letter(tmp_path):
    """Neither as mathematics, which may not parse, nor as characters that an SVG file must not hold."""
    figure = Figure(figsize=(3, 2))
    for text in ("$\\frac{a}{$ b$", "a\x1b[2J\x07\x00b", "x\ny\tz", "q" * 100_000):
        figure.text(0.1, 0.5, label(text))
        assert len(label(text).splitlines()) == 1
    file = save_figure(figure, tmp_path / "names.svg")
    ET.parse(file)
