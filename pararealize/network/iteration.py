"""A converted network, inputs, k -> k iterations of parareal: the original's output, from all segments at once.

The loop is that of :mod:`pararealize.network.parareal`. Its propagators come from the converted network, whose coarse
blocks carry differences: with x_j, y_j and z_j as in ``equation.py``,

    G^1(u)     = y_1                                 asked at u = x_1 alone, where it is exact
    G^{j+1}(u) = y_{j+1} + F^j(u - x_{j+1})          F^j carries what u differs by from the adapter's x_{j+1}

so the first guess U_1^0 = y_1, U_{j+1}^0 = G^{j+1}(U_j^0) is the recurrence of z_{j+1}: iteration 0 is the parareal
network itself, to the bit. As g^1 has no other argument than x_1, interface 1 is exact from the beginning, and after k
iterations the first k + 1 interfaces are.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from pararealize.errors import PlanError
from pararealize.plan.plan import Plan
from pararealize.random_state import replay_torch_state, torch_state
from pararealize.restore import AttributeSnapshot
from pararealize.table import aligned
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.leaves import is_from_torch
from pararealize.tracing.module_view import BorrowedModule, ModuleView

from .parareal import Map, compose, iterations
from .parts import read_equation

__all__ = ["Iterates", "iterate_network"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Iterates:
    """The output after k iterations, and how far each interface was from the original's on the way; prints as a table.

    Attributes:
        model: the original's class name.
        n: number of segments.
        output: the network's output after the last iteration.
        errors: ``errors[i][j-1]`` is ‖U_j^i - U_j‖ / ‖U_j‖, the relative error of interface j after i iterations, with
            the original's U_j; i = 0 … k, j = 1 … n. Where U_j is zero, it is the absolute one.
    """

    model: str
    n: int
    output: Any
    errors: tuple[tuple[float, ...], ...]

    @property
    def k(self) -> int:
        """How many iterations there were."""
        return len(self.errors) - 1

    def __str__(self) -> str:
        shown = [j for j in range(1, self.n + 1) if j in (1, self.n) or (j - 1) % max(1, (self.n + 9) // 10) == 0]
        rows = [["k", *(f"U_{j}" for j in shown)]]
        for i, row in enumerate(self.errors):
            rows.append([str(i), *(f"{row[j - 1]:.1e}" if row[j - 1] else "exact" for j in shown)])
        title = f"{self.model}: relative errors of the interfaces after k iterations, n = {self.n}"
        return "\n".join([title, "", aligned(rows)])


def iterate_network(
    net: fx.GraphModule, plan: Plan, devices: Sequence[torch.device] | None, inputs: Any, k: int, *, errors: bool
) -> Any:
    """What :meth:`PararealModule.iterate` does, for a network of that plan with its segments on those devices."""
    n = plan.n
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise PlanError(
            f"k is {k!r}; it is the number of iterations: pass an integer from 0, the parareal network, to {n - 1}, "
            f"the original (n = {n}); more change nothing"
        )
    maps = _NetworkMaps(net, n, devices, min(k, n), inputs, errors=errors)
    reference: list[torch.Tensor] = []
    if errors:
        with torch.no_grad():
            reference = compose(maps.x_1, maps.segments)
    rows: list[tuple[float, ...]] = []
    U: list[torch.Tensor] = []
    for U in islice(iterations(maps.x_1, maps.segments, maps.coarse), min(k, n) + 1):
        if errors:
            rows.append(tuple(_error(a, b) for a, b in zip(U[1:], reference[1:], strict=True)))
    output = maps.head(U[-1])
    if not errors:
        return output
    rows += [rows[-1]] * max(0, k - n)
    return Iterates(model=plan.model, n=n, output=output, errors=tuple(rows))


def _error(value: torch.Tensor, exact: torch.Tensor) -> float:
    with torch.no_grad():
        size = float(exact.double().norm())
        return float((value.double() - exact.double()).norm()) / (size or 1.0)


class _NetworkMaps:
    """The maps of a converted network for one batch: what they read besides their argument is computed once.

    Args:
        net: the network.
        n: number of its segments.
        devices: one for every segment, or ``None``.
        k: number of iterations to come, at most n: how often each map will be called follows from it.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        errors: whether the original is evaluated too, before the iterations.

    Attributes:
        x_1: what the stem gives.
        segments: ``[g^1 … g^n]`` as maps of an interface's value.
        coarse: ``[G^1 … G^n]`` likewise.
        head: h likewise.
    """

    def __init__(
        self, net: fx.GraphModule, n: int, devices: Sequence[torch.device] | None, k: int, inputs: Any, *, errors: bool
    ) -> None:
        self.devices = devices
        nodes = read_equation(net.graph)
        interpreter = fx.Interpreter(net, garbage_collect_values=False)
        self._values = interpreter.env
        tensors = CallSignature.of_graph(net.graph).tensors_of(inputs)
        self._values.update((node, tensors[name]) for name, node in CallSignature.tensor_nodes(net.graph).items())

        def repeated(name: str, times: int) -> _RepeatedModule:
            return _RepeatedModule(net.get_submodule(nodes.parts[name].target), times)

        # g^j runs once in equation (2) and in each of the iterations 1 … min(k, j), after which its input is exact; so
        # does F^j. Where F^j is g^{j+1} itself, buffers move by the calls for y_{j+1}, and not by those for F^j.
        # The original's g^j is one call more, which must not be the last one: where k is 0, it comes after that.
        times = {j: 1 + min(k, j) for j in range(1, n + 1)}
        g = {j: repeated(f"g{j}", times[j] + min(k, errors) if j > 1 else 1) for j in range(1, n + 1)}
        F = {j: repeated(f"F{j}", 0 if nodes.parts[f"F{j}"].is_segment_itself else times[j]) for j in range(1, n)}
        segment_calls = {node: g[j] for j, node in nodes.y.items()}
        # Equation (2): everything that does not wait for a residual.
        for node in nodes.before([*nodes.r.values(), nodes.calls["head"]]):
            if CallSignature.begins(node):
                continue
            g_j = segment_calls.get(node)
            self._values[node] = g_j(*self._read(node.args)) if g_j else interpreter.run_node(node)
        self.x_1, y_1 = self._values[nodes.x[1]], self._values[nodes.y[1]]
        self.segments: list[Map] = [lambda _: y_1]
        self.coarse: list[Map] = [lambda _: y_1]
        for j in range(2, n + 1):
            self.segments.append(self._map(g[j], nodes.calls[f"g{j}"], j))
            F_j = self._map(F[j - 1], nodes.calls[f"F{j - 1}"], j)
            self.coarse.append(self._propagator(F_j, j, self._values[nodes.x[j]], self._values[nodes.y[j]]))
        self.head = self._map(net.get_submodule("head"), nodes.calls["head"], n)

    def _read(self, args: Any) -> Any:
        return fx.map_arg(args, self._values.__getitem__)

    def _map(self, module: Callable[..., Any], call: fx.Node, j: int) -> Map:
        """A part as a map of its first argument, on the device of segment j."""
        context = self._read(call.args[1:])
        return lambda u: module(self._to(u, j), *context)

    def _propagator(self, F: Map, j: int, x: torch.Tensor, y: torch.Tensor) -> Map:
        """``G^j(u) = y_j + F^{j-1}(u - x_j)``."""
        return lambda u: y + F(self._to(u, j) - x)

    def _to(self, u: torch.Tensor, j: int) -> torch.Tensor:
        return u if self.devices is None else u.to(self.devices[j - 1], non_blocking=True)


class _RepeatedModule:
    """A module that is called several times in one step, as if it ran once: the same random numbers in each call.

    Its buffers, and what its modules keep in Python, move in the call of number ``times``, and in none where that is 0:
    running statistics and counters are then those of a single pass. Calls before and after it work on copies of what
    there was before the first, so that a memory that is read as well is the same in all.
    """

    def __init__(self, module: nn.Module, times: int) -> None:
        self.module, self.remaining = module, times
        lenders = [m.lender for m in module.modules() if isinstance(m, BorrowedModule)]
        inner = (*module.modules(), *(m for lender in lenders for m in lender.modules()))
        self._owners = [m for m in inner if m._buffers]
        self._buffers = [{name: _copy_of(buffer) for name, buffer in m._buffers.items()} for m in self._owners]
        self._attributes = AttributeSnapshot(m for m in inner if not is_from_torch(m) and not isinstance(m, ModuleView))
        self._devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        self._random_state: dict[str, torch.Tensor] | None = None

    def __call__(self, *args: Any) -> Any:
        self.remaining -= 1
        with contextlib.ExitStack() as stack:
            if self.remaining:
                stack.enter_context(self._on_copies())
            if self._random_state is None:
                self._random_state = torch_state(self._devices)
            else:
                stack.enter_context(replay_torch_state(self._random_state))
            return self.module(*args)

    @contextlib.contextmanager
    def _on_copies(self) -> Iterator[None]:
        """Buffers are exchanged, not put back by value: autograd may have saved them for backward."""
        originals = [dict(owner._buffers) for owner in self._owners]
        for owner, buffers in zip(self._owners, self._buffers, strict=True):
            owner._buffers.update({name: _copy_of(buffer) for name, buffer in buffers.items()})
        try:
            with self._attributes.restored():
                yield
        finally:
            for owner, buffers in zip(self._owners, originals, strict=True):
                owner._buffers.update(buffers)


def _copy_of(buffer: torch.Tensor | None) -> torch.Tensor | None:
    return None if buffer is None else buffer.clone()
