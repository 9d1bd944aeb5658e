"""``benchmarks/graphs`` on a double of CUDA: its code runs, and what is timed computes what the eager network does."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks/ is no installed package

from benchmarks.graphs import __main__ as command
from benchmarks.graphs.measure import PARAREAL
from benchmarks.graphs.tables import markdown


@pytest.mark.filterwarnings("ignore:.*batching rule.*:UserWarning")
def test_a_group_of_each_kind(capsys):
    """The decoder, forward alone; a small ResNet's steps are what tests of the graphs run anyway."""
    groups = [names for names in command._small(command.ALL) if names[0] == "decoder24" and names[2:4] == (3, 1)]
    assert len(groups) == 1
    rows = []
    for words in (["chains"], [str(word) for word in groups[0][:4]]):
        assert command.main(["--double", "--steps", "1", "--one", *words]) == 0
        rows += [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert not [row["error"] for row in rows if "error" in row]
    assert [row["way"] for row in rows if "way" in row] == list(PARAREAL)
    assert all(max(row["differs by"].values()) < 1e-5 for row in rows if "way" in row)
    about = {"section": "machine", "device": "the double", "is measured": False}
    assert "| decoder24 | 1 | 3 × 1 | in one graph, stacked | not measured |" in markdown([about, *rows])
    assert "not measured" not in markdown(rows)


def test_the_double_runs_each_kind_once():
    kinds = command._small(command.ALL)
    assert {name for name, *_ in kinds} == {name for name, *_ in command.ALL}
    assert len({kind[:4] for kind in kinds}) == len(kinds) < len(command.ALL) / 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    with pytest.raises(SystemExit):
        command.main(["--shortest"])
    assert "finds none here; run it where there is one, or with --double" in capsys.readouterr().err
