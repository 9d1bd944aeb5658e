"""A model and what the user gives as example inputs -> the inputs by name, as the model's ``forward`` takes them."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from pararealize.errors import ExampleError, ModelError

__all__ = ["Example", "as_call"]

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
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
        return _shapes(self.tensors)

    def resized(self, batch: int | None) -> Example:
        """Copies of the inputs with ``batch`` rows: those of the example, again and again."""

        def rows(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            if batch in (None, self.batch) or value.ndim == 0 or value.shape[0] != self.batch:
                return value.clone()  # a forward may change its inputs in place
            return value[torch.arange(batch, device=value.device) % value.shape[0]]

        return Example(
            values={name: rows(value) for name, value in self.values.items()},
            args=tuple(rows(value) for value in self.args),
            kwargs={name: rows(value) for name, value in self.kwargs.items()},
            batch=self.batch if self.batch is None else batch,
        )

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
            example_inputs = infer_example(model)
        args, kwargs = as_call(example_inputs)
        args = tuple(_to(value, device) for value in args)
        kwargs = {name: _to(value, device) for name, value in kwargs.items()}
        try:
            binding = inspect.signature(model.forward).bind(*args, **kwargs)
        except TypeError as error:
            raise ExampleError(
                f"the example inputs do not fit {type(model).__name__}.forward{inspect.signature(model.forward)}: "
                f"{error}; pass a tensor, a tuple of its positional or a dict of its keyword arguments"
            ) from error
        values = dict(_named(binding))
        batch = next((v.shape[0] for v in values.values() if isinstance(v, torch.Tensor) and v.ndim), None)
        if not any(isinstance(value, torch.Tensor) for value in values.values()):
            raise ExampleError(f"the example inputs {example_inputs!r} hold no tensor; pass at least one")
        if batch == 0:
            raise ExampleError(f"the example inputs hold no sample: {_shapes(values)}; pass a batch of at least one")
        return cls(values=values, args=binding.args, kwargs=binding.kwargs, batch=batch)


def _shapes(values: Mapping[str, Any]) -> str:
    tensors = {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}
    return ", ".join(f"{name} {tuple(t.shape)} {str(t.dtype)[6:]}" for name, t in tensors.items())


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


def _to(value: Any, device: torch.device) -> Any:
    """The value where the model is; a tensor as an object of its own, since one may be passed for two inputs."""
    return value.detach().to(device) if isinstance(value, torch.Tensor) else value


def infer_example(model: nn.Module) -> Any:
    """Make example inputs from what the model says of itself, or from its first convolution or linear layer."""
    parameter = next(model.parameters())
    device = parameter.device
    if isinstance(dummy := getattr(model, "dummy_inputs", None), Mapping) and not hasattr(model, "default_cfg"):
        return {name: value for name, value in dummy.items() if isinstance(value, torch.Tensor)}
    first = next((m for m in model.modules() if isinstance(m, (*_CONVOLUTIONS, nn.Linear, nn.Embedding))), None)
    dtype = parameter.dtype if parameter.is_floating_point() else torch.float32
    for kind, axes in _CONVOLUTIONS.items():
        if isinstance(first, kind):
            size = _image_size(model, first.in_channels, axes)
            return torch.randn(_INFERRED_BATCH, *size, dtype=dtype, device=device)
    if isinstance(first, nn.Linear):
        return torch.randn(_INFERRED_BATCH, first.in_features, dtype=dtype, device=device)
    raise ExampleError(
        f"cannot infer what {type(model).__name__} takes: its first layer is "
        f"{'none that is known' if first is None else type(first).__name__}; pass example_inputs, for instance "
        + (
            "torch.zeros(2, 128, dtype=torch.long)"
            if isinstance(first, nn.Embedding)
            else "torch.randn(2, 3, 224, 224)"
        )
    )


def _image_size(model: nn.Module, channels: int, axes: int) -> tuple[int, ...]:
    config = getattr(model, "default_cfg", None)
    if isinstance(config, Mapping) and len(config.get("input_size") or ()) == axes + 1:  # timm
        return tuple(config["input_size"])
    for attribute in ("input_size", "image_size", "img_size"):
        size = getattr(model, attribute, None)
        if isinstance(size, int) and size > 0:
            return (channels, *[size] * axes)
        if isinstance(size, tuple) and len(size) == axes and all(isinstance(s, int) for s in size):
            return (channels, *size)
    by_class = {"Inception3": 299}
    side = by_class.get(type(model).__name__, {1: 1024, 2: 224, 3: 32}[axes])
    return (channels, *[side] * axes)
