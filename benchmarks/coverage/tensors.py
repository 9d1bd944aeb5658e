"""Inputs and outputs of any nesting -> their tensors, copies, other rows; and a call with all generators seeded."""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = ["call", "each", "every", "floating", "one_row", "put_back", "seeded", "shapes", "state"]


def seeded() -> None:
    """Set every generator that a model may draw from."""
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)


def call(model: nn.Module, inputs: Any) -> Any:
    """The model on a dict of keyword arguments, a tuple of positional ones, or one tensor."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def each(function: Callable[[torch.Tensor], Any], inputs: Any) -> Any:
    """The inputs with a function of every tensor in its place."""
    return tree_map_only(torch.Tensor, function, inputs)


def every(inputs: Any) -> list[torch.Tensor]:
    """All tensors of the inputs."""
    return [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def shapes(inputs: Any) -> str:
    """Such as ``2×3×64×64, 2×16``."""
    return ", ".join("×".join(map(str, tensor.shape)) for tensor in every(inputs))


def one_row(inputs: Any) -> Any:
    """The first row of everything that has as many rows as the first tensor."""
    rows = every(inputs)[0].shape[0]
    return each(lambda tensor: tensor[:1].clone() if tensor.ndim and tensor.shape[0] == rows else tensor, inputs)


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all buffers."""
    return {name: buffer.detach().clone() for name, buffer in model.named_buffers()}


def put_back(model: nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Give the buffers the values of these copies, in place where they are of one kind still."""
    for name, value in values.items():
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        buffer = getattr(owner, leaf)
        if buffer is not None and buffer.shape == value.shape and buffer.dtype == value.dtype:
            with torch.no_grad():
                buffer.copy_(value)
        else:
            setattr(owner, leaf, value.clone())


def floating(value: Any) -> Iterator[torch.Tensor]:
    """Every floating-point tensor within a result."""
    if isinstance(value, torch.Tensor):
        yield from [value] if value.is_floating_point() else []
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(floating, value.values()))
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from itertools.chain.from_iterable(floating(getattr(value, f.name)) for f in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        yield from itertools.chain.from_iterable(map(floating, value))
