"""Two spaces in, a bottleneck out: the linear map between them, and a narrow residual unit behind it.

``r ↦ u + W_2 a(D W_1 norm(u))`` with ``u = P r``: P is the linear map of :func:`~pararealize.units.linear_map`, W_1
leads to a quarter of the channels, D mixes neighbours channel by channel, and W_2 leads back. It gives a chain of
coarse blocks the depth that linear ones lack, for a few per cent of a block, on maps, tokens and vectors alike.
"""

from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from .space import Space
from .units import linear_map

__all__ = ["Bottleneck", "bottleneck"]

SHARE = 4  # the inner width is the outer one divided by so much
LEAST = 4  # and at least so much

_CONVOLUTION: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORM: dict[int, Any] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Bottleneck(nn.Module):
    """``r ↦ r + W_2 a(D W_1 norm(r))`` on one space.

    Maps with the channels first: batch norm and ReLU before W_1, and again before W_2. Tokens, channels-last maps and
    vectors: layer norm before W_1, GELU before W_2. D is depthwise, ``kernel`` wide along each of up to three axes, and
    absent for vectors. For c channels, inner width h and images: ``2ch + k²h + 2c + 2h`` parameters.

    Args:
        space: of input and output.
        kernel: how many neighbours D reads along an axis; odd.

    Shapes: ``(batch, *space.shape)`` to the same; other extents work too.
    """

    def __init__(self, space: Space, kernel: int) -> None:
        super().__init__()
        c, axes, dtype = space.channels, len(space.extent), space.torch_dtype
        h = max(c // SHARE, min(c, LEAST))
        self.axes, self.first = axes, axes > 0 and space.channel == 0
        self.norm: nn.Module = _NORM[axes](c, dtype=dtype) if self.first else nn.LayerNorm(c, dtype=dtype)
        self.down: nn.Module
        self.up: nn.Module
        if self.first:
            self.down = _CONVOLUTION[axes](c, h, 1, bias=False, dtype=dtype)
            self.up = _CONVOLUTION[axes](h, c, 1, bias=False, dtype=dtype)
            self.norm2: nn.Module = _NORM[axes](h, dtype=dtype)
        else:
            self.down, self.up = nn.Linear(c, h, dtype=dtype), nn.Linear(h, c, bias=False, dtype=dtype)
            nn.init.zeros_(self.down.get_parameter("bias"))
            self.norm2 = nn.Identity()
        for module in (self.down, self.up):
            nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="relu")
        self.mix: nn.Module = nn.Identity()
        if axes:
            self.mix = _CONVOLUTION[axes](h, h, kernel, padding=kernel // 2, groups=h, bias=False, dtype=dtype)
            nn.init.kaiming_normal_(self.mix.get_parameter("weight"), nonlinearity="linear")

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, *shape) -> (batch, *shape)``."""
        if self.first:
            f = self.mix(self.down(functional.relu(self.norm(r))))
            f = self.up(functional.relu(self.norm2(f)))
        else:
            f = self.down(self.norm(r))
            if self.axes:
                f = self.mix(f.movedim(-1, 1)).movedim(1, -1)
            f = self.up(functional.gelu(f))
        return r + f  # type: ignore[no-any-return]


def bottleneck(x: Space, y: Space, kernel: int) -> nn.Sequential:
    """The linear map from x to y, where there is one to make, and a :class:`Bottleneck` behind it."""
    linear = linear_map(x, y)
    modules = [] if isinstance(linear, nn.Identity) else [("linear", linear)]
    return nn.Sequential(OrderedDict([*modules, ("bottleneck", Bottleneck(y, kernel))]))
