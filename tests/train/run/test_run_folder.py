"""A run's folder: what is taken, what is compared, checkpoints that are whole, and what the system refuses."""

import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import pytest

from pararealize.errors import CheckpointError, OutputError
from pararealize.manifest import FileFact
from pararealize.train.run import lock
from pararealize.train.run.checkpoint import RunState, write_run_state
from pararealize.train.run.intact_checkpoint import LINES, METRICS
from pararealize.train.run.run_folder import RunFolder
from tests.train.run.test_plain_state import STATE

ASKED = {"recipe": {"lr": 0.1}, "seed": 0}
WEIGHTS = "0" * 64


def begin(path, asked=ASKED, weights=WEIGHTS, **how):
    """A run's folder and where the run goes on; another process may have it at once."""
    folder = RunFolder(path)
    try:
        return folder, folder.begin(asked, lambda: weights, **{"resume": False, "force": False, **how})
    finally:
        folder.close()


def begun(tmp_path, **how):
    return begin(tmp_path / "run", **how)


def save(folder, step, keep=3):
    """A checkpoint without tensors."""
    lines = {name: dataclasses.asdict(fact) for name, fact in folder.line_files().items()}
    state = RunState(weights={}, tensors={}, plain=STATE | {"step": step, "lines": lines})
    return folder.save(step, lambda part: write_run_state(part, state, run=folder.run), keep=keep)


def content(text):
    return lambda part: (part / "state.json").write_text(text)


def names(folder):
    return [path.name for path in folder.checkpoints()]


def test_a_new_folder_and_an_empty_one(tmp_path):
    folder, last = begun(tmp_path)
    assert last is None
    assert {path.name for path in folder.path.iterdir()} == {"run.json", "checkpoints", *LINES}
    told = json.loads((folder.path / "run.json").read_text())
    told_besides = {"weights": WEIGHTS, "files": {}}
    assert told == {"schema": "pararealize.run", "version": 3, "run": folder.run, **told_besides, **ASKED}
    (tmp_path / "empty").mkdir()
    assert begin(tmp_path / "empty")[1] is None
    runs = {begin(tmp_path / f"{i}", **how)[0].run for i, how in enumerate(({}, {"weights": "1"}, {"asked": {}}))}
    assert len(runs) == 3
    assert folder.run in runs  # the same one, asked for twice


def test_a_taken_folder_is_refused(tmp_path):
    folder, _ = begun(tmp_path)
    with pytest.raises(OutputError, match=r"is there already; go on with it .*--resume.*--force"):
        begun(tmp_path)
    (folder.path / "thesis.tex").write_text("")
    for how in ({"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match=r"holds what no training run wrote \(thesis.tex\)"):
            begun(tmp_path, **how)
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file and not a folder"):
        begin(tmp_path / "file", resume=True)


def test_force_starts_anew(tmp_path):
    folder, _ = begun(tmp_path)
    folder.append(METRICS, ["{}"])
    folder.save(1, content("one"), keep=2)
    (folder.path / "curves.svg").write_text("")
    folder, last = begun(tmp_path, force=True)
    assert last is None
    assert names(folder) == []
    assert (folder.path / METRICS).read_bytes() == b""
    assert not (folder.path / "curves.svg").exists()


def test_going_on(tmp_path):
    folder, _ = begun(tmp_path)
    folder.append(METRICS, ["{}"])
    kept = save(folder, 7)
    for left in (".step-00000009.part", ".step-00000009.0a1b2c3d.part"):  # of this and of earlier versions
        (folder.path / "checkpoints" / left).mkdir()
    for left in (".run.json.part", ".run.json.0a1b2c3d.part", ".weights.safetensors.0a1b2c3d.part"):
        (folder.path / left).write_text("")
    _, last = begun(tmp_path, resume=True)
    assert last == kept
    assert list(folder.path.rglob(".*")) == []
    assert (folder.path / METRICS).read_bytes() == b"{}\n"


def test_going_on_where_nothing_was_kept_starts(tmp_path):
    folder, _ = begun(tmp_path, resume=True)
    folder.append(METRICS, ["{}"])
    (folder.path / "run.json").unlink()  # a run that was killed at its very beginning
    _, last = begun(tmp_path, resume=True)
    assert last is None
    assert (folder.path / METRICS).read_bytes() == b""
    assert (folder.path / "run.json").exists()


def test_another_run_is_refused_with_the_values(tmp_path):
    begun(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"recipe.lr: 0.1 there, 0.2 here; seed: 0 there, 1 here; ask for the same"
    ):
        begun(tmp_path, asked={"recipe": {"lr": 0.2}, "seed": 1}, resume=True)
    many = {**ASKED, **{f"value {i}": i for i in range(9)}}
    with pytest.raises(CheckpointError, match=r"value 5: None there, 5 here; and 3 more"):
        begun(tmp_path, asked=many, resume=True)


@pytest.mark.parametrize("text, told", [
    ("{", "cannot be read"),
    ("[]", "cannot be read"),
    ('{"schema": "pararealize.run"}', "cannot be read"),
    ('{"schema": "pararealize.run", "version": 2}', "version 2, and this is .* version 3; .*pararealize that wrote"),
    ('{"schema": "pararealize.run", "version": 3, "run": 5}', "does not say which run it is of"),
    ('{"schema": "pararealize.run", "version": 3, "run": 5, "run": 6}', "the key run stands twice in one object"),
])  # fmt: skip
def test_a_strange_run_is_refused(tmp_path, text, told):
    folder, _ = begun(tmp_path)
    (folder.path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=told):
        begun(tmp_path, resume=True)


def test_a_request_that_was_changed_together_with_the_arguments(tmp_path):
    folder, _ = begun(tmp_path)
    file = folder.path / "run.json"
    file.write_text(file.read_text().replace('"lr": 0.1', '"lr": 0.2'))
    with pytest.raises(
        CheckpointError, match=r"run\.json' is not what was written: it is not the request that the run"
    ):
        begun(tmp_path, asked={**ASKED, "recipe": {"lr": 0.2}}, resume=True)


@pytest.mark.parametrize("change", [Path.unlink, lambda file: file.write_text("other")])
def test_files_that_a_run_begins_with_stay_what_they_were(tmp_path, change):
    files = {"plan.json": "a plan"}
    folder, _ = begun(tmp_path, files=files)
    assert (folder.path / "plan.json").read_text() == "a plan"
    save(folder, 1)
    assert begun(tmp_path, files={"plan.json": "for other devices"}, resume=True)[1] is not None
    assert (folder.path / "plan.json").read_text() == "a plan"
    change(folder.path / "plan.json")
    with pytest.raises(CheckpointError, match=r"plan.json' (is not what was written|cannot be read).*from a copy"):
        begun(tmp_path, files=files, resume=True)


def test_checkpoints_without_a_run_are_refused(tmp_path):
    folder, _ = begun(tmp_path)
    folder.save(1, content("one"), keep=2)
    (folder.path / "run.json").unlink()
    with pytest.raises(CheckpointError, match=r"has checkpoints and no run.json"):
        begun(tmp_path, resume=True)


def test_the_oldest_checkpoints_go(tmp_path):
    folder, _ = begun(tmp_path)
    for step in (5, 10, 100_000_000, 15):
        folder.save(step, content(str(step)), keep=2)
    assert names(folder) == ["step-00000015", "step-100000000"]
    folder.save(15, content("again"), keep=2)
    assert (folder.checkpoints()[0] / "state.json").read_text() == "again"


def test_a_checkpoint_that_fails_leaves_the_last_one(tmp_path):
    folder, _ = begun(tmp_path)
    folder.save(1, content("one"), keep=1)

    def fills_the_disk(part):
        content("half")(part)
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OutputError, match=r"the checkpoint of step 2 .*No space left on device; the last checkpoint, "
                       r"step-00000001, is as it was; free the disk"):  # fmt: skip
        folder.save(2, fills_the_disk, keep=1)
    assert names(folder) == ["step-00000001"]
    assert [path.name for path in (folder.path / "checkpoints").iterdir()] == ["step-00000001"]
    assert (folder.checkpoints()[0] / "state.json").read_text() == "one"


def test_a_folder_that_is_gone(tmp_path):
    folder, _ = begun(tmp_path)
    (folder.path / METRICS).unlink()
    with pytest.raises(OutputError, match=r"cannot write metrics.jsonl .*there is no checkpoint yet"):
        folder.append(METRICS, ["{}"])
    for work in (
        folder.line_files,
        lambda: folder.save(1, content("one"), keep=1),
        lambda: folder.write("plan.json", ""),
    ):
        folder.path.rename(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match=r"the folder .*run' is gone"):
            work()
        (tmp_path / "elsewhere").rename(folder.path)


def test_lines_after_a_checkpoint_are_cut(tmp_path):
    folder, _ = begun(tmp_path)
    folder.append(METRICS, ["1", "2\u2028"])
    checkpoint = save(folder, 3)
    folder.append(METRICS, ["3"])
    folder.truncate(folder.check(checkpoint).lines)
    assert folder.lines(METRICS) == ["1", "2\u2028"]
    (folder.path / METRICS).write_bytes(b"1\n")
    with pytest.raises(CheckpointError, match=r"has 2 bytes, and had 7 at step-00000003"):
        folder.check(checkpoint)
    (folder.path / METRICS).write_bytes(b"1\n3\xe2\x80\xa8\n4\n")
    with pytest.raises(CheckpointError, match=r"is not what was written up to step-00000003: .* its first 7 bytes"):
        folder.check(checkpoint)


def link(path):
    elsewhere = next(folder for folder in path.parents if folder.name == "run").with_name("elsewhere")
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def in_place(make):
    def replace(path):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return replace


ODD = {"link": link, "FIFO": in_place(os.mkfifo), "file": in_place(Path.touch), "folder": in_place(Path.mkdir)}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("name", ["run.json", METRICS, "checkpoints", "checkpoints/step-00000003", "plan.json"])
def test_what_stands_in_the_place_of_a_file_is_told(tmp_path, three, name, kind):
    (three.path / "plan.json").touch()
    if kind == ("folder" if "checkpoints" in name else "file"):
        return
    ODD[kind](three.path / name)
    with pytest.raises(CheckpointError, match=f"{name}' is a {kind} and no (file|folder)"):
        begun(tmp_path, resume=True)
    assert begun(tmp_path, force=True)[1] is None
    assert {path.name for path in three.path.iterdir()} == {"run.json", "checkpoints", *LINES}


@pytest.mark.parametrize("epochs", [1, 2])
def test_lost_checkpoints_are_told(tmp_path, three, epochs):
    three.append(METRICS, ['{"kind": "epoch"}'] * epochs)
    shutil.rmtree(three.path / "checkpoints")
    (three.path / "latest.json").unlink()
    if epochs == 1:  # the process may have been killed while it wrote the first one
        assert begun(tmp_path, resume=True)[1] is None
        return
    with pytest.raises(
        CheckpointError, match=r"metrics.jsonl' tells of 2 epochs, and there is no checkpoint in .*force"
    ):
        begun(tmp_path, resume=True, previous=True)
    assert (three.path / METRICS).stat().st_size > 20
    assert begun(tmp_path, force=True)[1] is None


def test_a_checkpoint_that_was_lost_is_told_however_early(tmp_path, three):
    shutil.rmtree(three.path / "checkpoints" / "step-00000003")
    told = r"latest.json' tells of a checkpoint of step 3, which is not in .*; put it back from a copy, "
    with pytest.raises(CheckpointError, match=rf"{told}go on from step-00000002 with resume_from="):
        begun(tmp_path, resume=True)
    assert begun(tmp_path, resume=True, previous=True)[1].name == "step-00000002"
    shutil.rmtree(three.path / "checkpoints")
    for name in ("nothing else", "run.json", METRICS):
        (three.path / name).unlink(missing_ok=True)
        with pytest.raises(CheckpointError, match=rf"{told}or start anew with force"):
            begun(tmp_path, resume=True, previous=True)
    assert begun(tmp_path, force=True)[1] is None


def test_what_others_change_while_a_run_goes_on_is_told(tmp_path):
    """Lines that are cut off, added or changed, and another folder in the place of the run's."""
    folder, _ = begun(tmp_path)
    for change, told in (
        (b"", r"metrics.jsonl' was changed while the run went on: it had 4 bytes and has 0"),
        (b"one\ntwo\n", "it had 4 bytes and has 8"),
    ):
        (folder.path / METRICS).write_bytes(b"")
        folder.truncate(dict.fromkeys(LINES, FileFact(size=0, sha256="0" * 64)))
        folder.append(METRICS, ["one"])
        (folder.path / METRICS).write_bytes(change)
        with pytest.raises(OutputError, match=told):
            folder.append(METRICS, ["two"])
    (folder.path / METRICS).write_bytes(b"two\n")
    with pytest.raises(OutputError, match="it is not what was written into it"):
        folder.line_files()
    other, _ = begin(tmp_path / "other", weights="1")
    folder.path.rename(tmp_path / "elsewhere")
    other.path.rename(folder.path)
    before = sorted(folder.path.rglob("*"))
    for work in (folder.check_place, folder.line_files, lambda: folder.save(1, content("one"), keep=1),
                 lambda: folder.append(METRICS, ["3"])):  # fmt: skip
        with pytest.raises(
            OutputError, match=r"run\.json' was changed while the run went on: the folder is another one"
        ):
            work()
    folder.was_occupied = False
    folder.undo()
    assert sorted(folder.path.rglob("*")) == before  # of somebody else


def test_the_folder_itself_may_be_a_link(tmp_path, three):
    (tmp_path / "link").symlink_to(three.path)
    assert begin(tmp_path / "link", resume=True)[1] == tmp_path / "link" / "checkpoints" / "step-00000003"


@pytest.mark.parametrize("path, told", [
    ("file/run", "Not a directory"), ("a\0b", "NUL"), (os.fsdecode(b"\xff"), "not UTF-8"),
    ("x" * 300, "too long"), ("fifo", "is a FIFO and not a folder"),
    ("nowhere", "is a link that leads nowhere"),
])  # fmt: skip
def test_nothing_can_be_made_there(tmp_path, path, told):
    (tmp_path / "file").write_text("")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "nowhere").symlink_to("nothing")
    with pytest.raises(OutputError, match=rf"{told}.*; name another folder"):
        begin(tmp_path / path, resume=True)


def test_one_process_writes_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    first, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")
    first.begin(ASKED, lambda: WEIGHTS, resume=False, force=False)
    for how in ({"resume": True}, {"force": True}):
        with pytest.raises(OutputError, match=rf"is in use: process {os.getpid()} on .* writes into it; wait for it"):
            second.begin(ASKED, lambda: WEIGHTS, **{"resume": False, "force": False, **how})
        second.undo()
    save(first, 1)
    first.close()
    assert second.begin(ASKED, lambda: WEIGHTS, resume=True, force=False) == first.checkpoints()[0]
    second.close()
    assert "run.lock" not in {path.name for path in first.path.iterdir()}
