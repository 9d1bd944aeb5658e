"""A network and a loader of inputs -> the same network, the statistics of its batch norms measured anew."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from pararealize.argument_types import typed_arguments
from pararealize.errors import ExampleError, ModelError
from pararealize.restore import preserve_run_state, preserve_training_flags
from pararealize.tracing.containers import copied

__all__ = ["average_statistics", "normalises", "recalibrate_batchnorm", "running_norms"]

SINGLE = "Expected more than 1 value per channel"  # torch's words of what has no variance
Tensors = list[tuple[torch.Tensor, torch.Tensor]]

_ARGUMENTS: dict[Any, tuple[str, ...]] = {  # in their order
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    torch.batch_norm: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}


@typed_arguments(ExampleError, model=ModelError)
@torch.no_grad()
def recalibrate_batchnorm(model: nn.Module, loader: Iterable[Any]) -> int:
    """Replace the running mean and variance of every batch norm by their averages over a loader's batches.

    For a trained network whose function was changed, as restacking does: the old statistics are of activations that no
    longer occur. Batch norms are modules of ``torch.nn``, those of classes made from them, and modules that give
    buffers of their own to ``torch.nn.functional.batch_norm`` in train mode. They run in train mode, everything else in
    eval mode, and no weight changes; training flags and momenta are put back. A batch with one value a channel at some
    norm, as the last of a loader may have, is left out: it has no variance. After an error the statistics are as they
    were.

    Args:
        model: the network.
        loader: batches: a tensor, a tuple or list whose first item is the input (labels may follow), or a dict of
            keyword arguments. They are moved to the model's device.

    Returns:
        How many batch norms were measured; where no module has buffers, nothing is run.

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
    norms: list[nn.Module] = [*running_norms(model)]
    known = set(norms)
    others = [module for module in model.modules() if module not in known and _buffers(module)]
    if not norms and not others:
        return 0
    batches = iter(loader)
    first = next(batches, None)
    if first is None:
        raise ExampleError("the loader gives no batch; pass some tens of batches of training inputs")
    device = next(chain(model.parameters(), model.buffers())).device
    norms += _functional_norms(model, others, partial(_run, model, first, 1, device), device)
    if not norms:
        return 0
    calls = (partial(_run, model, batch, n, device) for n, batch in enumerate(chain([first], batches), start=1))
    if not average_statistics(model, norms, calls):
        raise ExampleError(
            "every batch of the loader has one value a channel at a batch norm, which has no variance; pass larger "
            "batches"
        )
    return len(norms)


def running_norms(model: nn.Module) -> list[_BatchNorm]:
    """The batch norms that keep running statistics."""
    norms = (module for module in model.modules() if isinstance(module, _BatchNorm))
    return [norm for norm in norms if norm.track_running_stats and norm.running_mean is not None]


@torch.no_grad()
def average_statistics(model: nn.Module, norms: Sequence[nn.Module], calls: Iterable[Callable[[], object]]) -> int:
    """Set running statistics to their averages over calls, each of equal weight; all other modules are in eval mode.

    Calls in which a norm has one value a channel are left out. Where none remains, and after an error, the statistics
    are as they were.

    Args:
        model: has the norms.
        norms: which are measured: modules of ``torch.nn``, or others that call the functional batch norm.
        calls: run what the norms are to measure, one after the other.

    Returns:
        Over how many calls the averages are.
    """
    before, count, is_done = _copies(norms), 0, False
    modules = [norm for norm in norms if isinstance(norm, _BatchNorm)]
    momenta = [norm.momentum for norm in modules]
    # a forward of another class need not read the attributes of torch.nn's, and a recorded one has their values
    is_functional = any(type(norm).forward not in (_BatchNorm.forward, nn.SyncBatchNorm.forward) for norm in norms)
    averages = _Averages()
    with preserve_training_flags(model), averages if is_functional else contextlib.nullcontext():
        try:
            for module in model.modules():
                module.training = False
            for norm in norms:
                norm.training = True
            for norm in modules:
                norm.reset_running_stats()
                norm.momentum = None
            for call in calls:
                counts = averages.counts.copy()
                if normalises(norms, call):
                    count += 1
                else:
                    averages.counts = counts
            is_done = count > 0
        finally:
            for norm, momentum in zip(modules, momenta, strict=True):
                norm.momentum = momentum
            if not is_done:
                _put_back(before)
    return count


def normalises(norms: Sequence[nn.Module], call: Callable[[], object]) -> bool:
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


class _FunctionalCalls(TorchFunctionMode):
    """Sees every call of a functional batch norm that moves statistics, by its arguments' names."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in _ARGUMENTS:
            return func(*args, **kwargs)
        values = dict(zip(_ARGUMENTS[func], args, strict=False)) | kwargs
        is_plain = len(args) <= len(_ARGUMENTS[func]) and values.get("training")
        if not is_plain or not isinstance(values.get("running_mean"), torch.Tensor):
            return func(*args, **kwargs)
        return self.call(func, values)

    def call(self, function: Callable[..., Any], values: dict[str, Any]) -> Any:
        """Make the call."""
        raise NotImplementedError


class _Finder(_FunctionalCalls):
    """Leaves statistics as they are, and keeps the ids of the means that would be moved."""

    def __init__(self) -> None:
        super().__init__()
        self.means: set[int] = set()

    def call(self, function: Callable[..., Any], values: dict[str, Any]) -> Any:
        self.means.add(id(values["running_mean"]))
        return function(**values | {"training": False})


class _Averages(_FunctionalCalls):
    """Moves statistics to their averages over all calls, whatever the momentum is."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()  # of calls, by the id of the mean

    def call(self, function: Callable[..., Any], values: dict[str, Any]) -> Any:
        mean, variance = values["running_mean"], values["running_var"]
        count = self.counts[id(mean)] + 1
        if count == 1:  # a share of nothing, which is no number where it was infinite
            mean.zero_()
            variance.zero_()
        result = function(**values | {"momentum": 1 / count})
        self.counts[id(mean)] = count
        return result


def _functional_norms(
    model: nn.Module, modules: Sequence[nn.Module], call: Callable[[], object], device: torch.device
) -> list[nn.Module]:
    """Those of some modules that give a buffer of theirs to a functional batch norm as the mean to be moved.

    Args:
        model: has the modules; all others are in eval mode.
        modules: those that may be norms; with none of them, nothing is run.
        call: runs the model.
        device: of its random numbers.
    """
    finder, candidates = _Finder(), set(modules)
    if modules:
        with preserve_training_flags(model), preserve_run_state(model, [device]):
            for module in model.modules():
                module.training = module in candidates
            with finder:
                call()
    return [module for module in modules if not finder.means.isdisjoint(map(id, _buffers(module)))]


def _buffers(module: nn.Module) -> list[torch.Tensor]:
    return list(module.buffers(recurse=False))


def _copies(norms: Iterable[nn.Module]) -> Tensors:
    return [(buffer, buffer.clone()) for norm in norms for buffer in _buffers(norm)]


@torch.no_grad()
def _put_back(tensors: Tensors) -> None:
    for tensor, value in tensors:
        tensor.copy_(value)


def _run(model: nn.Module, batch: Any, number: int, device: torch.device) -> None:
    try:
        args, kwargs = copied(_call(batch, device))
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
