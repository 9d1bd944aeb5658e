"""Example inputs -> their form as plain data: shapes, types, plain values; and back, tensors of that form.

The values of a tensor stay out of it, so that nobody's samples travel with a network: numbers with a fraction are drawn
anew, whole ones become the largest that there was (a valid token id, a valid length), booleans stay as they are. A
tensor of equal numbers keeps that number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from pararealize.errors import CheckpointError, ExampleError
from pararealize.random_state import generator

__all__ = ["example_from", "form_of_example"]

MOST_BOOLEANS = 1 << 16  # that are kept one by one
MOST_DEPTH = 32
MOST_VALUES = 1 << 28  # of a tensor that a file asks for


def form_of_example(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as plain data.

    Args:
        args: the positional ones.
        kwargs: those by name.

    Raises:
        ExampleError: there is a value among them that is no tensor, no plain value and no dict, list or tuple of such.

    Example:
        >>> form_of_example((torch.zeros(2, 3),), {"use_cache": False})["args"]
        [{'tensor': [2, 3], 'dtype': 'float32', 'fill': 0.0}]
    """
    return {"args": [_form(value) for value in args], "kwargs": {name: _form(value) for name, value in kwargs.items()}}


def example_from(form: Any) -> Any:
    """Example inputs of that form: a tuple of positional arguments, or a dict of arguments by name.

    Raises:
        CheckpointError: it is no form of example inputs.

    Example:
        >>> [value.shape for value in example_from(form_of_example((torch.randn(2, 3),), {}))]
        [torch.Size([2, 3])]
    """
    try:
        args = tuple(_value(item, position, 0) for position, item in enumerate(form["args"]))
        kwargs = {str(name): _value(item, name, 0) for name, item in form["kwargs"].items()}
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise CheckpointError(
            f"the example inputs of a saved network cannot be read: {type(error).__name__}: {str(error)[:200]}; pass "
            "example_inputs="
        ) from error
    if args and kwargs:
        raise CheckpointError("the example inputs of a saved network have no names for some; pass example_inputs=")
    return kwargs or args


def _form(value: Any, depth: int = 0) -> dict[str, Any]:
    if depth > MOST_DEPTH:
        raise ExampleError(f"the example inputs are nested more than {MOST_DEPTH} deep")
    if isinstance(value, torch.Tensor):
        return _form_of_tensor(value)
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    if type(value) is dict and all(isinstance(key, str) for key in value):
        return {"dict": {key: _form(item, depth + 1) for key, item in value.items()}}
    if type(value) in (list, tuple):
        return {type(value).__name__: [_form(item, depth + 1) for item in value]}
    raise ExampleError(f"a {type(value).__name__} among the example inputs has no form that a file could hold")


def _form_of_tensor(value: torch.Tensor) -> dict[str, Any]:
    form: dict[str, Any] = {"tensor": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if value.is_meta or not value.numel():
        return form
    flat = value.detach().flatten().cpu()
    if value.dtype is torch.bool and not bool((flat == flat[0]).all()) and flat.numel() <= MOST_BOOLEANS:
        return form | {"bits": "".join("01"[bit] for bit in flat.tolist())}
    if not (value.is_floating_point() or value.is_complex()):
        return form | {"fill": flat.max().item()}
    if not value.is_complex() and bool((flat == flat[0]).all()) and bool(flat[0].isfinite()):
        return form | {"fill": flat[0].item()}
    return form


def _value(form: Mapping[str, Any], key: object, depth: int) -> Any:
    if depth > MOST_DEPTH:
        raise ValueError("it is nested too deep")
    ((kind, content),) = [(name, form[name]) for name in ("tensor", "value", "dict", "list", "tuple") if name in form]
    if kind == "value":
        if not (content is None or isinstance(content, bool | int | float | str)):
            raise ValueError("a plain value is none")
        return content
    if kind == "dict":
        return {str(name): _value(item, f"{key}.{name}", depth + 1) for name, item in content.items()}
    if kind in ("list", "tuple"):
        items = [_value(item, f"{key}.{position}", depth + 1) for position, item in enumerate(content)]
        return items if kind == "list" else tuple(items)
    return _tensor(form, key)


def _tensor(form: Mapping[str, Any], key: object) -> torch.Tensor:
    dtype = getattr(torch, form["dtype"], None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{form['dtype']!r} is no type of tensors")
    sizes = [int(size) for size in form["tensor"]]
    if min(sizes, default=0) < 0 or math.prod(sizes) > MOST_VALUES:
        raise ValueError(f"a tensor of the sizes {sizes} is none of an example")
    if "bits" in form:
        return torch.tensor([bit == "1" for bit in form["bits"]]).reshape(sizes)
    if "fill" in form:
        return torch.full(sizes, form["fill"], dtype=dtype)
    if dtype.is_floating_point or dtype.is_complex:
        drawn = torch.complex64 if dtype.is_complex else torch.float32
        return torch.randn(sizes, dtype=drawn, generator=generator("example", str(key))).to(dtype)
    return torch.zeros(sizes, dtype=dtype)
