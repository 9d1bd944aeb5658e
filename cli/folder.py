"""A path on the command line -> a folder for a command's files, which appears there complete or not at all."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

__all__ = [
    "CALIBRATION_FILES",
    "FILES",
    "PLAN_FILES",
    "RESTACK_FILES",
    "SCHEDULE_FILES",
    "TRADEOFF_FILES",
    "output_folder",
    "writing",
]

FILES = frozenset(
    {
        "manifest.json", "network.json", "plan.json", "weights.safetensors", "buffers.safetensors",
        "original.safetensors", "model.py", "network.svg", "network.png", "__pycache__",
    }
)  # fmt: skip
CALIBRATION_FILES = FILES | {"calibration.json", "calibration.svg", "calibration.png", "fine-tuning.json"}
RESTACK_FILES = frozenset({"restacking.json", "weights.safetensors", "model.py", "__pycache__"})
TRADEOFF_FILES = frozenset({"tradeoff.json", "tradeoff.svg", "tradeoff.png", "plan.json"})
PLAN_FILES = frozenset({"strategies.json", "strategies.svg", "strategies.png"})
SCHEDULE_FILES = frozenset({"timeline.json", "trace.json", "timeline.svg", "timeline.png"})


@contextmanager
def output_folder(path: Path | None, *, force: bool, files: frozenset[str] = FILES) -> Iterator[Path | None]:
    """Give a temporary folder beside ``path`` to write into, which is renamed to ``path`` if all goes well.

    It is made before any work is done, so that a folder that cannot be written is known early. An existing folder is
    replaced only with ``force``, and only if it holds nothing but ``files``, which the command writes. Without a
    ``path`` there is no folder.

    Raises:
        OutputError: ``path`` exists already or cannot be written.
    """
    if path is None:
        yield None
        return
    from pararealize.errors import OutputError
    from pararealize.files import whole_folder

    _check_free(path, force, files)
    with ExitStack() as writing:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = writing.enter_context(whole_folder(path, replace=True))
        except OSError as error:
            raise OutputError(
                f"cannot write to {str(path.parent)!r}: {error.strerror or error}; name another folder with --out"
            ) from error
        yield temporary
        _check_free(path, force, files)
        try:
            writing.close()
        except OSError as error:
            raise OutputError(
                f"cannot put the results at {str(path)!r}: {error.strerror or error}; name another folder with --out"
            ) from error


@contextmanager
def writing(path: Path | None) -> Iterator[None]:
    """Around what writes a command's files: the system's errors become one that names the folder ``path``.

    Raises:
        OutputError: a file cannot be written.
    """
    from safetensors import SafetensorError

    from pararealize.errors import OutputError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"cannot write the files of {str(path)!r}: {reason}; free the disk, or name another folder with --out"
        ) from error


def _check_free(path: Path, force: bool, files: frozenset[str]) -> None:
    from pararealize.errors import OutputError
    from pararealize.files import kind_of

    try:
        kind, target = kind_of(path), kind_of(path, follow=True)
    except OSError as error:
        raise OutputError(f"cannot write to {str(path)!r}: {error.strerror}; name another folder with --out") from error
    if kind is None:
        return
    if kind == "link" or target != "folder":  # a link would be replaced, and what it leads to stay as it is
        what = "a link that leads nowhere" if target is None else f"a {kind} and not a folder"
        raise OutputError(f"{str(path)!r} is {what}; name another folder with --out")
    if not force:
        raise OutputError(f"{str(path)!r} is there already; name another folder with --out, or replace it with --force")
    others = sorted(entry.name for entry in path.iterdir() if entry.name not in files)
    if others:
        listed = ", ".join(others[:3] + ["…"] * (len(others) > 3))
        raise OutputError(
            f"{str(path)!r} holds what this command did not write ({listed}), so --force does not replace it; "
            f"name another folder with --out"
        )
