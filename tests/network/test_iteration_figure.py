"""The picture of errors: a line an interface, no point where it is exact."""

import pytest

from pararealize.errors import OutputError
from pararealize.network import iteration_figure
from pararealize.network.iteration import Iterates
from pararealize.network.iteration_figure import draw_iterates

ITERATES = Iterates(
    model="Made",
    n=3,
    output=None,
    interfaces=("1", "2", "3"),
    errors=((0.0, 0.5, 2.0), (0.0, 0.0, 0.1), (0.0, 0.0, 0.0)),
)


def test_a_line_an_interface(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(iteration_figure, "save_figure", lambda figure, path: (kept.append(figure), path)[1])
    draw_iterates(ITERATES, tmp_path / "errors.svg")
    (axes,) = kept[0].axes
    lines = [list(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
    assert lines == [[], [(0, 0.5)], [(0, 2.0), (1, 0.1)]]
    assert (axes.get_yscale(), axes.get_title(loc="left")) == ("log", "Made, n = 3")


def test_files(tmp_path):
    assert draw_iterates(ITERATES, tmp_path / "errors.svg").read_text().startswith("<?xml")
    with pytest.raises(OutputError, match=r"errors\.pdf"):
        draw_iterates(ITERATES, tmp_path / "errors.pdf")
