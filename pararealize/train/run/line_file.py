"""A path, lines -> a file that has them at its end, and what it has to be, as long as nobody else writes into it."""

import hashlib
import os
from pathlib import Path

from pararealize.errors import OutputError
from pararealize.files import read_file, sync
from pararealize.manifest import FileFact

__all__ = ["MOST_BYTES", "LineFile", "changed"]

MOST_BYTES = 1 << 30


class LineFile:
    """A file of lines, in the process that writes it.

    Args:
        path: of the file, which is there before :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size = 0
        self._digest = hashlib.sha256()

    def open(self) -> None:
        """Begin to write behind what is there."""
        content = read_file(self.path, most=MOST_BYTES)
        self._size, self._digest = len(content), hashlib.sha256(content)

    def append(self, lines: list[str]) -> None:
        """Add lines.

        Raises:
            OutputError: the file has another length than it was left with.
            OSError: it was removed, or the disk is full.
        """
        content = "".join(f"{line}\n" for line in lines).encode()
        with self.path.open("r+b") as file:  # "ab" would make it anew
            size = file.seek(0, os.SEEK_END)
            if size != self._size:
                raise OutputError(changed(self.path, f"it had {self._size} bytes and has {size}"))
            file.write(content)
        self._size += len(content)
        self._digest.update(content)

    def settle(self) -> FileFact:
        """Put it on the disk, and tell what it is.

        Raises:
            OutputError: it is not what this process has written.
        """
        sync(self.path)
        fact = FileFact(size=self._size, sha256=self._digest.hexdigest())
        if FileFact.of(self.path) != fact:
            raise OutputError(changed(self.path, "it is not what was written into it"))
        return fact

    def truncate(self, size: int) -> None:
        """Cut off all that is behind so many bytes."""
        os.truncate(self.path, size)
        self.open()


def changed(path: Path, how: str) -> str:
    """What an error says of a file that somebody else has changed."""
    return (
        f"{str(path)!r} was changed while the run went on: {how}; put it back from a copy, and go on with resume=True "
        "(--resume), or name another folder"
    )
