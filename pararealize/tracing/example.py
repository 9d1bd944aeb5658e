"""A model and what the user gives as example inputs -> the inputs by name, as the model's ``forward`` takes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from pararealize.errors import ExampleError, ModelError

from .input_checks import check_names, plain_tensor

__all__ = ["Example", "as_call"]

_INFERRED_BATCH = 2
_PLAIN = (torch.Tensor, str, int, float, bool, complex, torch.dtype, torch.device)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """Inputs of a model by the names of its ``forward``'s parameters.

    Attributes:
        values: name -> tensor, or a plain value that is passed on as it is.
        args: the positional ones, as a call takes them.
        kwargs: the others.
        batch: the leading dimension that the inputs share, or ``None`` where there is none.
    """

    values: dict[str, Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    batch: int | None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Those of the inputs that are tensors."""
        return {name: value for name, value in self.values.items() if isinstance(value, torch.Tensor)}

    def __str__(self) -> str:
        return ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in self.tensors.items())

    def resized(self, batch: int | None) -> Example:
        """Copies of the inputs with ``batch`` rows: those of the example, again and again."""

        def rows(tensor: torch.Tensor) -> torch.Tensor:
            if batch in (None, self.batch) or tensor.ndim == 0 or tensor.shape[0] != self.batch:
                return tensor.clone()  # a forward may change its inputs in place
            return tensor[torch.arange(batch, device=tensor.device) % tensor.shape[0]]

        values, args, kwargs = tree_map_only(torch.Tensor, rows, (self.values, self.args, self.kwargs))
        return Example(values=values, args=args, kwargs=kwargs, batch=self.batch if self.batch is None else batch)

    @classmethod
    def of(cls, model: nn.Module, example_inputs: Any = None) -> Example:
        """Bind what the user gave, or what can be inferred, to the model's ``forward``.

        Args:
            model: its parameters' device is where the inputs go.
            example_inputs: a tensor, a tuple of positional or a dict of keyword arguments, or ``None`` to infer them
                from timm's or torchvision's default sizes, Hugging Face's dummy inputs, or the first layer.

        Raises:
            ExampleError: nothing can be inferred, or the arguments do not fit ``forward``'s signature.
            ModelError: the model has no parameters.
        """
        device = _device(model)
        if example_inputs is None:
            example_inputs = _infer(model)
        # where the model is; a tensor as an object of its own, since one may be passed for two inputs
        args, kwargs = tree_map_only(torch.Tensor, lambda tensor: plain_tensor(tensor, device), as_call(example_inputs))
        signature = inspect.signature(model.forward)
        try:
            binding = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise ExampleError(
                f"the example inputs do not fit {type(model).__name__}.forward{signature}: "
                f"{error}; pass a tensor, a tuple of its positional or a dict of its keyword arguments"
            ) from error
        values = dict(_named(binding))
        check_names(values)
        tensors = [value for value in values.values() if isinstance(value, torch.Tensor)]
        batch = next((tensor.shape[0] for tensor in tensors if tensor.ndim), None)
        example = cls(values=values, args=binding.args, kwargs=binding.kwargs, batch=batch)
        if not tensors:
            raise ExampleError(f"the example inputs {example_inputs!r} hold no tensor; pass at least one")
        if batch == 0:
            raise ExampleError(f"the example inputs hold no sample: {example}; pass a batch of at least one")
        return example


def _named(binding: inspect.BoundArguments) -> Iterator[tuple[str, Any]]:
    """Each input with a name of its own: of ``*args`` and ``**kwargs`` every item."""
    for name, value in binding.arguments.items():
        kind = binding.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            yield from ((f"{name}_{i}", item) for i, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            yield from value.items()
        else:
            yield name, value


def _device(model: nn.Module) -> torch.device:
    parameter = next(model.parameters(), None)
    if parameter is None:
        raise ModelError(
            f"{type(model).__name__} has no parameters, so there is nothing to cut or train; "
            "pass the network that holds the layers"
        )
    return parameter.device


def as_call(example_inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments, of a tensor, a tuple or a dict."""
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    if isinstance(example_inputs, Mapping):
        args, kwargs = (), dict(example_inputs)
    elif isinstance(example_inputs, tuple | list):
        args, kwargs = tuple(example_inputs), {}
    else:
        raise ExampleError(
            f"example_inputs is a {type(example_inputs).__name__}; pass a tensor, a tuple of positional arguments or a "
            "dict of keyword arguments"
        )
    for value in (*args, *kwargs.values()):
        if value is not None and not isinstance(value, _PLAIN):
            raise ExampleError(
                f"an example input is a {type(value).__name__}; only tensors and plain values can be inputs: "
                "wrap the model in a module whose forward takes the tensors one by one"
            )
    return args, kwargs


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
