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

from .call_signature import binds
from .captured import Capture
from .conditions import CallConditions
from .containers import leaves_of
from .guards import Guards
from .original import Original
from .tree_watch import TreeWatch

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
        watch: of the modules that the recordings read.
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
        watch: TreeWatch,
        device: torch.device | None = None,
        limit: int = LIMIT,
    ) -> None:
        self.first, self.original, self.watch, self.limit = first, original, watch, limit
        self._build, self._device = build, device
        self._later: tuple[Recording[T], ...] = ()  # replaced as a whole: another thread may be walking over it
        self._refusals: dict[Any, PararealizeError] = {}
        self._lock = threading.Lock()
        self._clock = itertools.count(1)

    @property
    def guards(self) -> tuple[Guards, ...]:
        """Of all recordings, the first one's first."""
        return (self.first.guards, *(recording.conditions.guards for recording in self._later))

    def pick(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> T | None:
        """What is to run a call; ``None`` for the network's own graph.

        Raises:
            GuardError: the tensors break the first recording's guards, and the network cannot be recorded anew.
            ExampleError: the arguments are not the original's, or have a form that it cannot be recorded anew for; or
                the original does not accept them.
            ModelError: modules have been replaced, or containers have got hooks.
        """
        self.watch.check()
        if self.first.hold(args, kwargs):
            return None
        network = self._find(args, kwargs)
        return self._record(args, kwargs) if network is None else network

    def _find(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> T | None:
        for recording in self._later:
            if recording.conditions.hold(args, kwargs):
                if not torch.compiler.is_compiling():
                    recording.last_use = next(self._clock)
                return recording.network
        return None

    @_disable_dynamo
    def _record(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> T:
        """Record a call anew, or refuse it; one thread at a time."""
        fact = self._fact(args, kwargs)
        try:
            arguments = self.original.signature.bind(*args, **kwargs).arguments
        except TypeError:
            raise fact from None
        if any(map(_is_symbolic, leaves_of((list(args), dict(kwargs))))):
            self._refuse(fact, arguments, "of a tensor without values, as torch.export and torch.func pass them")
        with self._lock:
            if (network := self._find(args, kwargs)) is not None:
                return network
            key = tuple((name, _key(value)) for name, value in arguments.items())
            if (refusal := self._refusals.get(key)) is not None:
                raise type(refusal)(*refusal.args)
            try:
                return self._add(args, kwargs, fact, arguments)
            except PararealizeError as error:
                if len(self._refusals) >= _MOST_REFUSALS:
                    del self._refusals[next(iter(self._refusals))]
                self._refusals[key] = type(error)(*error.args)  # without the traceback, which would keep the recording
                raise

    def _add(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], fact: PararealizeError, arguments: Mapping[str, Any]
    ) -> T:
        try:
            with ordinary_mode():
                conditions, network = self._build(self.original.capture(args, kwargs, device=self._device))
        except Exception as error:  # noqa: BLE001 - whatever the model's code raises for such inputs
            self._refuse(fact, arguments, error)
        if not conditions.hold(args, kwargs):
            self._refuse(fact, arguments, "the new recording does not hold for them either")
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
            f"{self.original.name} was recorded anew for {_text(arguments)}: {_what(fact)}{more}",
            RecordingWarning,
            stacklevel=2,
        )
        return network

    def _fact(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> PararealizeError:
        """Why the first recording does not hold for a call."""
        takes = binds(self.original.signature, tuple(args), kwargs)
        if takes and not binds(self.first.call.signature, tuple(args), kwargs):
            return ExampleError("the network was recorded with other arguments")
        try:
            self.first.check(args, kwargs)
        except PararealizeError as error:
            return error
        return GuardError("the first recording does not hold for this call")

    def _refuse(self, fact: PararealizeError, arguments: Mapping[str, Any], reason: Exception | str) -> NoReturn:
        """Raise the error for a call that cannot be recorded: of the kind of the first recording's own."""
        name, cause = self.original.name, reason if isinstance(reason, Exception) else None
        guards = fact.guards if isinstance(fact, GuardError) else ()
        if isinstance(reason, ExampleError):
            raise ExampleError(f"{_what(fact)}; recorded anew, {reason}") from reason
        why = reason if isinstance(reason, PararealizeError | str) else f"{type(reason).__name__}: {reason}"
        text = (
            f"{_what(fact)}; {name} cannot be recorded anew for {_text(arguments)} under the same plan: {why}; pass "
            "inputs within net.guards, or convert again with example_inputs such as these"
        )
        raise (GuardError(text, guards) if isinstance(fact, GuardError) else ExampleError(text)) from cause


def _what(fact: PararealizeError) -> str:
    """An error without its remedies."""
    return str(fact).partition("; pass ")[0].partition("; leave ")[0]


def _is_symbolic(value: Any) -> bool:
    """Whether a value is a tensor of a transformation, of which nothing can be computed here."""
    if not isinstance(value, torch.Tensor):
        return False
    return isinstance(value, FakeTensor) or torch._C._functorch.is_functorch_wrapped_tensor(value)


def _key(value: Any) -> Any:
    return tuple(
        (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, torch.Tensor) else repr(leaf)
        for leaf in leaves_of(value)
    )


def _text(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {', '.join(map(_leaf_text, leaves_of(value)))}" for name, value in arguments.items())


def _leaf_text(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor):
        return f"{tuple(leaf.shape)} {str(leaf.dtype).removeprefix('torch.')}"
    return repr(leaf)[:60]
