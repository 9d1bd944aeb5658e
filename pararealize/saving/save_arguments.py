"""What is given to ``net.save`` beside the folder -> a typed error before anything is written."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from pararealize.distributed.checkpoint.state import own_tensors
from pararealize.errors import CalibrationError, ModelError

from .model_source import state_misfit

__all__ = ["check_calibration", "check_original"]


def check_original(original: nn.Module | None, tensors: Mapping[str, torch.Tensor]) -> None:
    """Make sure that what is written as the original could be: it has tensors of the same names and shapes, and values.

    Args:
        original: the model.
        tensors: the original's state within the network.

    Raises:
        ModelError: it is another model.
        CheckpointError: its state is more than tensors, or on the meta device.
    """
    if original is None:
        return
    if fault := state_misfit(own_tensors(original), tensors):
        raise ModelError(
            f"original= is not the model that this network was made from: {fault}; pass that, as it was trained, or "
            "leave original= out"
        )


def check_calibration(calibration: object) -> None:
    """Make sure that a report can be written.

    Raises:
        CalibrationError: it is none.
    """
    if calibration is not None and not callable(getattr(calibration, "to_json", None)):
        raise CalibrationError(
            f"calibration is a {type(calibration).__name__}; pass what calibrate(net, batches) or fine_tune gives, or "
            "None"
        )
