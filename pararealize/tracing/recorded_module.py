"""A graph module that runs its own graph for inputs within its guards, and a later recording for others."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from pararealize.errors import ModelError, PararealizeError

from .conditions import CallConditions
from .guards import Guards
from .module_view import ModuleView, PlainGraphModule
from .recordings import Recordings

__all__ = ["RecordedModule"]


class RecordedModule(ModuleView, PlainGraphModule):
    """A converted network whose forward is chosen by the inputs' sizes, and whose mode is its original's.

    Attributes:
        guards: conditions on the inputs under which the graph that ``code`` prints is right.
    """

    guards: Guards
    _recordings: Recordings[Any]

    @property
    def recording_limit(self) -> int:
        """How many recordings for other inputs are kept beside the first; the oldest one gives way to a further one."""
        return self.__dict__["_recordings"].limit  # type: ignore[no-any-return]

    @recording_limit.setter
    def recording_limit(self, limit: int) -> None:
        self.__dict__["_recordings"].limit = limit

    @property
    def call_conditions(self) -> CallConditions:
        """What the arguments of a call have to be for this network's own graph, and its parts, to be right."""
        return self.__dict__["_recordings"].first  # type: ignore[no-any-return]

    @property
    def recorded_guards(self) -> tuple[Guards, ...]:
        """The guards of every recording that there is, the first one's first."""
        return self.__dict__["_recordings"].guards  # type: ignore[no-any-return]

    def recording_of(self, *args: Any, **kwargs: Any) -> fx.GraphModule:
        """What runs a call with these arguments: this network itself, or a recording for other sizes.

        Raises:
            GuardError: they break the guards, and the network cannot be recorded anew for them.
            ExampleError: the original does not accept them.
        """
        choice = self.__dict__["_recordings"].pick(args, kwargs)
        return self if choice is None else choice

    def recompile(self) -> Any:
        """Write the forward of the graph anew; it is called where its guards hold."""
        code = super().recompile()
        type(self).forward = _by_recording(type(self).forward)
        return code


def _meta_fault(net: nn.Module, error: RuntimeError) -> ModelError | None:
    """What torch's error about devices means where tensors of the network have no values."""
    empty = [name for name, tensor in (*net.named_parameters(), *net.named_buffers()) if tensor.is_meta]
    if not empty or isinstance(error, PararealizeError) or "meta" not in str(error).lower():
        return None
    listed = ", ".join(empty[:3]) + ", …" * (len(empty) > 3)
    return ModelError(
        f"{len(empty)} tensors of the network are on the meta device, without values ({listed}), and the inputs are "
        "not; give it memory with net.to_empty(device=...) and values with load_state_dict(...), or distribute it, "
        "which draws them"
    )


def _by_recording(graph_forward: Callable[..., Any]) -> Callable[..., Any]:
    """The forward of a network, by whichever recording is right for the call; the first one's is ``graph_forward``."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        try:
            recording = self.__dict__["_recordings"].pick(args, kwargs)
            if recording is None:
                return graph_forward(self, *args, **kwargs)
            return recording.forward(*args, **kwargs)
        except RuntimeError as error:
            if fault := _meta_fault(self, error):
                raise fault from error
            raise

    # torch.compile counts compilations by code object, of which each network has to have one of its own
    code, names, cells = forward.__code__.replace(), forward.__globals__, forward.__closure__
    return functools.wraps(graph_forward)(types.FunctionType(code, names, "forward", None, cells))
