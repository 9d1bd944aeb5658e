"""A module -> TensorStamp: whether its parameters, buffers and modes are those of before, at a cost that does not grow.

A captured graph uses the addresses that tensors had when it was captured. To compare all of them in every call costs
milliseconds where there are as many as in ResNet-1001, 6,005 parameters and buffers. So each look compares a fixed
number: some spread evenly, which sees at once what is done to the whole module (``to``, ``half``, ``requires_grad_``,
``load_state_dict(assign=True)``), and the next ones of all in turn, which sees a single replaced tensor within
:attr:`TensorStamp.calls` looks. :meth:`TensorStamp.check` compares all.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from torch import Tensor, nn

from pararealize.errors import ModelError

__all__ = ["LOOKS", "TensorStamp"]

LOOKS = 16
"""How many tensors a look compares that are spread evenly, and how many in turn."""


class _Place(NamedTuple):
    """Where a tensor stands in a module, and how it was."""

    module: nn.Module
    holder: dict[str, Any]
    name: str
    tensor: Tensor
    address: int
    requires_grad: bool
    training: bool
    way: tuple[tuple[nn.Module, str, nn.Module], ...]  # from the root: a module, a name in it, what stands there

    def is_as_before(self) -> bool:
        for owner, name, child in self.way:
            if owner._modules.get(name) is not child:
                return False
        tensor = self.holder.get(self.name)
        return (
            tensor is self.tensor
            and tensor.data_ptr() == self.address
            and tensor.requires_grad == self.requires_grad
            and self.module.training == self.training
        )


class TensorStamp:
    """A module's tensors and modes, as they are now.

    Args:
        module: the module.
        name: what to call it in errors.

    Attributes:
        calls: after so many looks every tensor has been compared.

    Example:
        >>> from torch import nn
        >>> module = nn.Linear(2, 2)
        >>> stamp = TensorStamp(module, "this layer")
        >>> stamp.look()
        >>> module = module.half()
        >>> stamp.look()
        Traceback (most recent call last):
            ...
        pararealize.errors.ModelError: parameters or buffers of this layer have been moved, replaced or frozen...
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self._name, self._next = name, 0
        self._places = [
            _Place(owner, holder, key, tensor, tensor.data_ptr(), tensor.requires_grad, owner.training, way)
            for path, owner in module.named_modules()
            for way in [_way_to(module, path)]
            for holder in (owner._parameters, owner._buffers)
            for key, tensor in holder.items()
            if tensor is not None
        ]
        count = len(self._places)
        self._spread = [self._places[i * (count - 1) // LOOKS] for i in range(LOOKS + 1)] if count else []
        self.calls = -(-count // LOOKS)
        # graphs go on using these addresses; a reference keeps the allocator from handing them to other tensors
        self._memory = [place.tensor.detach() for place in self._places]

    def look(self) -> None:
        """Compare some of them.

        Raises:
            ModelError: one is another, lies elsewhere, has another flag or mode, or its module was replaced.
        """
        start, end = self._next, self._next + LOOKS
        self._next = end if end < len(self._places) else 0
        self._compare(self._spread)
        self._compare(self._places[start:end])

    def check(self) -> None:
        """Compare all of them; see :meth:`look`."""
        self._compare(self._places)

    def _compare(self, places: Iterable[_Place]) -> None:
        if not all(map(_Place.is_as_before, places)):
            raise ModelError(
                f"parameters or buffers of {self._name} have been moved, replaced or frozen since it was captured "
                "(to(), half(), load_state_dict(assign=True), requires_grad_()), or one of its modules is another or "
                "has another mode, and the graph still uses the old ones; capture again, or release() and run eagerly"
            )


def _way_to(root: nn.Module, path: str) -> tuple[tuple[nn.Module, str, nn.Module], ...]:
    """All modules that a path leads through, each with its owner and its name there."""
    way: list[tuple[nn.Module, str, nn.Module]] = []
    owner = root
    for name in path.split(".") if path else ():
        child = owner._modules[name]
        assert child is not None
        way.append((owner, name, child))
        owner = child
    return tuple(way)
