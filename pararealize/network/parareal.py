"""Adapters, segments and coarse maps as plain callables in, corrected outputs out: the mathematics, written once.

Every runtime of this package must reproduce these few lines, in outputs and in every gradient. Nothing here knows of
modules, devices or graphs: a value is whatever can be added and subtracted, such as a tensor or a float.

Glossary of indices and letters, as in Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural
Network" (section 3; the longer paper is arXiv 2103.08802):

- ``N``: number of segments.
- ``j``: segment, 1 … N; interface j lies behind segment j, interface 0 before the first.
- ``k``: parareal iteration; 0 is the first guess.
- ``C^j : X → X_{j-1}``: adapter, ``adapters[j-1]``; ``C^1`` is the network's own stem.
- ``g^j : X_{j-1} → X_j``: fine map of segment j, ``segments[j-1]``.
- ``F^j : X_j → X_{j+1}``: coarse map, j = 1 … N-1, ``coarse[j-1]``: close to ``g^{j+1}`` and much cheaper.
- ``x_j``, ``y_j``: input and output of segment j.
- ``r_j``: residual at interface j; ``z_j``: corrected value at interface j.
- ``U_j^k``: classic parareal's value at interface j after k iterations.

Python counts from 0 and the paper from 1; where that would confuse, values stand in a dict with the paper's indices.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeAlias

from pararealize.errors import PlanError

__all__ = ["compose", "correction", "corrections", "difference", "iterate", "iterations", "messages", "reduction"]

Value: TypeAlias = Any  # whatever has + and -: the spaces X_0 … X_N differ, so no one type fits all
Map: TypeAlias = Callable[[Value], Value]


def compose(u: Value, segments: Sequence[Map]) -> list[Value]:
    """All interface values of the serial network: ``U_0 = u``, ``U_j = g^j(U_{j-1})``.

    Returns N+1 values; the last one is the output of the network before its head.

    >>> compose(1.0, [lambda u: u + 1, lambda u: 3 * u])
    [1.0, 2.0, 6.0]
    """
    values = [u]
    for g in segments:
        values.append(g(values[-1]))
    return values


def fine(x: Value, adapters: Sequence[Map], segments: Sequence[Map]) -> tuple[list[Value], list[Value]]:
    """Equation (2), the parallel part: ``x_j = C^j(x)`` and ``y_j = g^j(x_j)``, all j independent of each other.

    Returns ``([x_1 … x_N], [y_1 … y_N])``.
    """
    x_ = [C(x) for C in adapters]
    y_ = [g(x_j) for g, x_j in zip(segments, x_, strict=True)]
    return x_, y_


def correction(x: Value, adapters: Sequence[Map], segments: Sequence[Map], coarse: Sequence[Map]) -> Value:
    r"""The parareal network without its head, equations (2) to (3c) of the paper, as they stand there.

    .. math::

        x_j &= C^j(x), \quad y_j = g^j(x_j) && j = 1 \dots N \\
        r_N &= 0, \quad r_j = y_j - x_{j+1} && j = 1 \dots N-1 \\
        \tilde r_1 &= r_1, \quad \tilde r_{j+1} = r_{j+1} + F^j(\tilde r_j) && j = 1 \dots N-1 \\
        \tilde y &= y_N + \tilde r_N

    It gives the serial network's output ``(g^N ∘ … ∘ g^1 ∘ C^1)(x)`` exactly, up to rounding, where

    - every g is linear and ``F^j = g^{j+1}`` (Proposition 1), or every g is affine and ``F^j`` is its linear part;
    - ``F^j(r) = g^{j+1}(x_{j+1} + r) - g^{j+1}(x_{j+1})`` for any g at all (see :func:`difference`): it telescopes.

    Args:
        x: the network's input.
        adapters: N maps ``C^1 … C^N``, the first one the stem.
        segments: N maps ``g^1 … g^N``.
        coarse: N-1 maps ``F^1 … F^{N-1}``.

    Raises:
        PlanError: where the three numbers do not fit.

    Example:
        >>> double, triple = lambda u: 2.0 * u, lambda u: 3.0 * u
        >>> correction(5.0, [lambda u: u, lambda u: 0.0], [double, triple], [triple])
        30.0
    """
    N = _count(adapters, segments, coarse)
    fine_values = fine(x, adapters, segments)  # (2)
    x_, y_, F = (dict(enumerate(values, 1)) for values in (*fine_values, coarse))  # the paper counts from 1
    if N == 1:
        return y_[1]  # r_1 = r_N = 0
    r = {j: y_[j] - x_[j + 1] for j in range(1, N)}  # (3a)
    r_tilde = r[1]  # (3b)
    for j in range(1, N - 1):
        r_tilde = r[j + 1] + F[j](r_tilde)  # (3b)
    r_tilde = F[N - 1](r_tilde)  # (3b) with r_N = 0
    return y_[N] + r_tilde  # (3c)


def messages(x: Value, adapters: Sequence[Map], segments: Sequence[Map], coarse: Sequence[Map]) -> list[Value]:
    r"""The same network with one message an interface; returns all corrected values ``[z_1 … z_N]``.

    .. math:: z_1 = y_1, \quad z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1}), \quad \tilde y = z_N

    Segment j+1 owns ``C^{j+1}``, ``g^{j+1}`` and ``F^j``, receives ``z_j`` and sends ``z_{j+1}``: the traffic of a
    pipeline. By induction ``z_j = y_j + F^{j-1}(r̃_{j-1})`` and ``z_j - x_{j+1} = r̃_j``, so ``z_N`` equals
    :func:`correction` up to the order of one addition.

    >>> double, triple = lambda u: 2.0 * u, lambda u: 3.0 * u
    >>> messages(5.0, [lambda u: u, lambda u: 0.0], [double, triple], [triple])
    [10.0, 30.0]
    """
    _count(adapters, segments, coarse)
    x_, y_ = fine(x, adapters, segments)
    return corrections(x_, y_, coarse)


def corrections(x_: Sequence[Value], y_: Sequence[Value], coarse: Sequence[Map]) -> list[Value]:
    """The sequential part of :func:`messages`, for fine values that are there already: ``[z_1 … z_N]``."""
    z = [y_[0]]
    for x_next, y_next, F in zip(x_[1:], y_[1:], coarse, strict=True):
        z.append(y_next + F(z[-1] - x_next))
    return z


def reduction(x_: Sequence[Value], y_: Sequence[Value], coarse: Sequence[Map | None]) -> Value:
    r"""The last of :func:`corrections`, ``z_N``, where neighbouring coarse maps that are the identity form one sum.

    With ``F^j = id`` for j = p … q the chain telescopes into

    .. math:: z_{q+1} = z_p + \sum_{i=p+1}^{q+1} (y_i - x_i),

    whose terms are there as soon as their segments are: a reduction of depth ``⌈log_2⌉`` over the devices, and one
    addition when ``z_p`` arrives. Only the other coarse maps wait for one another. Backward, each ``y_i`` gets the
    gradient of ``z_{q+1}``, each ``x_i`` its negative: a broadcast.

    Any linear coarse maps compose likewise, :math:`z_N = y_N + \sum_j (F^{N-1} \circ \dots \circ F^j)(r_j)`; but the
    compositions have to be known, and only those of identities cost nothing.

    Args:
        x_: ``[x_1 … x_N]``.
        y_: ``[y_1 … y_N]``.
        coarse: ``[F^1 … F^{N-1}]``, ``None`` for the identity.

    Example:
        >>> reduction([0.0, 1.0, 2.0], [5.0, 6.0, 7.0], [None, None])
        15.0
    """
    z, terms = y_[0], []
    for x_next, y_next, F in zip(x_[1:], y_[1:], coarse, strict=True):
        if F is None:
            terms.append(y_next - x_next)
        else:
            z = y_next + F(_plus_all(z, terms) - x_next)
            terms = []
    return _plus_all(z, terms)


def _plus_all(z: Value, terms: Sequence[Value]) -> Value:
    """``z`` and all terms, the terms added in pairs, then pairs of pairs."""
    while len(terms) > 1:
        pairs = [a + b for a, b in zip(terms[::2], terms[1::2], strict=False)]
        terms = [*pairs, *terms[2 * len(pairs) :]]
    return z + terms[0] if terms else z


def difference(g: Map, x: Value) -> Map:
    """The coarse map ``F(r) = g(x + r) - g(x)``, which makes :func:`correction` exact for every g.

    With ``g = g^{j+1}`` and ``x = x_{j+1}``, ``z_{j+1} = y_{j+1} + g(z_j) - g(x_{j+1}) = g(z_j)``. It costs as much as
    g; with a cheaper G in place of g it is classic parareal's update, see :func:`iterate`.

    >>> difference(lambda u: u * u, 3.0)(1.0)
    7.0
    """
    return lambda r: g(x + r) - g(x)


def iterate(
    u: Value, segments: Sequence[Map], coarse: Sequence[Map], k: int, *, start: Sequence[Value] | None = None
) -> list[Value]:
    r"""Classic parareal: k iterations with any coarse propagators; returns ``[U_0^k … U_N^k]``.

    .. math::

        U_0^k &= u, \quad U_{j+1}^0 = G^{j+1}(U_j^0) \\
        U_{j+1}^{k+1} &= g^{j+1}(U_j^k) + \left[ G^{j+1}(U_j^{k+1}) - G^{j+1}(U_j^k) \right]

    After k iterations the first k interfaces are the serial ones whatever G is, so ``k = N`` gives :func:`compose`
    (finite termination), bit for bit wherever g is deterministic. More iterations than N change nothing and cost
    nothing. Interfaces that are exact are not computed again, so that N iterations call ``g^j`` j times.

    One iteration from ``start = [x_2 … x_N]`` is the parareal network whose coarse maps are
    ``difference(G^{j+1}, x_{j+1})``.

    Args:
        u: the value at interface 0.
        segments: N maps ``g^1 … g^N``.
        coarse: N propagators ``G^1 … G^N``, ``G^j : X_{j-1} → X_j``: of values, not of residuals as F is.
        k: number of iterations, 0 gives the first guess.
        start: the first guess at interfaces 1 … N-1, in place of the coarse propagators' own.

    Raises:
        PlanError: where the numbers do not fit.

    Source: Lions, Maday, Turinici (2001); Gander, Vandewalle (2007), theorem 4.9 for the termination.

    Example:
        >>> half = [lambda u: u / 2] * 2
        >>> iterate(1.0, half, [lambda u: 0.0 * u] * 2, 2) == compose(1.0, half)
        True
    """
    if k < 0:
        raise _not_iterable(segments, coarse, start, k)
    return next(islice(iterations(u, segments, coarse, start=start), min(k, len(segments)), None))


def iterations(
    u: Value, segments: Sequence[Map], coarse: Sequence[Map], *, start: Sequence[Value] | None = None
) -> Iterator[list[Value]]:
    """Every state of :func:`iterate`, one after the other: ``[U_0^k … U_N^k]`` for k = 0, 1, …, N, as it is asked for.

    The arguments are those of :func:`iterate`.

    >>> steps = iterations(16.0, [lambda u: u / 2] * 3, [lambda u: u / 4] * 3)
    >>> [U[-1] for U in steps]
    [0.25, 1.0, 1.75, 2.0]
    """
    N = len(segments)
    if N < 1 or len(coarse) != N or (start is not None and len(start) != N - 1):
        raise _not_iterable(segments, coarse, start)
    if start is None:
        U = compose(u, coarse)
        G_old = dict(enumerate(U[1:]))
    else:
        U = [u, *start]
        G_old = {j: coarse[j](U[j]) for j in range(1, N)} if N > 1 else {0: coarse[0](u)}
        U.append(G_old[N - 1])
    yield U
    for k in range(N):  # interfaces 0 … k are exact
        y = {j: segments[j](U[j]) for j in range(k, N)}  # in parallel
        U_new, G_new = [*U[: k + 1], y[k]], {}  # U_k stands still, so that the bracket behind it is nought
        for j in range(k + 1, N):
            G_new[j] = coarse[j](U_new[j])
            U_new.append(y[j] + (G_new[j] - G_old[j]))
        U, G_old = U_new, G_new
        yield U


def _not_iterable(
    segments: Sequence[Map], coarse: Sequence[Map], start: Sequence[Value] | None, k: int | None = None
) -> PlanError:
    """What does not fit."""
    facts = f"{len(segments)} segments, {len(coarse)} coarse propagators"
    facts += "" if k is None else f", k = {k}"
    facts += "" if start is None else f", {len(start)} starting values"
    return PlanError(f"{facts}; pass N ≥ 1 segments, N propagators, N-1 starting values if any, and k ≥ 0")


def _count(adapters: Sequence[Map], segments: Sequence[Map], coarse: Sequence[Map]) -> int:
    """N, after checking that there are N adapters, N segments and N-1 coarse maps."""
    N = len(segments)
    if N < 1 or len(adapters) != N or len(coarse) != N - 1:
        raise PlanError(
            f"{len(adapters)} adapters, {N} segments, {len(coarse)} coarse maps; "
            "a parareal network of N segments has N adapters (the stem included) and N-1 coarse maps, N ≥ 1"
        )
    return N
