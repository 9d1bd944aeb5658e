"""Curves as a picture: what is drawn, by matplotlib's own objects, and its file."""

import pytest
from matplotlib.figure import Figure

from pararealize.errors import OutputError
from pararealize.train.run import curves
from pararealize.train.run.curves import draw_curves
from pararealize.train.run.history import EpochRow, History, StepRow


def history(losses=(2.0, 1.0)):
    rows = []
    for i, loss in enumerate(losses, start=1):
        rows.append(StepRow(step=5 * i - 2, epoch=i, lr=0.1, loss=loss, error=0.5, gradient=1.0))
        rows.append(EpochRow(step=5 * i, epoch=i, lr=0.1, loss=loss, error=0.4, test_loss=loss + 1, test_error=0.3 / i))
    return History(rows=rows)


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, path: figures.append(figure) or path)
    return figures


def test_lines_are_the_rows(drawn):
    draw_curves(history(), "curves.svg", title="a run")
    (figure,) = drawn
    assert isinstance(figure, Figure)
    losses, errors = figure.axes
    assert [line.get_xydata().tolist() for line in losses.lines] == [
        [[0.6, 2.0], [1.6, 1.0]], [[1.0, 2.0], [2.0, 1.0]], [[1.0, 3.0], [2.0, 2.0]],
    ]  # fmt: skip
    assert errors.lines[2].get_ydata().tolist() == [0.3, 0.15]
    assert [text.get_text() for text in errors.texts] == ["15.00%"]
    assert losses.get_yscale() == "log"
    assert figure.get_suptitle() == "a run"


def test_a_loss_of_nothing_has_no_logarithm(drawn):
    draw_curves(history((1.0, 0.0)), "curves.svg")
    assert drawn[0].axes[0].get_yscale() == "linear"


def test_files(tmp_path):
    first = draw_curves(history(), tmp_path / "a.svg").read_bytes()
    assert first.startswith(b"<?xml")
    assert draw_curves(history(), tmp_path / "b.svg").read_bytes() == first
    assert draw_curves(History(), tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="pdf"):
        draw_curves(history(), tmp_path / "d.pdf")
