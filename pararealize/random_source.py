"""A seed -> random numbers that a thread draws from generators of its own, whatever it calls, instead of from torch's.

torch's default generators belong to all threads: seeding them to repeat a forward pass would give another thread's
training other numbers, and its draws would come between those of the pass.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["RandomSource"]

_aten = torch.ops.aten
_LIKE = {  # these have no overload with a generator; what they do with one
    _aten.rand_like: lambda tensor, generator: tensor.uniform_(generator=generator),
    _aten.randn_like: lambda tensor, generator: tensor.normal_(generator=generator),
}
_CREATORS = (_aten.rand, _aten.randn, _aten.randint, _aten.randperm)
_OVERLOADS = {"default": "generator", "low": "low_generator"}  # those of creators without and with a generator


class RandomSource(TorchDispatchMode):
    """Within it, calls of this thread that draw random numbers draw them from generators that begin at ``seed``.

    Fused dropout takes no generator, and is computed from a mask that does; fused attention with dropout, which CUDA
    has, is not reached.

    Attributes:
        draws: how many calls drew from it.

    Example:
        >>> import torch
        >>> layer, x = torch.nn.Dropout(0.5), torch.ones(100)
        >>> results, before = [], torch.get_rng_state()
        >>> for _ in range(2):
        ...     with RandomSource(seed=0):
        ...         results.append(layer(x))
        >>> torch.equal(*results), torch.equal(torch.get_rng_state(), before)
        (True, True)
    """

    def __init__(self, seed: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.draws = 0
        self._seed = seed
        self._generators: dict[torch.device, torch.Generator] = {}
        self._takes_generator: dict[Any, bool] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """One call, with a generator where it takes one and has none."""
        kwargs = dict(kwargs or {})
        packet = func.overloadpacket
        if packet in _CREATORS and func._overloadname in _OVERLOADS:
            func = getattr(packet, _OVERLOADS[func._overloadname])
        elif packet in _LIKE:
            return _LIKE[packet](_aten.empty_like(*args, **kwargs), self._generator(args, kwargs))
        elif packet is _aten.native_dropout and (args[2] or args[2] is None) and 0 < args[1] < 1:
            # what dropout decomposes into while a recording's fake mode has enabled the Python dispatcher
            generator = self._generator(args, kwargs)
            mask = _aten.empty_like(args[0], dtype=torch.bool).bernoulli_(1 - args[1], generator=generator)
            return args[0] * mask / (1 - args[1]), mask
        elif packet is _aten.randint_like:
            bounds = args[1:]
            return _aten.empty_like(args[0], **kwargs).random_(
                *(bounds if len(bounds) == 2 else (0, *bounds)), generator=self._generator(args, kwargs)
            )
        if func not in self._takes_generator:
            self._takes_generator[func] = any(argument.name == "generator" for argument in func._schema.arguments)
        if self._takes_generator[func] and kwargs.get("generator") is None:
            kwargs["generator"] = self._generator(args, kwargs)
        return func(*args, **kwargs)

    def _generator(self, args: Any, kwargs: Any) -> torch.Generator | None:
        """That of the device on which a call draws; none where nothing has values."""
        self.draws += 1
        device = kwargs.get("device") or next((a.device for a in args if isinstance(a, torch.Tensor)), None)
        device = torch.device(device or "cpu")
        if device.type == "meta":
            return None
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        return self._generators[device]
