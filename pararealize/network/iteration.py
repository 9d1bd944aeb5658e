"""PararealModule, inputs, k -> k iterations of parareal: the original's output, evaluated from all segments at once.

The loop is :func:`pararealize.network.parareal.iterate`. Its propagators come from the converted network, whose coarse blocks
carry differences: with x_j, y_j and z_j as in ``equation.py``,

    G^1(u)     = y_1                                 asked at u = x_1 alone, where it is exact
    G^{j+1}(u) = y_{j+1} + F^j(u - x_{j+1})          F^j carries what u differs by from the adapter's x_{j+1}

so the first guess U_1^0 = y_1, U_{j+1}^0 = G^{j+1}(U_j^0) is the recurrence of z_{j+1}: iteration 0 is the parareal
network itself, to the bit. As g^1 has no other argument than x_1, interface 1 is exact from the beginning, and after k
iterations the first k + 1 interfaces are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from pararealize.errors import PlanError
from pararealize.random_state import replay_torch_state, torch_state
from pararealize.table import aligned
from pararealize.tracing.example import as_call
from pararealize.tracing.module_view import Borrowed

from .parareal import compose, iterations

if TYPE_CHECKING:
    from .module import PararealModule

__all__ = ["Iterates", "iterate_network"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Iterates:
    """What k iterations gave, and how far each interface was from the original's on the way; prints as a table.

    Attributes:
        model: the original's class name.
        n: segments.
        output: of the last iteration, as the network gives it.
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
        rows += [
            [str(i), *(f"{row[j - 1]:.1e}" if row[j - 1] else "exact" for j in shown)]
            for i, row in enumerate(self.errors)
        ]
        title = f"{self.model}: relative errors of the interfaces after k iterations, n = {self.n}"
        return "\n".join([title, "", aligned(rows)])


def iterate_network(net: PararealModule, inputs: Any, k: int, *, errors: bool = False) -> Any:
    """What :meth:`PararealModule.iterate` does."""
    n = net.plan.n
    if isinstance(k, bool) or not isinstance(k, int) or k < 0:
        raise PlanError(
            f"k is {k!r}; it is the number of iterations: pass an integer from 0, the parareal network, to {n - 1}, "
            f"the original (n = {n}); more change nothing"
        )
    args, kwargs = as_call(inputs)
    parts = _Parts(net, min(k, n), args, kwargs)
    reference: list[torch.Tensor] = []
    if errors:
        with torch.no_grad(), parts.uncounted():
            reference = compose(parts.x_1, parts.segments)
    kept: list[tuple[float, ...]] = []
    U: list[torch.Tensor] = []
    for U in islice(iterations(parts.x_1, parts.segments, parts.coarse), min(k, n) + 1):
        if errors:
            kept.append(tuple(_error(a, b) for a, b in zip(U[1:], reference[1:], strict=True)))
    output = parts.head(U[-1])
    if not errors:
        return output
    kept += [kept[-1]] * (k - min(k, n))
    return Iterates(model=net.plan.model, n=n, output=output, errors=tuple(kept))


def _error(value: torch.Tensor, exact: torch.Tensor) -> float:
    with torch.no_grad():
        size = float(exact.double().norm())
        return float((value.double() - exact.double()).norm()) / (size or 1.0)


class _Parts:
    """The maps of a converted network for one batch: what they read besides their argument is computed once.

    Attributes:
        x_1: what the stem gives.
        segments: ``[g^1 … g^n]`` as maps of an interface's value.
        coarse: ``[G^1 … G^n]`` likewise.
    """

    def __init__(self, net: PararealModule, k: int, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.net, self.n = net, net.plan.n
        bound = inspect.signature(net.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        self._interpreter = fx.Interpreter(net, garbage_collect_values=False)
        self._interpreter.args_iter = iter(bound.args)
        calls = [node for node in net.graph.nodes if node.op == "call_module"]
        fine = {str(node.target): node for node in reversed(calls)}  # the first call is y_j's
        self._y = {j: fine[f"segments.g{j}"] for j in range(1, self.n + 1)}
        rest = [node for node in calls if node not in self._y.values()]
        named = {str(node.target): node for node in rest}
        exact = {j: f"segments.g{j + 1}" for j in range(1, self.n)}
        self._F = {j: named.get(f"coarse.F{j}") or named[exact[j]] for j in range(1, self.n)}
        self._head = named["head"]
        times = {j: 1 + min(k, j) for j in range(1, self.n + 1)}  # a segment's calls, and those of F^j
        self._g = {
            j: _Repeated(net.get_submodule(f"segments.g{j}"), times[j] if j > 1 else 1) for j in range(1, self.n + 1)
        }
        self._coarse = {
            j: _Repeated(net.get_submodule(str(node.target)), 0 if node.target == exact[j] else times[j])
            for j, node in self._F.items()
        }
        self._run()
        x_ = [self._value(self._y[j].args[0]) for j in range(1, self.n + 1)]
        y_ = [self._value(self._y[j]) for j in range(1, self.n + 1)]
        self.x_1 = x_[0]
        self.segments: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda _: y_[0]]
        self.coarse: list[Callable[[torch.Tensor], torch.Tensor]] = [lambda _: y_[0]]
        for j in range(1, self.n):
            self.segments.append(self._map(self._g[j + 1], self._y[j + 1], j + 1))
            self.coarse.append(self._propagator(j, x_[j], y_[j]))

    def head(self, u: torch.Tensor) -> Any:
        """What the network gives for an output of the last segment."""
        return self._map(self.net.head, self._head, self.n)(u)

    @contextlib.contextmanager
    def uncounted(self) -> Iterator[None]:
        """Calls that move no statistics, with the random numbers of all others."""
        parts = [*self._g.values(), *self._coarse.values()]
        before = [part.left for part in parts]
        for part in parts:
            part.left = 1 << 62
        try:
            yield
        finally:
            for part, left in zip(parts, before, strict=True):
                part.left = left

    def _run(self) -> None:
        """Equation (2): everything that does not wait for a residual."""
        segments = {node: self._g[j] for j, node in self._y.items()}
        late: set[fx.Node] = set()
        for node in self.net.graph.nodes:
            if node.op == "output" or node.target in ("head", operator.sub) or late & set(node.all_input_nodes):
                late.add(node)
            elif node in segments:
                self._interpreter.env[node] = segments[node](*map(self._value, node.args))
            else:
                self._interpreter.env[node] = self._interpreter.run_node(node)

    def _value(self, node: Any) -> Any:
        return self._interpreter.env[node]

    def _map(self, part: Callable[..., Any], node: fx.Node, j: int) -> Callable[[torch.Tensor], Any]:
        """A part as a map of its first argument, on the device of segment j."""
        context = [self._value(argument) for argument in node.args[1:]]
        return lambda u: part(self._to(u, j), *context)

    def _propagator(self, j: int, x: torch.Tensor, y: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """``G^{j+1}(u) = y_{j+1} + F^j(u - x_{j+1})``."""
        F = self._map(self._coarse[j], self._F[j], j + 1)
        return lambda u: y + F(self._to(u, j + 1) - x)

    def _to(self, u: torch.Tensor, j: int) -> torch.Tensor:
        devices = self.net.devices
        return u if devices is None else u.to(devices[j - 1], non_blocking=True)


class _Repeated:
    """A part that is called several times in one step, and is to have run once: the same random numbers in each call.

    Its buffers move in the last of ``times`` calls, and in none where that is 0: running statistics are then those of
    a single pass. Other calls work on copies.
    """

    def __init__(self, module: nn.Module, times: int) -> None:
        self.module, self.left = module, times
        inner = [m for m in module.modules() if isinstance(m, Borrowed)]
        lent = [m for borrowed in inner for m in borrowed.__dict__["lender"].modules()]
        self._owners = [m for m in (*module.modules(), *lent) if m._buffers]
        self._devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
        self._random: dict[str, torch.Tensor] | None = None

    def __call__(self, *args: Any) -> Any:
        self.left -= 1
        with contextlib.ExitStack() as stack:
            if self.left:
                stack.enter_context(self._on_copies())
            if self._random is None:
                self._random = torch_state(self._devices)
            else:
                stack.enter_context(replay_torch_state(self._random))
            return self.module(*args)

    @contextlib.contextmanager
    def _on_copies(self) -> Iterator[None]:
        kept = [dict(owner._buffers) for owner in self._owners]
        for owner in self._owners:
            for name, buffer in owner._buffers.items():
                owner._buffers[name] = None if buffer is None else buffer.clone()
        try:
            yield
        finally:
            for owner, buffers in zip(self._owners, kept, strict=True):
                owner._buffers.update(buffers)
