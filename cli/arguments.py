"""Words of the command line -> arguments of the library. Nothing here imports torch before it is needed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pararealize.errors import CoarseError, DeviceError, ExampleError, TableauError
from pararealize.lookup import find

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pararealize.restacking.tableaux import Tableau

__all__ = ["coarse", "cuts", "devices", "example", "leaf_modules", "model", "scheme", "shape"]


def model(name: str, *, num_classes: int | None, seed: int, meta: bool = False) -> nn.Module:
    """The model of that name, its weights drawn from ``seed``; on the meta device it has shapes and no weights."""
    import torch

    from pararealize import models

    torch.manual_seed(seed)
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    with torch.device("meta" if meta else "cpu"):
        return models.build(name, **arguments)


def shape(text: str) -> tuple[int, ...]:
    """``3,32,32``, ``3x32x32`` or ``3×32×32``.

    Example:
        >>> shape("3x32x32")
        (3, 32, 32)
    """
    parts = re.split(r"\s*[,x×]\s*", text.strip())
    if not all(part.isdigit() and int(part) > 0 for part in parts):
        raise ExampleError(
            f"--input-shape {text!r} is not a shape; write positive sizes without the batch dimension, such as 3,32,32"
        )
    return tuple(int(part) for part in parts)


def example(name: str, text: str | None, dtype: str, batch: int, *, meta: bool = False) -> torch.Tensor | None:
    """Example inputs of the shape ``text``, or of the model's default shape; None leaves it to the library to infer.

    Integer inputs are zeros, which are valid token ids everywhere.
    """
    import torch

    from pararealize import models

    kind = getattr(torch, dtype, None)
    if not isinstance(kind, torch.dtype):
        raise ExampleError(f"--input-dtype {dtype!r} is not a type of torch's; write float32, bfloat16 or int64")
    if batch < 1:
        raise ExampleError(f"--batch {batch} is not positive; write 1 or more")
    sizes = models.default_input(name) if text is None else shape(text)
    if sizes is None:
        return None
    device = "meta" if meta else "cpu"
    if not kind.is_floating_point:
        return torch.zeros(batch, *sizes, dtype=kind, device=device)
    return torch.randn(batch, *sizes, device=device).to(kind)


def coarse(text: str) -> str | Callable[..., Any]:
    """A coarse kind, or the callable that ``package.module:name`` or ``file.py:name`` stands for."""
    if ":" not in text:
        return text
    value = find(text)
    if not callable(value):
        raise CoarseError(f"--coarse {text!r} is a {type(value).__name__}, which cannot be called; name a function")
    return value  # type: ignore[no-any-return]


def cuts(text: str) -> str | list[str]:
    """``cost``, ``paper``, or the block names at which segments begin, separated by commas."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    return names[0] if names in (["cost"], ["paper"]) else names


def devices(text: str | None) -> list[str] | None:
    """``cuda:0,cuda:1`` as a list."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise DeviceError(f"--devices {text!r} names no device; write for instance --devices cuda:0,cuda:1")
    return names


def scheme(text: str) -> str | Tableau:
    """A scheme's name, or the tableau that ``package.module:name`` or ``file.py:name`` stands for or gives."""
    if ":" not in text:
        return text
    from pararealize.restacking.tableaux import Tableau

    value = find(text)
    if callable(value):
        value = value()
    if not isinstance(value, Tableau):
        raise TableauError(f"--scheme {text!r} is a {type(value).__name__} and no Tableau; name one, or a function")
    return value


def leaf_modules(names: list[str] | None) -> tuple[type, ...]:
    """The classes that ``package.module:Class`` stands for."""
    classes = [find(name) for name in names or []]
    for name, value in zip(names or [], classes, strict=True):
        if not isinstance(value, type):
            raise ExampleError(f"--leaf {name!r} is a {type(value).__name__} and not a class; name a module's class")
    return tuple(classes)
