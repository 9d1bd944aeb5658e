"""LayerParallel, optimiser -> steps of one-shot training: states, adjoints and weights converge together.

Each step of the optimiser spends a few iterations, which begin from the last values at the C-points for the same
samples, and takes the inexact gradient. States belong to samples, so batches may be drawn anew in every epoch.

Source: Günther, Ruthotto, Schroder, Cyr, Gauger, "Layer-Parallel Training of Deep Residual Neural Networks", section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from pararealize.errors import MultigridError
from pararealize.multigrid.solver.settings import Settings
from pararealize.restore import set_within

from .autograd import States
from .module import LayerParallel

__all__ = ["OneShot", "SampleStates", "names_of"]


class SampleStates:
    """The values at the C-points, forward and adjoint, of every sample that was seen: J+1 values each, twice.

    Args:
        most: the largest number of samples; when there are more, all are forgotten.
    """

    def __init__(self, most: int = 1 << 16) -> None:
        self._most = most
        self._places: dict[Hashable, int] = {}
        self._states: States = {}  # of all samples, each at its place along the first dimension

    def __len__(self) -> int:
        return len(self._places)

    def of(self, samples: Sequence[Hashable]) -> States:
        """The states of a batch; none where a sample is new."""
        if not self._states or any(sample not in self._places for sample in samples):
            return {}
        places = torch.tensor([self._places[sample] for sample in samples])
        return {
            direction: [values[places.to(values.device)] for values in points]
            for direction, points in self._states.items()
        }

    def keep(self, samples: Sequence[Hashable], states: States) -> None:
        """Keep the states that a step ended with; of a sample that stands in a batch twice, the later one.

        Those of other sizes, types or devices are dropped.

        Raises:
            MultigridError: they are of another number of samples.
        """
        _check_count(samples, states)
        if any(_layouts(points) != _layouts(self._states.get(way, points)) for way, points in states.items()):
            self._places.clear()
            self._states.clear()
        new = [sample for sample in dict.fromkeys(samples) if sample not in self._places]
        if len(self._places) + len(new) > self._most:
            self._places.clear()
            self._states.clear()
            new = list(dict.fromkeys(samples))
        for sample in new:
            self._places[sample] = len(self._places)
        places = torch.tensor([self._places[sample] for sample in samples])
        for direction, points in states.items():
            store = self._states.setdefault(direction, [point.new_empty(0, *point.shape[1:]) for point in points])
            for i, point in enumerate(points):
                missing = len(self._places) - len(store[i])
                if missing > 0:
                    store[i] = torch.cat([store[i], store[i].new_zeros(missing, *point.shape[1:])])
                store[i][places.to(point.device)] = point


def _layouts(points: Sequence[Tensor]) -> list[tuple[torch.Size, torch.dtype, torch.device]]:
    """Of values of any number of samples."""
    return [(point.shape[1:], point.dtype, point.device) for point in points]


class OneShot:
    """Steps of simultaneous training: warm-started iterations, an inexact gradient, an update.

    Args:
        net: its iterations are set here, and its warm start within each step.
        optimizer: any of torch's, over the network's parameters. Its :meth:`step` is given a closure, which L-BFGS
            evaluates several times: every evaluation begins from the states that the step began from, so that a line
            search sees a function of the weights alone (leave out dropout, which draws anew).
        iterations: forward iterations a step.
        backward_iterations: as many as forward ones where left out.

    Raises:
        MultigridError: fewer than one iteration.

    Example:
        >>> import torch
        >>> from pararealize import layer_parallel
        >>> from pararealize.models import resnet20
        >>> net = layer_parallel(resnet20().eval(), coarsening=2)
        >>> one_shot = OneShot(net, torch.optim.SGD(net.parameters(), lr=1e-6))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> losses = [one_shot.step(lambda: net(x).square().mean()) for _ in range(6)]
        >>> net.history[-1].forward[0] < 0.01 * net.history[0].forward[0]
        True
    """

    def __init__(
        self,
        net: LayerParallel,
        optimizer: torch.optim.Optimizer,
        iterations: int = 1,
        backward_iterations: int | None = None,
    ) -> None:
        backward_iterations = iterations if backward_iterations is None else backward_iterations
        Settings(forward_iterations=iterations, backward_iterations=backward_iterations).check()
        self.net, self.optimizer, self.states = net, optimizer, SampleStates()
        net.forward_iterations, net.backward_iterations = iterations, backward_iterations
        net.forget()

    def step(self, loss: Callable[[], Tensor], samples: Iterable[Hashable] | Tensor | None = None) -> Tensor:
        """One update of the weights.

        Args:
            loss: computes the loss of a batch, from the network's call on.
            samples: what the batch's samples are called, in order, such as their numbers in the data set, also as a
                tensor, or :func:`names_of` them. Left out: every step has the same batch.

        Returns:
            The loss before the update, detached.

        Raises:
            MultigridError: the samples are no names, or another number of them than the batch has.
        """
        names = None if samples is None else _names(samples)
        start = dict(self.net.states if names is None else self.states.of(names))

        def evaluate() -> Tensor:
            self.net.states.clear()
            self.net.states.update(start)
            self.optimizer.zero_grad()
            value = loss()
            if names is not None:
                _check_count(names, self.net.states)
            torch.autograd.backward(value)
            return value.detach()

        # The type stubs know of closures that give a float; an optimiser hands on whatever its closure gives.
        with set_within(self.net, "warm_start", True):
            loss_before: Tensor = self.optimizer.step(evaluate)  # type: ignore[arg-type,assignment]
        if names is not None:
            self.states.keep(names, self.net.states)
        return loss_before


def names_of(x: Tensor) -> list[Hashable]:
    """A name for every sample of a batch, from its values: the same sample has the same name in any batch."""
    # by bytes, since NumPy does not know all of torch's element types
    return [row.reshape(-1).view(torch.uint8).numpy().tobytes() for row in x.detach().cpu().contiguous()]


def _names(samples: Iterable[Hashable] | Tensor) -> list[Hashable]:
    """Names that are equal where their values are; tensors compare by identity."""
    values = samples.tolist() if isinstance(samples, Tensor) and samples.dim() == 1 else samples
    try:
        names = [value.item() if isinstance(value, Tensor) else value for value in values]
        hash(tuple(names))
    except (TypeError, ValueError, RuntimeError) as error:
        what = f"{tuple(samples.shape)} tensor" if isinstance(samples, Tensor) else type(samples).__name__
        raise MultigridError(
            f"the samples' names are a {what} ({type(error).__name__}: {error}); pass a list of numbers, strings or "
            "tuples, one for each sample, or names_of(x)"
        ) from error
    return names


def _check_count(names: Sequence[Hashable], states: States) -> None:
    """Refuse another number of names than values at the C-points have samples."""
    sizes = {point.shape[0] if point.dim() else 1 for points in states.values() for point in points}
    if sizes - {len(names)}:
        raise MultigridError(
            f"{len(names)} samples are named, and the values between the layers have {', '.join(map(str, sizes))} in "
            "their first dimension; pass one name for each"
        )
