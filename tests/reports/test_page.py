"""The page: it parses, fetches nothing, no name in it acts, it is whole or not there, and a browser draws it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pararealize.errors import OutputError
from pararealize.plan.simulation import simulate
from pararealize.reports import Chart, Section, Series, Table, check_report, network, write_report
from pararealize.reports.elements import Drawing
from tests.drawn_plans import make_plan

from .pages import Page, read, some_history, some_timeline, written

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NASTY = (
    "<script>alert(1)</script>", "\" onload='x()' ", "</style><img src=//evil.example/x onerror=x()>",
    "a\u202eb\x00c\x1b[2J", "{{ 7 * 7 }}{% raw %}", "&lt;b&gt;", "\ud800", "]]><!--", "$x^", "g" * 3000,
)  # fmt: skip


def test_a_page_reads_without_network_and_scripts(tmp_path: Path) -> None:
    plan, timeline = make_plan(4, uneven=True), some_timeline(4)
    text, page = written(tmp_path, plan, timeline, some_history(), title="A net", command="pararealize x", seed=7)
    assert (page.faults, page.strangers) == ([], [])
    for words in (
        "A net",
        "pararealize x",
        "seed 7",
        "torch",
        "predicted speed-up",
        "Segments",
        "critical path",
        "Epochs",
    ):
        assert words in page.text, words
    policy = next(a["content"] for tag, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
    assert "http://" not in text
    assert "https://" not in text
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    internal = {a["href"] for tag, a in page.elements if tag in ("a", "use")}
    assert {f"#{name}" for name in ids} >= internal
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def page_of(folder: Path, name: str, other: str) -> tuple[str, Page]:
    """A page in which two names stand wherever a model or a file can put one."""
    names = [text.encode(errors="replace").decode() for text in (name, other)]  # plans have no halves of characters
    plan = make_plan(2, name=names[0].replace("{", "(").replace("}", ")") + "{i}", notes=(names[1],))
    plan = dataclasses.replace(plan, model=names[0])
    chart = Chart(
        title=name, description=other, x=name, y=other, names=(name, other),
        series=(Series(name=name, points=((0, 1.0), (1, 2.0))),),
    )  # fmt: skip
    table = Table(caption=name, head=(name, other), rows=((name, None), (other, name)), folded=True)
    own = Section(title=name, lead=other, facts=((name, other),), figures=(chart,), tables=(table,), notes=(name,))
    timeline = dataclasses.replace(simulate(plan, rate=1e12), notes=(names[1],))
    return written(folder, plan, timeline, own, title=other, command=name)


def check_harmless(text: str, page: Page, *names: str) -> None:
    assert (page.faults, page.strangers) == ([], [])
    assert {"\x00", "\x1b", "\u202e"}.isdisjoint(text)
    assert "<script" not in text
    assert all("<script>alert(1)</script>" in page.text for name in names if name == "<script>alert(1)</script>")


@settings(max_examples=12)
@given(name=st.sampled_from(NASTY) | st.text(max_size=30), other=st.sampled_from(NASTY))
def test_no_name_acts(name: str, other: str) -> None:
    nothing = Drawing(title="", description="", svg="<svg></svg>")  # drawing takes most of the time
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(network, "picture_of", return_value=nothing):
        text, page = page_of(Path(folder), name, other)
    check_harmless(text, page, name, other)


def test_no_name_acts_in_a_picture(tmp_path: Path) -> None:
    text, page = page_of(tmp_path, "<script>alert(1)</script>\u202e$x^\x1b", "\" onload='x()' ")
    check_harmless(text, page, "<script>alert(1)</script>")


def test_sections_stand_in_the_order_of_the_values(tmp_path: Path) -> None:
    _, page = written(tmp_path, some_history(), Section(title="Mine"), make_plan(2), title="net")
    assert [a["id"] for tag, a in page.elements if tag == "section"] == ["section-1", "section-2", "section-3"]
    assert page.text.index("Training") < page.text.index("Mine") < page.text.index("The network: net")


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    path = write_report(tmp_path / "page.html", make_plan(2))
    assert "PreActResNet" in read(path).text
    write_report(path, some_history(), title="another")
    assert "another" in read(path).text
    other = tmp_path / "other.html"
    other.write_text("<!doctype html><p>a letter", encoding="utf-8")
    with pytest.raises(OutputError, match="no report of pararealize"):
        write_report(other, make_plan(2))
    assert other.read_text(encoding="utf-8").endswith("a letter")
    (tmp_path / "folder.html").mkdir()
    os.mkfifo(tmp_path / "fifo.html")
    for name, fault in (
        ("folder.html", "no report"), ("fifo.html", "no report"), ("page.txt", "ends in '.txt'"), ("page", "nothing"),
        ("nowhere/page.html", "no folder"), ("page\0.html", "NUL"), ("page.html/x.html", "no folder"),
    ):  # fmt: skip
        with pytest.raises(OutputError, match=fault):
            check_report(tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["fifo.html", "folder.html", "other.html", "page.html"]


def test_what_is_no_value_of_the_library_is_refused_before_writing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot show a dict; pass values of Plan, BlockChain"):
        write_report(tmp_path / "page.html", make_plan(2), {"a": 1})
    with pytest.raises(OutputError, match="nothing to report"):
        write_report(tmp_path / "page.html")
    assert list(tmp_path.iterdir()) == []


def test_equal_values_give_equal_pages(tmp_path: Path) -> None:
    first, _ = written(tmp_path, make_plan(3), some_timeline())
    again, _ = written(tmp_path, make_plan(3), some_timeline())
    assert first == again


def test_the_parser_sees_faults() -> None:
    page = Page("<p><b>x</p><script src=//x.example onload=y></script>")
    assert page.faults
    assert page.strangers == ["script", "script onload", "script src=//x.example"]


@pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED: no Chromium here to draw a report (apt install chromium)")
def test_a_browser_draws_it(tmp_path: Path) -> None:
    """The page as Chromium has it after drawing: tables and figures are there, and no script ran."""
    hostile = Section(
        title="<img src=x onerror=document.title='acted'>", notes=("<script>document.title='acted'</script>",)
    )
    path = write_report(tmp_path / "page.html", make_plan(3), some_timeline(), hostile, title="drawn")
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    done = subprocess.run(
        [*words, "--dump-dom", path.as_uri()], capture_output=True, text=True, timeout=120, check=True,
        env=os.environ | {"HOME": str(tmp_path)},
    )  # fmt: skip
    page = Page(done.stdout)
    assert page.strangers == []
    assert "acted" in page.text  # as a text
    assert "<title>drawn – pararealize</title>" in done.stdout
    assert sum(tag == "table" for tag, _ in page.elements) > 3
