"""Two spaces -> a bottleneck: the linear map between them, and a narrow residual unit behind it.

``r ↦ u + W_2 a(D W_1 norm(u))`` with ``u = P r``: P is the linear map of :func:`~pararealize.coarse.units.linear_map`,
W_1 leads to a fraction of the channels, D mixes neighbours, and W_2 leads back. It gives a chain of coarse blocks the
depth that linear ones lack, for a few per cent of a block, on maps, tokens and vectors alike.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.causality import Causality, Sides
from pararealize.analysis.space import Space

from .resampling import CONVOLUTIONS
from .units import NORMS, convolution, in_type_of_weights, linear_map

__all__ = ["Bottleneck", "OrderedMix", "bottleneck"]

MAP_SHARE = 8  # the inner width is the outer one divided by so much, on maps, where D is a full convolution
TOKEN_SHARE = 5  # and on tokens and vectors
LEAST = 4  # and at least so much


class Bottleneck(nn.Module):
    """``r ↦ r + W_2 a(D W_1 norm(r))`` on one space.

    Maps with the channels first: batch norm and ReLU before W_1, and again before W_2; D is a full convolution, 3 wide
    along each of up to three axes. For c channels, inner width h and images, ``2ch + 9h² + 2c + 2h`` parameters.

    Channels-last maps, tokens and vectors: layer norm before W_1, GELU before W_2; D is depthwise and ``kernel`` wide,
    or, with ``kernel`` 0, one matrix from all tokens to all tokens, as in an MLP-Mixer. Vectors have no D.

    Args:
        space: of input and output.
        kernel: how many neighbours D reads along an axis, odd; or 0, for all tokens.
        sides: where D may read, by axis; both sides of all where empty. The matrix of tokens is triangular then.

    Shapes: ``(batch, *space.shape)`` to the same; other extents work too, unless D is a matrix.
    """

    def __init__(self, space: Space, kernel: int, sides: Sides = ()) -> None:
        super().__init__()
        sides = _at_the_own_position(sides)
        c, axes, dtype = space.channels, len(space.extent), space.torch_dtype
        self.axes, self.first = axes, axes > 0 and space.channel == 0
        h = max(c // (MAP_SHARE if self.first else TOKEN_SHARE), min(c, LEAST))
        self.norm: nn.Module = NORMS[axes](c, dtype=dtype) if self.first else nn.LayerNorm(c, dtype=dtype)
        self.down: nn.Module
        self.up: nn.Module
        self.mix: nn.Module
        if self.first:
            self.down = CONVOLUTIONS[axes](c, h, 1, bias=False, dtype=dtype)
            self.mix = convolution(h, h, 3, (None,) * axes, sides, dtype=dtype, gain="")
            self.norm2: nn.Module = NORMS[axes](h, dtype=dtype)
            self.up = CONVOLUTIONS[axes](h, c, 1, bias=False, dtype=dtype)
        else:
            self.down, self.up = nn.Linear(c, h, dtype=dtype), nn.Linear(h, c, bias=False, dtype=dtype)
            nn.init.zeros_(self.down.get_parameter("bias"))
            self.mix, self.norm2 = _mix_of_tokens(space, h, kernel, sides), nn.Identity()
        for module in (self.down, self.up):
            nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="relu")
        for weight in self.mix.parameters():
            nn.init.kaiming_normal_(weight, nonlinearity="linear")

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, *shape) -> (batch, *shape)``."""
        return in_type_of_weights(self._unit, r, self.parameters())

    def _unit(self, r: Tensor) -> Tensor:
        if self.first:
            f = self.mix(self.down(functional.relu(self.norm(r))))
            f = self.up(functional.relu(self.norm2(f)))
        else:
            f = self.mix(self.down(self.norm(r)).movedim(-1, 1)).movedim(1, -1)
            f = self.up(functional.gelu(f))
        return r + f  # type: ignore[no-any-return]


class OrderedMix(nn.Module):
    """A matrix from all tokens to all tokens that no token reads later ones by, or none earlier ones.

    ``(batch, channels, tokens) -> (batch, channels, tokens)``; half of the weight is not used.
    """

    def __init__(self, tokens: int, side: Causality, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(tokens, tokens, dtype=dtype))
        self.side = side.side

    def forward(self, x: Tensor) -> Tensor:
        """The tokens mixed, those of the one side alone."""
        return functional.linear(x, self.weight.tril() if self.side == "past" else self.weight.triu())

    def extra_repr(self) -> str:
        """The side."""
        return f"reads the {self.side}"


def _mix_of_tokens(space: Space, width: int, kernel: int, sides: Sides) -> nn.Module:
    """What mixes neighbours of a value ``(batch, width, *extent)`` whose channels stood last."""
    axes, dtype = len(space.extent), space.torch_dtype
    if not axes:
        return nn.Identity()
    if kernel:
        return convolution(width, width, kernel, (None,) * axes, sides, dtype=dtype, groups=width, gain="")
    side = sides[-1] if sides else None
    if side is None:
        return nn.Linear(space.extent[-1], space.extent[-1], bias=False, dtype=dtype)
    return nn.Identity() if side.side == "own" else OrderedMix(space.extent[-1], side, dtype=dtype)


def _at_the_own_position(sides: Sides) -> Sides:
    """The sides of a unit on one space, behind what shifts and halves."""
    return tuple(None if side is None else Causality(side=side.side) for side in sides)


def bottleneck(x: Space, y: Space, kernel: int, sides: Sides = ()) -> nn.Sequential:
    """The linear map from x to y, where there is one to make, and a :class:`Bottleneck` behind it."""
    linear = linear_map(x, y, sides)
    modules = [] if isinstance(linear, nn.Identity) else [("linear", linear)]
    return nn.Sequential(OrderedDict([*modules, ("bottleneck", Bottleneck(y, kernel, sides))]))
