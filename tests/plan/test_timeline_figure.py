"""Pictures of timelines: what is drawn, by the shapes on the axes; and the file."""

from __future__ import annotations

import pytest
from matplotlib.patches import Rectangle

from pararealize.errors import OutputError
from pararealize.figure import BARS
from pararealize.plan import timeline_figure
from pararealize.plan.simulation import simulate
from pararealize.plan.timeline import Timeline
from pararealize.plan.timeline_figure import BACKWARD_HATCH, STYLES, draw_timeline
from tests.plans import plan_of


def drawn(timeline: Timeline, tmp_path, monkeypatch):
    """The figure instead of the file."""
    kept = []
    monkeypatch.setattr(timeline_figure, "save_figure", lambda figure, path: (kept.append(figure), path)[1])
    draw_timeline(timeline, tmp_path / "timeline.svg", title="Made here")
    return kept[0]


def test_a_bar_an_action_and_an_arrow_a_message(tmp_path, monkeypatch):
    timeline = simulate(plan_of([8, 4]), latency=1e-13)
    axes = drawn(timeline, tmp_path, monkeypatch).axes[0]
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    computed = [action for action in timeline.actions if action.kind != "transfer"]
    assert len(bars) == len(computed)
    scale = 1e6
    for bar, action in zip(bars, computed, strict=True):
        _height, hatch = STYLES[action.kind]
        assert bar.get_x() == pytest.approx(action.start * scale)
        assert bar.get_width() == pytest.approx(action.seconds * scale)
        assert bar.get_y() + bar.get_height() / 2 == pytest.approx(action.rank)
        assert bar.get_hatch() == hatch + (BACKWARD_HATCH if action.direction == "backward" else "")
    arrows = [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]
    assert len(arrows) == len(timeline.actions) - len(computed) == 22
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"rank {r}: {r + 1}" for r in range(12)]


def test_kinds_and_directions_differ_without_colour():
    shades = {kind: sum(int(BARS[kind][0][i : i + 2], 16) for i in (1, 3, 5)) for kind in STYLES}
    assert STYLES["adapter"] != STYLES["fine"] != STYLES["head"]
    assert abs(shades["coarse"] - shades["fine"]) > 255  # one is dark, the other light


def test_text_says_what_follows(tmp_path, monkeypatch):
    timeline = simulate(plan_of([3]))
    texts = [text.get_text() for text in drawn(timeline, tmp_path, monkeypatch).texts]
    assert "Made here, n = 3" in texts
    assert any(f"speed-up {timeline.speedup:.2f}×" in text for text in texts)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_files(tmp_path, ending):
    path = draw_timeline(simulate(plan_of([2]), ranks=1), tmp_path / f"timeline.{ending}")
    assert path.read_bytes()[:4] in (b"<?xm", b"\x89PNG")
    again = draw_timeline(simulate(plan_of([2]), ranks=1), tmp_path / f"again.{ending}")
    assert again.read_bytes() == path.read_bytes()


def test_other_endings(tmp_path):
    with pytest.raises(OutputError, match=r"ends in '\.gif'"):
        draw_timeline(simulate(plan_of([2])), tmp_path / "timeline.gif")
