"""A network, or a model given for it -> Teacher: what a student should give for a batch, and at the ends of windows."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from pararealize.errors import CalibrationError, CheckpointError, ExampleError, ModelError
from pararealize.network.module import PararealModule
from pararealize.tracing.call_signature import CallSignature, forward_call
from pararealize.tracing.containers import copied, on_device
from pararealize.train.run.score import eval_mode

from .batch import call_arguments
from .folded_layers import FoldedLayers
from .interfaces import Interfaces, InterfaceValues
from .known_original import lost_original
from .masks import MaskChoice, unmasked
from .norm_statistics import NormStatistics
from .output_kind import named_leaves

__all__ = ["Teacher", "TeacherValues"]

CLOSE, CLOSE_IN_HALF = 1e-3, 2.0**-5  # norms of differences, relative: of other kernels, or another device


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TeacherValues:
    """What a teacher gives for a batch.

    Attributes:
        output: its output.
        ends: u_{m,n}, what the ends of the windows should be; empty where it is another model.
    """

    output: Any
    ends: tuple[Tensor, ...]


class Teacher:
    """The original of a network, or another model.

    Args:
        net: the network, of whose original a copy is kept, with the statistics that it had before a calibration.
        model: what teaches in its place: the model that was converted, or any other with the same outputs.
        renewed: parts whose batch norms a calibration gave other statistics.
        mask: which positions of a batch count.

    Attributes:
        original: the copy, which runs in sequence.
        text: says who teaches.
        reference: whose output errors are against: ``"original"`` or ``"teacher"``.

    Raises:
        CalibrationError: weights were fine-tuned, statistics renewed or maps folded into layers, nobody knows what
            these had before, and no model is given.
        ModelError: the model has no weights, or is a parareal network.
    """

    def __init__(
        self, net: PararealModule, model: nn.Module | None, *, renewed: tuple[str, ...], mask: MaskChoice
    ) -> None:
        self._net, self._statistics = net, NormStatistics(net)
        self._lost = lost_original(net, self._statistics, renewed)
        if model is None and self._lost:
            raise CalibrationError(f"{self._lost}; pass teacher=model, the model that was converted")
        original = self._copy()
        self.text, self._given, self._model = f"{net.plan.model}, its original weights", None, None
        if model is not None:
            model = _checked(_unwrapped(model))
            self.text = f"{type(model).__name__}, given"
            loads = _loads(original, model)
            self._given, self._model = (model, None) if loads else (None, model)
        self.original = Interfaces(original, mask)
        self.reference = "original" if self._model is None else "teacher"
        self._call = CallSignature.of_graph(net.graph)

    @property
    def has_ends(self) -> bool:
        """Whether it has the values at the ends of windows."""
        return self._model is None

    @property
    def has_original(self) -> bool:
        """Whether the copy is the original: not where that is lost, and another model teaches."""
        return self._model is None or not self._lost

    def settle(self, batches: Iterator[Any]) -> Any:
        """Find out, before the network is trained, what a model that was given is.

        It has to do what the copy does with its weights: another function may have the same names and shapes. Where it
        does not, it teaches itself, and the copy is as without it. Where its outputs have other tensors than the
        network's, errors are against the original.

        Args:
            batches: those held out.

        Returns:
            The first batch of which something counts, by which this was found out.

        Raises:
            ExampleError: there is no batch.
            CalibrationError: masks leave out all of them.
        """
        batch, values = self._first(batches)
        if self._given is not None and not self._is_loaded(self._given, batch, values):
            self._model, self.reference = self._given, "teacher"
            self.original = Interfaces(self._copy(), self.original.mask)
        if self._model is not None and _shapes(self(batch).output) != _shapes(values.output):
            self.reference = "original"
            self.text += "; errors are against the original, whose outputs are others" * self.has_original
        return batch

    def _first(self, batches: Iterator[Any]) -> tuple[Any, InterfaceValues]:
        empty = True
        for batch in batches:
            values, empty = self.in_sequence(batch), False
            if values.mask is None or bool(values.mask.any()):
                return batch, values
        if empty:
            raise ExampleError("there is no test batch; pass some batches that are held out, or leave test out")
        raise CalibrationError(
            "the mask leaves out every position of the batches that are held out, so that nothing is compared; pass "
            "one that is nonzero where there is something, or mask=None"
        )

    def in_sequence(self, batch: Any) -> InterfaceValues:
        """The original's values for a batch."""
        return self.original.in_sequence(batch)

    def true(self, batch: Any) -> InterfaceValues:
        """The values that errors are against: the original's, with the teacher's output where it is another model.

        Raises:
            CalibrationError: the original is lost, and the teacher's outputs are others.
        """
        if self.reference == "original" and not self.has_original:
            raise CalibrationError(
                f"{self._lost}, and the teacher ({self.text}) has other outputs, so that errors are against nothing; "
                "pass teacher=model, the model that was converted, or one with the same outputs"
            )
        values = self.in_sequence(batch)
        if self.reference == "teacher":
            values.output = self(batch).output
        return values

    @torch.no_grad()
    def __call__(self, batch: Any) -> TeacherValues:
        """What it gives for a batch.

        Raises:
            CalibrationError: another model does not take the batch.
        """
        if self._model is None:
            values = self.original.in_sequence(batch)
            ends = tuple(values.true[window.segments[-1].index] for window in self.original.windows)
            return TeacherValues(output=values.output, ends=ends)
        return TeacherValues(output=self._output_of(self._model, batch), ends=())

    @torch.no_grad()
    def _output_of(self, model: nn.Module, batch: Any) -> Any:
        home = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
        args, kwargs = copied(on_device(call_arguments(batch, self._call), home))
        try:
            with eval_mode(model):
                args, kwargs = forward_call(model, args, kwargs)
                return model(*args, **kwargs)
        except Exception as error:
            raise CalibrationError(
                f"the teacher, a {type(model).__name__}, does not take a batch: {type(error).__name__}: {error}; "
                "pass a model that takes the network's inputs"
            ) from error

    def _is_loaded(self, model: nn.Module, batch: Any, values: InterfaceValues) -> bool:
        """Whether the copy, with a model's weights, gives the model's output; so, too, where that takes no batch."""
        try:
            output = self._output_of(model, batch)
        except CalibrationError:
            return True  # its weights are of another precision, for instance
        ours, theirs = dict(named_leaves(values.output)), dict(named_leaves(output))
        return _shapes(output) == _shapes(values.output) and all(
            _is_close(unmasked(value, values.mask), unmasked(theirs[path], values.mask)) for path, value in ours.items()
        )

    def _copy(self) -> PararealModule:
        """A copy of the network, in sequence the original as far as that is known."""
        original = copy.deepcopy(self._net).eval()
        self._statistics.give_to(NormStatistics(original))
        FoldedLayers(original).unfold()
        return original


def _loads(original: PararealModule, model: nn.Module) -> bool:
    """Give the copy the weights of a model of the class that was converted; False where these do not fit."""
    if type(model).__name__ != original.plan.model:
        return False
    try:
        original.load_original_state_dict(model.state_dict())
    except CheckpointError:
        return False
    return True


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model within what computes the same: torch.compile, copies on several devices, averages of weights."""
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)
    while True:
        inner = model.module if isinstance(model, wrappers) else model._modules.get("_orig_mod")
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _shapes(output: Any) -> dict[Any, tuple[int, ...]]:
    return {path: tuple(value.shape) for path, value in named_leaves(output)}


def _is_close(value: Tensor, true: Tensor) -> bool:
    """Whether two tensors differ by rounding, in the coarser of their types; numbers that are not finite are equal.

    GPUs round float32 to TF32 within convolutions, and within products where that is asked for.
    """
    wide = {torch.float32, torch.float64}
    on_cpu = value.device.type == true.device.type == "cpu"
    close = CLOSE if on_cpu and {value.dtype, true.dtype} <= wide else CLOSE_IN_HALF
    value, true = value.double(), true.to(value.device).double()
    same = (value == true) | (value.isnan() & true.isnan())
    difference = (value - true).masked_fill(same, 0.0)
    return bool(difference.norm() <= close * true.masked_fill(~true.isfinite(), 0.0).norm())


def _checked(model: nn.Module) -> nn.Module:
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError("the teacher is on the meta device, where nothing runs; give it its weights")
    return model
