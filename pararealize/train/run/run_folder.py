"""A folder -> the files of one training run, each whole or not there, and the checkpoint at which a killed run goes on.

run.json                      what the run is asked for; schema and version
metrics.jsonl                 a line for some steps, an epoch, what a monitor changed: the same in every run of one seed
times.jsonl                   samples a second
checkpoints/step-00000024/    see checkpoint.py; the last two stay
"""

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
        path: of the folder, which may not exist yet.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint_folder = self.path / CHECKPOINTS
        self.existed, self.was_occupied = True, True  # before this run

    # Beginning and going on ------------------------------------------------------------------------------------------

    def begin(self, request: Mapping[str, Any], *, resume: bool, force: bool) -> Path | None:
        """Make the folder, or find where an earlier run in it stood.

        Args:
            request: what the run is asked for, as JSON knows it; written to ``run.json``, and compared with it where
                the run goes on.
            resume: go on from the last checkpoint; where there is none yet, start.
            force: remove an earlier run's files first.

        Returns:
            The last checkpoint, or ``None`` for a run that starts.

        Raises:
            OutputError: the folder has files and neither of the two is true, or it cannot be written.
            CheckpointError: the run in it was asked for something else.
        """
        with self._output_errors("the run's folder"):
            if self._is_occupied():
                if not (resume or force):
                    raise OutputError(
                        f"{str(self.path)!r} is there already; go on with it (resume=True, --resume), replace it "
                        "(force=True, --force), or name another folder"
                    )
                self._check_files()
                if not resume:
                    self._clear()
            self.existed, self.was_occupied = self.path.exists(), self._is_occupied()
            try:
                self.checkpoint_folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"cannot make the run's folder {str(self.path)!r}: {error.strerror or error}; name another folder"
                ) from error
            for part in (*unfinished(self.path), *unfinished(self.checkpoint_folder)):  # of a run that was killed
                remove(part)
            last = self.last_checkpoint()
            if (earlier := self._read()) is not None:
                self._compare(earlier, request)
            elif last is not None:
                raise CheckpointError(
                    f"{str(self.path)!r} has checkpoints and no run.json, so that nobody knows of what; start anew "
                    "with force=True (--force)"
                )
            else:
                content = {"schema": SCHEMA, "version": VERSION, **request}
                self.write("run.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            if last is None:
                for name in LINES:
                    (self.path / name).write_bytes(b"")
            sync(self.path)
            return last

    def undo(self) -> None:
        """Remove what this run wrote, where the folder was empty before it; for a run that failed at its beginning."""
        if not self.was_occupied:
            with contextlib.suppress(OSError):
                self._clear()
                if not self.existed:
                    self.path.rmdir()

    def _is_occupied(self) -> bool:
        is_empty = self.path.is_dir() and not any(self.path.iterdir())
        return self.path.is_symlink() or (self.path.exists() and not is_empty)

    def _check_files(self) -> None:
        if not self.path.is_dir():
            raise OutputError(f"{str(self.path)!r} is a file and not a folder; name another folder")
        names = sorted(entry.name for entry in self.path.iterdir())
        if others := [name for name in names if name not in FILES and not name.startswith(UNFINISHED)]:
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
            request: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            kind = request.pop("schema"), request.pop("version")
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(
                f"{str(file)!r} cannot be read ({error}); start anew with force=True (--force)"
            ) from error
        if kind != (SCHEMA, VERSION):
            raise CheckpointError(
                f"{str(file)!r} is of schema {kind[0]!r}, version {kind[1]!r}, and this is {SCHEMA!r}, version "
                f"{VERSION}; go on with the version of pararealize that wrote it"
            )
        return request

    def _compare(self, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        faults = differences(earlier, json.loads(json.dumps(request)))
        if faults:
            more = f"; and {len(faults) - 6} more" if len(faults) > 6 else ""
            raise CheckpointError(
                f"the run in {str(self.path)!r} was asked for something else: {'; '.join(faults[:6])}{more}; ask for "
                "the same to go on with it, or name another folder"
            )

    # Files -----------------------------------------------------------------------------------------------------------

    def write(self, name: str, text: str) -> None:
        """Write a text file, whole or not at all."""
        with self._output_errors(name), whole_file(self.path / name) as part:
            part.write_text(text, encoding="utf-8")

    def append(self, name: str, lines: list[str]) -> None:
        """Add lines to one of the ``.jsonl`` files.

        Raises:
            OutputError: the file was removed, or the disk is full.
        """
        with self._output_errors(name), (self.path / name).open("r+b") as file:  # "ab" would make it anew
            file.seek(0, os.SEEK_END)
            file.write("".join(f"{line}\n" for line in lines).encode())

    def sizes(self) -> dict[str, int]:
        """Put the ``.jsonl`` files on the disk, and give their sizes in bytes."""
        with self._output_errors("the metrics"):
            for name in LINES:
                sync(self.path / name)
            return {name: (self.path / name).stat().st_size for name in LINES}

    def truncate(self, sizes: Mapping[str, int]) -> None:
        """Cut off the ``.jsonl`` files what a run appended after its last checkpoint, and then takes anew.

        Raises:
            CheckpointError: one is shorter than it was at the checkpoint.
        """
        with self._output_errors("the metrics"):
            for name, size in sizes.items():
                file = self.path / name
                present = file.stat().st_size if file.exists() else 0
                if present < size:
                    raise CheckpointError(
                        f"{str(file)!r} has {present} bytes, and had {size} at the checkpoint; put it back, or start "
                        "anew with force=True (--force)"
                    )
                os.truncate(file, size)

    def lines(self, name: str) -> list[str]:
        """The lines of one of the ``.jsonl`` files."""
        with self._output_errors(name):
            return (self.path / name).read_text(encoding="utf-8").splitlines()

    # Checkpoints -----------------------------------------------------------------------------------------------------

    def save(self, step: int, write: Callable[[Path], None], *, keep: int) -> Path:
        """Write a checkpoint, which gets its name when everything in it is on the disk; then drop the oldest ones.

        Raises:
            OutputError: it cannot be written. Earlier checkpoints are as they were.
        """
        target = self.checkpoint_folder / f"step-{step:08d}"
        with self._output_errors(f"the checkpoint of step {step}"):
            with whole_folder(target, replace=True) as part:
                write(part)
            for old in self.checkpoints()[:-keep]:
                remove(old)
        return target

    def checkpoints(self) -> list[Path]:
        """All checkpoints, in the order of their steps."""
        return sorted(path for path in self.checkpoint_folder.glob("step-*") if path.is_dir())

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from."""
        return next(reversed(self.checkpoints()), None)

    @contextlib.contextmanager
    def _output_errors(self, what: str) -> Iterator[None]:
        """Raise errors of the system as :class:`OutputError`, with the checkpoint from which a run can go on."""
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
            state = "there is no checkpoint yet" if last is None else f"the last checkpoint, {last.name}, is as it was"
            raise OutputError(
                f"cannot write {what} into {str(self.path)!r}: {reason}; {state}; free the disk and go on with "
                "resume=True (--resume)"
            ) from error


def differences(earlier: Any, now: Any, name: str = "") -> list[str]:
    """Where two values of JSON differ, in words.

    Example:
        >>> differences({"lr": 0.1, "data": {"name": "digits"}}, {"lr": 0.1, "data": {"name": "mnist"}})
        ["data.name: 'digits' there, 'mnist' here"]
    """
    if isinstance(earlier, Mapping) and isinstance(now, Mapping):
        return [
            difference
            for key in dict.fromkeys([*earlier, *now])
            for difference in differences(earlier.get(key), now.get(key), f"{name}.{key}" if name else str(key))
        ]
    return [] if earlier == now else [f"{name}: {earlier!r} there, {now!r} here"]
