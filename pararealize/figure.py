"""A matplotlib figure -> an SVG or PNG file that is whole or not there; the colours that all pictures share."""

from pathlib import Path
from typing import Literal

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pararealize.errors import OutputError
from pararealize.files import whole_file

__all__ = ["FAINT", "INK", "LINE", "save_figure"]

INK = "#1f2933"
FAINT = "#7b8794"
LINE = "#52606d"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write beside the file and rename: a reader sees the old picture or the new one, never half of one."""
    path = Path(path)
    kind: Literal["svg", "png"]
    if path.suffix.lower() not in {".svg", ".png"}:
        raise OutputError(
            f"a picture is an .svg or a .png file, and {str(path)!r} ends in {path.suffix or 'nothing'!r}"
        )
    kind = "svg" if path.suffix.lower() == ".svg" else "png"
    FigureCanvasAgg(figure)
    metadata = {"Date": None} if kind == "svg" else {}
    try:
        with whole_file(path) as part, mpl.rc_context({"svg.hashsalt": "pararealize", "svg.fonttype": "path"}):
            figure.savefig(part, format=kind, dpi=160, metadata=metadata)
    except OSError as error:
        raise OutputError(
            f"cannot write the picture {str(path)!r}: {error.strerror or error}; name a folder that exists "
            f"and that you may write to"
        ) from error
    return path
