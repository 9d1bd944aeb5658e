"""The plain part of a checkpoint: read as it was written; whatever has another form is refused."""

import json

import pytest

from pararealize.errors import CheckpointError
from pararealize.random_state import host_state_as_json
from pararealize.train.run.plain_state import PLAIN, SCHEMA, VERSION, read_plain_state

STATE = {
    "schema": SCHEMA, "version": VERSION, "step": 3, "epoch": 0, "batch": 3, "recent": [1.5, 2.0, 8.0],
    "whole": [float("nan"), 0.0, 0.0], "score": {"loss": 0.5, "error": 0.25, "count": 4},
    "lines": {"metrics.jsonl": {"size": 0, "sha256": "0" * 64}}, "world": 1,
    "optimizer": {"groups": [{"params": ["w"], "lr": 0.1}], "state": {"w": {"step": 3}}}, "scaler": None,
    "random": [host_state_as_json()],
}  # fmt: skip


def read(folder, state):
    (folder / PLAIN).write_text(json.dumps(state))
    return read_plain_state(folder)


def test_what_was_written(tmp_path):
    plain = read(tmp_path, STATE)
    assert (plain.step, plain.recent, plain.score.error, plain.optimizer.state) == (
        3,
        (1.5, 2.0, 8.0),
        0.25,
        {"w": {"step": 3}},
    )
    assert list(plain.random[0].python[1]) == STATE["random"][0]["python"][1]


@pytest.mark.parametrize("change, told", [
    ({"step": -1}, "step: "),
    ({"step": "3"}, "step: "),
    ({"step": True}, "step: "),
    ({"recent": [1.0]}, "recent"),
    ({"score": {"loss": 1.0}}, "score"),
    ({"version": 1}, "version 1, and this is"),
    ({"world": 2}, "random states of 1 ranks, and 2 ranks wrote it"),
    ({"random": [{"python": [3, [1], None], "numpy": STATE["random"][0]["numpy"]}]}, "random.0.python"),
    ({"optimizer": {"groups": []}}, "optimizer.state: "),
    ({"more": 1}, "more: "),
])  # fmt: skip
def test_another_form_is_refused(tmp_path, change, told):
    with pytest.raises(CheckpointError, match=told):
        read(tmp_path, STATE | change)
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(tmp_path, {key: value for key, value in STATE.items() if key not in change or key == "more"} | {"more": 1})
