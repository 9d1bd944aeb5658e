"""Folders of output: complete or not there, and never in place of what others wrote."""

import errno
import os

import pytest
from safetensors import SafetensorError

from pararealize.errors import OutputError
from pararealize_cli.folder import output_folder, writing


def test_folder_appears_complete_or_not_at_all(tmp_path):
    path = tmp_path / "a" / "out"
    with output_folder(path, force=False) as folder:
        (folder / "plan.json").write_text("{}")
        assert not path.exists()
    assert [entry.name for entry in path.iterdir()] == ["plan.json"]

    def fail_half_way():
        with output_folder(tmp_path / "b", force=False) as folder:
            (folder / "plan.json").write_text("{}")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["a"]
    assert path.stat().st_mode & 0o700 == 0o700


def test_folder_is_kept_unless_forced(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / "plan.json").write_text("old")
    with pytest.raises(OutputError, match=r"there already.*--force"), output_folder(path, force=False):
        pass
    with pytest.raises(RuntimeError), output_folder(path, force=True):
        raise RuntimeError
    assert (path / "plan.json").read_text() == "old"
    with output_folder(path, force=True) as folder:
        (folder / "model.py").write_text("new")
    assert [entry.name for entry in path.iterdir()] == ["model.py"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_force_does_not_remove_what_others_wrote(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"thesis\.tex"), output_folder(tmp_path, force=True):
        pass
    assert (tmp_path / "thesis.tex").exists()


def test_folder_that_cannot_be_written(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="is a file and not a folder"), output_folder(file, force=True):
        pass
    with pytest.raises(OutputError, match="cannot write to"), output_folder(file / "out", force=False):
        pass


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OutputError, match="Permission denied"), output_folder(tmp_path / "out", force=False):
        pass


def test_a_link_is_not_replaced(tmp_path):
    """It would become a folder, and what it leads to stay as it is."""
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to("real")
    with pytest.raises(OutputError, match="is a link and not a folder"), output_folder(link, force=True):
        pass
    assert link.is_symlink()


@pytest.mark.parametrize("error", [OSError(errno.EFBIG, "File too large"), SafetensorError("File too large")])
def test_errors_of_the_system_name_the_folder(tmp_path, error):
    path = tmp_path / "out"
    fault = "cannot write the files of '.*out': File too large; free the disk"
    with pytest.raises(OutputError, match=fault), output_folder(path, force=False), writing(path):
        raise error
    assert list(tmp_path.iterdir()) == []
