"""Where the command writes."""

import io
import json
import math
import re
import subprocess
import sys

import pytest
import torch
from rich.table import Column, Table
from rich.text import Text

from pararealize.errors import PlanError
from pararealize_cli import console
from pararealize_cli.console import console_of, one_message, print_json, print_result, working


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


def test_names_of_emoji_are_text():
    file = io.StringIO()
    console = console_of(file=file, force_terminal=True, width=80)
    table = Table(title="a:fire:")
    table.add_column(":train:")
    table.add_row(":fire:")
    console.print("mydata.py:train:", table)
    assert file.getvalue().count(":train:") == 2
    assert file.getvalue().count(":fire:") == 2


def test_what_goes_on_is_shown_as_it_is_typed(monkeypatch):
    file = io.StringIO()
    terminal = console_of(file=file, force_terminal=True, width=80)
    monkeypatch.setattr(console, "console_of", lambda **_: terminal)
    with working("building [red]nets.py:train:") as progress:
        terminal.print("a line")
        progress("fitting [red]:fire:")
        terminal.print("a line")
    assert "building [red]nets.py:train:" in file.getvalue()
    assert "fitting [red]:fire:" in file.getvalue()


def guarded(work, **options):
    """Run a command, which begins with some work, as the command line does; its exit status."""

    def command(as_json, **_):
        work()
        print_result({"losses": [1.5, math.nan, -math.inf]}, "text", None, [], as_json=as_json)

    try:
        one_message(command)(**options)
    except SystemExit as end:
        return end.code
    return 0


def test_json_stands_alone_on_stdout(capsys):
    """What a file of the user's prints goes to stderr; numbers that JSON has not become null."""
    assert guarded(lambda: print("hello"), as_json=True) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out, parse_constant=pytest.fail) == {"losses": [1.5, None, None], "out": None, "files": []}
    assert shown.err == "hello\n"
    assert guarded(lambda: print("hello"), as_json=False) == 0
    assert capsys.readouterr().out == "hello\ntext\n"

    def fail():
        print("hello")
        raise PlanError("no plan")

    assert guarded(fail, as_json=True) == 2
    assert json.loads(capsys.readouterr().out)["error"]["message"] == "no plan"


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    "work, options, kind, told",
    [
        (lambda: torch.empty(10**15), {"num_classes": 10**15}, "MemoryError", "bytes were asked for at once; write"),
        (lambda: torch.empty(2**62, 2**62), {"input_shape": "8"}, "MemoryError", "(--input-shape 8)"),
        (lambda: bytearray(2**60), {"batch_size": None}, "MemoryError", "smaller sizes (--batch-size), or take"),
        (print, {"seed": 10**20}, "PararealizeError", f"--seed {10**20} is out of range; write a number below 2⁶³"),
    ],
)
def test_sizes_without_end_are_one_message(work, options, kind, told, as_json, capsys):
    assert guarded(work, as_json=as_json, **options) == 2
    shown = capsys.readouterr()
    text = json.loads(shown.out)["error"]["type"] + shown.out if as_json else shown.err
    assert text.startswith(kind)
    assert told in text


def test_other_errors_are_not_hidden():
    def fail():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        guarded(fail, as_json=True)
