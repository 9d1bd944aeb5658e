"""Rows of text -> aligned columns, and numbers as people write them: all that the library prints as a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest

from .control_characters import visible

__all__ = ["aligned", "billions", "count", "duration", "from_to", "quantity", "share", "shortened", "time_unit"]


def aligned(
    rows: Sequence[Sequence[str | None]],
    columns: str = "",
    *,
    gap: int = 2,
    least: Sequence[int] = (),
    width: int | None = None,
    missing: str = "",
) -> str:
    """A line a row, with every column as wide as its widest cell.

    Args:
        rows: of equally many cells, the heading first; ``None`` is a missing cell.
        columns: a letter for each of the first columns, as in LaTeX's ``tabular``: ``l`` for words, on the left, ``r``
            for numbers, on the right; columns without a letter hold numbers.
        gap: spaces between two columns.
        least: the least width of each of the first columns, in characters.
        width: the most characters of a line; the last column of words is cut off to keep to it.
        missing: what stands in a missing cell.

    Example:
        >>> print(aligned([("block", "kind", "error"), ("C2", "conv 1×1", "0.5"), ("C3", "identity", None)], "ll"))
        block  kind      error
        C2     conv 1×1    0.5
        C3     identity
    """
    cells = [[missing if cell is None else visible(cell).replace("\n", " ") for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    widths = [max(pair) for pair in zip_longest(widths, least, fillvalue=0)]
    words = columns.rfind("l")
    if width is not None and words >= 0:
        excess = sum(widths) + gap * (len(widths) - 1) - width
        widths[words] = max(widths[words] - max(excess, 0), 1)
    sides = ["<" if letter == "l" else ">" for letter in columns.ljust(len(widths), "r")]
    lines = []
    for row in cells:
        padded = (f"{shortened(cell, w):{side}{w}}" for cell, side, w in zip(row, sides, widths, strict=True))
        lines.append((" " * gap).join(padded).rstrip())
    return "\n".join(lines)


def shortened(text: str, width: int) -> str:
    """Text of at most so many characters; the last of a longer one is an ellipsis.

    Example:
        >>> shortened("distilled", 9), shortened("distilled", 6)
        ('distilled', 'disti…')
    """
    return text if len(text) <= width else text[: width - 1] + "…"


def count(number: float) -> str:
    """A number as people write it: three digits or so, and a letter.

    Example:
        >>> count(640), count(41_200), count(10_351_044), count(2.5e9)
        ('640', '41.2k', '10.35M', '2.50G')
    """
    scales = [(1e12, "T", 2, 5e6), (1e9, "G", 2, 5e3), (1e6, "M", 2, 50), (1e3, "k", 1, 0.5)]
    for size, letter, digits, half in scales:
        if number >= size - half:  # what the smaller scale would round up to 1000
            return f"{number / size:.{digits}f}{letter}"
    return f"{number:.0f}"


def quantity(number: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> quantity(1, "segment"), quantity(3, "segment")
        ('1 segment', '3 segments')
    """
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def from_to(numbers: Sequence[int]) -> str:
    """The first and the last of consecutive numbers, or nothing where there are none.

    Example:
        >>> from_to([2, 3, 4]), from_to([2]), from_to([])
        ('2–4', '2', '')
    """
    return "–".join(str(number) for number in dict.fromkeys([*numbers[:1], *numbers[-1:]]))


def billions(number: float) -> str:
    """A number in units of 10⁹, as GFLOPs are written in a column of their own.

    Example:
        >>> billions(870_000_000)
        '0.870'
    """
    return f"{number / 1e9:.3f}"


def share(part: float, digits: int = 0) -> str:
    """A share of 1 in per cent.

    Example:
        >>> share(0.873), share(0.873, 2)
        ('87 %', '87.30 %')
    """
    return f"{100 * part:.{digits}f} %"


def duration(seconds: float) -> str:
    """Seconds as people write them.

    Example:
        >>> duration(1.2), duration(0.00345), duration(12.34e-6)
        ('1.2 s', '3.45 ms', '12.3 µs')
    """
    unit, scale = time_unit(seconds)
    return f"{seconds * scale:.3g} {unit}" if seconds * scale < 1000 else f"{seconds * scale:.0f} {unit}"


def time_unit(seconds: float) -> tuple[str, float]:
    """The unit that seconds of this size are written in, and how many of it a second has.

    Example:
        >>> time_unit(0.25)
        ('ms', 1000.0)
    """
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return unit, scale
    return "µs", 1e6
