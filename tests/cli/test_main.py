"""The command as a whole: its help, and errors, each in one clean message."""

import doctest
import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import pararealize_cli
from pararealize.errors import ExampleError, ModelError, OutputError, PlanError
from tests.command import run


def test_help_is_quick_and_has_examples():
    """Help must not wait for torch to be imported."""
    code = "import sys, pararealize_cli.main; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    for command in ("convert", "inspect", "calibrate", "train", "demo"):
        result = run(command, "--help")
        assert result.exit_code == 0
        assert f"pararealize {command}" in result.stdout
        assert "\\" not in result.stdout  # examples are lines to be copied


def test_unknown_option_and_no_command():
    assert run("convert", "resnet20").exit_code == 2
    assert run("convert", "resnet20", "--n", "two").exit_code == 2
    assert run("nothing").exit_code == 2


@pytest.mark.parametrize(
    "words, error, message",
    [
        (["convert", "resnet21", "--n", "2"], ModelError, "did you mean"),
        (["convert", "resnet20", "--n", "2", "--input-shape", "three"], ExampleError, "--input-shape"),
        (["convert", "resnet20", "--n", "2", "--batch-size", "0"], ExampleError, "--batch-size"),
        (["convert", "resnet20", "--n", "2", "--out", "{file}"], OutputError, "is a file"),
        (["inspect", "no_such_package:net"], ModelError, "no Python module"),
        (["inspect", "n" * 300], ModelError, "is not a built-in model"),
        (["convert", "resnet20", "--plan", "n" * 300], PlanError, "File name too long"),
        (["profile", "--show", "h100", "--out", "n" * 300], OutputError, "File name too long"),
    ],
)
def test_an_error_is_one_message(words, error, message, tmp_path):
    (tmp_path / "file").write_text("")
    words = [word.format(file=tmp_path / "file") for word in words]
    result = run(*words)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert error.__name__ in result.stderr
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    result = run(*words, "--json")
    assert result.exit_code == 2
    reported = json.loads(result.stdout)["error"]
    assert reported["type"] == error.__name__
    assert message in reported["message"]


MODULES = [f"pararealize_cli.{module.name}" for module in pkgutil.iter_modules(pararealize_cli.__path__)]


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_docstring_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_json_alone_where_other_processes_print_too(tmp_path):
    """What a model's file prints, and what it starts, go to stderr."""
    (tmp_path / "net.py").write_text(
        "import os\nprint('hello')\nos.system('echo hello')\nimport torch\nnet = torch.nn.ReLU\n"
    )
    code = "from pararealize_cli.main import main; main()"
    words = ["inspect", f"{tmp_path / 'net.py'}:net", "--input-shape", "8", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=120)
    assert "hello" not in done.stdout
    assert json.loads(done.stdout)
    assert done.stderr.splitlines()[:2] == ["hello", "hello"]
