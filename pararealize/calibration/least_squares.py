r"""A linear layer, its inputs and target outputs, batch after batch -> the layer's weights by ridge regression.

Every layer here is :math:`v = W u + b` on patches u of its input: one feature vector for a linear layer, the unfolded
receptive field for a convolution. The normal equations

.. math:: (A^T A + \lambda I)\, W^T = A^T Y, \quad \lambda = \rho \operatorname{mean} \operatorname{diag} A^T A

are sums over patches, accumulated in double precision, so that memory does not grow with the data. With a bias, A and Y
are centred by their means, and the bias is not penalised. Positions that a mask excludes are no rows of A and Y.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pararealize.coarse.adapter import Adapter
from pararealize.coarse.resampling import Move, Resample
from pararealize.coarse.units import CoarseBlock, Projection
from pararealize.errors import CalibrationError

from .masks import positions

__all__ = ["Convolution", "LinearLayer", "NormalEquations", "Regression", "is_trained", "linear_part"]

LinearLayer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d

CHUNK = 1 << 22  # numbers of an unfolded chunk: 32 MiB in double precision
_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


class NormalEquations:
    """``AᵀA`` and ``AᵀY`` of one linear layer, one of each for every group of a convolution.

    Args:
        layer: ``nn.Linear`` or a convolution of any kernel, stride, padding, dilation and groups.
        tail: modules behind the layer that treat every channel alike, such as a resampling of the map: the targets
            stand behind them. They change places with the layer, which then has to be 1×1 (``T W u = W T u``).

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
        >>> equations = NormalEquations(layer)
        >>> for chunk in x.split(20):
        ...     equations.add(chunk, 2 * chunk[:, :2] + 1)
        >>> equations.solve(ridge=0.0)
        >>> (layer.weight.detach().round(decimals=4) + 0).tolist(), layer.bias.detach().round(decimals=4).tolist()
        ([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]], [1.0, 1.0])
    """

    def __init__(self, layer: LinearLayer, tail: tuple[nn.Module, ...] = ()) -> None:
        self.layer, self.tail = layer, tail
        self.groups = 1 if isinstance(layer, nn.Linear) else layer.groups
        features = layer.weight[0].numel()
        outputs = len(layer.weight) // self.groups
        home = layer.weight.device

        def zeros(*sizes: int) -> Tensor:
            place = torch.device("cpu") if home.type == "mps" else home  # mps has no double precision
            return torch.zeros(self.groups, *sizes, dtype=torch.float64, device=place)

        self.gram, self.moment = zeros(features, features), zeros(features, outputs)
        self.mean_in, self.mean_out = zeros(features), zeros(outputs)
        self.count = 0

    @torch.no_grad()
    def add(self, u: Tensor, target: Tensor, mask: Tensor | None = None) -> None:
        """Take in what enters the layer and what should come out behind the tail, at the positions that count."""
        for a, y in self._rows(u, target, mask):
            a, y = a.to(self.gram), y.to(self.gram)
            self.gram += a.mT @ a
            self.moment += a.mT @ y
            self.mean_in += a.sum(1)
            self.mean_out += y.sum(1)
            self.count += a.shape[1]

    @torch.no_grad()
    def solve(self, *, ridge: float) -> None:
        """Write the weights, and the bias where there is one, into the layer.

        Raises:
            CalibrationError: there is no row.
        """
        if not self.count:
            raise CalibrationError(
                "there are no rows to fit a layer to: the masks of all batches exclude every position; pass masks that "
                "are nonzero where there is something"
            )
        gram, moment = self.gram, self.moment
        if self.layer.bias is not None:
            a, y = self.mean_in / self.count, self.mean_out / self.count
            gram = gram - self.count * a.unsqueeze(2) * a.unsqueeze(1)
            moment = moment - self.count * a.unsqueeze(2) * y.unsqueeze(1)
        # By eigenvalues rather than a Cholesky factor: without a penalty, features that depend on one another (a ReLU
        # that is never positive, padding) make the matrix singular, and their directions are to get no weight.
        values, vectors = torch.linalg.eigh(gram)
        penalty = ridge * gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        least = values.amax(1, keepdim=True).clamp(min=0) * gram.shape[1] * torch.finfo(torch.float64).eps
        inverse = torch.where(values > least, 1 / (values + penalty).clamp(min=torch.finfo(torch.float64).tiny), 0.0)
        weight = (vectors * inverse.unsqueeze(1)) @ (vectors.mT @ moment)  # groups, features, outputs
        self.layer.weight.copy_(weight.mT.reshape(self.layer.weight.shape))
        if self.layer.bias is not None:
            self.layer.bias.copy_((y - (a.unsqueeze(1) @ weight).squeeze(1)).flatten())

    def _rows(self, u: Tensor, target: Tensor, mask: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Design and target, ``(groups, rows, features)`` and ``(groups, rows, outputs)``, a chunk at a time."""
        numbers = max(1, u[:1].numel() * self.layer.weight[0].numel() // self.layer.weight.shape[1])  # of one sample
        size = max(1, CHUNK // numbers)
        chunks = u.split(size)
        masks = [None] * len(chunks) if mask is None or len(mask) != len(u) else mask.split(size)
        for inputs, outputs, some in zip(chunks, target.split(size), masks, strict=True):
            axis = inputs.ndim - 1 if isinstance(self.layer, nn.Linear) else 1
            patches = inputs if isinstance(self.layer, nn.Linear) else unfold(self.layer, inputs)
            for module in self.tail:
                patches = module(patches)
                axis = module.target + 1 if isinstance(module, Move) else axis
            counts = positions(outputs, axis, some)
            yield self._grouped(patches, axis, counts), self._grouped(outputs, axis, counts)

    def _grouped(self, value: Tensor, axis: int, counts: Tensor | None) -> Tensor:
        """Channels at ``axis`` last and parted into groups, every other axis a row; only the rows that count."""
        rows = value.movedim(axis, -1).reshape(-1, self.groups, value.shape[axis] // self.groups)
        return (rows if counts is None else rows[counts]).transpose(0, 1)


class Regression:
    """Solves for one layer of a module, from inputs and targets of the whole module.

    Args:
        module: called ``module(input, *context)``.
        layer: the layer, somewhere in it.
        tail: what stands behind the layer, see :class:`NormalEquations`; its output is the module's.
        rest: the module's output is the layer's plus something else, which is taken off the targets; no tail then.
    """

    def __init__(
        self, module: nn.Module, layer: LinearLayer, tail: tuple[nn.Module, ...] = (), *, rest: bool = False
    ) -> None:
        self.module, self.layer, self.rest = module, layer, rest
        self.equations = NormalEquations(layer, tail)

    @torch.no_grad()
    def take(self, value: Tensor, context: tuple[Any, ...], target: Tensor, mask: Tensor | None = None) -> None:
        """Take in one batch, at the positions that count."""
        at_layer: list[Tensor] = []

        def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            at_layer[:] = inputs[0], output.clone()

        with self.layer.register_forward_hook(note):
            whole = self.module(value.clone(), *context)
        entering, leaving = at_layer
        self.equations.add(entering, target - (whole - leaving) if self.rest else target, mask)

    def solve(self, *, ridge: float) -> None:
        """Write the layer's weights."""
        self.equations.solve(ridge=ridge)


def unfold(layer: Convolution, x: Tensor) -> Tensor:
    """The patches that a convolution reads: ``(batch, channels · kernel, *output extent)``, the channel slowest.

    It is itself a convolution, by the unit vectors of a patch, so that every option means what it means there.
    """
    kernel = layer.weight[0, 0].numel()
    units = torch.eye(kernel, dtype=x.dtype, device=x.device).view(kernel, 1, *layer.kernel_size)
    weight = units.repeat(x.shape[1], *(1,) * (units.ndim - 1))
    padding: Any = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = functional.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
    convolve = _CONVOLVE[len(layer.kernel_size)]
    return convolve(x, weight, None, layer.stride, padding, layer.dilation, x.shape[1])


def is_trained(layer: LinearLayer) -> bool:
    """Whether all parameters of a layer may change."""
    return all(parameter.requires_grad for parameter in layer.parameters())


def linear_part(module: nn.Module) -> tuple[LinearLayer, tuple[nn.Module, ...]] | None:
    """The one linear layer that a module has parameters in, and its tail; ``None`` where it is of another form.

    In front of the layer there may be anything without parameters: it makes features.
    """
    if type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
        return module, ()  # type: ignore[return-value]
    if isinstance(module, Projection):
        return linear_part(module.conv)
    if type(module) not in (nn.Sequential, Adapter, CoarseBlock):
        return None
    children = list(module.children())
    weighted = [i for i, child in enumerate(children) if any(True for _ in child.parameters())]
    if len(weighted) != 1 or (inner := linear_part(children[weighted[0]])) is None:
        return None
    layer, tail = inner
    behind = tuple(children[weighted[0] + 1 :])
    pointwise = not isinstance(layer, nn.Linear) and layer.weight[0, 0].numel() == layer.groups == 1
    if behind and not (pointwise and all(map(_treats_channels_alike, behind))):
        return None
    return layer, tail + behind


def _treats_channels_alike(step: nn.Module) -> bool:
    """Whether a step commutes with a map of the channels, which stand on axis 1 until a ``Move`` takes them away."""
    if isinstance(step, nn.Flatten):
        return step.start_dim >= 2
    if isinstance(step, nn.Unflatten):
        return isinstance(step.dim, int) and step.dim >= 2
    return isinstance(step, Resample | nn.Identity) or (isinstance(step, Move) and step.source == 0)
