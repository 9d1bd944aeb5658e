r"""Rows of features and of what is missing -> the linear map between them: full, of low rank, or a factor a channel.

With features Z and targets T, centred, and the weights of ridge regression :math:`W = (Z^T Z + \lambda I)^{-1} Z^T T`:

    "dense"     W
    "low-rank"  reduced-rank regression: with :math:`Z^T Z + \lambda I = C C^T` and V the first r right singular vectors
                of :math:`C^T W`, the map is :math:`W V V^T`
    "scale"     one small system a channel, of the features of that channel alone

All come from the same sums over rows, in double precision, and from one eigendecomposition for every penalty. Penalty
and rank are those with the smallest error on rows that were held out.

Source: Izenman, "Reduced-rank regression for the multivariate linear model".
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pararealize.coarse.output_correction import MapKind
from pararealize.errors import CalibrationError

__all__ = ["PENALTIES", "ChannelMap", "Moments", "Regressions"]

PENALTIES = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)  # relative to the mean squared feature
CHUNK = 1 << 22  # numbers in double precision at a time


class Moments:
    """Sums over rows of ``[features, target]``: of the products of any two columns, of the columns, of their number.

    Args:
        groups: how many groups of features there are, each with a number a channel.
        channels: how many channels features and target have.
        device: where the sums are.

    Attributes:
        whole: sum of the squares of what the target is a part of, to which errors are relative.
    """

    def __init__(self, groups: int, channels: int, device: torch.device) -> None:
        place = torch.device("cpu") if device.type == "mps" else device  # mps has no double precision
        columns = (groups + 1) * channels
        self.groups, self.channels, self.count, self.whole = groups, channels, 0, 0.0
        self.products = torch.zeros(columns, columns, dtype=torch.float64, device=place)
        self.sums = torch.zeros(columns, dtype=torch.float64, device=place)

    @torch.no_grad()
    def add(self, features: list[Tensor], target: Tensor, whole: Tensor) -> None:
        """Take in rows ``(rows, channels)`` of each group of features, of the target, and of what it is a part of."""
        size = max(1, CHUNK // len(self.sums))
        columns = [value.split(size) for value in (*features, target)]
        for parts in zip(*columns, strict=True):
            rows = torch.cat([part.to(self.sums) for part in parts], 1)
            self.products += rows.T @ rows
            self.sums += rows.sum(0)
        self.count += len(target)
        self.whole += whole.to(self.sums).square().sum().item()

    @property
    def nothing(self) -> float:
        """The squared error without any map."""
        inputs = self.groups * self.channels
        return float(self.products.diagonal()[inputs:].sum())

    def about(self, mean: Tensor) -> Tensor:
        """The products of the columns about a mean that may be that of other rows."""
        shift = self.sums[:, None] * mean[None, :]
        return self.products - shift - shift.T + self.count * mean[:, None] * mean[None, :]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelMap:
    """A linear map from groups of features to a target, and how well it does on rows that were held out.

    Attributes:
        kind: ``"scale"``, ``"low-rank"`` or ``"dense"``.
        reads: of each group, ``(channels,)`` factors, or weights ``(channels, inner)``.
        gives: ``(inner, channels)`` of a map of low rank; otherwise ``None``.
        bias: ``(channels,)``.
        penalty: relative to the mean squared feature.
        rank: how many directions it uses, of a map of low rank; otherwise 0.
        error: the squared error on the rows that were held out.
        error_fitted: the same on the rows that were fitted to, which is too small where these are few.
    """

    kind: MapKind
    reads: Tensor
    gives: Tensor | None
    bias: Tensor
    penalty: float
    rank: int
    error: float
    error_fitted: float


@dataclass(frozen=True, slots=True)
class _Products:
    """Sums over rows about a mean: ``ZᵀZ`` and ``ZᵀT``, or such a pair a channel, and ``‖T‖²``: the error of a bias."""

    gram: Tensor
    moment: Tensor
    without: float

    def error(self, weight: Tensor) -> float:
        """``‖T - Z W‖²``; infinite where it is no number."""
        terms = self.gram @ weight - 2 * self.moment
        return _squares(self.without + float((weight * terms).sum()))

    def of_channels(self, groups: int, channels: int) -> _Products:
        """Those of each channel's own features: ``(channels, groups, groups)`` and ``(channels, groups, 1)``."""
        step = torch.arange(channels, device=self.gram.device)
        gram = self.gram.view(groups, channels, groups, channels)[:, step, :, step]
        moment = self.moment.view(groups, channels, channels)[:, step, step].T
        return _Products(gram, moment.unsqueeze(-1), self.without)


class Regressions:
    """All maps that the sums over some rows give, compared by the sums over others.

    Args:
        fitted: sums over the rows to fit to.
        held_out: sums over the rows that choose between penalties and ranks; the same where there are no others.
        penalties: what to choose from.
        intercept: whether maps have a bias.

    Raises:
        CalibrationError: there is no row to fit to.
    """

    def __init__(
        self,
        fitted: Moments,
        held_out: Moments,
        penalties: tuple[float, ...] = PENALTIES,
        *,
        intercept: bool = True,
    ) -> None:
        if not fitted.count:
            raise CalibrationError(
                "there are no rows to fit a correction to: the attention masks of all batches exclude every position; "
                "pass masks with ones where there are tokens"
            )
        self.fitted, self.held_out, self.penalties = fitted, held_out, penalties
        self.groups, self.channels = fitted.groups, fitted.channels
        self.inputs = self.groups * self.channels
        self.mean = fitted.sums / fitted.count if intercept else torch.zeros_like(fitted.sums)
        # Each group is measured in its own root mean square: what a window begins with is often a hundred times what
        # its segments add, and one penalty for all would leave the small ones no weight.
        squares = fitted.about(self.mean).diagonal()[: self.inputs].view(self.groups, self.channels)
        size = (squares.mean(1) / fitted.count).sqrt()
        self.unit = torch.where(size > 0, 1 / size, 0.0).repeat_interleave(self.channels)
        self.seen, self.unseen = self._products(fitted), self._products(held_out)

    def dense(self) -> ChannelMap:
        """The full map."""
        error, i = min((error, i) for i, error in enumerate(self._errors))
        return self._factors("dense", self._weights[i], None, self.penalties[i], error)

    def low_rank(self, rank: int) -> ChannelMap:
        """The map of a rank, or of a smaller one where the rows held out say so."""
        error, i, best = self._best_rank(rank)
        v = self._directions[i][0][:, :best]
        return self._factors("low-rank", self._weights[i] @ v, v.T, self.penalties[i], error)

    def low_rank_error(self, rank: int) -> float:
        """The squared error of that map on the rows held out."""
        return max(self._best_rank(rank)[0], 0.0)

    def scale(self) -> ChannelMap:
        """A factor a channel and group."""
        seen, unseen = (one.of_channels(self.groups, self.channels) for one in (self.seen, self.unseen))
        values, vectors = torch.linalg.eigh(seen.gram)
        moment, size = vectors.mT @ seen.moment, seen.gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True)
        weights = [vectors @ (_inverse(values, penalty * size)[..., None] * moment) for penalty in self.penalties]
        error, i = min((unseen.error(weight), i) for i, weight in enumerate(weights))
        reads = weights[i][..., 0].T * self.unit.view(self.groups, self.channels)
        bias = self.mean[self.inputs :] - (self.mean[: self.inputs].view(reads.shape) * reads).sum(0)
        return ChannelMap(
            kind="scale", reads=reads, gives=None, bias=bias, penalty=self.penalties[i], rank=0, error=error,
            error_fitted=seen.error(weights[i]),
        )  # fmt: skip

    def _products(self, moments: Moments) -> _Products:
        """Those of some rows, features in their units."""
        products, split = moments.about(self.mean), self.inputs
        gram = products[:split, :split] * self.unit[:, None] * self.unit[None, :]
        without = float(products.diagonal()[split:].sum())
        return _Products(gram, products[:split, split:] * self.unit[:, None], without)

    @cached_property
    def _weights(self) -> list[Tensor]:
        """W for every penalty."""
        values, vectors = torch.linalg.eigh(self.seen.gram)
        moment, size = vectors.T @ self.seen.moment, self.seen.gram.diagonal().mean()
        return [vectors @ (_inverse(values, penalty * size)[:, None] * moment) for penalty in self.penalties]

    @cached_property
    def _errors(self) -> list[float]:
        """The squared error of each of them on the rows held out."""
        return [self.unseen.error(weight) for weight in self._weights]

    @cached_property
    def _directions(self) -> list[tuple[Tensor, list[float]]]:
        """For every penalty: V, and the squared error on the rows held out with its first 0, 1, 2, … columns."""
        directions = []
        for penalty, weight in zip(self.penalties, self._weights, strict=True):
            # (CᵀW)ᵀ CᵀW = Wᵀ (ZᵀZ + λI) W: its eigenvectors are the right singular vectors, the largest first
            size = self.seen.gram.diagonal().mean()
            inner = weight.T @ (self.seen.gram @ weight + penalty * size * weight)
            v = torch.linalg.eigh((inner + inner.T) / 2).eigenvectors.flip(1)
            wv = weight @ v
            gains = 2 * (wv * (self.unseen.moment @ v)).sum(0) - (wv * (self.unseen.gram @ wv)).sum(0)
            errors = self.unseen.without - torch.cat([gains.new_zeros(1), gains.cumsum(0)])
            directions.append((v, errors.tolist()))
        return directions

    def _best_rank(self, most: int) -> tuple[float, int, int]:
        """The smallest error, and the number of the penalty and the rank, up to ``most``, that give it."""
        errors = [errors[: most + 1] for _, errors in self._directions]
        return min((error, i, rank) for i, of_penalty in enumerate(errors) for rank, error in enumerate(of_penalty))

    def _factors(self, kind: MapKind, weight: Tensor, gives: Tensor | None, penalty: float, error: float) -> ChannelMap:
        """A map by its weights in the features' units: ``(features, inner)``, ``(inner, channels)``."""
        reads = weight * self.unit[:, None]
        inner = self.mean[: self.inputs] @ reads
        bias = self.mean[self.inputs :] - (inner if gives is None else inner @ gives)
        rank = 0 if gives is None else len(gives)
        seen = self.seen.error(weight if gives is None else weight @ gives)
        reads = reads.view(self.groups, self.channels, reads.shape[1])
        return ChannelMap(
            kind=kind, reads=reads, gives=gives, bias=bias, penalty=penalty, rank=rank, error=_squares(error),
            error_fitted=seen,
        )  # fmt: skip


def _squares(error: float) -> float:
    """A sum of squares that a difference gave, which rounds."""
    return math.inf if math.isnan(error) else max(error, 0.0)


def _inverse(values: Tensor, penalty: Tensor) -> Tensor:
    """``1 / (λ + penalty)`` of eigenvalues; 0 in directions without data."""
    least = values.amax(-1, keepdim=True).clamp(min=0) * values.shape[-1] * torch.finfo(torch.float64).eps
    inverse = 1 / (values + penalty).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.where(values > least, inverse, 0.0)
