"""Where the command writes."""

import subprocess
import sys

import pytest

from pararealize_cli.console import working


@pytest.mark.parametrize("every, told", [(None, ""), (0.0, "fitting F1\n"), (3600.0, "")])
def test_a_log_is_told_of_long_work_now_and_then(every, told, capsys):
    with working("building a model", every=every) as progress:
        progress("fitting F1")
    assert capsys.readouterr().err == told


def test_stdout_holds_results_alone_where_libraries_write_to_it():
    """Gloo of torch 2.10 greets its peers on stdout, from below Python, and at any time until the process ends."""
    code = "import ctypes; from pararealize_cli.console import keep_stdout as keep; keep(); print('result')"
    code += "; ctypes.CDLL(None).puts(b'greeting')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "result\n")
    assert "greeting" in done.stderr
