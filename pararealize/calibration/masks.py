"""A batch, and what the caller says of it -> which positions count: a mask over the leading axes of values.

Padding fills a batch up; what a network makes of it is read by nobody. A mask, nonzero where there is something, leaves
it out of least squares, of distillation, and of every error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from pararealize.errors import CalibrationError, ExampleError
from pararealize.tracing.call_signature import CallSignature

from .batch import named_inputs

__all__ = ["AUTO", "MaskChoice", "attention_mask", "mask_of", "positions", "rows_at", "unmasked"]

MaskChoice: TypeAlias = str | Callable[[Any], Any] | None
AUTO = "auto"
DEFAULT = "attention_mask"  # what "auto" looks for


def mask_of(
    batch: Any, choice: MaskChoice, stream: Tensor, channel: int, call: CallSignature | None = None
) -> Tensor | None:
    """The mask of a batch, as booleans.

    Args:
        batch: as the caller gave it.
        choice: the name of an item of a dict batch, a function of the batch, ``None`` for no mask, or ``"auto"``: the
            item ``"attention_mask"`` where it has the shape ``(batch, length)`` of the stream's leading axes.
        stream: what crosses an interface, ``(batch, …)``.
        channel: which of the stream's axes has the channels.
        call: how the network is called, whose inputs have names also in a tuple.

    Raises:
        ExampleError: the batch has no item of that name.
        CalibrationError: the mask is no tensor of the stream's leading axes, in front of its channels.
    """
    if choice is None:
        return None
    if callable(choice):
        mask, what = choice(batch), "the mask that the function gives"
    elif call is not None:
        batch = named_inputs(batch, call)
    if choice == AUTO:
        mask = attention_mask(batch)
        return mask if mask is not None and _fits(mask, stream, channel) else None
    if not callable(choice):
        if not isinstance(batch, Mapping) or choice not in batch:
            names = f"; it has {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else ""
            raise ExampleError(
                f"a batch has no mask {choice!r}{names}; name an item of it, pass a function of the batch, or mask=None"
            )
        mask, what = batch[choice], f"the mask {choice!r}"
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or not mask.ndim or not _fits(mask, stream, channel):
        shape = tuple(mask.shape) if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
        raise CalibrationError(
            f"{what} is {shape}; between its blocks the network has values {tuple(stream.shape)} with the channels on "
            f"axis {channel}: pass a tensor of the first axes in front of that, such as {tuple(stream.shape[:channel])}"
        )
    return mask != 0


def attention_mask(batch: Any) -> Tensor | None:
    """The item ``"attention_mask"`` of a dict batch, ``(batch, length)``, as booleans; None where there is none."""
    mask = batch.get(DEFAULT) if isinstance(batch, Mapping) else None
    return mask != 0 if isinstance(mask, Tensor) and mask.ndim == 2 else None


def unmasked(value: Tensor, mask: Tensor | None, *, by_position: bool = False) -> Tensor:
    """``(positions, …)`` that count of ``(batch, length, …)``; a value without the mask's leading axes as it is.

    So is one that has these axes alone, a vector a sample, unless it is said to have one number a position.

    Example:
        >>> unmasked(torch.arange(6.0).view(1, 3, 2), torch.tensor([[True, False, True]])).tolist()
        [[0.0, 1.0], [4.0, 5.0]]
    """
    if mask is None or not (_leads(mask, value) or (by_position and value.shape == mask.shape)):
        return value
    return value[mask.to(value.device)]


def positions(value: Tensor, axis: int, mask: Tensor | None) -> Tensor | None:
    """Which rows of a value count, once its channels, on ``axis``, are last and all else is one axis; None: all do."""
    if mask is None or axis < mask.ndim or not _leads(mask, value):
        return None
    rows = (*value.shape[:axis], *value.shape[axis + 1 :])
    return mask.to(value.device).view(*mask.shape, *(1,) * (len(rows) - mask.ndim)).expand(rows).reshape(-1)


def _leads(mask: Tensor, value: Tensor) -> bool:
    """Whether the mask's axes are the value's first ones: a matrix beside a mask of two axes is a vector a sample."""
    return (value.ndim > mask.ndim or mask.ndim == 1) and value.shape[: mask.ndim] == mask.shape


def _fits(mask: Tensor, stream: Tensor, channel: int) -> bool:
    return mask.ndim <= channel and stream.shape[: mask.ndim] == mask.shape and not torch.is_complex(mask)


def rows_at(value: Tensor, channel: int, mask: Tensor | None) -> Tensor:
    """``(rows, channels)`` of a batch of values with channels at ``channel``; tokens that a mask excludes left out."""
    last = unmasked(value.movedim(channel + 1, -1), mask)
    return last.reshape(-1, last.shape[-1])
