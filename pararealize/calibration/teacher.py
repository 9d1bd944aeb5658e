"""A network, or a model given for it -> Teacher: what a student should give for a batch, and at the ends of windows."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from pararealize.errors import CalibrationError, CheckpointError, ModelError
from pararealize.network.module import PararealModule
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.containers import on_device
from pararealize.train.run.score import eval_mode

from .batch import call_arguments
from .folded_layers import FoldedLayers
from .interfaces import Interfaces, InterfaceValues
from .known_original import lost_original
from .masks import MaskChoice
from .norm_statistics import NormStatistics

__all__ = ["Teacher", "TeacherValues"]


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

    Raises:
        CalibrationError: weights were fine-tuned, statistics renewed or maps folded into layers, nobody knows what
            these had before, and no model is given.
        ModelError: the model has no weights, or is a parareal network.
    """

    def __init__(
        self, net: PararealModule, model: nn.Module | None, *, renewed: tuple[str, ...], mask: MaskChoice
    ) -> None:
        known = NormStatistics(net)
        if model is None and (fact := lost_original(net, known, renewed)):
            raise CalibrationError(f"{fact}; pass teacher=model, the model that was converted")
        original = copy.deepcopy(net).eval()
        known.give_to(NormStatistics(original))
        FoldedLayers(original).unfold()
        self.text, self._model = f"{net.plan.model}, its original weights", None
        if model is not None:
            self.text = f"{type(model).__name__}, given"
            if not _loads(original, model):
                self._model = _checked(model)
        self.original = Interfaces(original, mask)
        self._call = CallSignature.of_graph(net.graph)

    @property
    def has_ends(self) -> bool:
        """Whether it has the values at the ends of windows."""
        return self._model is None

    def in_sequence(self, batch: Any) -> InterfaceValues:
        """The original's values for a batch."""
        return self.original.in_sequence(batch)

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
        args, kwargs = call_arguments(batch, self._call)
        home = next((tensor.device for tensor in self._model.parameters()), torch.device("cpu"))
        try:
            with eval_mode(self._model):
                output = self._model(*on_device(args, home), **on_device(kwargs, home))
        except Exception as error:
            raise CalibrationError(
                f"the teacher, a {type(self._model).__name__}, does not take a batch: {type(error).__name__}: {error}; "
                "pass a model that takes the network's inputs"
            ) from error
        return TeacherValues(output=output, ends=())


def _loads(original: PararealModule, model: nn.Module) -> bool:
    """Give the copy the weights of the model that was converted; False where it is another."""
    if type(model).__name__ != original.plan.model:
        return False
    try:
        original.load_original_state_dict(model.state_dict())
    except CheckpointError:
        return False
    return True


def _checked(model: nn.Module) -> nn.Module:
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        raise ModelError("the teacher is on the meta device, where nothing runs; give it its weights")
    return model
