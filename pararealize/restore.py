"""A model -> the same model, whatever was done with it in between."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

__all__ = ["left_as_found"]


@contextlib.contextmanager
def left_as_found(model: nn.Module) -> Iterator[None]:
    """Put back, on leaving, every attribute, parameter, buffer's content, training flag and hook, and the RNG state."""
    attributes = [(module, dict(module.__dict__), _inner(module)) for module in model.modules()]
    contents = [(buffer, buffer.detach().clone()) for buffer in model.buffers() if not buffer.is_meta]
    with torch.random.fork_rng(devices=_cuda_devices(model)):
        try:
            yield
        finally:
            for module, found, inner in attributes:
                module.__dict__.clear()
                module.__dict__.update(found)
                for container, copied in inner:
                    _refill(container, copied)
            with torch.no_grad():
                for buffer, content in contents:
                    if not torch.equal(torch.view_as_real(buffer) if buffer.is_complex() else buffer, content):
                        buffer.copy_(content)


def _inner(module: nn.Module) -> list[tuple[Any, Any]]:
    return [(value, value.copy()) for value in module.__dict__.values() if type(value) in (dict, list, set)]


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, list):
        container[:] = content
    else:
        container.clear()
        container.update(content)


def _cuda_devices(model: nn.Module) -> list[int]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({t.device.index or 0 for t in tensors if t.device.type == "cuda"})
