r"""A name, or coefficients -> a Runge-Kutta table that has checked itself: row sums, explicitness, order conditions.

A table of s stages is one step of size h for y' = f(y):

    k_i = f(x + h · Σ_{j<i} a_ij k_j),  i = 1..s        y = x + h · Σ_i b_i k_i        c_i = Σ_j a_ij

It has order p where Φ(t) = 1/γ(t) for every rooted tree t of at most p nodes (Butcher): there are 200 of them up to
order 8 and 486 up to order 9. Coefficients are exact, so the conditions hold exactly or not at all.

Source: J. C. Butcher, "Numerical Methods for Ordinary Differential Equations", chapter 31; J. H. Verner, "Explicit
Runge-Kutta methods with estimates of the local truncation error", SIAM J. Numer. Anal. 15(4), 1978.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import json
import math
import numbers
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib import resources
from typing import TypeAlias

from pararealize.errors import TableauError
from pararealize.table import aligned, quantity

__all__ = ["SCHEMES", "Coefficient", "Surd", "Tableau", "rooted_trees", "stacked_euler", "tableau", "verner"]

_BITS = 320  # of fixed-point arithmetic for coefficients that are exact
_EXACT, _ROUNDED = Fraction(1, 1 << 240), Fraction(1, 10**9)  # residual of a condition, relative to its terms
_ORDERS = 12  # the highest order that is checked; there are 4766 trees of 12 nodes


@dataclasses.dataclass(frozen=True, slots=True)
class Surd:
    """The number (p + q·√root) / d, of integers.

    Example:
        >>> print(Surd(6, 1, 15), float(Surd(6, 1, 15)))
        (6 + 1·√6)/15 0.5632993161855452
    """

    p: int
    q: int
    d: int
    root: int = 6

    def scaled(self, bits: int) -> int:
        """The integer nearest to 2^bits times this number, give or take one."""
        root = math.isqrt(self.q * self.q * self.root << 2 * bits)
        return ((self.p << bits) + (root if self.q >= 0 else -root)) // self.d

    def __float__(self) -> float:
        return float(Fraction(self.scaled(_BITS), 1 << _BITS))

    def __bool__(self) -> bool:
        return bool(self.p or self.q)

    def __str__(self) -> str:
        sign = "+" if self.q >= 0 else "-"
        return f"({self.p} {sign} {abs(self.q)}·√{self.root})/{self.d}" if self.q else str(Fraction(self.p, self.d))


Coefficient = int | Fraction | Surd | float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Tableau:
    """A Butcher tableau of an explicit Runge-Kutta method.

    Args:
        name: what it is called in messages.
        a: one row a stage; row i (from 1) has i - 1 entries, or as many as there are stages.
        b: the weights of the stages in the result.
        c: the stages' times, which must be the sums of the rows; those sums where left out.
        order: the order that it claims, 0 to 12, which is checked.
        total: what ``b`` sums to, the step in units of h: 1, save for several Euler steps stacked in one table.

    Coefficients are ints, Fractions, :class:`Surd` or floats; conditions on floats are checked to nine digits.

    Raises:
        TableauError: it is implicit, a sum is wrong, or an order condition does not hold; all faults at once.

    Example:
        >>> from fractions import Fraction
        >>> heun = Tableau(name="heun", a=[[], [1]], b=[Fraction(1, 2), Fraction(1, 2)], order=2)
        >>> print(heun)
        heun: 2 stages, order 2
        0 │
        1 │ 1
          │ 1/2 1/2
        >>> Tableau(name="heun", a=[[], [1]], b=[Fraction(1, 2), Fraction(1, 2)], order=3)
        Traceback (most recent call last):
          ...
        pararealize.errors.TableauError: tableau 'heun' is not of order 3: 2 of 4 order conditions do not hold, ...
    """

    name: str
    a: Sequence[Sequence[Coefficient]]
    b: Sequence[Coefficient]
    c: Sequence[Coefficient] | None = None
    order: int = 1
    total: int = 1

    def __post_init__(self) -> None:
        try:
            rows, b = tuple(map(tuple, self.a)), tuple(self.b)
        except TypeError as error:
            raise TableauError(f"tableau {self.name!r}: {error}; pass a as rows of numbers and b as numbers") from error
        c = None if self.c is None else tuple(self.c)
        faults = list(_shape_faults(rows, b, c))
        if isinstance(self.order, bool) or not isinstance(self.order, int) or not 0 <= self.order <= _ORDERS:
            faults.append(f"claims order {self.order!r}; an integer from 0 to {_ORDERS} can be checked")
        if faults:
            raise TableauError(f"tableau {self.name!r} {'; and '.join(faults)}")
        implicit = [(i, j) for i, row in enumerate(rows) for j in range(i, len(row)) if row[j]]
        if implicit:
            i, j = implicit[0]
            faults.append(
                f"is implicit: a[{i + 1},{j + 1}] = {rows[i][j]} lies on or above the diagonal, so that a stage needs "
                "itself or a later one; take an explicit method"
            )
        a = tuple(tuple(row[:i]) for i, row in enumerate(rows))  # below the diagonal
        conditions = _Conditions(a, b, self.total)
        c = tuple(map(_sum, a)) if c is None else c
        faults += conditions.row_faults(c)
        for name, value in (("a", a), ("b", b), ("c", c)):
            object.__setattr__(self, name, value)  # past the frozen dataclass: sequences become tuples once, here
        faults += conditions.order_faults(self.order) if not faults else []
        if faults:
            raise TableauError(f"tableau {self.name!r} {'; and '.join(faults)}")

    @property
    def stages(self) -> int:
        """s, how many times f is called."""
        return len(self.b)

    @property
    def amplification(self) -> float:
        """The largest sum of absolute values in a row of a: how much of f reaches a later f; 2307 for ``rk8``."""
        return max(sum(abs(float(entry)) for entry in row) for row in self.a)

    @property
    def maps(self) -> int:
        """How many values are alive at most while an f is called: x, that f's input, the sum of the result, and k's.

        Example:
            >>> {name: tableau(name).maps for name in SCHEMES}
            {'euler': 1, 'midpoint': 2, 'rk4': 3, 'rk4-last': 2, 'rk8': 11}
        """
        return max(self._alive(i) for i in range(self.stages))

    def _alive(self, i: int) -> int:
        """Values alive while stage i (from 0) is called."""
        own_input = any(self.a[i])
        later = self.a[i + 1 :]
        summed = any(self.b[:i])
        x = bool(later) or not summed or not own_input
        return x + own_input + summed + sum(any(row[j] for row in later) for j in range(i))

    def __str__(self) -> str:
        assert self.c is not None
        rows = [(str(time), f"│ {' '.join(map(str, row))}") for time, row in zip(self.c, self.a)]
        rows.append(("", f"│ {' '.join(map(str, self.b))}"))
        return f"{self.name}: {quantity(self.stages, 'stage')}, order {self.order}\n{aligned(rows, 'rl', gap=1)}"


def _shape_faults(
    a: tuple[tuple[Coefficient, ...], ...], b: tuple[Coefficient, ...], c: tuple[Coefficient, ...] | None
) -> Iterator[str]:
    stages = len(a)
    if not stages or len(b) != stages or (c is not None and len(c) != stages):
        lengths = f"{stages} rows a, {len(b)} weights b" + ("" if c is None else f", {len(c)} times c")
        yield f"has {lengths}; give one of each for every stage"
    uneven = [i + 1 for i, row in enumerate(a) if len(row) not in (i, stages)]
    if uneven:
        yield f"has rows {uneven} of another length; row i of {stages} has i - 1 entries, or {stages}"
    entries = [*itertools.chain.from_iterable(a), *b, *(c or ())]
    wrong = [entry for entry in entries if isinstance(entry, bool) or not isinstance(entry, numbers.Real | Surd)]
    wrong += [entry for entry in entries if isinstance(entry, float) and not math.isfinite(entry)]
    if wrong:
        yield f"has the entry {wrong[0]!r}; entries are finite ints, Fractions, Surds or floats"


def _sum(row: Sequence[Coefficient]) -> Coefficient:
    exact = [entry for entry in row if not isinstance(entry, Surd | float)]
    return sum(exact, Fraction(0)) if len(exact) == len(row) else math.fsum(map(float, row))


class _Conditions:
    """Row sums and order conditions of a table, in fixed-point arithmetic with 320 bits behind the point.

    Floats would not do: Verner's coefficients, 2307 in one row, cancel to conditions as small as 1/γ(t). With integers
    of 320 bits a condition that holds leaves less than 2^-240 of its terms, without arithmetic in ℚ(√6).
    """

    def __init__(self, a: Sequence[Sequence[Coefficient]], b: Sequence[Coefficient], total: int) -> None:
        self.a = [[_scaled(entry) for entry in row] for row in a]
        self.b = [_scaled(entry) for entry in b]
        self.total = total
        self.tolerance = _ROUNDED if any(isinstance(entry, float) for entry in itertools.chain(b, *a)) else _EXACT
        self._weights: dict[Tree, list[int]] = {}

    def row_faults(self, c: Sequence[Coefficient]) -> Iterator[str]:
        for i, (row, time) in enumerate(zip(self.a, c, strict=True), start=1):
            tolerance = _ROUNDED if isinstance(time, float) else self.tolerance
            if abs(sum(row) - _scaled(time)) > tolerance * max(_scaled(1), *map(abs, row), 0):
                yield f"does not sum: row {i} of a sums to {sum(row) / (1 << _BITS):.12g} and c[{i}] is {time}"

    def order_faults(self, order: int) -> Iterator[str]:
        """The conditions that do not hold: Σ_i b_i u_i(t) = total^|t| / γ(t)."""
        if order and self._fails(()):
            weights = sum(self.b) / (1 << _BITS)
            yield f"does not sum: the weights b sum to {weights:.12g} and not to {self.total}"
            return
        trees = [tree for nodes in range(1, order + 1) for tree in rooted_trees(nodes)]
        failures = [tree for tree in trees if self._fails(tree)]
        if failures:
            nodes = size(failures[0])
            yield (
                f"is not of order {order}: {len(failures)} of {len(trees)} order conditions do not hold, the first for "
                f"the tree {failures[0]} of {nodes} nodes; claim order {nodes - 1}, or mend a coefficient"
            )

    def _fails(self, tree: Tree) -> bool:
        terms = [weight * entry >> _BITS for weight, entry in zip(self.b, self._weight(tree), strict=True)]
        expected = Fraction(self.total ** size(tree) << _BITS, density(tree))
        largest: Fraction = max([expected, *(Fraction(abs(term)) for term in terms)])
        return abs(sum(terms) - expected) > self.tolerance * largest

    def _weight(self, tree: Tree) -> list[int]:
        """u(t) for every stage: the product over the root's children of Σ_j a_ij u_j(child)."""
        if tree not in self._weights:
            product = [1 << _BITS] * len(self.b)
            for child in tree:
                inner = self._weight(child)
                sums = [sum(a * u for a, u in zip(row, inner, strict=False)) >> _BITS for row in self.a]
                product = [p * s >> _BITS for p, s in zip(product, sums, strict=True)]
            self._weights[tree] = product
        return self._weights[tree]


def _scaled(value: Coefficient) -> int:
    return value.scaled(_BITS) if isinstance(value, Surd) else round(Fraction(value) * (1 << _BITS))


# Rooted trees -------------------------------------------------------------------------------------------------------

Tree: TypeAlias = "tuple[Tree, ...]"  # a root's children, each a tree; () is a single node


@functools.cache
def rooted_trees(nodes: int) -> tuple[Tree, ...]:
    """All rooted trees of so many nodes, each as the tuple of its root's subtrees.

    Example:
        >>> rooted_trees(3)
        ((((),),), ((), ()))
        >>> [len(rooted_trees(nodes)) for nodes in range(1, 10)]
        [1, 1, 2, 4, 9, 20, 48, 115, 286]
    """
    return tuple(_forests(nodes - 1, nodes - 1))


def _forests(nodes: int, largest: int, below: int | None = None) -> Iterator[Tree]:
    """Multisets of trees with so many nodes in all; ``below`` ends the trees of ``largest`` nodes that may be taken."""
    if nodes == 0:
        yield ()
        return
    for count in range(min(nodes, largest), 0, -1):
        trees = rooted_trees(count)
        end = below if count == largest and below is not None else len(trees)
        for i in range(end):
            for rest in _forests(nodes - count, count, i + 1):
                yield (trees[i], *rest)


def size(tree: Tree) -> int:
    """The number of nodes, |t|."""
    return 1 + sum(map(size, tree))


def density(tree: Tree) -> int:
    """γ(t), the product over all nodes of the sizes of the subtrees that they are roots of."""
    return size(tree) * math.prod(map(density, tree))


# Tables by name -----------------------------------------------------------------------------------------------------

SCHEMES = ("euler", "midpoint", "rk4", "rk4-last", "rk8")


@functools.cache
def tableau(name: str) -> Tableau:
    """The table of a scheme: ``euler``, ``midpoint``, ``rk4``, ``rk4-last`` or ``rk8``.

    ``rk4-last`` has the stages of ``rk4`` and gives x + h·k_4: no blending, one map less to hold, order 1.
    ``rk8`` is Verner's formula of order 8, of 14 stages (:func:`verner`).

    Raises:
        TableauError: there is no such scheme.

    Example:
        >>> print(tableau("rk4"))
        rk4: 4 stages, order 4
          0 │
        1/2 │ 1/2
        1/2 │ 0 1/2
          1 │ 0 0 1
            │ 1/6 1/3 1/3 1/6
    """
    half, third, sixth = Fraction(1, 2), Fraction(1, 3), Fraction(1, 6)
    weights: dict[str, tuple[tuple[Coefficient, ...], int]] = {  # b and the order; all have the first rows of one a
        "euler": ((1,), 1),
        "midpoint": ((0, 1), 2),
        "rk4": ((sixth, third, third, sixth), 4),
        "rk4-last": ((0, 0, 0, 1), 1),
    }
    if name in weights:
        b, order = weights[name]
        a, c = ((), (half,), (0, half), (0, 0, 1)), (0, half, half, 1)
        return Tableau(name=name, a=a[: len(b)], b=b, c=c[: len(b)], order=order)
    if name == "rk8":
        return verner(8)
    close = difflib.get_close_matches(str(name), SCHEMES, n=1)
    suggestion = f"; did you mean {close[0]!r}?" if close else ";"
    raise TableauError(f"there is no scheme {name!r}{suggestion} take one of {', '.join(SCHEMES)}, or pass a Tableau")


def stacked_euler(stages: int) -> Tableau:
    """So many steps of Euler's method in one table: what a chain of residual blocks is already, h = 1 a block.

    Example:
        >>> print(stacked_euler(3))
        euler×3: 3 stages, order 1
        0 │
        1 │ 1
        2 │ 1 1
          │ 1 1 1
    """
    a = [[1] * i for i in range(stages)]
    return Tableau(name=f"euler×{stages}", a=a, b=[1] * stages, c=range(stages), order=1, total=stages)


@functools.cache
def verner(order: int) -> Tableau:
    """Verner's formulas of 1978: order 8 with 14 stages, or the embedded one of order 9 with 16.

    Coefficients are in ℚ(√6) and exact. Those in row 12 of a are large, 2307 in absolute value together: where f has
    no normalisation at its head, the stages blow up.

    Raises:
        TableauError: the order is neither 8 nor 9.

    Example:
        >>> verner(8).stages, verner(9).stages, round(verner(8).amplification)
        (14, 16, 2307)
    """
    if order not in (8, 9):
        raise TableauError(f"Verner's pair has formulas of orders 8 and 9, and not of {order!r}; pass one of them")
    table = json.loads(resources.files(__package__).joinpath("verner_rk89.json").read_text(encoding="utf-8"))
    stages = 14 if order == 8 else 16
    indices = [str(i) for i in range(1, stages + 1)]

    def row(entries: dict[str, list[int]], length: int) -> tuple[Coefficient, ...]:
        numbers = (entries.get(j, [0, 0, 1]) for j in indices[:length])
        return tuple(Surd(p, q, d) if q else Fraction(p, d) for p, q, d in numbers)

    a = [row(table["a"].get(i, {}), int(i) - 1) for i in indices]
    weights = row(table[f"b{order}"], stages)
    return Tableau(name=f"rk{order}", a=a, b=weights, c=row(table["c"], stages), order=order)
