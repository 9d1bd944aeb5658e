r"""A network, a choice -> the parameters that a fine-tuning trains, and how a step moves them.

    "all"             everything, the original's weights too
    "added"           adapters, coarse blocks and corrections; the original stays, bit for bit
    "lora", "lora:8"  what was added, and a map of low rank beside each matrix of the original
    names             parameters of these names, below these modules, or that match patterns such as ``"*.bias"``
    a function        parameters for which ``function(name, parameter)`` is true

Weights :math:`W = W_0 + B A` of rank r have A drawn and B zero in the beginning, and are written into the network after
every step, so that nothing of it is replaced. Gradients of the factors follow from that of W:
:math:`\partial B = \partial W A^T`, :math:`\partial A = B^T \partial W`. Convolutions are taken as matrices
``(out, in · kernel)``; embeddings, norms and biases stay.

Source: Hu et al., "LoRA: Low-rank adaptation of large language models".
"""

from __future__ import annotations

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from pararealize.errors import CalibrationError
from pararealize.random_state import generator

__all__ = ["Choice", "TrainedParameters"]

Choice: TypeAlias = str | Sequence[str] | Callable[[str, nn.Parameter], Any]

RANK = 8
ADDED = ("adapters.", "coarse.")


@dataclasses.dataclass(slots=True, kw_only=True, eq=False)
class _LowRank:
    """A weight and the factors of what is added to it."""

    weight: nn.Parameter
    start: Tensor
    A: nn.Parameter
    B: nn.Parameter


class TrainedParameters:
    """The parameters of a network that are trained.

    Args:
        net: the network.
        choice: see the file's docstring.
        seed: of the factors A.

    Attributes:
        text: the choice in words.
        free: parameters that are trained themselves.
        low_rank: weights of which a map of low rank is trained.

    Raises:
        CalibrationError: the choice is none of these, or leaves nothing to train.
    """

    def __init__(self, net: nn.Module, choice: Choice, *, seed: int = 0) -> None:
        named = {name: p for name, p in net.named_parameters() if p.requires_grad}
        if not named:
            raise CalibrationError("nothing of the network can be trained: all is frozen; call requires_grad_() first")
        rank = _rank_of(choice)
        self.text = choice if isinstance(choice, str) else _words(choice)
        chosen = _chosen(named, choice, rank)
        self.free = list(chosen.values())
        wide = _matrices(net) if rank else {}
        self.low_rank = [
            _factors(parameter, rank, seed, name)
            for name, parameter in named.items()
            if name in wide and name not in chosen and min(parameter.shape[0], parameter[0].numel()) > rank
        ]
        if not self.free and not self.low_rank:
            remedy = f"parameters are called {', '.join(list(named)[:3])}, …"
            if isinstance(choice, str):
                remedy = (
                    "adapters are identities and coarse blocks have no parameters; pass train='all' or 'lora', or "
                    "convert with corrections (coarse='low-rank')"
                )
            raise CalibrationError(f"train={self.text!r} leaves nothing to train: {remedy}")
        self._parameters = list(net.parameters())

    @property
    def leaves(self) -> list[nn.Parameter]:
        """What the optimiser moves."""
        return [*self.free, *(factor for each in self.low_rank for factor in (each.A, each.B))]

    @property
    def count(self) -> int:
        """How many numbers are trained."""
        return sum(parameter.numel() for parameter in self.leaves)

    @property
    def moved(self) -> list[nn.Parameter]:
        """The network's parameters that change."""
        return [*self.free, *(each.weight for each in self.low_rank)]

    @contextmanager
    def with_gradients(self) -> Iterator[None]:
        """Gradients of these parameters alone; all flags, and gradients that were there, are put back on leaving."""
        flags = [(p, p.requires_grad, p.grad) for p in self._parameters]
        moved = set(self.moved)
        try:
            for parameter in self._parameters:
                parameter.requires_grad_(parameter in moved)
                parameter.grad = None
            yield
        finally:
            for parameter, flag, grad in flags:
                parameter.requires_grad_(flag)
                parameter.grad = grad

    @torch.no_grad()
    def pass_gradients(self) -> None:
        """Turn gradients of weights into those of their factors."""
        for each in self.low_rank:
            gradient = each.weight.grad
            if gradient is not None:
                matrix = gradient.reshape(len(gradient), -1).to(each.A.dtype)
                each.B.grad, each.A.grad = matrix @ each.A.T, each.B.T @ matrix
                each.weight.grad = None

    @torch.no_grad()
    def write(self) -> None:
        """Write the weights that the factors give into the network."""
        for each in self.low_rank:
            each.weight.copy_(each.start + (each.B @ each.A).view(each.start.shape).to(each.start))

    def clear(self) -> None:
        """Drop all gradients."""
        for parameter in (*self.leaves, *self.moved):
            parameter.grad = None


def _rank_of(choice: Any) -> int:
    """The rank of a choice of low rank, 0 of any other."""
    if not isinstance(choice, str) or choice in ("all", "added"):
        return 0
    name, _, number = choice.partition(":")
    rank = (int(number) if number.isdecimal() and len(number) < 6 else 0) if ":" in choice else RANK
    if name != "lora" or not rank:
        raise CalibrationError(
            f"train is {choice!r}; pass 'all', 'added', 'lora', 'lora:8', a list of names, or a function "
            "(name, parameter) -> bool"
        )
    return rank


def _chosen(named: dict[str, nn.Parameter], choice: Any, rank: int) -> dict[str, nn.Parameter]:
    """The parameters that are trained themselves."""
    if choice == "all":
        return named
    if choice == "added" or rank:
        return {name: parameter for name, parameter in named.items() if name.startswith(ADDED)}
    if callable(choice):
        return {name: parameter for name, parameter in named.items() if choice(name, parameter)}
    patterns = list(choice)
    matches = {pattern: [name for name in named if _matches(name, pattern)] for pattern in patterns}
    if missing := [pattern for pattern, names in matches.items() if not names]:
        close = difflib.get_close_matches(str(missing[0]), named, n=2, cutoff=0.3) or list(named)[:2]
        raise CalibrationError(
            f"no parameter that can be trained is called {missing[0]!r} or stands below it; there are, for instance, "
            f"{', '.join(close)}"
        )
    names = {name for some in matches.values() for name in some}
    return {name: parameter for name, parameter in named.items() if name in names}


def _matches(name: str, pattern: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatch.fnmatchcase(name, pattern)


def _matrices(net: nn.Module) -> set[str]:
    """The original's weights of two axes or more, but for those of embeddings."""
    embedded = {id(module.weight) for module in net.modules() if isinstance(module, nn.Embedding | nn.EmbeddingBag)}
    return {
        name
        for name, parameter in net.named_parameters()
        if parameter.ndim > 1 and id(parameter) not in embedded and not name.startswith(ADDED)
    }


def _factors(weight: nn.Parameter, rank: int, seed: int, name: str) -> _LowRank:
    rows, columns = len(weight), weight[0].numel()
    wide = torch.promote_types(weight.dtype, torch.float32)
    drawn = torch.randn(rank, columns, generator=generator(seed, "lora", name)) / columns**0.5
    A = nn.Parameter(drawn.to(device=weight.device, dtype=wide))
    B = nn.Parameter(torch.zeros(rows, rank, device=weight.device, dtype=wide))
    return _LowRank(weight=weight, start=weight.detach().clone(), A=A, B=B)


def _words(choice: Any) -> str:
    if callable(choice):
        return getattr(choice, "__name__", type(choice).__name__)
    names = list(map(str, choice))
    return ", ".join(names[:3]) + f" and {len(names) - 3} more" * (len(names) > 3)
