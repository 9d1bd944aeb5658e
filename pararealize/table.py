"""Rows of text -> aligned columns, and numbers as people write them: what plans, timelines and reports print."""

__all__ = ["count"]


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
