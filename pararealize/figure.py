"""A matplotlib figure -> an SVG or PNG file that is whole or not there; the colours that all pictures share."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pararealize.control_characters import visible
from pararealize.errors import OutputError
from pararealize.files import whole_file
from pararealize.table import shortened

__all__ = [
    "BARS",
    "BLUE",
    "BOXES",
    "FAINT",
    "GRID",
    "INK",
    "LINE",
    "ORANGE",
    "PALE",
    "PAPER",
    "STAGES",
    "label",
    "save_figure",
]

INK = "#1f2933"  # names and headings
LINE = "#52606d"  # lines, and text beside names
FAINT = "#7b8794"  # what is said by the way
GRID = "#e4e7eb"
PAPER = "#fafbfc"  # behind the bars of a timeline
PALE, BLUE, ORANGE = "#9fb3c8", "#2b77b8", "#d9822b"  # curves and edges
# one colour a stage, that is a run of segments with the same output: light to read text on, dark for the edge
STAGES = [
    ("#d3e9fb", BLUE), ("#d5f2e3", "#2f8f63"), ("#e6dcf7", "#7753b8"), ("#fbdde6", "#b83d6b"),
    ("#e0f3f5", "#2a8a94"), ("#f1ead6", "#8c7430"),
]  # fmt: skip
BOXES = {"adapter": ("#f0f4f8", PALE), "coarse": ("#ffe9c7", ORANGE)}  # of a plan: fill, edge
# the bar of an action in a timeline, by its kind: fill forward, fill backward, edge, label
BARS = {
    "fine": (STAGES[0][0], "#eef6fd", "#5b87ad", INK),
    "coarse": ("#b35806", "#b35806", "#f6c99a", "white"),
    "adapter": ("#cdd6e0", "#e9edf2", LINE, INK),
    "relax": ("#cdd6e0", "#e9edf2", "#52796f", INK),
    "stem": (STAGES[1][0], "#eefaf3", "#52796f", INK),
    "head": (STAGES[1][0], "#eefaf3", "#52796f", INK),
}


def label(text: str, width: int = 200) -> str:
    r"""A name or another text that is not mathematics, as matplotlib is to draw it: letter by letter, in one line.

    Example:
        >>> print(label("Net$x_"), label("a\x1b[0m\nb"))
        Net\$x_ a\x1b[0m b
    """
    return shortened(visible(text).replace("\n", " ").replace("\t", " "), width).replace("$", r"\$")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure into an SVG or PNG file, which appears only when it is complete; equal figures give equal files.

    Args:
        figure: without a canvas; it is given one that needs no display.
        path: where to; what it ends in, ``.svg`` or ``.png``, is the format. An existing file is replaced.

    Returns:
        The path.

    Raises:
        OutputError: another ending, or the file cannot be written.
    """
    path = Path(path)
    kind = path.suffix.lower().removeprefix(".")
    if kind not in ("svg", "png"):
        raise OutputError(
            f"a picture is an .svg or a .png file, and {str(path)!r} ends in {path.suffix or 'nothing'!r}"
        )
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if kind == "svg" else {}  # the date and random ids would make equal figures differ
    try:
        with whole_file(path) as part, mpl.rc_context({"svg.hashsalt": "pararealize", "svg.fonttype": "path"}):
            figure.savefig(part, format=kind, dpi=160, metadata=metadata)
    except OSError as error:
        raise OutputError(
            f"cannot write the picture {str(path)!r}: {error.strerror or error}; name a folder that exists "
            f"and that you may write to"
        ) from error
    return path
