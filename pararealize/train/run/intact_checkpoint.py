"""A run's folder -> the checkpoint to go on from: the newest one, or the newest that is what was written."""

import json
from pathlib import Path

from pydantic import TypeAdapter

from pararealize.errors import CheckpointError
from pararealize.files import file_digest, kind_of, remove
from pararealize.manifest import read_document

from .checkpoint import check_run_state, step_of
from .plain_state import PlainState

__all__ = [
    "ANEW",
    "CHECKPOINTS",
    "LATEST",
    "LINES",
    "METRICS",
    "TIMES",
    "check_checkpoint",
    "checkpoint_to_go_on_from",
    "checkpoints_in",
    "latest_text",
]

CHECKPOINTS = "checkpoints"
METRICS, TIMES = "metrics.jsonl", "times.jsonl"
LINES = (METRICS, TIMES)
LATEST = "latest.json"
SCHEMA, VERSION = "pararealize.latest-checkpoint", 1
DAMAGED = "damaged-"  # how the name of a checkpoint begins that a run passed over
ANEW = "start anew with force=True (--force)"
_LATEST = TypeAdapter(dict[str, str | int])


def checkpoints_in(folder: Path) -> list[Path]:
    """All checkpoints, in the order of their steps, and what else has the name of one."""
    steps = {path: step_of(path) for path in folder.glob("step-*")}
    return sorted((path for path, step in steps.items() if step is not None), key=lambda path: (steps[path], path))


def latest_text(step: int) -> str:
    """What ``latest.json`` holds: of which step the newest checkpoint is, so that its loss is noticed."""
    return json.dumps({"schema": SCHEMA, "version": VERSION, "step": step}) + "\n"


def check_checkpoint(folder: Path, checkpoint: Path, *, run: str) -> PlainState:
    """What is no tensor of a checkpoint, all of which, and all lines before it, are what was written.

    Args:
        folder: of the run, with its files of lines.
        checkpoint: one in it.
        run: whose it has to be.

    Raises:
        CheckpointError: something is not; says what.
    """
    if (kind := kind_of(checkpoint)) != "folder":
        raise CheckpointError(f"{str(checkpoint)!r} is a {kind} and no folder")
    plain = check_run_state(checkpoint, run=run)
    if set(plain.lines) != set(LINES):
        raise CheckpointError(f"{str(checkpoint)!r} is of other files of lines than {' and '.join(LINES)}")
    for name, fact in plain.lines.items():
        file = folder / name
        try:
            size, sha256 = file_digest(file, fact.size)
        except OSError as error:
            raise CheckpointError(f"{str(file)!r} cannot be read: {error.strerror or error}") from error
        if size < fact.size:
            raise CheckpointError(f"{str(file)!r} has {size} bytes, and had {fact.size} at {checkpoint.name}")
        if sha256 != fact.sha256:
            raise CheckpointError(
                f"{str(file)!r} is not what was written up to {checkpoint.name}: the SHA-256 of its first {size} "
                f"bytes was {fact.sha256[:12]}… and is {sha256[:12]}…"
            )
    return plain


def checkpoint_to_go_on_from(folder: Path, *, run: str, previous: bool) -> Path | None:
    """The newest checkpoint of a run, or, where it is damaged and that is asked for, the newest before it that is not.

    Those that are passed over get names of another kind, so that none of them counts as the newest later.

    Args:
        folder: of the run.
        run: which one it is.
        previous: whether damaged ones may be passed over.

    Raises:
        CheckpointError: it is damaged or lost, and nobody asked for one before it, or none of these is intact.
    """
    checkpoints = checkpoints_in(folder / CHECKPOINTS)
    faults: list[str] = []
    for checkpoint in reversed(checkpoints):
        try:
            check_checkpoint(folder, checkpoint, run=run)
        except CheckpointError as error:
            faults.append(str(error))
            continue
        if faults and not previous:
            raise CheckpointError(
                f"{faults[0]}; an earlier checkpoint, {checkpoint.name}, is intact: go on from it with "
                'resume_from="previous"'
            )
        _check_latest(folder, checkpoint, previous=previous)
        for damaged in checkpoints[checkpoints.index(checkpoint) + 1 :]:
            aside = damaged.with_name(DAMAGED + damaged.name)
            remove(aside)
            damaged.rename(aside)
        return checkpoint
    if faults:
        raise CheckpointError(
            f"{faults[0]}; no earlier checkpoint in {str(folder / CHECKPOINTS)!r} is intact; put the files back from a "
            f"copy, or {ANEW}"
        )
    _check_latest(folder, None, previous=previous)
    return None


def _check_latest(folder: Path, checkpoint: Path | None, *, previous: bool) -> None:
    """Refuse to begin anew where there was a checkpoint, or to go on, unasked, from one before the newest there was."""
    if kind_of(folder / LATEST) is None:
        return
    step = read_document(folder / LATEST, _LATEST, schema=SCHEMA, version=VERSION).get("step")
    if not isinstance(step, int):
        raise CheckpointError(f"{str(folder / LATEST)!r} names no step; put it back from a copy, or {ANEW}")
    places = checkpoints_in(folder / CHECKPOINTS)
    places += [path.with_name(path.name.removeprefix(DAMAGED)) for path in (folder / CHECKPOINTS).glob(f"{DAMAGED}*")]
    if checkpoint is not None and (previous or any((step_of(place) or 0) >= step for place in places)):
        return
    earlier = "" if checkpoint is None else f' go on from {checkpoint.name} with resume_from="previous",'
    raise CheckpointError(
        f"{str(folder / LATEST)!r} tells of a checkpoint of step {step}, which is not in "
        f"{str(folder / CHECKPOINTS)!r}; put it back from a copy,{earlier} or {ANEW}"
    )
