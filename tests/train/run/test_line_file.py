"""A file of lines: what is appended, what it has to be, what somebody else changed."""

import hashlib

import pytest

from pararealize.errors import OutputError
from pararealize.train.run.line_file import LineFile


def test_lines_behind_what_is_there(tmp_path):
    path = tmp_path / "lines"
    path.write_text("0\n")
    lines = LineFile(path)
    lines.open()
    lines.append(["1", "2"])
    assert path.read_text() == "0\n1\n2\n"
    fact = lines.settle()
    assert (fact.size, fact.sha256) == (6, hashlib.sha256(path.read_bytes()).hexdigest())
    lines.truncate(4)
    lines.append(["3"])
    assert path.read_text() == "0\n1\n3\n"
    assert lines.settle().size == 6
    path.write_text("0\n1\n4\n")
    with pytest.raises(OutputError, match="it is not what was written into it; put it back from a copy"):
        lines.settle()
    path.write_text("")
    with pytest.raises(OutputError, match="it had 6 bytes and has 0"):
        lines.append(["4"])
    path.unlink()
    with pytest.raises(FileNotFoundError):
        lines.append(["4"])
