"""Where the command writes."""

import io
import json
import re
import subprocess
import sys

import pytest
from rich.table import Column, Table
from rich.text import Text

from pararealize.errors import PlanError
from pararealize_cli import console
from pararealize_cli.console import console_of, one_message, print_json, working


@pytest.mark.parametrize("long, every, told", [(False, 0.0, ""), (True, 0.0, "fitting F1\n"), (True, 3600.0, "")])
def test_a_log_is_told_of_long_work_now_and_then(long, every, told, capsys, monkeypatch):
    monkeypatch.setattr(console, "LINES_EVERY", every)
    with working("building a model", long=long) as progress:
        progress("fitting F1")
    assert capsys.readouterr().err == told


def test_stdout_holds_results_alone_where_libraries_write_to_it():
    """Gloo of torch 2.10 greets its peers on stdout, from below Python, and at any time until the process ends."""
    code = "import ctypes; from pararealize_cli.console import keep_stdout as keep; keep(); print('result')"
    code += "; ctypes.CDLL(None).puts(b'greeting')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert "greeting" in done.stderr


EVIL = "\x1b]0;title\x07net\x9b31m\u202e\r\x1b[2J"


def test_no_text_acts_on_a_terminal_and_styles_do():
    file = io.StringIO()
    console = console_of(file=file, force_terminal=True, color_system="truecolor", width=200)
    table = Table(Column(EVIL, style="bold"))
    table.add_row(Text(EVIL))
    console.print(table, EVIL, Text(EVIL, style="red"), markup=False)
    shown = file.getvalue()
    assert "\x1b[1m" in shown
    assert "\x1b[31m" in shown
    assert "\x1b" not in re.sub(r"\x1b\[[01]?(;?31)?m", "", shown), "rich's own styles alone"
    assert {"\x07", "\x9b", "\u202e", "\r"}.isdisjoint(shown)
    assert "\\x1b]0;title" in shown


def test_json_holds_the_same_values_and_no_character_that_acts(capsys):
    value = {EVIL: [EVIL, "\U000e0041 é 漢", 1]}
    print_json(value)
    shown = capsys.readouterr().out
    assert json.loads(shown) == value
    assert {"\x1b", "\x07", "\x9b", "\u202e", "\r", "\U000e0041"}.isdisjoint(shown)
    assert "é 漢" in shown


def test_an_error_with_a_text_out_of_a_file(capsys):
    def command():
        raise PlanError(f"the plan is of {EVIL}; pass another")

    with pytest.raises(SystemExit):
        one_message(command)()
    shown = capsys.readouterr().err
    assert "PlanError: the plan is of \\x1b]0;title\\x07net" in shown
    assert {"\x1b", "\x07", "\x9b", "\u202e", "\r"}.isdisjoint(shown)
