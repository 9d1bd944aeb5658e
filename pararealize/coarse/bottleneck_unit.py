"""Two spaces -> a bottleneck: the linear map between them, and a narrow residual unit behind it.

``r ↦ u + W_2 a(D W_1 norm(u))`` with ``u = P r``: P is the linear map of :func:`~pararealize.coarse.units.linear_map`,
W_1 leads to a fraction of the channels, D mixes neighbours, and W_2 leads back. It gives a chain of coarse blocks the
depth that linear ones lack, for a few per cent of a block, on maps, tokens and vectors alike.
"""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional

from pararealize.analysis.space import Space

from .resampling import CONVOLUTIONS
from .units import NORMS, linear_map

__all__ = ["Bottleneck", "bottleneck"]

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

    Shapes: ``(batch, *space.shape)`` to the same; other extents work too, unless D is a matrix.
    """

    def __init__(self, space: Space, kernel: int) -> None:
        super().__init__()
        c, axes, dtype = space.channels, len(space.extent), space.torch_dtype
        self.axes, self.first = axes, axes > 0 and space.channel == 0
        h = max(c // (MAP_SHARE if self.first else TOKEN_SHARE), min(c, LEAST))
        self.norm: nn.Module = NORMS[axes](c, dtype=dtype) if self.first else nn.LayerNorm(c, dtype=dtype)
        self.down: nn.Module
        self.up: nn.Module
        self.mix: nn.Module
        if self.first:
            self.down = CONVOLUTIONS[axes](c, h, 1, bias=False, dtype=dtype)
            self.mix = CONVOLUTIONS[axes](h, h, 3, padding=1, bias=False, dtype=dtype)
            self.norm2: nn.Module = NORMS[axes](h, dtype=dtype)
            self.up = CONVOLUTIONS[axes](h, c, 1, bias=False, dtype=dtype)
        else:
            self.down, self.up = nn.Linear(c, h, dtype=dtype), nn.Linear(h, c, bias=False, dtype=dtype)
            nn.init.zeros_(self.down.get_parameter("bias"))
            self.mix, self.norm2 = _mix_of_tokens(space, h, kernel), nn.Identity()
        for module in (self.down, self.up):
            nn.init.kaiming_normal_(module.get_parameter("weight"), nonlinearity="relu")
        if axes:
            nn.init.kaiming_normal_(self.mix.get_parameter("weight"), nonlinearity="linear")

    def forward(self, r: Tensor) -> Tensor:
        """``(batch, *shape) -> (batch, *shape)``."""
        if self.first:
            f = self.mix(self.down(functional.relu(self.norm(r))))
            f = self.up(functional.relu(self.norm2(f)))
        else:
            f = self.mix(self.down(self.norm(r)).movedim(-1, 1)).movedim(1, -1)
            f = self.up(functional.gelu(f))
        return r + f  # type: ignore[no-any-return]


def _mix_of_tokens(space: Space, width: int, kernel: int) -> nn.Module:
    """What mixes neighbours of a value ``(batch, width, *extent)`` whose channels stood last."""
    axes, dtype = len(space.extent), space.torch_dtype
    if not axes:
        return nn.Identity()
    if kernel:
        return CONVOLUTIONS[axes](  # type: ignore[no-any-return]
            width, width, kernel, padding=kernel // 2, groups=width, bias=False, dtype=dtype
        )
    return nn.Linear(space.extent[-1], space.extent[-1], bias=False, dtype=dtype)


def bottleneck(x: Space, y: Space, kernel: int) -> nn.Sequential:
    """The linear map from x to y, where there is one to make, and a :class:`Bottleneck` behind it."""
    linear = linear_map(x, y)
    modules = [] if isinstance(linear, nn.Identity) else [("linear", linear)]
    return nn.Sequential(OrderedDict([*modules, ("bottleneck", Bottleneck(y, kernel))]))
