"""A network and a data set -> its loss and its error on the test part."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from pararealize.argument_types import typed_arguments
from pararealize.data.dataset import Dataset
from pararealize.distributed.checkpoint.collective import called_together
from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import processes_of
from pararealize.errors import DataError, ExampleError, ModelError
from pararealize.restore import preserve_training_flags
from pararealize.tracing.containers import map_leaves, on_device

__all__ = ["Score", "as_input", "correct", "enter_train_mode", "eval_mode", "evaluate", "input_dtype", "logits_of"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How well a network classifies the test part.

    Attributes:
        loss: mean cross-entropy, without label smoothing.
        error: share of the samples that are classified wrong, from 0 to 1.
        count: how many samples the test part has.
    """

    loss: float
    error: float
    count: int

    @property
    def accuracy(self) -> float:
        """Share of the samples that are classified right, from 0 to 1."""
        return 1 - self.error

    def __str__(self) -> str:
        return f"error {self.error:.2%}, loss {self.loss:.4f} on {self.count} samples"


@typed_arguments(DataError, net=ModelError)
def evaluate(net: nn.Module, data: Dataset) -> Score:
    """The loss and the error of a network on the test part of a data set, in eval mode.

    Over several ranks all of them call it, and all get the score; of several data-parallel copies, which take turns,
    each evaluates with the first copy's running statistics.

    Args:
        net: any module from inputs to logits ``(batch, classes)``, or a rank's stage; its training flags are put back.
        data: a data set of :mod:`pararealize.data.catalogue`.

    Raises:
        ExampleError: the output is no tensor of logits, or of fewer classes than the data has.

    Example:
        >>> from pararealize.data import digits
        >>> from pararealize.models import resnet20
        >>> score = evaluate(resnet20(), digits(image_size=8))
        >>> score.count, 0.5 < score.error <= 1
        (360, True)
    """
    processes = processes_of(net)
    with called_together(net, "evaluate"):
        processes.broadcast_buffers(net)
        device = net.device if isinstance(net, Stage) else next(net.parameters()).device
        dtype = input_dtype(net)
        total = torch.zeros(3, dtype=torch.float64)
        # of several copies, one may evaluate no batch at all: none of them counts steps from here on
        alone: AbstractContextManager[None] = net.no_sync() if isinstance(net, Stage) else nullcontext()
        with eval_mode(net), torch.no_grad(), alone:
            for batch, labels in itertools.islice(data.test_batches(), processes.replica, None, processes.replicas):
                output = net(as_input(batch, device, dtype))
                if not processes.is_last:
                    continue
                output = logits_of(output, labels, data.classes)
                labels = labels.to(output.device)
                loss = functional.cross_entropy(output.float(), labels, reduction="sum")
                total += torch.stack([loss, correct(output, labels), torch.tensor(len(labels)).to(loss)]).double().cpu()
        loss_sum, right, count = processes.total(total).tolist()
    return Score(loss=loss_sum / count, error=1 - right / count, count=int(count))


def input_dtype(net: nn.Module) -> torch.dtype | None:
    """The type of all parameters of a network with a fraction, on all of its ranks, which call this together.

    ``None`` where they have several types, or none.
    """
    here = {parameter.dtype for parameter in net.parameters() if parameter.is_floating_point()}
    dtypes = set().union(*processes_of(net).gather(here))
    return dtypes.pop() if len(dtypes) == 1 else None


def as_input(batch: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """A batch on a device; numbers with a fraction get the network's :func:`input_dtype`, where it has one."""
    batch = on_device(batch, device)
    if dtype is None:
        return batch
    return map_leaves(
        lambda leaf: leaf.to(dtype) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf, batch
    )


def logits_of(output: Any, labels: torch.Tensor, classes: int = 1) -> torch.Tensor:
    """The logits among what a network gives: the tensor itself, or its ``logits``.

    Raises:
        ExampleError: it is no tensor ``(batch, classes)``, or one of fewer classes than there are.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or len(logits) != len(labels):
        shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else None
        what = type(output).__name__ if shape is None else f"a tensor of shape {shape}"
        raise ExampleError(
            f"for {len(labels)} samples the network gives {what}; to be trained on classes it has to give logits of "
            f"shape ({len(labels)}, classes)"
        )
    if logits.shape[1] < classes:
        raise ExampleError(
            f"the network gives logits of {logits.shape[1]} classes and the data has {classes}; build it with at least "
            f"as many outputs (num_classes={classes})"
        )
    return logits


def correct(output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many samples have their largest logit at their label."""
    return (output.argmax(1) == labels).sum()


@contextmanager
def eval_mode(net: nn.Module) -> Iterator[None]:
    """Put a network into eval mode; every submodule's training flag is put back on leaving."""
    with preserve_training_flags(net):
        net.eval()
        yield


def enter_train_mode(net: nn.Module) -> None:
    """Put a network into train mode; where it is so already, modules that were set apart keep theirs."""
    if not (net.training and any(module.training for name, module in net.named_modules() if name)):
        net.train()
