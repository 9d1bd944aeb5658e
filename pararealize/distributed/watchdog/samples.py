"""A tensor -> some of its numbers, as text: enough to tell one batch from another, in microseconds."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch

__all__ = ["about_the_same", "sample", "sample_text"]

_COUNT = 32  # numbers of a tensor
_ROUNDING = 1e-3  # by which numbers may differ, relative to their size: ranks may stand on other processors
_CANCELLED = 1 / 16  # of a sample's numbers may be next to zero by cancellation, with an error of the others' size
_places: dict[torch.Size, tuple[Any, ...]] = {}  # indices of numpy, one an axis: twice as fast as torch's
_INTEGERS = {1: torch.uint8, 2: torch.int16}  # for types of one and two bytes that numpy does not know


def sample(tensor: torch.Tensor) -> str:
    """Some numbers of a tensor on the CPU, spread over all of it: the same ones for every tensor of that shape."""
    places = _places.get(tensor.shape)
    if places is None:
        count = tensor.numel()
        # multiples of the golden ratio fall between each other, and on no row or column more than on others
        numbers = {int(i * (math.sqrt(5) - 1) / 2 % 1 * count) for i in range(_COUNT)} if count else set()
        indices = torch.unravel_index(torch.tensor(sorted(numbers), dtype=torch.long), tensor.shape)
        if len(_places) > 1000:  # as many shapes as that come from sequences of all lengths
            _places.clear()
        places = _places[tensor.shape] = tuple(index.numpy() for index in indices)
    dtype, tensor = tensor.dtype, tensor.detach().resolve_conj().resolve_neg()
    if dtype.is_floating_point and dtype not in (torch.float32, torch.float64, torch.float16):
        tensor = tensor.view(_INTEGERS[dtype.itemsize])
    return f"{dtype}:{tensor.numpy()[places].tobytes().hex()}"


def _values(text: str) -> torch.Tensor:
    """The numbers of a sample."""
    name, _, digits = text.partition(":")
    dtype = getattr(torch, name.removeprefix("torch."))
    return torch.frombuffer(bytearray.fromhex(digits), dtype=dtype) if digits else torch.empty(0, dtype=dtype)


def about_the_same(text: str, other: str) -> bool:
    """Whether two samples are of the same numbers: whole ones are the same, others are so up to rounding.

    Rounding is that of each number by itself, or of the small ones among all: beside a column of times in seconds, or
    of a mask's least number, all others would be the same.
    """
    if text == other:
        return True
    if text.partition(":")[0] != other.partition(":")[0] or len(text) != len(other):
        return False
    a, b = _values(text), _values(other)
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if not a.dtype.is_floating_point:
        return False
    rounding = max(_ROUNDING, 2 * torch.finfo(a.dtype).eps)
    a, b = a.double(), b.double()
    sizes = torch.maximum(a.abs(), b.abs())
    sizes = sizes[sizes.isfinite() & (sizes > 0)].sort().values
    least = rounding * float(sizes[int(_CANCELLED * len(sizes))]) if len(sizes) else 0.0
    # on both ranks alike, though the first of two is not the other's first
    return any(torch.allclose(x, y, rtol=rounding, atol=least, equal_nan=True) for x, y in ((a, b), (b, a)))


def sample_text(text: str) -> str:
    """A sample as errors show it: its first numbers, and a digest of all of them."""
    numbers = ", ".join(f"{number:.4g}" for number in _values(text)[:3].tolist())
    return f"{numbers} … (digest {zlib.crc32(text.encode()):08x})"
