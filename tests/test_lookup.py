"""Names of Python objects, right and wrong: what is found, and what a wrong name is told."""

import itertools
import math
import sys

import pytest

from pararealize.errors import ModelError
from pararealize.lookup import brief, find, unknown


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with two files of the user's, as the current one; nothing stays imported."""
    (tmp_path / "lookednets.py").write_text(
        "def net():\n    return 4\n\nclass Zoo:\n    @staticmethod\n    def small():\n        return 1\n\n_nett = net\n"
    )
    (tmp_path / "lookedwrong.py").write_text("def net(:\n")
    (tmp_path / "lookedhalf.py").write_text("import lookedmissing\n")
    (tmp_path / "lookedbroken.py").write_text("\nraise RuntimeError('boom')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    yield tmp_path
    for name in [name for name in sys.modules if "looked" in name]:
        del sys.modules[name]


def test_what_is_found(folder):
    assert find("math:gcd") is math.gcd
    assert find("itertools:chain.from_iterable")([[1], [2]]).__class__ is itertools.chain
    assert find(f"{folder}/lookednets.py:net")() == 4
    assert find("lookednets.py:Zoo.small")() == 1
    assert find("lookednets:net")() == 4, "packages of the current folder are found, as by python -m"
    assert find("math:tau") == math.tau


def test_the_current_folder_shadows_nothing(folder):
    (folder / "fractions.py").write_text("Fraction = None\n")
    find("lookednets:net")
    assert sys.path.index(str(folder)) == len(sys.path) - 1
    assert sys.path.count(str(folder)) == 1
    find("lookednets:Zoo")
    assert sys.path.count(str(folder)) == 1


@pytest.mark.parametrize(
    "name, message",
    [
        ("math", r"'math' names no Python object; write package.module:name or file.py:name"),
        ("lookednothing:net", r"no Python module 'lookednothing' \(model 'lookednothing:net'\)"),
        ("math.nothing:net", r"no Python module 'math.nothing'"),
        ("lookednets:nett", r"'nett' is not in 'lookednets' \(model 'lookednets:nett'\); did you mean net\?"),
        ("lookednets:Zoo.smal", r"'smal' is not in .*did you mean small\?"),
        ("math:tau.hexx", r"'hexx' is not in 'math' .*did you mean hex or fromhex"),
        ("lookednets.py:qqqq", r"nothing has a name like it"),
        ("lookednet.py:net", r"'lookednet.py' is not a file in .*did you mean lookednets.py"),
        ("nowhere/lookednet.py:net", r"'lookednet.py' is not a file in .*nowhere.*nothing has a name like it"),
        ("lookedwrong.py:net", r"importing 'lookedwrong.py' .* failed: SyntaxError"),
        ("lookedwrong:net", r"importing 'lookedwrong' .* failed: SyntaxError"),
        ("lookedhalf:net", r"importing 'lookedhalf' .* failed: ModuleNotFoundError: No module named 'lookedmissing'"),
        ("lookedbroken.py:net", r"failed: RuntimeError: boom \(lookedbroken.py, line 2\)"),
    ],
)
def test_what_a_wrong_name_is_told(folder, name, message):
    with pytest.raises(ModelError, match=message):
        find(name)


def test_names_that_are_close_are_listed_in_order():
    told = unknown("resnet51", ["resnet50", "resnet56", "vgg16", "resnet152"], "a built-in model")
    assert told.startswith("'resnet51' is not a built-in model; did you mean resnet")
    assert " or " in told
    assert "vgg16" not in told
    assert unknown("a", ["abcdefgh"], "it").startswith("'a' is not it; nothing has a name like it. A model is")


def test_an_error_in_one_line_says_where():
    def divide():
        return 1 // 0

    with pytest.raises(ZeroDivisionError) as raised:
        divide()
    line = divide.__code__.co_firstlineno + 1
    assert brief(raised.value).startswith("ZeroDivisionError: ")
    assert brief(raised.value).endswith(f" (test_lookup.py, line {line})")
    assert brief(ValueError("no frames")) == "ValueError: no frames"
