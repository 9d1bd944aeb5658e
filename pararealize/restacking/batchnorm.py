"""A network and a loader of inputs -> the same network, the statistics of its batch norms measured anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import ExampleError, ModelError
from pararealize.restore import preserve_training_flags

__all__ = ["average_statistics", "normalises", "recalibrate_batchnorm", "running_norms"]

SINGLE = "Expected more than 1 value per channel"  # torch's words of what has no variance
Tensors = list[tuple[torch.Tensor, torch.Tensor]]


@typed_arguments(ExampleError, model=ModelError)
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Iterable[Any]) -> int:
    """Replace the running mean and variance of every batch norm by their averages over a loader's batches.

    For a trained network whose function was changed, as restacking does: the old statistics are of activations that no
    longer occur. Batch norms run in train mode, everything else in eval mode, and no weight changes; training flags
    and momenta are put back. A batch with one value a channel at some norm, as the last of a loader may have, is left
    out: it has no variance. After an error the statistics are as they were.

    Args:
        model: the network.
        loader: batches: a tensor, a tuple or list whose first item is the input (labels may follow), or a dict of
            keyword arguments. They are moved to the model's device.

    Returns:
        How many batch norms were measured; where there is none, nothing is run.

    Raises:
        ExampleError: the loader gives no batch, none with several values a channel, or one that does not fit.

    Example:
        >>> import torch
        >>> from pararealize.models import resnet20
        >>> net = resnet20()
        >>> recalibrate_batchnorm(net, [torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)])
        19
        >>> int(net.bn.num_batches_tracked)
        2
    """
    if not (norms := running_norms(model)):
        return 0
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ExampleError("the loader gives no batch; pass some tens of batches of training inputs")
    device = next(model.parameters()).device
    calls = (partial(_run, model, batch, n, device) for n, batch in enumerate(chain([first], batches), start=1))
    if not average_statistics(model, norms, calls):
        raise ExampleError(
            "every batch of the loader has one value a channel at a batch norm, which has no variance; pass larger "
            "batches"
        )
    return len(norms)


def running_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that keep running statistics."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]


@torch.no_grad()
def average_statistics(
    model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm], calls: Iterable[Callable[[], object]]
) -> int:
    """Set running statistics to their averages over calls, each of equal weight; all other modules are in eval mode.

    Calls in which a norm has one value a channel are left out. Where none remains, and after an error, the statistics
    are as they were.

    Args:
        model: has the norms.
        norms: which are measured.
        calls: run what the norms are to measure, one after the other.

    Returns:
        Over how many calls the averages are.
    """
    before, momenta, count, is_done = _copies(norms), [norm.momentum for norm in norms], 0, False
    with preserve_training_flags(model):
        try:
            for module in model.modules():
                module.training = False
            for norm in norms:
                norm.reset_running_stats()
                norm.training, norm.momentum = True, None
            for call in calls:
                count += normalises(norms, call)
            is_done = count > 0
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            if not is_done:
                _put_back(before)
    return count


def normalises(norms: list[nn.modules.batchnorm._BatchNorm], call: Callable[[], object]) -> bool:
    """Call what has batch norms in train mode; False, and their statistics as before, where one has no variance."""
    before = _copies(norms)
    try:
        call()
    except ValueError as error:
        if SINGLE not in str(error):
            raise
        _put_back(before)
        return False
    return True


def _copies(norms: Iterable[nn.Module]) -> Tensors:
    return [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers(recurse=False)]


@torch.no_grad()
def _put_back(tensors: Tensors) -> None:
    for tensor, value in tensors:
        tensor.copy_(value)


def _run(model: nn.Module, batch: Any, number: int, device: torch.device) -> None:
    try:
        args, kwargs = _call(batch, device)
        model(*args, **kwargs)
    except Exception as error:
        if isinstance(error, ValueError) and SINGLE in str(error):
            raise
        raise ExampleError(
            f"{type(model).__name__} does not take batch {number} of the loader, a {type(batch).__name__}: "
            f"{type(error).__name__}: {error}; give batches of inputs, (inputs, labels), or dicts"
        ) from error


def _call(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return [], {name: _moved(value, device) for name, value in batch.items()}
    return [_moved(batch[0] if isinstance(batch, list | tuple) else batch, device)], {}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
