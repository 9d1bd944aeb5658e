"""A layer whose output is only added to the stream, a linear map of channels -> the map within the layer's weights.

Where segment j ends with ``y = s + e``, ``e = W z + a`` the output of a linear layer or a convolution that nothing else
reads, an output correction of e costs nothing, since it is another layer of the same shape:

    y + A e + b  =  s + (I + A) W z + (I + A) a + b

K^{m,j} then gives y as it is. It says whether the layer has a map in it, and keeps what the layer had before, which is
the original's as long as nobody trains the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["FoldState", "FoldedMap", "as_matrix", "says_folded"]


@dataclass(frozen=True, slots=True)
class FoldState:
    """A layer and its map at some time.

    Attributes:
        weights: the layer's parameters, by name.
        before: what they were without the map; ``None`` where there is none, or nobody knows.
        is_folded: whether there is a map in them.
    """

    weights: dict[str, Tensor]
    before: dict[str, Tensor] | None
    is_folded: bool


class FoldedMap(nn.Module):
    """``(x, y) -> y``: the map is in the weights of the segment's last layer; see the file's docstring.

    Attributes:
        is_folded: whether it is; kept with the network's weights.
        before: the layer's parameters without it, by name, in this process alone: a network that was saved and loaded
            has the layer as it is.
        after: the same with it.
    """

    is_folded: Tensor
    before: dict[str, Tensor] | None
    after: dict[str, Tensor] | None

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("is_folded", torch.zeros((), dtype=torch.bool))
        self.before = self.after = None

    def forward(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - of every correction
        """``(batch, *space), (batch, *space) -> (batch, *space)``: the second."""
        return y

    @property
    def has_map(self) -> bool:
        """Whether there is a map in the layer; none is on the meta device."""
        return not self.is_folded.is_meta and bool(self.is_folded)

    def knows(self, layer: nn.Module) -> bool:
        """Whether the layer's parameters without the map are known: there is none, or nobody changed them since."""
        if not self.has_map or self.before is None or self.after is None:
            return not self.has_map
        now = {name: parameter.detach() for name, parameter in layer.named_parameters()}
        return all(torch.equal(value, self.after[name].to(value)) for name, value in now.items())

    @torch.no_grad()
    def fold(self, layer: nn.Module, A: Tensor, bias: Tensor | None) -> None:
        """Write a map into a layer, in place of the one that it has.

        Args:
            layer: a linear layer or convolution with c outputs.
            A: ``(c, c)``; e becomes ``e + A e``.
            bias: ``(c,)``, added besides; only of a layer with a bias.
        """
        self.unfold(layer)
        self.before = _copies(layer)
        wide = A.detach().to("cpu", torch.float64)  # some devices have no double precision
        for name, parameter in layer.named_parameters():
            value = parameter.detach().to("cpu", torch.float64)
            mapped = value + (wide @ value.flatten(1)).view_as(value) if name == "weight" else value + wide @ value
            if name == "bias" and bias is not None:
                mapped = mapped + bias.to(mapped)
            parameter.copy_(mapped)
        self.after = _copies(layer)
        self.is_folded.fill_(True)

    @torch.no_grad()
    def unfold(self, layer: nn.Module) -> None:
        """Give the layer what it had before, to the bit, where there is a map in it and that is known."""
        if self.before is not None:
            for name, parameter in layer.named_parameters():
                parameter.copy_(self.before[name])
        self.forget()

    @torch.no_grad()
    def forget(self) -> None:
        """Take the layer as it is for one without a map."""
        self.before = self.after = None
        self.is_folded.fill_(False)

    def state(self, layer: nn.Module) -> FoldState:
        """Layer and map as they are, for :meth:`restore`."""
        return FoldState(_copies(layer), self.before, self.has_map)

    @torch.no_grad()
    def restore(self, layer: nn.Module, state: FoldState) -> None:
        """Make layer and map what they were."""
        for name, parameter in layer.named_parameters():
            parameter.copy_(state.weights[name])
        self.before, self.after = state.before, state.weights if state.is_folded else None
        self.is_folded.fill_(state.is_folded)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.before = self.after = None  # they were those of other weights

    def extra_repr(self) -> str:
        """Whether there is a map."""
        if self.is_folded.is_meta:
            return ""
        return "in the segment's last layer" if self.is_folded else "none in the segment's last layer"


def _copies(layer: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}


def says_folded(key: str, value: Any) -> bool:
    """Whether an entry of a state dict says that there is a map in a layer."""
    is_mark = key.startswith("coarse.K") and key.endswith(".is_folded") and isinstance(value, Tensor)
    return is_mark and not value.is_meta and bool(value.any())


def as_matrix(reads: Tensor, gives: Tensor | None) -> Tensor:
    """The matrix A, ``(c, c)``, of a map ``e -> e reads gives`` of rows e."""
    return (reads if gives is None else reads @ gives).T
