"""A network and a loader of inputs -> the same network, the statistics of its batch norms measured anew."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import nn

from pararealize.argument_types import typed_arguments
from pararealize.errors import ExampleError, ModelError
from pararealize.restore import preserve_training_flags

__all__ = ["measured_norms", "recalibrate_batchnorm", "running_norms"]


@typed_arguments(ExampleError, model=ModelError)
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Iterable[Any]) -> int:
    """Replace the running mean and variance of every batch norm by their averages over a loader's batches.

    For a trained network whose function was changed, as restacking does: the old statistics are of activations that no
    longer occur. Batch norms run in train mode, everything else in eval mode, and no weight changes; training flags
    and momenta are put back.

    Args:
        model: the network.
        loader: batches: a tensor, a tuple or list whose first item is the input (labels may follow), or a dict of
            keyword arguments. They are moved to the model's device.

    Returns:
        How many batch norms were measured; where there is none, nothing is run.

    Raises:
        ExampleError: the loader gives no batch.

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
    with measured_norms(model, norms):
        for number, batch in enumerate(chain([first], batches), start=1):
            try:
                args, kwargs = _call(batch, device)
                model(*args, **kwargs)
            except Exception as error:
                raise ExampleError(
                    f"{type(model).__name__} does not take batch {number} of the loader, a {type(batch).__name__}: "
                    f"{type(error).__name__}: {error}; give batches of inputs, (inputs, labels), or dicts"
                ) from error
    return len(norms)


def running_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The batch norms that keep running statistics."""
    norms = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]


@contextmanager
def measured_norms(model: nn.Module, norms: list[nn.modules.batchnorm._BatchNorm]) -> Iterator[None]:
    """Batch norms that measure their statistics anew, each batch of equal weight; all other modules in eval mode."""
    momenta = [(norm, norm.momentum) for norm in norms]
    with preserve_training_flags(model):
        try:
            for module in model.modules():
                module.training = False
            for norm in norms:
                norm.reset_running_stats()
                norm.training, norm.momentum = True, None
            yield
        finally:
            for norm, momentum in momenta:
                norm.momentum = momentum


def _call(batch: Any, device: torch.device) -> tuple[list[Any], dict[str, Any]]:
    if isinstance(batch, Mapping):
        return [], {name: _moved(value, device) for name, value in batch.items()}
    return [_moved(batch[0] if isinstance(batch, list | tuple) else batch, device)], {}


def _moved(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, torch.Tensor) else value
