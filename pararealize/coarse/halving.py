"""A size, a smaller one -> the halvings, by 3-wide kernels of stride 2, that lead from the one near to the other."""

from __future__ import annotations

from functools import lru_cache

__all__ = ["halved", "halvings"]


def halvings(source: int, target: int) -> tuple[int, ...]:
    """The paddings of the 3-wide kernels of stride 2 that bring a size as near to a smaller one as halving can.

    Padding 1 turns L into ⌈L/2⌉, padding 0 into ⌈L/2⌉ - 1 = ⌊(L-1)/2⌋; both follow other image sizes as the network's
    own strided layers do. Where no path ends at the target, the paddings are 1 and the end lies above it.

    >>> halvings(32, 8), halvings(224, 55), halvings(27, 13), halvings(24, 8), halvings(8, 16)
    ((1, 1), (1, 0), (0,), (1,), ())
    """
    steps, size = 0, source
    while size > target and -(-size // 2) >= target:
        size = -(-size // 2)
        steps += 1
    exact = _paddings(source, target, steps)
    return (1,) * steps if exact is None else exact


def halved(size: int, padding: int) -> int:
    """The size behind a 3-wide kernel of stride 2."""
    return (size + 2 * padding - 3) // 2 + 1


@lru_cache(maxsize=4096)  # two paddings a step, and yet only a few different sizes behind so many steps
def _paddings(size: int, target: int, steps: int) -> tuple[int, ...] | None:
    """The path of exactly so many halvings from size to target, padding 1 as early as possible, or None."""
    if steps == 0:
        return () if size == target else None
    for padding in (1, 0):
        rest = _paddings(halved(size, padding), target, steps - 1) if size + 2 * padding >= 3 else None
        if rest is not None:
            return (padding, *rest)
    return None
