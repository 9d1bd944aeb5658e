"""A batch -> its inputs by name, its labels; batches -> passes over them, each with the same batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, TypeAlias

from torch import Tensor

from pararealize.errors import CalibrationError, ExampleError
from pararealize.random_state import continued_state
from pararealize.saving.network_record import weights_digest
from pararealize.tracing.argument_form import tensor_names
from pararealize.tracing.call_signature import CallSignature, binds
from pararealize.tracing.containers import copied, leaves_of, tensors_of

__all__ = [
    "Batches",
    "RepeatedBatches",
    "call_arguments",
    "check_finite",
    "inputs_of",
    "labels_of",
    "named_inputs",
    "one_pass",
    "samples_of",
]

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]


def inputs_of(batch: Any, call: CallSignature) -> Mapping[str, Tensor]:
    """The tensors of a batch by their names: of an input, of ``(input, labels)``, or of a dict of keyword arguments.

    They are copies, into which a network may write. In the place of the input is a tuple where the network takes
    several. A dict with none of the arguments' names is itself the input, but for its labels.

    Raises:
        ExampleError: an input is missing, or is not nested as in the example of the conversion, or none has a sample.
    """
    args, kwargs = call_arguments(batch, call)
    inputs: Mapping[str, Tensor] = copied(call.tensors(args, kwargs))
    shaped = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.ndim}
    if shaped and not any(value.numel() for value in shaped.values()):
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in shaped.items())
        raise ExampleError(f"a batch holds no sample: {shapes}; leave it out, and pass batches of samples")
    return inputs


def call_arguments(batch: Any, call: CallSignature) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The positional and keyword arguments of a call with a batch.

    Raises:
        ExampleError: an input is missing.
    """
    names = list(call.signature.parameters)
    if isinstance(batch, list | tuple) and not batch:
        raise ExampleError("a batch is empty; pass tensors, (input, labels), or dicts of keyword arguments")
    if not isinstance(batch, Mapping):
        return _positional(batch[0] if isinstance(batch, list | tuple) else batch, call), {}
    inputs = {name: value for name, value in batch.items() if name in names}
    if "labels" in inputs and call.arguments[names.index("labels")].fault(inputs["labels"]) is not None:
        del inputs["labels"]  # which the model takes, and was converted without
    if not inputs and call.takes_mapping:
        return (batch if call.fits(batch) else {k: v for k, v in batch.items() if k != "labels"},), {}
    required = [p.name for p in call.signature.parameters.values() if p.default is p.empty and p.name not in inputs]
    if required:
        raise ExampleError(
            f"the batch has no input {required[0]!r}, which {call.model} needs; pass a dict of its inputs by name "
            f"({', '.join(names)}), with its labels as 'labels'"
        )
    return (), inputs


def _positional(inputs: Any, call: CallSignature) -> tuple[Any, ...]:
    """The positional arguments of a call: the inputs, or those of a tuple where these are no first argument."""
    args = (inputs,)
    if isinstance(inputs, list | tuple) and not (binds(call.signature, args, {}) and call.fits(inputs)):
        args = tuple(inputs)
    first, *others = call.arguments
    if len(args) == 1 and any(True for other in others for _ in tensor_names(other.form)):
        names = ", ".join(call.signature.parameters)
        raise ExampleError(
            f"the batch has one input, {first.name!r}, and {call.model} was converted with {names}; pass "
            f"(({names}), labels), or a dict of its inputs by name, with its labels as 'labels'"
        )
    return args


def named_inputs(batch: Any, call: CallSignature) -> Any:
    """A batch as a dict of its inputs by name where they are a tuple of several; any other batch as it is."""
    if isinstance(batch, Mapping):
        return batch
    args, _ = call_arguments(batch, call)
    return dict(zip(call.signature.parameters, args, strict=False)) if len(args) > 1 else batch


def labels_of(batch: Any) -> Tensor | None:
    """The labels, one integer a sample, where the batch has them."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    else:
        labels = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    is_label = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    return labels if is_label else None


def one_pass(batches: Batches) -> Iterator[Any]:
    """One pass over batches that can be read several times: a list, a loader, or a function that gives an iterator.

    Raises:
        ExampleError: they can be read once only.
    """
    source: Any = batches() if callable(batches) else batches
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise ExampleError(
            f"the batches are a {type(source).__name__}; pass a list, a loader, or a function that gives one"
        )
    iterator: Iterator[Any] = iter(source)
    if iterator is batches:
        raise ExampleError(
            "calibration reads its batches several times, and an iterator gives them once; pass a list, a loader, or a "
            "function that gives a new iterator, such as data.batches"
        )
    return iterator


class RepeatedBatches:
    """Batches that are read several times, in every pass with the same random numbers.

    A loader that shuffles gives the same batches then, whatever is drawn or read between two of them. Those that were
    noted in the first pass are compared with what later ones give.

    Args:
        batches: a list, a loader, or a function that gives an iterator.
        seed: of torch's, Python's and NumPy's generators, when a pass begins.
    """

    def __init__(self, batches: Batches, *, seed: int) -> None:
        self._batches, self._seed = batches, seed
        self._digests: dict[int, str] = {}  # of batches that were noted, by their number

    def one_pass(self) -> Iterator[Any]:
        """All batches.

        Raises:
            ExampleError: while it is read: they can be read once only.
        """
        states: list[Any] = []
        with continued_state(states, self._seed):
            iterator = one_pass(self._batches)
        end = object()
        while True:
            with continued_state(states, self._seed):
                batch = next(iterator, end)
            if batch is end:
                return
            yield batch

    def note(self, number: int, batch: Any) -> None:
        """Remember the digest of a batch of the first pass, counted from 0, which later passes have to give again."""
        if not isinstance(self._batches, list | tuple):
            self._digests[number] = _digest(batch)

    def is_known(self, number: int) -> bool:
        """Whether a later pass is sure to give this batch again, counted from 0: it is of a list, or was noted."""
        return isinstance(self._batches, list | tuple) or bool(self._digests.get(number))

    def later_pass(self, start: int, stop: int, count: int, *, alike: bool = True) -> Iterator[Any]:
        """The batches from ``start`` up to ``stop``, counted from 0, in a pass behind a first one that gave ``count``.

        Args:
            start: the first.
            stop: the one behind the last.
            count: how many there are.
            alike: whether they have to be those that were noted; who trains on them may see others.

        Raises:
            CalibrationError: while it is read: a batch is another one than that which was noted.
            ExampleError: this pass ends before. A function may give an iterator that was read already.
        """
        number = 0
        for number, batch in enumerate(islice(self.one_pass(), stop), start=1):
            if number <= start:
                continue
            if alike and (digest := self._digests.get(number - 1)) and digest != _digest(batch):
                raise CalibrationError(
                    f"batch {number} is another one in a later pass over batches than in the first, so that samples "
                    "held out would be fitted to; pass a list, or a loader or function that gives the same batches in "
                    "every pass, as one that shuffles does where it has no generator of its own, and whose persistent "
                    "workers draw nothing"
                )
            yield batch
        if number < stop:
            raise ExampleError(
                f"a first pass over the batches gave {count}, and a later one {number}; pass a list, a loader, or a "
                "function that gives a new iterator over the same batches with every call"
            )


def _digest(batch: Any) -> str:
    """A digest of the tensors of a batch; empty where they are none of the plain kind."""
    return weights_digest({str(number): tensor for number, tensor in enumerate(tensors_of(batch))})


def check_finite(value: Tensor, what: str, number: int) -> None:
    """Make sure that an activation is finite.

    Args:
        value: the activation.
        what: says what it is.
        number: the batch's among others, from 1.

    Raises:
        CalibrationError: it is not.
    """
    if not bool(value.isfinite().all()):
        raise CalibrationError(
            f"{what} is not finite in batch {number}; calibration needs a trained network and inputs that it takes: "
            "look for NaN or infinity in the batch, or load the trained weights"
        )


def samples_of(batch: Any) -> int:
    """How many samples a batch has: the length of its first tensor, or the one that most tensors of a dict have.

    Example:
        >>> import torch
        >>> samples_of({"positions": torch.zeros(1, 5), "ids": torch.zeros(3, 5)}), samples_of([torch.zeros(2)])
        (3, 2)
    """
    sizes = [len(leaf) for leaf in leaves_of(batch) if isinstance(leaf, Tensor) and leaf.ndim]
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    if isinstance(inputs, Mapping) and any(size > 1 for size in sizes):  # what is alike for all may be of length 1
        sizes = [size for size in sizes if size > 1]
        return max(sizes, key=sizes.count)
    return next(iter(sizes), 0)
