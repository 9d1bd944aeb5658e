"""A model and what the user gives as example inputs -> the inputs by name, as the model's ``forward`` takes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from pararealize.errors import ExampleError, ModelError

from .call_signature import CallSignature, as_call, binds
from .containers import map_leaves
from .input_checks import plain_tensor

__all__ = ["Example"]

_INFERRED_BATCH = 2


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Inputs of a model by the names of its ``forward``'s parameters, and of the places within them.

    Attributes:
        values: name -> tensor, or a plain value that is passed on as it is; the tensor ``batch["cat"]`` is called
            ``batch_cat``.
        args: the positional arguments of a call with them, nested as the forward takes them.
        kwargs: the keyword arguments.
        call: how the forward, and every network made of it, is called.
        batch: the leading dimension that the inputs share, or ``None`` where there is none.
        doubt: where what was given is no call of the forward, and was taken as its one argument: what to say should the
            forward not accept it.
    """

    values: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    call: CallSignature
    batch: int | None
    doubt: str = ""

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of the inputs that are tensors."""
        return {name: value for name, value in self.values.items() if _is_tensor(value)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in self.tensors.items())

    def resized(self, batch: int | None) -> Example:
        """Copies of the inputs with ``batch`` rows: those of the example, again and again."""

        def rows(tensor: Any) -> Any:
            if not _is_tensor(tensor):
                return tensor
            if batch in (None, self.batch) or tensor.ndim == 0 or tensor.shape[0] != self.batch:
                return tensor.clone()  # a forward may change its inputs in place
            return tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]

        values = {name: rows(value) for name, value in self.values.items()}
        args, kwargs = self.arguments(values)
        size = self.batch if self.batch is None else batch
        return dataclasses.replace(self, values=values, args=args, kwargs=kwargs, batch=size)

    def arguments(self, values: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword arguments with other values in the place of the example's, by their names."""
        leaves = iter(self.values)  # in the order in which the arguments hold them
        args, kwargs = map_leaves(lambda _: values[next(leaves)], (self.args, self.kwargs))
        return args, kwargs

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any = None) -> Example:
        """Bind what the user gave, or what can be inferred, to the model's ``forward``.

        Args:
            model: its parameters' device is where the inputs go.
            example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, nested or not; ``None`` to
                infer them from timm's or torchvision's default sizes, Hugging Face's dummy inputs, or the first layer.

        Raises:
            ExampleError: nothing can be inferred, or the arguments do not fit ``forward``'s signature.
            ModelError: the model has no parameters.
        """
        device = _device(model)
        if example_inputs is None:
            example_inputs = _infer(model)
        signature = inspect.signature(model.forward)
        args, kwargs, doubt = _call_of(model, example_inputs, signature)
        # where the model is; a tensor as an object of its own, since one may be passed for two inputs
        args, kwargs = map_leaves(lambda leaf: plain_tensor(leaf, device) if _is_tensor(leaf) else leaf, (args, kwargs))
        binding = signature.bind(*args, **kwargs)
        call, values = CallSignature.of(type(model).__name__, binding)
        tensors = [value for value in values.values() if _is_tensor(value)]
        batch = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
        example = cls(values=values, args=binding.args, kwargs=binding.kwargs, call=call, batch=batch, doubt=doubt)
        if not tensors:
            raise ExampleError(f"the example inputs {example_inputs!r} hold no tensor; pass at least one")
        if batch == 0:
            raise ExampleError(f"the example inputs hold no sample: {example}; pass a batch of at least one")
        return example


def _call_of(
    model: nn.Module, inputs: Any, signature: inspect.Signature
) -> tuple[tuple[Any, ...], dict[str, Any], str]:
    """Positional and keyword arguments, and what is to say where they may be meant otherwise.

    Raises:
        ExampleError: the signature has other arguments.
    """
    args, kwargs = as_call(inputs)
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        fault = (
            f"the example inputs do not fit {type(model).__name__}.forward{signature}: {error}; pass a tensor, a tuple "
            "of its positional or a dict of its keyword arguments"
        )
        if _is_tensor(inputs) or not binds(signature, (inputs,), {}):
            raise ExampleError(fault) from error
        return (inputs,), {}, fault  # a dict, a list or a tuple may itself be the one argument
    return args, kwargs, ""


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(
            f"{type(model).__name__} has no parameters, so there is nothing to cut or train; "
            "pass the network that holds the layers"
        )
    return parameter.device


def _infer(model: nn.Module) -> Any:
    """Make example inputs from what the model says of itself, or from its first convolution or linear layer."""
    if isinstance(dummy := getattr(model, "dummy_inputs", None), Mapping) and not hasattr(model, "default_cfg"):
        return {name: value for name, value in dummy.items() if isinstance(value, torch.Tensor)}
    kinds = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear | nn.Embedding
    first = next((module for module in model.modules() if isinstance(module, kinds)), None)
    if first is None or isinstance(first, nn.Embedding):
        layer = "none that is known" if first is None else type(first).__name__
        remedy = "torch.randn(2, 3, 224, 224)" if first is None else "torch.zeros(2, 128, dtype=torch.long)"
        raise ExampleError(
            f"cannot infer what {type(model).__name__} takes: its first layer is {layer}; "
            f"pass example_inputs, for instance {remedy}"
        )
    size = (first.in_features,) if isinstance(first, nn.Linear) else _image_size(model, first)
    parameter = next(model.parameters())
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    return torch.randn(_INFERRED_BATCH, *size, dtype=dtype, device=parameter.device)


def _image_size(model: nn.Module, first: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> tuple[int, ...]:
    channels, axes = first.in_channels, len(first.kernel_size)
    config = getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and len(config.get("input_size") or ()) == axes + 1:  # timm
        return tuple(config["input_size"])
    for attribute in ("input_size", "image_size", "img_size"):
        size = getattr(model, attribute, None)
        if isinstance(size, int) and size > 0:
            return (channels, *[size] * axes)
        if isinstance(size, tuple) and len(size) == axes and all(isinstance(s, int) for s in size):
            return (channels, *size)
    side = 299 if type(model).__name__ == "Inception3" else {1: 1024, 2: 224, 3: 32}[axes]
    return (channels, *[side] * axes)
