"""A folder -> the files of one training run, each whole or not there, and the checkpoint at which a killed run goes on.

run.json                      what the run is asked for, which one it is, digests of other files; schema and version
metrics.jsonl                 a line for some steps, an epoch, what a monitor changed: the same in every run of one seed
times.jsonl                   samples a second
checkpoints/step-00000024/    see checkpoint.py; the last two stay
latest.json                   of which step the newest checkpoint is
network/                      at the end, the trained network, as net.save() writes it
run.lock                      while a process writes into the folder, which one does
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter
from safetensors import SafetensorError

from pararealize.errors import CheckpointError, OutputError
from pararealize.files import (
    check_name,
    discard,
    file_digest,
    kind_of,
    read_file,
    remove,
    sync,
    unfinished,
    whole_file,
    whole_folder,
)
from pararealize.manifest import FileFact, differences, read_document
from pararealize.saving.network_folder import NETWORK

from .intact_checkpoint import (
    ANEW,
    CHECKPOINTS,
    LATEST,
    LINES,
    METRICS,
    check_checkpoint,
    checkpoint_to_go_on_from,
    checkpoints_in,
    latest_text,
)
from .line_file import MOST_BYTES, LineFile, changed
from .lock import FolderLock
from .plain_state import PlainState

__all__ = ["FILES", "RunFolder"]

SCHEMA, VERSION = "pararealize.run", 3
REQUEST, LOCK = "run.json", "run.lock"
FOLDERS = frozenset({CHECKPOINTS, NETWORK, "tensorboard"})
FILES = FOLDERS | {*LINES, REQUEST, LATEST, LOCK, "plan.json", "weights.safetensors", "curves.svg", "curves.png"}
UNFINISHED = tuple(f".{name}." for name in sorted(FILES))  # how their temporary names begin


_REQUEST = TypeAdapter(dict[str, Any])
_TOLD = ("run", "weights", "files")  # what ``run.json`` has beside the request


def _run_of(request: Mapping[str, Any], told: Mapping[str, Any]) -> str:
    """Which run it is: a digest of what it is asked for, of its first weights and of the files that it begins with."""
    return hashlib.sha256(json.dumps([request, told], sort_keys=True).encode()).hexdigest()


class RunFolder:
    """One run's folder, in the process that writes it.

    Args:
        path: of the folder, which may not exist yet.

    Attributes:
        run: which run is in it, as its checkpoints say too: a digest of what it is asked for, and of its first weights.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoint_folder = self.path / CHECKPOINTS
        self.existed, self.was_occupied = True, True  # before this run
        self.run = ""
        self._lock = FolderLock(self.path / LOCK)
        self._content = b""  # of run.json, while this process writes into the folder
        self._lines = {name: LineFile(self.path / name) for name in LINES}

    # Beginning and going on ------------------------------------------------------------------------------------------

    def begin(
        self,
        request: Mapping[str, Any],
        weights: Callable[[], str],
        *,
        files: Mapping[str, str] = MappingProxyType({}),
        resume: bool,
        force: bool,
        previous: bool = False,
    ) -> Path | None:
        """Make the folder, or find where an earlier run in it stood; no other process writes into it until the end.

        Args:
            request: what the run is asked for, as JSON knows it; written to ``run.json``, and compared with it where
                the run goes on.
            weights: gives a digest of the weights that it begins with.
            files: text files that are written where the run begins, by their names; where it goes on, they have to be
                what was written then.
            resume: go on from the last checkpoint; where there is none yet, start.
            force: remove an earlier run's files first.
            previous: where the last checkpoint is damaged, go on from the newest before it that is not.

        Returns:
            The checkpoint to go on from, which has been checked, or ``None`` for a run that starts.

        Raises:
            OutputError: the folder has files and neither of the two is true, it cannot be written, or another process
                writes into it.
            CheckpointError: the run in it was asked for something else, or a file is lost or damaged.
        """
        try:
            self._check_free(resume=resume, force=force)
            existed = kind_of(self.path, follow=True) is not None
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except OutputError:
            raise
        except OSError as error:
            raise OutputError(
                f"cannot make the run's folder {str(self.path)!r}: {error.strerror or error}; name another folder"
            ) from error
        try:
            with self._output_errors("the run's folder"):
                self._check_free(resume=resume, force=force)  # another process may have begun in it meanwhile
                if force and not resume:
                    self._clear()
                self.existed, self.was_occupied = existed, self._is_occupied()
                return self._begin(request, weights, files, previous=previous)
        except BaseException:
            if self.was_occupied:  # else undo() does
                self._lock.release()
            raise

    def _begin(
        self, request: Mapping[str, Any], weights: Callable[[], str], files: Mapping[str, str], *, previous: bool
    ) -> Path | None:
        self._check_kinds()
        self.checkpoint_folder.mkdir(exist_ok=True)
        for part in (*unfinished(self.path), *unfinished(self.checkpoint_folder)):  # of a run that was killed
            remove(part)
        plain = json.loads(json.dumps(request))
        earlier = self._read()
        if earlier is not None:
            self._compare({key: value for key, value in earlier.items() if key not in _TOLD}, plain)
            self.run = earlier["run"]
        elif self.checkpoints():
            raise CheckpointError(
                f"{str(self.path)!r} has checkpoints and no {REQUEST}, so that nobody knows of what; {ANEW}"
            )
        last = checkpoint_to_go_on_from(self.path, run=self.run, previous=previous)
        if last is None:
            self._check_beginning()
            for name, text in files.items():
                self.write(name, text)
            digests = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
            told = {"weights": weights(), "files": digests}
            self.run = _run_of(plain, told)
            content = {"schema": SCHEMA, "version": VERSION, "run": self.run, **told, **request}
            self.write(REQUEST, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            for name in LINES:
                (self.path / name).write_bytes(b"")
        elif earlier is not None:
            self._check_files(earlier["files"])
        sync(self.path)
        self._content = read_file(self.path / REQUEST, most=MOST_BYTES)
        for lines in self._lines.values():
            lines.open()
        return last

    def _check_beginning(self) -> None:
        """Refuse to begin anew a run whose checkpoints were lost: at the end of every epoch there was one."""
        metrics = self.path / METRICS
        epochs = 0 if kind_of(metrics) is None else read_file(metrics, most=MOST_BYTES).count(b'"kind": "epoch"')
        if epochs > 1:  # one, where the process was killed while it wrote the first checkpoint
            raise CheckpointError(
                f"{str(metrics)!r} tells of {epochs} epochs, and there is no checkpoint in "
                f"{str(self.checkpoint_folder)!r}; put them back from a copy, or {ANEW}"
            )

    def _check_files(self, digests: Mapping[str, str]) -> None:
        for name, digest in digests.items():
            try:
                found = file_digest(check_name(self.path / name))[1]
            except OSError as error:
                raise CheckpointError(
                    f"{str(self.path / name)!r} cannot be read: {error.strerror or error}; put it back from a copy, or "
                    f"{ANEW}"
                ) from error
            if found != digest:
                raise CheckpointError(
                    f"{str(self.path / name)!r} is not what was written: its SHA-256 was {digest[:12]}… and is "
                    f"{found[:12]}…; put it back from a copy, or {ANEW}"
                )

    def undo(self) -> None:
        """Remove what this run wrote, where the folder was empty before it; for a run that failed at its beginning."""
        if not self.was_occupied:
            with contextlib.suppress(OSError, OutputError):
                self.check_place()  # never clear another folder that has come in the place of this one
                self._clear()
                self._lock.release()
                if not self.existed:
                    self.path.rmdir()

    def close(self) -> None:
        """Let other processes write into the folder."""
        self._lock.release()

    def _check_free(self, *, resume: bool, force: bool) -> None:
        """Refuse a folder in which there is something already, unless it is a run's and goes on or is replaced."""
        if not self._is_occupied():
            return
        if not (resume or force):
            raise OutputError(
                f"{str(self.path)!r} is there already; go on with it (resume=True, --resume), replace it "
                "(force=True, --force), or name another folder"
            )
        if (kind := kind_of(self.path, follow=True)) != "folder":
            what = "a link that leads nowhere" if kind is None else f"a {kind} and not a folder"
            raise OutputError(f"{str(self.path)!r} is {what}; name another folder")
        names = sorted(entry.name for entry in self.path.iterdir())
        if others := [name for name in names if name not in FILES and not name.startswith(UNFINISHED)]:
            listed = ", ".join([*map(_shown, others[:3]), *["…"] * (len(others) > 3)])
            raise OutputError(f"{str(self.path)!r} holds what no training run wrote ({listed}); name another folder")

    def _is_there(self) -> bool:
        with contextlib.suppress(OSError):
            return kind_of(self.path, follow=True) == "folder"
        return False

    def _is_occupied(self) -> bool:
        kind = kind_of(self.path)
        is_empty = kind == "folder" and all(entry.name == LOCK for entry in self.path.iterdir())
        return kind is not None and not is_empty

    def _check_kinds(self) -> None:
        """Refuse links and what else is neither file nor folder before anything is opened."""
        for name in sorted(FILES - {LOCK}):
            kind = kind_of(self.path / name)
            if kind not in (None, expected := "folder" if name in FOLDERS else "file"):
                raise CheckpointError(
                    f"{str(self.path / name)!r} is a {kind} and no {expected}; put the {expected} back in its place, "
                    f"or {ANEW} (the run's folder itself may be a link)"
                )

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.name != LOCK:
                remove(entry)

    def _read(self) -> dict[str, Any] | None:
        file = self.path / REQUEST
        if kind_of(file) is None:
            return None
        try:
            request = read_document(file, _REQUEST, schema=SCHEMA, version=VERSION)
        except CheckpointError as error:
            raise CheckpointError(
                f"{error}; put it back, or {ANEW}; a run of another version goes on with the pararealize that wrote it"
            ) from error
        if not re.fullmatch("[0-9a-f]{64}", str(request.get("run"))):
            raise CheckpointError(f"{str(file)!r} does not say which run it is of; put it back, or {ANEW}")
        request = {key: value for key, value in request.items() if key not in ("schema", "version")}
        told = {key: request.get(key) for key in _TOLD[1:]}
        if request["run"] != _run_of({key: value for key, value in request.items() if key not in _TOLD}, told):
            raise CheckpointError(
                f"{str(file)!r} is not what was written: it is not the request that the run {request['run'][:12]}… "
                f"began with; put it back from a copy, or {ANEW}"
            )
        return request

    def _compare(self, earlier: Mapping[str, Any], request: Mapping[str, Any]) -> None:
        faults = differences(earlier, request)
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
            OutputError: the file was removed or changed, or the disk is full.
        """
        with self._output_errors(name):
            self._lines[name].append(lines)

    def line_files(self) -> dict[str, FileFact]:
        """Put the ``.jsonl`` files on the disk, and tell what they are now.

        Raises:
            OutputError: one is not what this process has written.
        """
        with self._output_errors("the metrics"):
            return {name: lines.settle() for name, lines in self._lines.items()}

    def truncate(self, files: Mapping[str, FileFact]) -> None:
        """Cut off the ``.jsonl`` files what a run appended after a checkpoint, and then takes anew.

        Args:
            files: what they were at the checkpoint.
        """
        with self._output_errors("the metrics"):
            for name, lines in self._lines.items():
                lines.truncate(files[name].size)

    def lines(self, name: str) -> list[str]:
        """The lines of one of the ``.jsonl`` files."""
        with self._output_errors(name):
            return read_file(self.path / name, most=MOST_BYTES).decode("utf-8").split("\n")[:-1]

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
            self.write(LATEST, latest_text(step))
            for old in self.checkpoints()[:-keep]:
                discard(old)
        return target

    def checkpoints(self) -> list[Path]:
        """All checkpoints, in the order of their steps, and what else has the name of one."""
        return checkpoints_in(self.checkpoint_folder)

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint."""
        return next(reversed(self.checkpoints()), None)

    def check(self, checkpoint: Path) -> PlainState:
        """What is no tensor of a checkpoint, see :func:`~pararealize.train.run.intact_checkpoint.check_checkpoint`."""
        return check_checkpoint(self.path, checkpoint, run=self.run)

    def check_place(self) -> None:
        """Make sure that the folder is the one in which this run began.

        Raises:
            OutputError: it is another one, or its request was changed.
            OSError: it is gone.
        """
        if self._content and read_file(self.path / REQUEST, most=MOST_BYTES) != self._content:
            raise OutputError(changed(self.path / REQUEST, "the folder is another one, or the request was edited"))

    @contextlib.contextmanager
    def _output_errors(self, what: str) -> Iterator[None]:
        """Raise errors of the system as :class:`OutputError`, with the checkpoint from which a run can go on."""
        try:
            self.check_place()
            yield
        except (CheckpointError, OutputError):
            raise
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            if not self._is_there():
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


def _shown(name: str) -> str:
    """A name from a file or a folder, without what would move the cursor of a terminal."""
    return name if name.isprintable() else ascii(name)
