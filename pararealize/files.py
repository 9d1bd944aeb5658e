"""A path -> a file or a folder that appears there whole and on the disk, or not at all; and back, a file's content.

Both are written under a temporary name beside the path, ``.NAME.RANDOM.part``, put on the disk, and renamed. POSIX
renames within a folder atomically: whoever reads, and a crash at any moment, meets the old content or the new one. A
process that is killed leaves at most what :func:`unfinished` lists.

What is read is looked at before it is opened: opening a FIFO waits for a writer, and opening a device may do anything.
"""

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = [
    "check_name",
    "discard",
    "file_digest",
    "kind_of",
    "open_file",
    "read_file",
    "remove",
    "sync",
    "unfinished",
    "whole_file",
    "whole_folder",
]

SUFFIX = ".part"
_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "folder",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}
_PIECE = 1 << 20  # bytes that are read at once


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
    path = check_name(path)
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
    path = check_name(path)
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
        except BaseException:  # Ctrl-C too: under its temporary name the old folder would count as unfinished
            if old.exists() and not path.exists():
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


def discard(path: Path) -> None:
    """Remove a folder that others go by: a process that is killed meanwhile leaves none of that name with half of it.

    Raises:
        OSError: it cannot be removed.
    """
    part = _temporary(path)
    path.rename(part)
    remove(part)


# Reading -------------------------------------------------------------------------------------------------------------


def check_name(path: str | os.PathLike[str]) -> Path:
    """The path, as far as the system and the libraries that open files take it for one.

    Raises:
        OSError: there are characters in it that no path has, of which Python's own error is a ``ValueError``; or bytes
            that are not UTF-8 (as surrogates), which safetensors and matplotlib do not take.
    """
    try:
        has_nul = b"\0" in os.fsencode(path)
        os.fsdecode(path).encode()
    except UnicodeEncodeError as error:
        raise OSError(errno.EINVAL, "this path is not UTF-8") from error
    if has_nul:
        raise OSError(errno.EINVAL, "there is a NUL character in this path")
    return Path(path)


def kind_of(path: str | os.PathLike[str], *, follow: bool = False) -> str | None:
    """What stands at a path: ``"file"``, ``"folder"``, ``"link"``, ``"FIFO"``, ``"socket"``, ``"device"``, or nothing.

    Args:
        path: which is looked at and not opened.
        follow: look at what a link leads to.

    Raises:
        OSError: the system does not say: the path is too long, has a NUL in it, leads through a folder that must not be
            read, or links lead in a circle.

    Example:
        >>> kind_of("/"), kind_of("/no/such/file")
        ('folder', None)
    """
    path = check_name(path)
    try:
        mode = (path.stat if follow else path.lstat)().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None
    return _KINDS.get(stat.S_IFMT(mode), "special file")


def open_file(path: str | os.PathLike[str], *, follow: bool = False) -> BinaryIO:
    """Open a file to read bytes from it, and nothing that is no file.

    Args:
        path: of the file.
        follow: take a link for the file that it leads to.

    Raises:
        OSError: it is something else, is not there, or must not be read.
    """
    _check_kind(path, kind_of(path, follow=follow))
    # what stands there may change in between: never wait for the writer of a FIFO, and look again
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW))
    try:
        _check_kind(path, _KINDS.get(stat.S_IFMT(os.fstat(handle).st_mode), "special file"))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _check_kind(path: str | os.PathLike[str], kind: str | None) -> None:
    if kind is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.fspath(path))
    if kind != "file":
        raise OSError(errno.EINVAL, f"it is a {kind} and no file")


def read_file(path: str | os.PathLike[str], *, most: int, follow: bool = False) -> bytes:
    """The bytes of a file that has at most so many.

    Raises:
        OSError: it has more; or see :func:`open_file`.
    """
    with open_file(path, follow=follow) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it has more than {most} bytes, and no such file has")
    return content


def file_digest(path: str | os.PathLike[str], size: int | None = None, *, follow: bool = False) -> tuple[int, str]:
    """How many bytes a file has, and the SHA-256 of them, in hexadecimal.

    Args:
        path: of the file.
        size: look at so many bytes at its beginning, and no further.
        follow: take a link for the file that it leads to.

    Raises:
        OSError: see :func:`open_file`.
    """
    digest, count = hashlib.sha256(), 0
    with open_file(path, follow=follow) as file:
        while piece := file.read(_PIECE if size is None else min(_PIECE, size - count)):
            digest.update(piece)
            count += len(piece)
    return count, digest.hexdigest()


# Writing -------------------------------------------------------------------------------------------------------------


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
