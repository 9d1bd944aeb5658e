"""Pictures: complete files of the right kind, with every name in them, replaced in one step."""

import itertools
import re
import sys

import matplotlib as mpl
import pytest

from pararealize.errors import OutputError
from pararealize.plan import figure
from pararealize.train.run.curves import draw_losses
from tests.drawn_plans import in_windows, make_plan


@pytest.mark.parametrize("n", [1, 2, 3, 12, 24])
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_a_picture_of_every_size(n, kind, tmp_path):
    path = figure.draw_plan(make_plan(n, uneven=n == 3, source="stem" if n == 2 else "input"), tmp_path / f"net.{kind}")
    begin = path.read_bytes()[:200]
    assert begin.startswith(b"\x89PNG") if kind == "png" else b"<svg" in path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def words(monkeypatch, plan, tmp_path):
    """All texts of the picture: as text and not as outlines."""
    context = mpl.rc_context

    def as_text(rc):
        return context(rc | {"svg.fonttype": "none"})

    monkeypatch.setattr(mpl, "rc_context", as_text)
    content = figure.draw_plan(plan, tmp_path / "net.svg", title="resnet1001").read_text()
    return re.sub(r"<[^>]+>", "\n", content)


def test_what_it_says(monkeypatch, tmp_path):
    said = words(monkeypatch, make_plan(3), tmp_path)
    for text in ["resnet1001, n = 3", "10 blocks", "64×32×32", "→ 256×8×8", "870.0k", "1 × paper", "stem", "head",
                 "stage1.0 – stage1.9", "500.0k"]:  # fmt: skip
        assert text in said
    assert said.count("10 blocks") == 3
    assert said.count("1 × paper") == 2
    assert "predicted speed-up" in said
    assert "cuda" not in said


def test_devices_are_named_where_they_differ(monkeypatch, tmp_path):
    said = words(monkeypatch, make_plan(3, uneven=True), tmp_path)
    assert "cuda:2" in said


def test_one_segment_has_no_coarse_network(monkeypatch, tmp_path):
    said = words(monkeypatch, make_plan(1), tmp_path)
    assert "coarse" not in said
    assert "speed-up" not in said


def test_windows_stand_side_by_side_and_wrap_into_rows(monkeypatch, tmp_path):
    said = words(monkeypatch, in_windows(make_plan(3), 3, 1, 2), tmp_path)
    for text in ["resnet1001, n = 3, 3 windows", "window 1", "window 2", "window 3"]:
        assert text in said
    layout = figure._layout(in_windows(make_plan(3), 3, 1, 2))
    assert [window.m for window, _ in layout] == [1, 2, 3]
    assert all(b.left > a.right for (_, a), (_, b) in itertools.pairwise(layout)), "one after the other, with a gap"
    many = figure._layout(in_windows(make_plan(3), *[3] * 50))
    numbers, rows = [window.m for window, _ in many], {geometry.y_sum for _, geometry in many}
    assert (numbers[0], numbers[-1], len(rows)) == (1, 50, figure.MOST_ROWS)
    assert all(g.left > 0 and g.right < g.width and 0 < g.y_coarse < g.y_input < g.height for _, g in many)
    assert "windows between" in words(monkeypatch, in_windows(make_plan(3), *[3] * 50), tmp_path)


@pytest.mark.parametrize(
    "letters, expected",
    [
        (60, "encoder.layers.layer_0 – encoder.layers.layer_11"),
        (40, "encoder.layers.layer_0 – layer_11"),
        (20, "layer_0 – layer_11"),
        (12, "layer_0 –\nlayer_11"),
        (5, ""),
    ],
)
def test_long_names_lose_their_parents(letters, expected):
    assert figure._names("encoder.layers.layer_0", "encoder.layers.layer_11", letters) == expected


def test_one_block_is_named_once():
    assert figure._names("features.0", "features.0", 20) == "features.0"
    assert figure._names("features.0", "features.0", 4) == ""
    assert figure._names("net.features.0", "net.features.0", 12) == "features.0"  # a number alone says nothing


def test_the_same_plan_gives_the_same_file(tmp_path):
    first, second = (figure.draw_plan(make_plan(3), tmp_path / f"{i}.svg").read_bytes() for i in (1, 2))
    assert first == second


def test_pyplot_stays_out(tmp_path):
    """No figure is registered anywhere, so that a long run with many pictures keeps no memory."""
    before = "matplotlib.pyplot" in sys.modules
    draw_losses([3.0, 2.0, 1.5], tmp_path / "loss.png", title="digits")
    assert ("matplotlib.pyplot" in sys.modules) == before


def test_what_cannot_be_written(tmp_path):
    with pytest.raises(OutputError, match=r"ends in '\.jpg'"):
        figure.draw_plan(make_plan(1), tmp_path / "net.jpg")
    with pytest.raises(OutputError, match="ends in 'nothing'"):
        draw_losses([1.0], tmp_path / "net")
    with pytest.raises(OutputError, match="cannot write the picture"):
        figure.draw_plan(make_plan(1), tmp_path / "missing" / "net.svg")


def test_a_picture_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "net.svg"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise RuntimeError

    monkeypatch.setattr(figure.Figure, "savefig", fail)
    with pytest.raises(RuntimeError):
        figure.draw_plan(make_plan(1), path)
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.svg"]
