"""The examples that readers see: of docstrings, and of command lines on the pages, whose output is compared."""

import ast
import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import pararealize
from pararealize_cli.main import app

PAGES = Path(__file__).resolve().parent.parent / "docs"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
MODULES = sorted(module.name for module in pkgutil.walk_packages(pararealize.__path__, "pararealize."))
PROMISES = PAGES / "howto" / "promises.md"
TEST = re.compile(r"`(?P<file>tests/[\w/]+\.py)(?:::(?P<function>\w+))?`")
NETWORK = re.compile(r"```python\n# (?P<name>\w+\.py)\n(?P<code>.*?)```", re.DOTALL)
CONSOLE = re.compile(r"```console\n\$ (?P<command>pararealize .*?)\n(?P<output>.*?)```", re.DOTALL)


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    """Every ``>>>`` of a module's docstrings gives what stands below it."""
    module = importlib.import_module(name)
    failed, _ = doctest.testmod(module, optionflags=FLAGS)
    assert failed == 0


def _console_blocks() -> list[tuple[str, str, str]]:
    return [
        (str(page.relative_to(PAGES)), block["command"], block["output"])
        for page in sorted(PAGES.rglob("*.md"))
        if "_build" not in page.parts
        for block in CONSOLE.finditer(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize("page, command, expected", _console_blocks(), ids=lambda value: value.split("\n")[0][:60])
def test_command_lines(page: str, command: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a page says that a command prints is what it prints; ``...`` stands for anything."""
    monkeypatch.chdir(tmp_path)
    for network in NETWORK.finditer((PAGES / page).read_text(encoding="utf-8")):
        (tmp_path / network["name"]).write_text(network["code"], encoding="utf-8")
    result = CliRunner().invoke(app, shlex.split(command)[1:])
    same = doctest.OutputChecker().check_output(expected, result.stdout, FLAGS)
    assert same, f"{page} says\n{expected}\nand the command prints\n{result.stdout}{result.stderr}"


def test_pages_have_command_lines() -> None:
    """The pattern above finds them."""
    assert len(_console_blocks()) >= 5


def test_notebooks_have_every_example_of_their_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are the examples, in order, each with the output that its page shows; ``make docs`` runs them."""
    pytest.importorskip("nbformat")
    monkeypatch.syspath_prepend(str(PAGES / "_ext"))
    notebooks = importlib.import_module("notebooks")
    assert len(notebooks.pages()) == 3
    for page in notebooks.pages():
        cells = notebooks.notebook(page).cells
        examples = doctest.DocTestParser().get_examples(page.read_text(encoding="utf-8").replace("```", ""))
        code = [cell for cell in cells if cell.cell_type == "code"][1:]
        assert "\n".join(cell.source for cell in code) == "\n".join(e.source.rstrip("\n") for e in examples)
        assert "".join(map(notebooks.shown, code)) == "".join(example.want for example in examples)
        prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
        assert not re.search(r"\{\w[\w-]*\}|\.md\)", prose)


def _rows() -> list[str]:
    """The rows of the table of promises, without its head."""
    lines = [line for line in PROMISES.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    return lines[2:]


def _first_cell(row: str) -> str:
    return row.split("|")[1].strip()[:60]


@pytest.mark.parametrize("row", _rows(), ids=_first_cell)
def test_promises_are_shown(row: str) -> None:
    """Every row of the page of promises names tests, and these exist: ``tests/file.py`` or ``tests/file.py::test``."""
    assert row.count("|") == 4, f"a row has three cells: {row}"
    tests = list(TEST.finditer(row.split("|")[3]))
    assert tests, f"this row names no test: {row}"
    for test in tests:
        path = PAGES.parent / test["file"]
        assert path.is_file(), f"{test['file']} does not exist"
        if test["function"]:
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
            assert test["function"] in functions, f"{test['file']} has no {test['function']}"
