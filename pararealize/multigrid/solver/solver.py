r"""A start value, levels, a map for each step -> values at the C-points: multigrid reduction in time.

Written once for forward and adjoint; every runtime must reproduce it. Nothing here knows of modules, graphs or devices:
a value is whatever can be added and subtracted. The adjoint is the same solve with time running backwards
(``Hierarchy.reversed``), whose steps are transposed derivatives.

Glossary of indices and letters, as in Günther, Ruthotto, Schroder, Cyr, Gauger, "Layer-Parallel Training of Deep
Residual Neural Networks" (arXiv 1812.04352):

- ``l``: level, 0 the finest; ``s``: step of a level, from its point s to its point s+1.
- ``Φ_s^l``: ``step(l, s, u)``; on level 0 the layer itself, on others ``u + c·h·F(u)`` with the first layer's weights.
- ``j``: interval of a level, which is step j of the next; interval j begins at C-point j.
- ``U_j``: value at C-point j of level 0, j = 0 … J; ``U_0`` is the start; ``U_J`` the end.
- ``a_{j+1}``: what arrives at the right end of interval j after F-relaxation from U_j; ``r_j = a_j - U_j``.
- ``k``: iteration; the first one is the coarse guess, each further one corrects it once.

Who needs what, where ranks own consecutive intervals of level 0:

==================  ====================================  =====================================================
operation           independent (parallel)                crosses from the owner of interval j to that of j+1
==================  ====================================  =====================================================
arrival(j)          in j: it needs U_j alone              nothing
C-relaxation (FCF)  in j                                  a_{j+1}, which becomes U_{j+1}
residual at j+1     in j                                  nothing where owner j keeps U_{j+1}, which it made itself
old_j = Φ^1_j(U_j)  in j; the same f(U_j) that relaxation nothing
                    begins with
march, correction   no: serial in j, J cheap steps        V_{j+1} = a_{j+1} + (Φ^1_j(V_j) - old_j)
last sweep          in j: it needs U_j alone              nothing
==================  ====================================  =====================================================

The right-hand side (a_{j+1}, old_j) stays with interval j. On levels above, an interval may lie on several ranks, and
its relaxation passes the value on at their border.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from pararealize.errors import MultigridError

from .hierarchy import Hierarchy
from .settings import Cycle, Relaxation, check_iterations

__all__ = ["Solution", "arrival", "arrivals", "march", "solve", "solve_and_sweep"]

Value: TypeAlias = Any  # whatever has + and -: the spaces differ between chains, so no one type fits all
StepMap: TypeAlias = Callable[[int, int, Value], Value]
Rhs: TypeAlias = Sequence[tuple[Value, Value]] | None  # (a_{s+1}, old_s) for every step s of a level


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """The values at the C-points, and the residual norms on the way.

    Attributes:
        points: ``U_0 … U_J``; the last one is as the last correction left it, before the last sweep.
        residuals: ``sqrt(Σ_j ‖a_j - U_j‖²)`` before the first, the second, … correction.
        size: ``sqrt(Σ_j ‖U_j‖²)``, where it was measured.
    """

    points: list[Value]
    residuals: list[float]
    size: float = 0.0


def solve(
    u: Value,
    hierarchy: Hierarchy,
    step: StepMap,
    *,
    iterations: int,
    relaxation: Relaxation = "F",
    cycle: Cycle = "V",
    start: Sequence[Value] | None = None,
    tolerance: float = 0.0,
    norm: Callable[[Sequence[Value]], float] | None = None,
) -> Solution:
    r"""Values at the C-points of the finest level after some iterations of multigrid.

    .. math::

        V_{j+1} &= \Phi^c_j(V_j) && \text{iteration 1} \\
        a_{j+1} &= \Phi_{(j+1)c-1} \circ \dots \circ \Phi_{jc} (U_j) && \text{iterations } 2 \dots k \\
        V_{j+1} &= a_{j+1} + \big(\Phi^c_j(V_j) - \Phi^c_j(U_j)\big), \quad U \leftarrow V

    With a_{j+1} = r_{j+1} + U_{j+1} this is the full approximation scheme; the bracket stands last, so that k = J
    iterations give the serial values bit for bit where steps are deterministic: once U_j stands still the bracket is
    zero. On more levels the correction is found by the same cycle one level up.

    Args:
        u: the start, ``U_0``.
        hierarchy: the levels.
        step: ``Φ_s^l`` as ``step(l, s, u)``.
        iterations: k of them; the first is the coarse guess, so that there are k-1 corrections.
        relaxation: ``"F"``, or ``"FCF"``, which costs another relaxation and carries values two intervals further.
        cycle: ``"V"``, or ``"F"``: after each return to a level another V-cycle from there.
        start: ``U_1 … U_J`` of an earlier solve; they take the place of the coarse guess, and all k iterations correct.
        tolerance: corrections end where the residual norm is at most this.
        norm: the norm of a list of residuals; left out, the Euclidean norm of numbers.

    Raises:
        MultigridError: an argument is none of the sort.

    Example:
        >>> from pararealize.multigrid.solver import make_hierarchy
        >>> levels = make_hierarchy([False] * 8, coarsening=2)
        >>> decay = lambda l, s, u: u - 0.1 * 2**l * u  # Φ(u) = u + h F(u) with F(u) = -u
        >>> solution = solve(1.0, levels, decay, iterations=4)
        >>> [f"{r:.1e}" for r in solution.residuals]
        ['1.5e-02', '2.7e-04', '2.6e-06']
        >>> round(arrival(levels, decay, 0, 3, solution.points[3]), 8), round(0.9**8, 8)  # the last sweep
        (0.43046721, 0.43046721)
    """
    check_iterations(iterations, relaxation, cycle)
    measure = norm or _euclidean_norm
    levels = _Levels(hierarchy, step, relaxation, cycle)
    points = levels.guess(u) if start is None else [u, *start]
    if len(points) != len(hierarchy.levels[1].steps) + 1:
        raise MultigridError(f"{len(points) - 1} starting values for {len(hierarchy.levels[1].steps)} C-points")
    residuals: list[float] = []
    for _ in range(iterations - (start is None)):  # the coarse guess was an iteration; a warm start has none
        points, arriving = levels.relax(0, points, None)
        residuals.append(measure([a - U for a, U in zip(arriving, points[1:], strict=True)]))
        if residuals[-1] <= tolerance:
            break
        points = levels.correct(0, points, arriving, cycle)
    return Solution(points=points, residuals=residuals)


def solve_and_sweep(
    u: Value,
    hierarchy: Hierarchy,
    step: StepMap,
    sweep: Callable[[int, Value], Value],
    *,
    norm: Callable[[Sequence[Value]], float],
    serial: bool = False,
    announce: Callable[[int, Value], None] | None = None,
    **settings: Any,
) -> tuple[Value, Solution]:
    """A whole pass: :func:`solve`, and the last sweep from every C-point at once.

    Args:
        u: the start.
        hierarchy: the levels.
        step: as :func:`solve` takes it.
        sweep: ``sweep(j, U_j)`` gives what arrives behind interval j, and records what it passes.
        norm: the norm of a list of residuals.
        serial: sweep through one interval after the other, from what arrives, instead.
        announce: called with j and ``U_j`` for every interval before the first sweep, the last interval first, so that
            a rank has sent what others sweep from before it begins with its own.
        **settings: of :func:`solve`.

    Returns:
        The value at the end; and the solution, with the residual norm that the last sweep found behind the others, and
        the norm of the points.
    """
    intervals = range(len(hierarchy.levels[0].intervals))
    if serial:
        for j in intervals:
            u = sweep(j, u)
        return u, Solution(points=[], residuals=[])
    solution = solve(u, hierarchy, step, norm=norm, **settings)
    points, residuals = solution.points, solution.residuals
    if announce is not None:
        for j in reversed(intervals):
            announce(j, points[j])
    arriving = [sweep(j, points[j]) for j in intervals]
    if not residuals or residuals[-1] > settings.get("tolerance", 0.0):  # otherwise the last one is of these points
        residuals.append(norm([a - U for a, U in zip(arriving, points[1:], strict=True)]))
    return arriving[-1], dataclasses.replace(solution, size=norm(points))


def advance(step: StepMap, level: int, s: int, u: Value, rhs: Rhs = None) -> Value:
    """The value at point s+1 of a level from that at point s: ``Φ(u)``, with a right-hand side ``a + (Φ(u) - old)``."""
    v = step(level, s, u)
    if rhs is None:
        return v
    a, old = rhs[s]
    return a + (v - old)


def arrival(hierarchy: Hierarchy, step: StepMap, level: int, j: int, u: Value, rhs: Rhs = None) -> Value:
    """F-relaxation of interval j from its C-point's value u, up to what arrives at the next C-point."""
    for s in range(*hierarchy.levels[level].intervals[j]):
        u = advance(step, level, s, u, rhs)
    return u


def arrivals(hierarchy: Hierarchy, step: StepMap, level: int, points: Sequence[Value], rhs: Rhs = None) -> list[Value]:
    """What arrives at C-points 1 … J; every interval for itself.

    The last interval comes first, so that ranks pass on what others need before they begin with their own.
    """
    count = len(hierarchy.levels[level].intervals)
    return [arrival(hierarchy, step, level, j, points[j], rhs) for j in reversed(range(count))][::-1]


def march(hierarchy: Hierarchy, step: StepMap, level: int, u: Value, rhs: Rhs = None) -> list[Value]:
    """The values at all points of a level, one step after the other."""
    steps = range(len(hierarchy.levels[level].steps))
    return list(itertools.accumulate(steps, lambda v, s: advance(step, level, s, v, rhs), initial=u))


@dataclasses.dataclass(frozen=True, slots=True)
class _Levels:
    """The cycles: each method takes values at the C-points of its level and gives better ones."""

    hierarchy: Hierarchy
    step: StepMap
    relaxation: Relaxation
    kind: Cycle

    def guess(self, u: Value) -> list[Value]:
        """Iteration 1: serial on the coarsest level, then relaxed on each finer one; F-cycles correct there too."""
        coarsest = len(self.hierarchy.levels) - 1
        points = march(self.hierarchy, self.step, coarsest, u)
        for level in range(coarsest - 1, 0, -1):
            if self.kind == "F":
                points = self.correct(level, *self.relax(level, points, None), "V")
            points = self.interpolate(level, points, None)
        return points

    def relax(self, level: int, points: Sequence[Value], rhs: Rhs) -> tuple[list[Value], list[Value]]:
        """F- or FCF-relaxation: the C-points after it, and what arrives at each."""
        arriving = arrivals(self.hierarchy, self.step, level, points, rhs)
        if self.relaxation == "FCF":
            points = [points[0], *arriving]
            arriving = arrivals(self.hierarchy, self.step, level, points, rhs)
        return list(points), arriving

    def correct(self, level: int, points: Sequence[Value], arriving: Sequence[Value], kind: Cycle) -> list[Value]:
        """Better values at the C-points, by the next level; its right-hand sides are the pairs (a, old)."""
        old = [self.step(level + 1, j, points[j]) for j in range(len(arriving))]
        return self.coarse(level + 1, points, list(zip(arriving, old, strict=True)), kind)

    def coarse(self, level: int, points: Sequence[Value], rhs: Rhs, kind: Cycle) -> list[Value]:
        """Better values at all points of a level with a right-hand side: serial on the coarsest, or by a cycle."""
        intervals = self.hierarchy.levels[level].intervals
        if not intervals:
            return march(self.hierarchy, self.step, level, points[0], rhs)
        c_points: list[Value] = [points[0], *(points[end] for _, end in intervals)]
        turns: tuple[Cycle, ...] = ("F", "V") if kind == "F" else ("V",)
        for turn in turns:
            c_points = self.correct(level, *self.relax(level, c_points, rhs), turn)
        return self.interpolate(level, c_points, rhs)

    def interpolate(self, level: int, c_points: Sequence[Value], rhs: Rhs) -> list[Value]:
        """The values at all points of a level: those at its C-points, and F-relaxation from there."""
        # From the last interval to the first, as in arrivals(), so that no rank keeps another waiting.
        points: list[Value] = [c_points[-1]]
        for j, (first, end) in reversed(list(enumerate(self.hierarchy.levels[level].intervals))):
            steps = range(first, end - 1)
            inner = itertools.accumulate(steps, lambda u, s: advance(self.step, level, s, u, rhs), initial=c_points[j])
            points += reversed(list(inner))
        return points[::-1]


def _euclidean_norm(residuals: Sequence[Value]) -> float:
    return math.sqrt(sum(abs(r) ** 2 for r in residuals))
