"""What a forward pass switches on and off around its calls -> the regions that a graph's nodes stand in.

A region is a tuple of contexts, outermost first; ``node.meta["region"]`` holds it. Three sources tell of them:

    no_grad, enable_grad, set_grad_enabled, autocast    tell modes of torch functions that they begin and end
    inference_mode, saved_tensors_hooks, checkpoint     do not; the state that they leave is looked at before each call
    the re-entrant checkpoint                           is a custom autograd function, found on Python's stack

A region may be what is in force anyway (``autocast(enabled=False)`` outside autocast): it matters where the network is
called within another one. How code is written from regions is in ``region_code.py``.
"""

from __future__ import annotations

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any, TypeAlias

import torch
import torch.utils.checkpoint  # which this file looks for on the stack, and generated code calls
from torch import fx

from .node_table import UnreadableError

__all__ = [
    "Autocast",
    "Checkpoint",
    "GradMode",
    "InferenceMode",
    "Region",
    "RegionTracker",
    "SavedTensorHooks",
    "deciding",
    "in_both_modes",
    "is_of_checkpoint",
    "keep_regions",
    "leaves_gradients",
]

_GRAD_MODE_FILE = torch.no_grad.__enter__.__code__.co_filename
_CHECKPOINT_FILE = torch.utils.checkpoint.CheckpointFunction.forward.__code__.co_filename
_CHECKPOINT_FUNCTION = torch.utils.checkpoint.CheckpointFunction.forward.__code__
_SAVES = ("save_inputs", "setup_context")  # functions of that file in which hooks see what a checkpoint is called with
_SAVER = getattr(torch.utils.checkpoint, "_NoopSaveInputs", None)  # what does that before torch 2.11
_SAVER_CODE = getattr(getattr(_SAVER, "forward", None), "__code__", None)
_APPLY_CODE = getattr(getattr(torch.autograd.Function.apply, "__func__", None), "__code__", None)
_AUTOCAST_DEVICES = ("cpu", "cuda")


@dataclasses.dataclass(frozen=True, slots=True)
class GradMode:
    """Gradients on or off, whatever they are around it."""

    enabled: bool


@dataclasses.dataclass(frozen=True, slots=True)
class InferenceMode:
    """``torch.inference_mode()``."""


@dataclasses.dataclass(frozen=True, slots=True)
class Autocast:
    """``torch.autocast(...)``, on or off."""

    device: str
    dtype: torch.dtype
    enabled: bool
    cache: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SavedTensorHooks:
    """``torch.autograd.graph.saved_tensors_hooks(pack, unpack)``, by which torch's ``save_on_cpu`` works."""

    pack: Callable[[torch.Tensor], Any]
    unpack: Callable[[Any], torch.Tensor]


@dataclasses.dataclass(frozen=True, slots=True)
class Checkpoint:
    """One call of ``torch.utils.checkpoint.checkpoint``: what is within is computed anew in backward.

    Attributes:
        number: of the call, by which two in a row are told apart.
        reentrant: whether results require a gradient only where an argument does, as of a re-entrant checkpoint.
        settings: keyword arguments, by name.
    """

    number: int
    reentrant: bool
    settings: tuple[tuple[str, Any], ...]


Context: TypeAlias = GradMode | InferenceMode | Autocast | SavedTensorHooks | Checkpoint
Region: TypeAlias = tuple[Context, ...]


def keep_regions(graph: fx.Graph) -> None:
    """Drop all that nodes of a graph know but their regions, so that it can be run, copied and saved without fakes."""
    for node in graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "region"}


def deciding(region: Region) -> Region:
    """What of a region decides values and gradients, and not only what is kept for backward."""
    return tuple(context for context in region if not isinstance(context, Checkpoint | SavedTensorHooks))


def leaves_gradients(region: Region) -> bool:
    """Whether gradients are on in a region of a network that is called with them on."""
    return next((on for context in reversed(region) if (on := _grad_of(context)) is not None), True)


def in_both_modes(train: Region, evaluation: Region) -> Region:
    """The region of a node that stands in these two, which may differ in checkpoints.

    ``if self.training: checkpoint(...)`` makes them so. A checkpoint of one mode is one of both: it changes no value.
    """
    if len(train) == len(evaluation):
        return train
    regions = (train, evaluation) if len(train) > len(evaluation) else (evaluation, train)
    sign = 1 if regions[0] is train else -1  # the two recordings' numbers are not those of the same calls
    return tuple(
        dataclasses.replace(context, reentrant=False, number=sign * (context.number + 1))
        if isinstance(context, Checkpoint)
        else context
        for context in regions[0]
    )


class RegionTracker:
    """Knows the region that a pass is in.

    Attributes:
        region: the contexts in force that the pass has entered, outermost first.
        grad_enabled: whether they leave gradients on; a custom autograd function switches them off besides.
    """

    def __init__(self) -> None:
        self.region: Region = ()
        self._ambient_grad = self.grad_enabled = torch.is_grad_enabled()
        self._ambient_hooks = _saved_tensor_hooks()
        self._ambient_autocast = {device: _autocast_state(device) for device in _AUTOCAST_DEVICES}
        self._autocast = self._ambient_autocast
        self._grad_managers: dict[int, tuple[Any, Region]] = {}  # context managers entered, and the region around each
        self._around_autocast: list[Region] = []
        self._evidence: dict[int, Any] = {}  # by number of a checkpoint: its hooks, or a re-entrant one's frame
        self._numbers = itertools.count()

    # Told by torch --------------------------------------------------------------------------------------------------

    def set_grad_enabled(self, enabled: bool, frame: FrameType) -> None:
        """A grad mode is switched, in this Python frame; to be called before it is."""
        if not self.look():
            return
        manager, leaves, user = _grad_manager(frame)
        if user is not None and user.f_code is _CHECKPOINT_FUNCTION:
            # the re-entrant checkpoint's own no_grad: ``look`` has seen the checkpoint itself, where there is one
            if leaves:
                self._leave_grad_manager(manager)
            else:
                around = tuple(c for c in self.region if not self._is_call(c, user))
                self._grad_managers[id(manager)] = manager, around
            return
        if leaves:
            self._leave_grad_manager(manager, default=GradMode(enabled))
            return
        if manager is not None:
            self._grad_managers.setdefault(id(manager), (manager, self.region))
        self._set((*self.region, GradMode(enabled)))

    def _leave_grad_manager(self, manager: Any, default: GradMode | None = None) -> None:
        entry = self._grad_managers.pop(id(manager), None)
        if entry is not None:
            self._set(entry[1])
        elif default is not None:
            self._set((*self.region, default))

    def enter_autocast(self, device: str, dtype: torch.dtype, enabled: bool, cache: bool) -> None:
        """An autocast region begins; to be called after autocast is switched."""
        self._around_autocast.append(self.region)
        self._autocast = {name: _autocast_state(name) for name in _AUTOCAST_DEVICES}
        self.look()
        self._set((*self.region, Autocast(device, dtype, enabled, cache)))

    def exit_autocast(self) -> None:
        """The autocast region that began last ends."""
        if self._around_autocast:
            self._set(self._around_autocast.pop())
        self._autocast = {name: _autocast_state(name) for name in _AUTOCAST_DEVICES}

    # Seen from the state that it leaves -----------------------------------------------------------------------------

    def look(self) -> bool:
        """Notice what began or ended without a word since the last call.

        Returns:
            Whether it is the model that runs, and not a checkpoint that saves what the model calls it with.

        Raises:
            UnreadableError: something did that no graph can repeat.
        """
        if _saved_tensor_hooks() != self._expected_hooks():
            self._look_at_hooks()
        if torch.is_inference_mode_enabled() != any(isinstance(c, InferenceMode) for c in self.region):
            if torch.is_inference_mode_enabled():
                self._set((*self.region, InferenceMode()))
            else:
                self._set(tuple(c for c in self.region if not isinstance(c, InferenceMode)))
        if torch.is_grad_enabled() != self.grad_enabled:
            if _frame_of(_saves_arguments) or _applies_saver():
                return False
            self._look_for_reentrant_checkpoint()
        for device, state in self._autocast.items():
            if _autocast_state(device) != state:
                raise UnreadableError("it switches autocast by functions, and not by torch.autocast")
        return True

    def _expected_hooks(self) -> Any:
        """The hooks of saved tensors that the innermost of the contexts has set which sets any."""
        pairs = (self._hooks_of(context) for context in reversed(self.region))
        return next((pair for pair in pairs if pair is not None), self._ambient_hooks)

    def _hooks_of(self, context: Context) -> Any:
        if isinstance(context, SavedTensorHooks):
            return context.pack, context.unpack
        return self._evidence[context.number] if isinstance(context, Checkpoint) and not context.reentrant else None

    def _look_at_hooks(self) -> None:
        """Hooks of saved tensors came or went: those of checkpoints, of torch's ``save_on_cpu``, or the model's."""
        in_force = _all_saved_tensor_hooks()
        ended = [c for c in self.region if (pair := self._hooks_of(c)) is not None and pair not in in_force]
        if ended:  # what began before them within the region goes on, or was told of
            self._set(tuple(c for c in self.region if c not in ended))
        entered = [pair for c in self.region if (pair := self._hooks_of(c)) is not None]
        new: list[Context] = []
        calls = [frame for frame in _checkpoint_frames() if frame.f_locals.get("use_reentrant") is False]
        for pack, unpack in reversed(in_force):  # the innermost first
            if (pack, unpack) in entered or (pack, unpack) == self._ambient_hooks:
                break
            if getattr(pack, "__qualname__", "").startswith("_checkpoint_hook") and calls:
                context: Context = self._checkpoint(calls.pop(0), reentrant=False, evidence=(pack, unpack))
            elif str(getattr(pack, "__module__", "")).startswith("torch."):
                context = SavedTensorHooks(pack, unpack)
            else:
                raise UnreadableError("it sets hooks of its own for saved tensors")
            new.insert(0, context)
        self._set((*self.region, *new))

    def _look_for_reentrant_checkpoint(self) -> None:
        """Gradients went off without a word: a custom autograd function is being applied."""
        frame = _frame_of(lambda frame: frame.f_code is _CHECKPOINT_FUNCTION)
        outer = next(iter(_checkpoint_frames()), None)
        if frame is None or outer is None or any(self._is_call(c, frame) for c in self.region):
            # its forward could be recorded, but its backward is Python that no graph of the forward holds
            raise UnreadableError("it applies a custom autograd function")
        self._set((*self.region, self._checkpoint(outer, reentrant=True, evidence=frame)))

    def _checkpoint(self, frame: FrameType, *, reentrant: bool, evidence: Any) -> Checkpoint:
        values = frame.f_locals
        settings: dict[str, Any] = {
            "preserve_rng_state": bool(values.get("preserve_rng_state", values.get("preserve", True)))
        }
        context_fn = values.get("context_fn")
        if context_fn is not torch.utils.checkpoint.noop_context_fn and not reentrant:
            function = context_fn.func if isinstance(context_fn, partial) else context_fn
            if getattr(function, "__closure__", None) or not hasattr(function, "__code__"):
                raise UnreadableError("it calls checkpoint with a context_fn that is no plain function")
            settings["context_fn"] = context_fn
        if values.get("determinism_check", "default") != "default":
            settings["determinism_check"] = values["determinism_check"]
        checkpoint = Checkpoint(next(self._numbers), reentrant, tuple(settings.items()))
        self._evidence[checkpoint.number] = evidence
        return checkpoint

    def _is_call(self, context: Context, frame: FrameType) -> bool:
        """Whether a context is the re-entrant checkpoint that runs in a frame."""
        return isinstance(context, Checkpoint) and self._evidence[context.number] is frame

    def finish(self) -> None:
        """The pass is over: nothing may stay switched.

        Raises:
            UnreadableError: gradients or autocast are left in another state than at the beginning.
        """
        self.look()
        if self.grad_enabled != self._ambient_grad or self._autocast != self._ambient_autocast:
            raise UnreadableError("it leaves gradients or autocast switched for whoever called it")

    def _set(self, region: Region) -> None:
        """Let a region be in force: of contexts that replace each other, only the last one is written down."""
        contexts: list[Context] = []
        for context in reversed(region):
            inner = list(itertools.takewhile(lambda c: not isinstance(c, Checkpoint), reversed(contexts)))
            if not any(_replaces(other, context) for other in inner):
                contexts.append(context)
        self.region = tuple(reversed(contexts))
        modes = (False if isinstance(c, Checkpoint) and c.reentrant else _grad_of(c) for c in contexts)
        self.grad_enabled = next((on for on in modes if on is not None), self._ambient_grad)


def _replaces(inner: Context, outer: Context) -> bool:
    """Whether nothing is left of a context within another one."""
    if isinstance(inner, Autocast) and isinstance(outer, Autocast):
        return inner.device == outer.device
    return isinstance(inner, GradMode) and isinstance(outer, GradMode)


def _grad_of(context: Context) -> bool | None:
    """Whether gradients are on in a context; ``None`` where it says nothing about them."""
    if isinstance(context, GradMode):
        return context.enabled
    return False if isinstance(context, InferenceMode) else None


def _saved_tensor_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _all_saved_tensor_hooks() -> list[Any]:
    """All pairs of hooks that this thread has set, outermost first; torch shows the last until it is taken off."""
    pairs: list[Any] = []
    while (pair := _saved_tensor_hooks()) is not None:
        pairs.insert(0, pair)
        torch._C._autograd._pop_saved_tensors_default_hooks()
    for pack, unpack in pairs:
        torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)
    return pairs


def _saves_arguments(frame: FrameType) -> bool:
    """Whether a frame of torch's checkpoint file saves what a checkpoint is called with.

    Before torch 2.11 it does so by a custom autograd function, whose arguments go through the hooks around it.
    """
    return frame.f_code.co_name in _SAVES or frame.f_code is _SAVER_CODE


def _applies_saver() -> bool:
    """Whether such a function is being applied: what hooks do with its arguments is none of the model's calls."""
    return any(frame.f_code is _APPLY_CODE and frame.f_locals.get("cls") is _SAVER for frame in _frames() if _SAVER)


def is_of_checkpoint(frame: FrameType) -> bool:
    """Whether a frame's calls are torch's own about what a checkpoint saves, before torch 2.11; none of the model's."""
    return _SAVER is not None and frame.f_code.co_filename == _CHECKPOINT_FILE


def _autocast_state(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _grad_manager(frame: FrameType) -> tuple[Any, bool, FrameType | None]:
    """The object of torch's that switches gradients in a frame, whether it puts them back, and its caller's frame.

    ``no_grad`` calls ``set_grad_enabled``, which calls torch's C; used as a function, it is never left.
    """
    if frame.f_code.co_filename != _GRAD_MODE_FILE:
        return None, False, frame
    outer = frame.f_back
    while outer is not None and outer.f_code.co_filename == _GRAD_MODE_FILE and outer.f_code.co_name[:2] == "__":
        frame, outer = outer, outer.f_back
    return frame.f_locals.get("self"), frame.f_code.co_name in ("__exit__", "__call__"), outer


def _frame_of(condition: Callable[[FrameType], bool]) -> FrameType | None:
    """The innermost frame of torch's checkpoint file of which a condition holds."""
    for frame in _frames():
        if frame.f_code.co_filename == _CHECKPOINT_FILE and condition(frame):
            return frame
    return None


def _checkpoint_frames() -> list[FrameType]:
    """The calls of ``checkpoint`` that are under way, innermost first."""
    return [f for f in _frames() if f.f_code.co_filename == _CHECKPOINT_FILE and f.f_code.co_name == "checkpoint"]


def _frames() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
