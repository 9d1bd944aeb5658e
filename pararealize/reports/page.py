"""Values -> one HTML file that shows them: nothing is fetched, nothing is run, and no name in it acts.

Every text goes through the template's escaping and through :func:`~pararealize.control_characters.visible`. The page
has a content security policy that allows its own style sheet and nothing else, no script and no address.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararealize.argument_types import typed_arguments
from pararealize.control_characters import visible
from pararealize.errors import OutputError
from pararealize.files import kind_of, open_file, whole_file
from pararealize.table import shortened

if TYPE_CHECKING:
    from jinja2 import Environment, Template

__all__ = ["check_report", "write_report"]

# how a report begins, and nothing else does
MARK = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="pararealize """
ENDINGS = (".html", ".htm")
LONGEST = 20_000  # characters of a text on the page


@typed_arguments(OutputError)
def write_report(
    path: str | PathLike[str], *values: Any, title: str = "", command: str = "", seed: int | None = None
) -> Path:
    """Write one HTML page that shows values of this library, which appears only when it is complete.

    The page is a single file that reads without network and without JavaScript, on a phone and in the dark. A figure
    has a table beside it. What a model or a file calls its parts is shown letter by letter and never acts.

    Args:
        path: where to, an ``.html`` file. A report that is there is replaced; anything else is not.
        values: what to show, in order: plans and chains of blocks (together they are one section), timelines,
            simulated and recorded (to one scale), trade-offs, calibrations, histories, scores, what ``restack`` did
            (``net.restacking``), and sections of one's own, :class:`~pararealize.reports.Section`.
        title: of the page; the model's class name when left out.
        command: what made the values, as it was typed.
        seed: that they were made with.

    Returns:
        The path.

    Raises:
        OutputError: a value is nothing that a page shows, the path is no ``.html`` file, something else stands there,
            or it cannot be written.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import mkdtemp
        >>> from pararealize import pararealize, simulate
        >>> from pararealize.models import resnet20
        >>> from pararealize.reports import write_report
        >>> plan = pararealize(resnet20(), n=3).plan
        >>> page = write_report(Path(mkdtemp()) / "resnet20.html", plan, simulate(plan, rate=1e12), title="ResNet-20")
        >>> "ResNet-20" in page.read_text(encoding="utf-8")
        True
    """
    from .sections import sections_of

    path = check_report(path)
    sections = sections_of(values, title=title)
    if not sections:
        raise OutputError("there is nothing to report; pass a plan, a timeline or another value that a page shows")
    text = _template().render(
        title=title or _title(values),
        command=command,
        seed=seed,
        versions=_versions(),
        style=_style(),
        sections=sections,
    )
    try:
        with whole_file(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(
            f"cannot write the report {str(path)!r}: {error.strerror or error}; name a folder that exists and that "
            "you may write to"
        ) from error
    return path


def check_report(path: str | PathLike[str]) -> Path:
    """Make sure that a report can be written there, before any work is done for it.

    Args:
        path: of the file.

    Returns:
        The path.

    Raises:
        OutputError: its name does not end in ``.html``, its folder is not there, or something else than a report is.
    """
    try:
        kind, folder = kind_of(path, follow=True), kind_of(Path(path).parent, follow=True)
    except OSError as error:
        raise OutputError(f"cannot write the report {str(path)!r}: {error.strerror or error}") from error
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise OutputError(f"a report is an .html file, and {str(path)!r} ends in {path.suffix or 'nothing'!r}")
    if folder != "folder":
        raise OutputError(f"cannot write the report {str(path)!r}: there is no folder {str(path.parent)!r}; make it")
    if kind is not None and not (kind == "file" and _is_report(path)):
        raise OutputError(
            f"{str(path)!r} is there already and is no report of pararealize, so it is not replaced; name another file"
        )
    return path


def _is_report(path: Path) -> bool:
    try:
        with open_file(path, follow=True) as file:
            return file.read(len(MARK)) == MARK
    except OSError as error:
        raise OutputError(f"cannot read {str(path)!r}: {error.strerror or error}; name another file") from error


def _title(values: Sequence[Any]) -> str:
    """The model's class name, of the first value that has one."""
    names = (getattr(value, "model", None) for value in values)
    chains = (getattr(getattr(value, "capture", None), "model", None) for value in values)
    name = next((name for name in names if isinstance(name, str) and name), None)
    chain = next((type(model).__name__ for model in chains if model is not None), None)
    return shortened(name or chain or "Report", 100)


def _versions() -> tuple[tuple[str, str], ...]:
    """What the values were made with."""
    return (
        ("pararealize", version("pararealize")),
        ("torch", version("torch")),
        ("Python", platform.python_version()),
        ("machine", f"{platform.system()} {platform.machine()}"),
    )


@cache
def _environment() -> Environment:
    """Templates that escape every text; a name that they do not get is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("pararealize.reports", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _visible(value: Any) -> Any:
    """A text of which no character acts; what is HTML already, and numbers, stay."""
    if isinstance(value, str) and not hasattr(value, "__html__"):
        return visible(shortened(value, LONGEST))
    return value


def _template() -> Template:
    return _environment().get_template("page.html")


@cache
def _style() -> str:
    return files("pararealize.reports").joinpath("template", "page.css").read_text(encoding="utf-8")
