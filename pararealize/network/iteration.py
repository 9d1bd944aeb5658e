"""A converted network, inputs, k -> k iterations of parareal: the original's output, from all segments at once.

The loop is that of :mod:`pararealize.network.parareal`. Its propagators come from the converted network, whose coarse
blocks carry differences: with x_j, y_j and z_j as in ``equation.py``,

    G^1(u)     = y_1                                 asked at u = x_1 alone, where it is exact
    G^{j+1}(u) = y_{j+1} + F^j(u - x_{j+1})          F^j carries what u differs by from the adapter's x_{j+1}

so the first guess U_1^0 = y_1, U_{j+1}^0 = G^{j+1}(U_j^0) is the recurrence of z_{j+1}: iteration 0 is the parareal
network itself, to the bit. As g^1 has no other argument than x_1, interface 1 is exact from the beginning, and after k
iterations the first k + 1 interfaces are.

Where outputs are corrected, K^j(x_j, y_j) stands for y_j in G, and U_1 = y_1 stays uncorrected: G^2 has the difference.
With several windows each does its iterations, and the next begins with what they gave.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from torch import fx, nn

from pararealize.errors import PlanError
from pararealize.plan.plan import Plan, Window
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
        n: number of segments of a window.
        output: the network's output after the last iteration.
        errors: ``errors[i][j-1]`` is ‖U_j^i - U_j‖ / ‖U_j‖, the relative error of interface j after i iterations, with
            the original's U_j; i = 0 … k, j = 1 … n, and on through the interfaces of further windows, each of which
            begins with what k iterations of those before it gave. Where U_j is zero, it is the absolute one.
        interfaces: the interfaces' numbers, as the network's names have them: ``"3"``, or ``"2_3"`` in window 2.
    """

    model: str
    n: int
    output: Any
    errors: tuple[tuple[float, ...], ...]
    interfaces: tuple[str, ...]

    @property
    def k(self) -> int:
        """How many iterations there were."""
        return len(self.errors) - 1

    @property
    def shown(self) -> list[int]:
        """Which interfaces a table or picture shows, from 0: the first and the last, and every so many-th of many."""
        count = len(self.interfaces)
        return [i for i in range(count) if i == count - 1 or i % max(1, (count + 9) // 10) == 0]

    def __str__(self) -> str:
        shown = self.shown
        rows = [["k", *(f"U_{self.interfaces[i]}" for i in shown)]]
        for k, row in enumerate(self.errors):
            rows.append([str(k), *(f"{row[i]:.1e}" if row[i] else "exact" for i in shown)])
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
    maps = _NetworkMaps(net, plan, devices, min(k, n), inputs, errors=errors)
    columns: list[list[tuple[float, ...]]] = []  # by window: a row of errors for each iteration
    w_true: torch.Tensor | None = None
    for window in plan.windows:
        reference: list[torch.Tensor] = []
        if errors and w_true is not None:
            with torch.no_grad():
                first_true = maps.first_segment(window, w_true)
        of_window = maps.begin(window)
        if errors:
            with torch.no_grad():
                y_1 = of_window.segments[0](of_window.x_1) if w_true is None else first_true
                reference = compose(y_1, of_window.segments[1:])
            w_true = reference[-1]
        rows: list[tuple[float, ...]] = []
        U: list[torch.Tensor] = []
        steps = min(k, n) + 1
        for U in islice(iterations(of_window.x_1, of_window.segments, of_window.coarse), steps):
            if errors:
                rows.append(tuple(_error(a, b) for a, b in zip(U[1:], reference, strict=True)))
        maps.end(window, U[-1])
        columns.append(rows + rows[-1:] * (steps - len(rows)))  # a window with fewer segments is exact sooner
    output = maps.head()
    if not errors:
        return output
    table = [sum(rows, ()) for rows in zip(*columns, strict=True)]
    table += [table[-1]] * max(0, k - n)
    names = tuple(row.name.removeprefix("g") for row in plan.segments)
    return Iterates(model=plan.model, n=n, output=output, errors=tuple(table), interfaces=names)


def _error(value: torch.Tensor, exact: torch.Tensor) -> float:
    with torch.no_grad():
        size = float(exact.double().norm())
        return float((value.double() - exact.double()).norm()) / (size or 1.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _WindowMaps:
    """The maps of one window, for what it begins with.

    Attributes:
        x_1: what it begins with.
        segments: ``[g^1 … g^n]`` as maps of an interface's value.
        coarse: ``[G^1 … G^n]`` likewise.
    """

    x_1: torch.Tensor
    segments: list[Map]
    coarse: list[Map]


class _NetworkMaps:
    """The maps of a converted network for one batch: what they read besides their argument is computed once.

    Args:
        net: the network.
        plan: where it is cut.
        devices: n of them, or ``None``.
        k: number of iterations to come, at most n: how often each map will be called follows from it.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        errors: whether the original is evaluated too, before the iterations.
    """

    def __init__(
        self,
        net: fx.GraphModule,
        plan: Plan,
        devices: Sequence[torch.device] | None,
        k: int,
        inputs: Any,
        *,
        errors: bool,
    ) -> None:
        self._devices = devices
        self._nodes = nodes = read_equation(net.graph)
        self._interpreter = interpreter = fx.Interpreter(net, garbage_collect_values=False)
        self._head = net.get_submodule("head")
        self._values = interpreter.env
        tensors = CallSignature.of_graph(net.graph).tensors_of(inputs)
        self._values.update((node, tensors[name]) for name, node in CallSignature.tensor_nodes(net.graph).items())
        # of windows that have ended: their corrections are not those of equation (3)
        self._passed: set[fx.Node] = set()
        self._modules: dict[str, _RepeatedModule] = {}
        # g^j runs once in equation (2) and in each of the iterations 1 … min(k, j), after which its input is exact; so
        # does F^j. Where F^j is g^{j+1} itself, buffers move by the calls for y_{j+1}, and not by those for F^j.
        # The original's g^j is one call more, which must not be the last one: where k is 0, it comes after that. The
        # first segment of a later window begins with another value than the original's, whose call comes before.
        for row in plan.segments:
            times = 1 + min(k, row.j) + min(k, errors) if row.j > 1 else 1 + (errors and row.m > 1)
            self._modules[row.name] = _RepeatedModule(net.get_submodule(nodes.parts[row.name].target), times)
        for K in plan.corrections:
            self._modules[K.name] = _RepeatedModule(net.get_submodule(nodes.parts[K.name].target), 1)
        for F in plan.coarse_blocks:
            part = nodes.parts[F.name]
            times = 0 if part.is_segment_itself else 1 + min(k, F.j)
            self._modules[F.name] = _RepeatedModule(net.get_submodule(part.target), times)

    def first_segment(self, window: Window, w: torch.Tensor) -> torch.Tensor:
        """The original's g^{m,1} of a later window at the original's w_{m-1}; before :meth:`begin`."""
        row = window.segments[0]
        y: torch.Tensor = self._map(row.name)(w.clone())  # which the window itself may begin with
        return y

    def begin(self, window: Window) -> _WindowMaps:
        """Equation (2) of a window: all that does not wait for its residuals; and its maps."""
        nodes, rows = self._nodes, window.segments
        late = [nodes.r[F.index] for F in window.coarse_blocks]
        if not late:  # a single segment, which the next window waits for
            late = list(nodes.y[rows[0].index].users)
        segments = {nodes.y[row.index]: self._modules[row.name] for row in rows}
        for node in nodes.before([*late, nodes.calls["head"]]):
            if CallSignature.begins(node) or node in self._values or node in self._passed:
                continue
            module = segments.get(node)
            values = self._values
            values[node] = module(*self._read(node.args)) if module else self._interpreter.run_node(node)
        x_1, y_1 = self._values[nodes.x[rows[0].index]], self._values[nodes.y[rows[0].index]]
        maps = _WindowMaps(x_1=x_1, segments=[lambda _: y_1], coarse=[lambda _: y_1])
        v_1 = self._values[nodes.v[rows[0].index]]
        for row, F in zip(rows[1:], window.coarse_blocks, strict=True):
            maps.segments.append(self._map(row.name))
            x, v, home = self._values[nodes.x[row.index]], self._values[nodes.v[row.index]], nodes.parts[F.name].home
            G = self._propagator(self._map(F.name), home, x, v)
            maps.coarse.append(G if row.j > 2 or v_1 is y_1 else _after_correction(G, y_1, v_1))
        return maps

    def end(self, window: Window, w: torch.Tensor) -> None:
        """Let a window end with a value, from which the next one goes on."""
        end = self._nodes.z[window.segments[-1].index]
        self._values[end] = w
        behind = [end]
        while behind:  # what led to w in equation (3) is not computed
            node = behind.pop()
            if node not in self._passed:
                self._passed.add(node)
                behind += node.all_input_nodes

    def head(self) -> Any:
        """The network's output."""
        call = self._nodes.calls["head"]
        z = self._read(call.args[0])
        home = self._nodes.parts["head"].home
        return self._head(self._to(z, home), *self._read(call.args[1:]))

    def _read(self, args: Any) -> Any:
        def value(node: fx.Node) -> Any:
            if node not in self._values:  # a transfer of what a window ended with
                self._values[node] = self._interpreter.run_node(node)
            return self._values[node]

        return fx.map_arg(args, value)

    def _map(self, name: str) -> Map:
        """A part as a map of its first argument, on its device."""
        module, call, home = self._modules[name], self._nodes.calls[name], self._nodes.parts[name].home
        context = self._read(call.args[1:])
        return lambda u: module(self._to(u, home), *context)

    def _propagator(self, F: Map, home: int, x: torch.Tensor, v: torch.Tensor) -> Map:
        """``G^j(u) = v_j + F^{j-1}(u - x_j)``."""
        return lambda u: v + F(self._to(u, home) - x)

    def _to(self, u: torch.Tensor, home: int) -> torch.Tensor:
        return u if self._devices is None else u.to(self._devices[home - 1], non_blocking=True)


def _after_correction(G: Map, y_1: torch.Tensor, v_1: torch.Tensor) -> Map:
    """G^2 as a map of U_1, which is exact: equation (3) has z_1 = v_1 there, what K^1 makes of y_1."""
    return lambda u: G(v_1 if u is y_1 else u + (v_1 - y_1))


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
