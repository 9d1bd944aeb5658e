"""A folder -> the files of one training run: what it is, its metrics, its checkpoints, each whole or not there.

run.json                      what was asked for; schema and version
metrics.jsonl                 a line for some steps, an epoch, what a monitor changed: the same in every run of one seed
times.jsonl                   samples a second
checkpoints/step-00000024/    see run_state.py; the last two are kept
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from pararealize.errors import CheckpointError, OutputError
from pararealize.files import remove, sync, unfinished, whole_file, whole_folder

__all__ = ["FILES", "RunFolder", "differences"]

SCHEMA, VERSION = "pararealize.run", 1
METRICS, TIMES = "metrics.jsonl", "times.jsonl"
LINES = (METRICS, TIMES)
CHECKPOINTS = "checkpoints"
FILES = frozenset(
    {*LINES, CHECKPOINTS, "run.json", "plan.json", "weights.safetensors", "curves.svg", "curves.png", "tensorboard"}
)
UNFINISHED = tuple(f".{name}." for name in sorted(FILES))  # how their temporary names begin


class RunFolder:
    """One run's folder, in the process that writes it.

    Args:
        path: where it is, or is to be made.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.was_there, self.was_taken = True, True  # before this run

    # Beginning and going on ------------------------------------------------------------------------------------------

    def begin(self, asked: Mapping[str, Any], *, resume: bool, force: bool) -> Path | None:
        """Make the folder, or find where an earlier run in it stood.

        Args:
            asked: what is to be done, as JSON knows it; kept in ``run.json``, and compared where a run goes on.
            resume: go on from the last checkpoint; where there is none yet, start.
            force: remove an earlier run's files first.

        Returns:
            The last checkpoint, or ``None`` for a run that starts.

        Raises:
            OutputError: something is there and neither of the two was asked for, or it cannot be written.
            CheckpointError: the run that is there was asked for something else.
        """
        with self._refused("the run's folder"):
            if self._is_taken():
                if not (resume or force):
                    raise OutputError(
                        f"{str(self.path)!r} is there already; go on with it (resume=True, --resume), replace it "
                        "(force=True, --force), or name another folder"
                    )
                self._check_own()
                if force and not resume:
                    self._clear()
            self.was_there, self.was_taken = self.path.exists(), self._is_taken()
            self._make()
            for part in (*unfinished(self.path), *unfinished(self._folder(CHECKPOINTS))):  # of a run that was killed
                remove(part)
            last = self.last_checkpoint()
            there = self._read()
            if there is not None:
                self._compare(there, asked)
            else:
                if last is not None:
                    raise CheckpointError(
                        f"{str(self.path)!r} has checkpoints and no run.json, so that nobody knows of what; start anew "
                        "with force=True (--force)"
                    )
                whole = {"schema": SCHEMA, "version": VERSION, **asked}
                self.write("run.json", json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
            if last is None:
                for name in LINES:
                    (self.path / name).write_bytes(b"")
            sync(self.path)
            return last

    def undo(self) -> None:
        """Remove what this run wrote, where it found nothing; for one that came to nothing."""
        if not self.was_taken:
            with contextlib.suppress(OSError):
                self._clear()
                if not self.was_there:
                    self.path.rmdir()

    def _make(self) -> None:
        try:
            self._folder(CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(
                f"cannot make the run's folder {str(self.path)!r}: {error.strerror or error}; name another folder"
            ) from error

    def _folder(self, name: str) -> Path:
        return self.path / name

    def _is_taken(self) -> bool:
        return self.path.is_symlink() or (self.path.exists() and not (self.path.is_dir() and _is_empty(self.path)))

    def _check_own(self) -> None:
        if not self.path.is_dir():
            raise OutputError(f"{str(self.path)!r} is a file and not a folder; name another folder")
        others = sorted(
            entry.name
            for entry in self.path.iterdir()
            if entry.name not in FILES and not entry.name.startswith(UNFINISHED)
        )
        if others:
            listed = ", ".join(others[:3] + ["…"] * (len(others) > 3))
            raise OutputError(f"{str(self.path)!r} holds what no training run wrote ({listed}); name another folder")

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            remove(entry)

    def _read(self) -> dict[str, Any] | None:
        file = self.path / "run.json"
        if not file.exists():
            return None
        try:
            there: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            known = there.pop("schema"), there.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{str(file)!r} cannot be read ({error}); start anew with force=True (--force)"
            ) from error
        if known != (SCHEMA, VERSION):
            raise CheckpointError(
                f"{str(file)!r} is of schema {known[0]!r}, version {known[1]!r}, and this is {SCHEMA!r}, version "
                f"{VERSION}; go on with the version of pararealize that wrote it"
            )
        return there

    def _compare(self, there: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        faults = differences(there, json.loads(json.dumps(asked)))
        if faults:
            more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
            raise CheckpointError(
                f"the run in {str(self.path)!r} was asked for something else: {'; '.join(faults[:6])}{more}; ask for "
                "the same to go on with it, or name another folder"
            )

    # Files -----------------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """Write a file that is there whole or not at all."""
        with self._refused(name), whole_file(self.path / name) as part:
            part.write_text(text, encoding="utf-8")

    def append(self, name: str, lines: list[str]) -> None:
        """Add lines to one of the ``.jsonl`` files.

        Raises:
            OutputError: it is not there any more, or the disk is full.
        """
        with self._refused(name), (self.path / name).open("r+b") as file:  # does not make a file that was lost
            file.seek(0, os.SEEK_END)
            file.write("".join(f"{line}\n" for line in lines).encode())

    def sizes(self) -> dict[str, int]:
        """The bytes of the ``.jsonl`` files, which are on the disk then."""
        with self._refused("the metrics"):
            for name in LINES:
                sync(self.path / name)
            return {name: (self.path / name).stat().st_size for name in LINES}

    def cut(self, sizes: Mapping[str, int]) -> None:
        """Take from the ``.jsonl`` files what came after a checkpoint.

        Raises:
            CheckpointError: one is shorter than it was at the checkpoint.
        """
        with self._refused("the metrics"):
            for name, size in sizes.items():
                file = self.path / name
                there = file.stat().st_size if file.exists() else 0
                if there < size:
                    raise CheckpointError(
                        f"{str(file)!r} has {there} bytes, and had {size} at the checkpoint; put it back, or start "
                        "anew with force=True (--force)"
                    )
                os.truncate(file, size)

    def lines(self, name: str) -> list[str]:
        """The lines of one of the ``.jsonl`` files."""
        with self._refused(name):
            return (self.path / name).read_text(encoding="utf-8").splitlines()

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Write a checkpoint, which gets its name when everything in it is on the disk; then drop the oldest ones.

        Raises:
            OutputError: it cannot be written. Earlier checkpoints are as they were.
        """
        target = self._folder(CHECKPOINTS) / f"step-{step:08d}"
        with self._refused(f"the checkpoint of step {step}"):
            with whole_folder(target, replace=True) as part:
                write(part)
            for old in self.checkpoints()[:-keep]:
                remove(old)
        return target

    def checkpoints(self) -> list[Path]:
        """All of them, the last one last."""
        return sorted(path for path in self._folder(CHECKPOINTS).glob("step-*") if path.is_dir())

    def last_checkpoint(self) -> Path | None:
        """The one to go on from."""
        found = self.checkpoints()
        return found[-1] if found else None

    @contextlib.contextmanager
    def _refused(self, what: str) -> Iterator[None]:
        """What the system refuses, as our own error."""
        try:
            yield
        except (CheckpointError, OutputError):
            raise
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if not self.path.is_dir():
                raise OutputError(
                    f"cannot write {what} ({reason}): the folder {str(self.path)!r} is gone, with the checkpoints in "
                    "it; start again, in a folder that stays"
                ) from error
            last = self.last_checkpoint()
            kept = "there is no checkpoint yet" if last is None else f"the last checkpoint, {last.name}, is as it was"
            raise OutputError(
                f"cannot write {what} into {str(self.path)!r}: {reason}; {kept}; free the disk and go on with "
                "resume=True (--resume)"
            ) from error


def _is_empty(folder: Path) -> bool:
    return next(folder.iterdir(), None) is None


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """Where two values of JSON differ, in words.

    Example:
        >>> differences({"lr": 0.1, "data": {"name": "digits"}}, {"lr": 0.1, "data": {"name": "mnist"}})
        ["data.name: 'digits' there, 'mnist' here"]
    """
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        found = []
        for key in dict.fromkeys([*there, *here]):
            found += differences(there.get(key), here.get(key), f"{name}.{key}" if name else str(key))
        return found
    return [] if there == here else [f"{name}: {there!r} there, {here!r} here"]
