"""A run's folder: what is taken, what is compared, checkpoints that are whole, and what the system refuses."""

import errno
import json

import pytest

from pararealize.errors import CheckpointError, OutputError
from pararealize.train.run.run_folder import LINES, METRICS, RunFolder, differences

ASKED = {"recipe": {"lr": 0.1}, "seed": 0}


def begun(tmp_path, **how):
    folder = RunFolder(tmp_path / "run")
    return folder, folder.begin(ASKED, **{"resume": False, "force": False, **how})


def content(text):
    return lambda part: (part / "state.json").write_text(text)


def names(folder):
    return [path.name for path in folder.checkpoints()]


def test_a_new_folder_and_an_empty_one(tmp_path):
    folder, last = begun(tmp_path)
    assert last is None
    assert {path.name for path in folder.path.iterdir()} == {"run.json", "checkpoints", *LINES}
    told = json.loads((folder.path / "run.json").read_text())
    assert told == {"schema": "pararealize.run", "version": 1, **ASKED}
    (tmp_path / "empty").mkdir()
    assert RunFolder(tmp_path / "empty").begin(ASKED, resume=False, force=False) is None


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
        RunFolder(tmp_path / "file").begin(ASKED, resume=True, force=False)


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
    kept = folder.save(7, content("seven"), keep=2)
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
    folder, _ = begun(tmp_path)
    with pytest.raises(
        CheckpointError, match=r"recipe.lr: 0.1 there, 0.2 here; seed: 0 there, 1 here; ask for the same"
    ):
        folder.begin({"recipe": {"lr": 0.2}, "seed": 1}, resume=True, force=False)
    many = {**ASKED, **{f"value {i}": i for i in range(9)}}
    with pytest.raises(CheckpointError, match=r"value 5: None there, 5 here; and 3 more"):
        folder.begin(many, resume=True, force=False)


@pytest.mark.parametrize("text, told", [
    ("{", "cannot be read"),
    ("[]", "cannot be read"),
    ('{"schema": "pararealize.run"}', "cannot be read"),
    ('{"schema": "pararealize.run", "version": 2}', "version 2, and this is 'pararealize.run', version 1"),
])  # fmt: skip
def test_a_strange_run_is_refused(tmp_path, text, told):
    folder, _ = begun(tmp_path)
    (folder.path / "run.json").write_text(text)
    with pytest.raises(CheckpointError, match=told):
        begun(tmp_path, resume=True)


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
    for work in (folder.sizes, lambda: folder.save(1, content("one"), keep=1), lambda: folder.write("plan.json", "")):
        folder.path.rename(tmp_path / "elsewhere")
        with pytest.raises(OutputError, match=r"the folder .*run' is gone"):
            work()
        (tmp_path / "elsewhere").rename(folder.path)


def test_lines_after_a_checkpoint_are_cut(tmp_path):
    folder, _ = begun(tmp_path)
    folder.append(METRICS, ["1", "2"])
    sizes = folder.sizes()
    folder.append(METRICS, ["3"])
    folder.truncate(sizes)
    assert folder.lines(METRICS) == ["1", "2"]
    (folder.path / METRICS).write_bytes(b"1\n")
    with pytest.raises(CheckpointError, match=r"has 2 bytes, and had 4 at the checkpoint"):
        folder.truncate(sizes)


def test_nothing_can_be_made_in_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot make the run's folder .*Not a directory; name another folder"):
        RunFolder(tmp_path / "file" / "run").begin(ASKED, resume=False, force=False)


def test_differences():
    assert differences({"a": [1]}, {"a": [1]}) == []
    assert differences({"a": {"b": 1}}, {"a": None}) == ["a: {'b': 1} there, None here"]
