"""A path -> a file or a folder that appears there whole and on the disk, or not at all.

Both are written under a temporary name beside the path, ``.NAME.RANDOM.part``, put on the disk, and renamed. POSIX
renames within a folder atomically: whoever reads, and a crash at any moment, meets the old content or the new one. A
process that is killed leaves at most what :func:`unfinished` lists.
"""

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

__all__ = ["remove", "sync", "unfinished", "whole_file", "whole_folder"]

SUFFIX = ".part"


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary file to write into, which replaces ``path`` when the block ends without an error.

    The file has the permissions that the umask leaves, whatever the writer did to them: ``safetensors`` (0.8) puts a
    private file of its own in its place.

    Raises:
        OSError: it cannot be written, put on the disk or renamed. What was at ``path`` is as it was, and nothing else
            is left.

    Example:
        >>> from tempfile import mkdtemp
        >>> folder = Path(mkdtemp())
        >>> with whole_file(folder / "numbers.txt") as part:
        ...     count = part.write_text("1 2 3")
        >>> [file.name for file in folder.iterdir()]
        ['numbers.txt']
    """
    path = Path(path)
    part = _temporary(path)
    part.touch(exist_ok=False)
    mode = stat.S_IMODE(part.stat().st_mode)
    try:
        yield part
        _settle(part, mode)
        part.replace(path)
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Give a temporary folder to write into, which gets the name ``path`` when the block ends without an error.

    All that is in it has the permissions that the umask leaves.

    Args:
        path: of the folder; the one that it is in has to exist.
        replace: take the place of a folder that is there. A folder cannot be renamed onto one with files in it, so the
            old one is renamed first, and removed last; it comes back where the second renaming fails.

    Raises:
        OSError: it cannot be written, put on the disk or renamed. What was at ``path`` is as it was, and nothing else
            is left.
    """
    path = Path(path)
    part, old = _temporary(path), _temporary(path)
    part.mkdir()
    mode = stat.S_IMODE(part.stat().st_mode)
    try:
        yield part
        for folder, _, names in os.walk(part, topdown=False):
            for name in names:
                _settle(Path(folder, name), mode & 0o666)
            sync(Path(folder))
        if replace and path.exists():
            path.rename(old)
        try:
            part.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            remove(part)
            if path.exists():  # otherwise the old folder could not come back either, and keeps its temporary name
                remove(old)


def unfinished(folder: Path) -> list[Path]:
    """Temporary files and folders that killed processes left in a folder."""
    return sorted(folder.glob(f".*{SUFFIX}"))


def remove(path: Path) -> None:
    """Remove a file, a link, or a folder with all that is in it, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have the system put a file's content, or a folder's list of names, on the disk."""
    with contextlib.suppress(PermissionError):  # of folders, on some systems
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _temporary(path: Path) -> Path:
    """A name of its own for every writer, so that two processes that write one file do not meet."""
    return path.parent / f".{path.name}.{secrets.token_hex(4)}{SUFFIX}"


def _settle(file: Path, mode: int) -> None:
    """Give a written file its permissions, and put it on the disk."""
    if stat.S_IMODE(file.stat().st_mode) != mode:  # some file systems have one mode for all files, and refuse others
        file.chmod(mode)
    sync(file)
