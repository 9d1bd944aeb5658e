"""LayerParallel, the loss of every step -> the network's iterations, raised when they prove too few.

Training with few iterations trains the multigrid network, not the serial one, and makes the two drift apart. Two signs
are watched: the forward residual, at every step, and now and then the angle between the gradient and the exact one.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.argument_types import typed_arguments
from pararealize.distributed.activation_checkpoint import preserved_buffers
from pararealize.errors import CheckpointError, MultigridError
from pararealize.random_state import replay_torch_state, started_cuda_devices, torch_state
from pararealize.tracing.containers import leaves_of

from .module import LayerParallel

__all__ = ["Event", "Monitor", "cosine"]


SETTINGS = ("every", "cosine", "residual", "most", "exact_after")  # the arguments of a monitor


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change that the monitor made.

    Attributes:
        step: the step after which it was made, from 1.
        why: the residual or cosine that was seen.
        forward: forward iterations from then on; 0 where steps are exact.
        backward: backward iterations, likewise.
    """

    step: int
    why: str
    forward: int
    backward: int

    def __str__(self) -> str:
        what = f"{self.forward}/{self.backward} iterations" if self.forward else "exact"
        return f"step {self.step}: {self.why}: {what} from here on"


class Monitor:
    r"""Raises the iterations of a network, one by one and at last to exact, when the residual or the gradient says so.

    After each backward pass call :meth:`check`. It raises the iterations

    - where the forward residual that the last sweep found, :math:`\sqrt{\sum_j \|r_j\|^2}`, is more than ``residual``
      times the norm of the values at the C-points;
    - at every ``every``-th step, where the cosine between the layers' gradient and the exact one, computed anew on the
      same batch with the same dropout masks, is less than ``cosine``. The exact gradient then takes the other's place;
      gradients that were there before the backward pass stay added to it. Of frozen layers the stem's gradient is
      compared, and where the head alone is trained, none.

    Args:
        net: the network whose iterations are raised.
        every: steps from one exact gradient to the next; each costs a serial step.
        cosine: the least that is good enough.
        residual: the largest that is good enough, as a share of the values.
        most: forward iterations beyond which exact steps are taken instead.
        exact_after: steps after which all are exact, whatever was seen; ``None`` for never.

    Attributes:
        events: every change, with its step and its reason.
        cosines: (step, cosine) of every exact gradient.

    Raises:
        MultigridError: an argument is of another type or out of range.

    Example:
        >>> import torch
        >>> from pararealize import layer_parallel
        >>> from pararealize.models import resnet20
        >>> net = layer_parallel(resnet20().eval(), coarsening=2, forward_iterations=1)
        >>> monitor, x = Monitor(net, every=1, cosine=0.999), torch.randn(4, 3, 8, 8)
        >>> for _ in range(3):
        ...     net.zero_grad()
        ...     net(x).square().mean().backward()
        ...     monitor.check(lambda: net(x).square().mean())
        >>> net.forward_iterations > 1, len(monitor.events) > 0
        (True, True)
    """

    @typed_arguments(MultigridError)
    def __init__(
        self,
        net: LayerParallel,
        *,
        every: int = 50,
        cosine: float = 0.98,
        residual: float = 0.02,
        most: int = 5,
        exact_after: int | None = None,
    ) -> None:
        faults = []
        counts = {"every": every, "most": most, "exact_after": 1 if exact_after is None else exact_after}
        for name, value in counts.items():
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                faults.append(f"{name} is {value!r}; pass a whole number of at least 1")
        if not -1 <= cosine <= 1:
            faults.append(f"cosine is {cosine!r}; pass a number from -1 to 1")
        if not residual > 0:
            faults.append(f"residual is {residual!r}; pass a positive share, such as 0.02")
        if faults:
            raise MultigridError("; and ".join(faults))
        self.net, self.every, self.cosine, self.residual = net, every, cosine, residual
        self.most, self.exact_after = most, exact_after
        self.events: list[Event] = []
        self.cosines: list[tuple[int, float]] = []
        self.steps = 0
        self._is_called: bool | None = None  # whether by multigrid; None where there was no call since the last check
        self._random: dict[str, Tensor] | None = None  # the states that the forward pass to compare began from
        self._before: dict[nn.Parameter, tuple[Tensor, Tensor]] | None = None  # gradients then: objects and values
        net.register_forward_pre_hook(self._remember)
        net.register_forward_hook(self._watch)

    @property
    def settings(self) -> dict[str, Any]:
        """Its arguments by name."""
        return {name: getattr(self, name) for name in SETTINGS}

    def check(self, loss: Callable[[], Tensor], scaler: torch.amp.GradScaler | None = None) -> None:
        """Look at the step that was just computed; call it between ``backward()`` and ``optimizer.step()``.

        With a scaler, call it before ``scaler.unscale_``; clip gradients after it.

        Args:
            loss: computes the step's loss anew, from the network's call on; under autocast where the step was.
            scaler: the loss's scaler, where gradients are scaled: so is the exact one then. Where one of the two
                overflowed or vanished, that says something of the scale alone, and nothing is raised for it.

        Raises:
            MultigridError: the network was not called since the last check.
        """
        net = self.net
        if self._is_called is None and not net.exact:
            raise MultigridError(
                "the monitor saw no call of the network since its last check; make the monitor before the first call, "
                "and check once after each backward pass"
            )
        self.steps += 1
        try:
            self._look(loss, scaler)
        finally:
            self._is_called = self._random = self._before = None

    def _look(self, loss: Callable[[], Tensor], scaler: torch.amp.GradScaler | None) -> None:
        """Raise the iterations where the step that was just counted asks for it."""
        net = self.net
        if net.exact:
            return
        if self.exact_after is not None and self.steps >= self.exact_after:
            self._raise(f"{self.steps} steps are done", exact=True)
            return
        if not self._is_called:
            return
        share = net.history[-1].relative
        why = "" if share <= self.residual else f"the residual is {share:.2g} of the values"
        if self.steps % self.every == 0:
            value = self._compare(loss, scaler)
            if value is not None and (scaler is None or not math.isnan(value)):
                self.cosines.append((self.steps, value))
                if not value >= self.cosine:  # not a number counts as too small
                    why = f"the gradient's cosine with the exact one is {value:.3f}"
        if why:
            self._raise(why)

    def state_dict(self) -> dict[str, Any]:
        """Its counts, cosines and events, the network's iterations included, as JSON knows them.

        Example:
            >>> from pararealize import layer_parallel
            >>> from pararealize.models import resnet20
            >>> from pararealize.multigrid import Monitor
            >>> Monitor(layer_parallel(resnet20(), coarsening=2)).state_dict()
            {'steps': 0, 'forward': 2, 'backward': 1, 'exact': False, 'events': [], 'cosines': []}
        """
        return {
            "steps": self.steps,
            "forward": self.net.forward_iterations,
            "backward": self.net.backward_iterations,
            "exact": self.net.exact,
            "events": [dataclasses.asdict(event) for event in self.events],
            "cosines": [list(pair) for pair in self.cosines],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of :meth:`state_dict`: the network takes its iterations from it, too.

        Raises:
            CheckpointError: it is no such state.
        """
        try:
            events = [Event(**event) for event in state["events"]]
            cosines = [(step, value) for step, value in state["cosines"]]
            steps, forward, backward, exact = (state[name] for name in ("steps", "forward", "backward", "exact"))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"this is no state of a monitor ({type(error).__name__}: {error}); pass what state_dict() gave"
            ) from error
        self.steps, self.events, self.cosines = steps, events, cosines
        self.net.forward_iterations, self.net.backward_iterations, self.net.exact = forward, backward, exact

    @property
    def _compares_next(self) -> bool:
        """Whether the step after those that were checked is one to compare."""
        return (self.steps + 1) % self.every == 0

    def _remember(self, net: nn.Module, inputs: Any) -> None:  # noqa: ARG002
        """Before each forward pass: the random states that it begins from."""
        if net.runs_in_series:
            return
        self._is_called = self._is_called or not net.exact
        if not net.exact and self._compares_next:
            self._random = torch_state(started_cuda_devices())

    def _watch(self, net: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG002
        """Behind each forward pass: have :meth:`_keep` run before a backward pass adds to any gradient."""
        if net.runs_in_series or net.exact or not self._compares_next or not torch.is_grad_enabled():
            return
        for tensor in leaves_of(output):
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                tensor.register_hook(self._keep)

    def _keep(self, gradient: Tensor) -> None:  # noqa: ARG002
        """Keep the gradients of earlier backward passes, to which this one adds: here those to forget are zeroed."""
        if self._before is None and not self.net.runs_in_series:
            grads = [(p, p.grad) for p in self.net.parameters() if p.grad is not None]
            self._before = {p: (grad, grad.detach().clone()) for p, grad in grads}

    def _compared(self) -> set[int]:
        """The ids of the parameters whose gradients are compared.

        Of the layers alone: theirs are what the adjoint solve approximates. The head's gradient is exact, but for the
        value that enters it, and a large one would hide the others' error. What passes frozen layers is the stem's.
        """
        layers = {id(p) for row in self.net.rows for p in row.parameters() if p.requires_grad}
        if layers:
            return layers
        reads = [str(node.target) for node in self.net.structure.stem.nodes if node.op in ("call_module", "get_attr")]
        values = [attrgetter(path)(self.net) for path in reads]
        tensors = [t for value in values for t in (value.parameters() if isinstance(value, nn.Module) else [value])]
        return {id(tensor) for tensor in tensors if isinstance(tensor, Tensor) and tensor.requires_grad}

    def _compare(self, loss: Callable[[], Tensor], scaler: torch.amp.GradScaler | None) -> float | None:
        """The cosine with the exact gradient, which takes the place of the other one; None where none is compared."""
        compared, before = self._compared(), self._before or {}
        parameters = [p for p in self.net.parameters() if p.requires_grad and p.grad is not None]
        if not compared.intersection(map(id, parameters)) or self._random is None:
            return None
        with replay_torch_state(self._random), preserved_buffers(self.net), self.net.in_series():
            exact_loss = loss()
            with torch.autocast(exact_loss.device.type, enabled=False):
                scaled = exact_loss if scaler is None else scaler.scale(exact_loss)
                exact = torch.autograd.grad(scaled, parameters, allow_unused=True)
        # a gradient that another object has taken the place of was not added to
        earlier = {p: value for p, (grad, value) in before.items() if p.grad is grad}
        pairs = [(p, p.grad, g) for p, g in zip(parameters, exact, strict=True) if p.grad is not None and g is not None]
        layers = [(grad - earlier[p] if p in earlier else grad, g) for p, grad, g in pairs if id(p) in compared]
        value = cosine([ours for ours, _ in layers], [theirs for _, theirs in layers])
        with torch.no_grad():
            for p, grad, gradient in pairs:
                grad.copy_(gradient + earlier[p] if p in earlier else gradient)
        return value

    def _raise(self, why: str, *, exact: bool = False) -> None:
        """More iterations from here on; exact steps where there are enough of them, or where that is said."""
        net = self.net
        forward = backward = 0
        if exact or net.forward_iterations >= self.most:
            net.exact = True
        else:
            forward = net.forward_iterations + 1
            backward = max(net.backward_iterations, forward - 1)
            net.forward_iterations, net.backward_iterations = forward, backward
        self.events.append(Event(step=self.steps, why=why, forward=forward, backward=backward))

    def __str__(self) -> str:
        return "\n".join([f"{self.steps} steps, {len(self.cosines)} exact gradients", *map(str, self.events)])


def cosine(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The cosine of the angle between two gradients, each in parts; not a number where one is zero or not finite.

    Two that are zero are equal, as they are behind a head of zeros: their cosine is 1.
    """
    dot = sum(float((a.double() * b.double()).sum()) for a, b in zip(ours, theirs, strict=True))
    norms = [math.sqrt(sum(float(g.double().square().sum()) for g in parts)) for parts in (ours, theirs)]
    if norms == [0, 0]:
        return 1.0
    return dot / (norms[0] * norms[1]) if min(norms) > 0 else math.nan
