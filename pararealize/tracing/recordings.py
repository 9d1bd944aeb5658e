"""A converted network's recordings: the first, and those made later for inputs that break its guards.

    a call ── the first recording's conditions hold ──────────────────────────> the network's own graph
           ── those of a later recording hold ────────────────────────────────> that recording's graphs
           ── none's do ── record the original anew ── build under the plan ──> a new recording, kept from now on
                                                    └─ cannot be ─────────────> GuardError, before anything is computed

All of them run over the same parameters, adapters and coarse blocks.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NoReturn, TypeVar

import torch
from torch._compile import _disable_dynamo
from torch._subclasses.fake_tensor import FakeTensor

from pararealize.errors import ExampleError, GuardError, PararealizeError, RecordingWarning
from pararealize.restore import ordinary_mode

from .captured import Capture
from .conditions import CallConditions
from .guards import Guards
from .original import Original

__all__ = ["LIMIT", "Recording", "Recordings"]

LIMIT = 8
_MOST_REFUSALS = 64  # inputs of which it is remembered that they cannot be recorded

T = TypeVar("T")


@dataclasses.dataclass(slots=True, eq=False)
class Recording(Generic[T]):
    """What was built from a later recording.

    Attributes:
        conditions: what the arguments of a call have to be.
        network: what runs such a call.
        last_use: the number of the last call that it ran.
    """

    conditions: CallConditions
    network: T
    last_use: int = 0


class Recordings(Generic[T]):
    """The recordings of one network.

    Args:
        first: conditions of the network's own graph.
        original: the model over the network's tensors.
        build: from a new recording to what runs it; it raises a PararealizeError where the plan does not fit.
        device: where to record; where the model is, when left out.

    Attributes:
        limit: how many are kept besides the first. One more takes the place of the one that was not used for longest.
    """

    def __init__(
        self,
        first: CallConditions,
        original: Original,
        build: Callable[[Capture], tuple[CallConditions, T]],
        *,
        device: torch.device | None = None,
        limit: int = LIMIT,
    ) -> None:
        self.first, self.original, self.limit = first, original, limit
        self._build, self._device = build, device
        self._later: tuple[Recording[T], ...] = ()  # replaced as a whole: another thread may be walking over it
        self._refusals: dict[Any, PararealizeError] = {}
        self._lock = threading.Lock()
        self._clock = itertools.count(1)

    @property
    def guards(self) -> tuple[Guards, ...]:
        """Of all recordings, the first one's first."""
        return (self.first.guards, *(recording.conditions.guards for recording in self._later))

    def pick(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[T, dict[str, Any]] | None:
        """What is to run a call, and its inputs by name; ``None`` for the network's own graph.

        Raises:
            GuardError: the inputs break the first recording's guards, and cannot be recorded anew under its plan.
            ExampleError: the original does not accept them either.
            TypeError: they do not fit the original's signature.
        """
        values = self.first.values(args, kwargs)
        if values is not None and self.first.hold(values):
            return None
        return self._find(args, kwargs) or self._record(args, kwargs)

    def _find(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[T, dict[str, Any]] | None:
        for recording in self._later:
            values = recording.conditions.values(args, kwargs)
            if values is not None and recording.conditions.hold(values):
                if not torch.compiler.is_compiling():
                    recording.last_use = next(self._clock)
                return recording.network, values
        return None

    @_disable_dynamo
    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
        """Record a call anew, or refuse it; one thread at a time."""
        arguments = self._bound(args, kwargs)
        with self._lock:
            if (call := self._find(args, kwargs)) is not None:
                return call
            key = _key(arguments)
            if (refusal := self._refusals.get(key)) is not None:
                raise type(refusal)(*refusal.args)
            try:
                return self._add(args, kwargs, arguments)
            except PararealizeError as error:
                if len(self._refusals) >= _MOST_REFUSALS:
                    del self._refusals[next(iter(self._refusals))]
                self._refusals[key] = type(error)(*error.args)  # without the traceback, which would keep the recording
                raise

    def _bound(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by the names of the original's parameters; what could be no example is refused here."""
        signature = self.original.signature
        try:
            arguments = dict(signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.original.name}.forward{signature} takes other arguments: {error}") from None
        if any(map(_is_symbolic, (*args, *kwargs.values()))):
            self._refuse(arguments, "a tensor without values of its own, as torch.export and torch.func pass them")
        return arguments

    def _add(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], arguments: dict[str, Any]
    ) -> tuple[T, dict[str, Any]]:
        try:
            with ordinary_mode():
                conditions, network = self._build(self.original.capture(arguments, device=self._device))
        except Exception as error:  # noqa: BLE001 - whatever the model's code raises for such inputs
            self._refuse(arguments, error)
        values = conditions.values(args, kwargs)
        if values is None or not conditions.hold(values):
            self._refuse(arguments, "the new recording does not hold for them either")
        later = sorted(self._later, key=lambda recording: recording.last_use)
        dropped = later[: max(0, len(later) + 1 - self.limit)]
        kept = [recording for recording in self._later if recording not in dropped]
        self._later = (*kept, Recording(conditions, network, next(self._clock)))
        more = (
            f"; more than {self.limit} recordings were asked for, and the one that was not used for longest was "
            "dropped: pass inputs of fewer sizes, or raise recording_limit"
            if dropped
            else ""
        )
        warnings.warn(
            f"{self.original.name} was recorded anew for {_text(arguments)}, since {self._fact(arguments)}{more}",
            RecordingWarning,
            stacklevel=2,
        )
        return network, values

    def _fact(self, arguments: Mapping[str, Any]) -> str:
        """Which conditions of the first recording the arguments do not meet."""
        values = self.first.values((), arguments)
        if values is None:
            names = set(arguments) ^ set(self.first.defaults)
            return f"the first recording was of a call with other arguments ({', '.join(sorted(names))})"
        try:
            self.first.check(values)
        except PararealizeError as error:
            return str(error).partition("; pass ")[0]
        return "the first recording does not hold for them"

    def _refuse(self, arguments: Mapping[str, Any], reason: Exception | str) -> NoReturn:
        """Raise the error for a call that cannot be recorded."""
        fact, name = self._fact(arguments), self.original.name
        values = self.first.values((), arguments)
        guards = tuple(map(str, self.first.guards.broken(values))) if values is not None else ()
        if isinstance(reason, ExampleError):
            raise ExampleError(f"{fact}; recorded anew, {reason}") from reason
        cause = reason if isinstance(reason, Exception) else None
        why = reason if isinstance(reason, PararealizeError | str) else f"{type(reason).__name__}: {reason}"
        raise GuardError(
            f"{fact}; {name} cannot be recorded anew for {_text(arguments)} under the same plan: {why}; pass inputs "
            "within net.guards, or convert again with example_inputs such as these",
            guards,
        ) from cause


def _is_symbolic(value: Any) -> bool:
    """Whether a value is a tensor of a transformation, of which nothing can be computed here."""
    if not isinstance(value, torch.Tensor):
        return False
    return isinstance(value, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(value)


def _key(arguments: Mapping[str, Any]) -> Any:
    return tuple(
        (name, value.shape, value.dtype, value.device) if isinstance(value, torch.Tensor) else (name, repr(value))
        for name, value in arguments.items()
    )


def _text(arguments: Mapping[str, Any]) -> str:
    texts = (
        f"{name} {tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
        if isinstance(value, torch.Tensor)
        else f"{name}={str(value)[:60]}"
        for name, value in arguments.items()
    )
    return ", ".join(texts)
