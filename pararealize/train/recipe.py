"""A training recipe: plain data -> an optimiser, the learning rate of every step, a loss, He's initial weights.

The defaults are the protocol of Lee, Lee and Park: 200 epochs of stochastic gradient descent in batches of 128,
momentum 0.9, weight decay 5e-4, learning rate 0.1, divided by 10 after 80 and after 120 epochs.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn
from torch.nn import functional

from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import processes_of
from pararealize.errors import RecipeError
from pararealize.random_state import derived_seed

__all__ = ["Recipe", "he_weights"]

Optimiser = Literal["sgd", "adamw"]
Schedule = Literal["steps", "cosine", "constant"]
Precision = Literal["bfloat16", "float16"]

_WORDS: dict[str, tuple[str | None, ...]] = {
    "optimizer": get_args(Optimiser),
    "schedule": get_args(Schedule),
    "amp": (None, *get_args(Precision)),
    "initialise": (None, "he"),
}
PAPER_SHARES = (0.4, 0.6)  # 80 and 120 of 200 epochs


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    r"""What a training run does with a network, whatever the network and the data.

    The learning rate of step :math:`s = 0, 1, …` of :math:`S` is

    .. math::

        \eta_s = \eta \cdot \min(1, (s + 1) / w) \cdot \begin{cases}
            γ^{\,|\{m : s ≥ m\}|}         & \text{steps, with milestones } m \\
            (1 + \cos(π s / S)) / 2        & \text{cosine} \\
            1                              & \text{constant}
        \end{cases}

    with :math:`w` warm-up steps, where there are any.

    Args:
        epochs: how many times every training sample is used.
        lr: the learning rate η.
        momentum: of SGD; AdamW has its usual 0.9 and 0.999.
        weight_decay: on all parameters.
        nesterov: Nesterov's form of momentum, with SGD.
        optimizer: ``"sgd"`` or ``"adamw"``.
        schedule: ``"steps"``, ``"cosine"`` or ``"constant"``.
        milestones: after how many epochs ``"steps"`` multiplies the learning rate by ``gamma``; parts of an epoch are
            allowed. Left out: two and three fifths of the epochs, which are the paper's 80 and 120 of 200.
        gamma: see ``milestones``.
        warmup: over how many steps the learning rate rises linearly from 0.
        label_smoothing: ε of the targets (1 − ε) · one-hot + ε / classes.
        clip: the largest norm of all gradients together; ``None`` for no limit.
        amp: run forward and loss under autocast of this type. ``"float16"`` scales the loss.
        initialise: ``"he"`` draws the weights of the original's convolutions anew before the first step, see
            :func:`he_weights`; ``None`` starts from the weights that are there.

    Raises:
        RecipeError: values out of range, all of them at once.

    Example:
        >>> recipe = Recipe(epochs=10)
        >>> [round(recipe.lr_at(step, steps=100), 9) for step in (0, 39, 40, 60)]  # 100 steps, 10 an epoch
        [0.1, 0.1, 0.01, 0.001]
        >>> Recipe.from_dict(recipe.to_dict()) == recipe
        True
    """

    epochs: int = 200
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False
    optimizer: Optimiser = "sgd"
    schedule: Schedule = "steps"
    milestones: tuple[float, ...] | None = None
    gamma: float = 0.1
    warmup: int = 0
    label_smoothing: float = 0.0
    clip: float | None = None
    amp: Precision | None = None
    initialise: Literal["he"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.milestones, Iterable):
            object.__setattr__(self, "milestones", tuple(self.milestones))
        faults = [
            f"{name} is {getattr(self, name)!r}; pass {' or '.join(map(repr, words))}"
            for name, words in _WORDS.items()
            if getattr(self, name) not in words
        ]
        faults += [
            f"{name} is {getattr(self, name)!r}; pass {requirement}"
            for name, requirement, fits in (
                ("epochs", "an integer of at least 1", _is_integer(self.epochs, 1)),
                ("lr", "a positive number", _is_positive(self.lr)),
                ("momentum", "a number from 0 to 1, without 1", _is_number(self.momentum, below=1)),
                ("weight_decay", "0 or a positive number", _is_number(self.weight_decay)),
                ("gamma", "a positive number", _is_positive(self.gamma)),
                ("warmup", "an integer of at least 0", _is_integer(self.warmup, 0)),
                ("label_smoothing", "a number from 0 to 1, without 1", _is_number(self.label_smoothing, below=1)),
                ("clip", "a positive number or None", self.clip is None or _is_positive(self.clip)),
                ("nesterov", "True with sgd and a momentum, or False", self._fits_nesterov()),
                ("milestones", "positive numbers in rising order", self.milestones is None or _rises(self.milestones)),
            )
            if not fits
        ]
        if faults:
            raise RecipeError("; and ".join(faults))

    def _fits_nesterov(self) -> bool:
        return self.nesterov is False or (self.nesterov is True and self.optimizer == "sgd" and self.momentum != 0)

    @property
    def turns(self) -> tuple[float, ...]:
        """The milestones in epochs: ``milestones``, or two and three fifths of the epochs."""
        return tuple(share * self.epochs for share in PAPER_SHARES) if self.milestones is None else self.milestones

    def lr_at(self, step: int, *, steps: int) -> float:
        """The learning rate of one step.

        Args:
            step: its number, from 0.
            steps: how many the whole run has.
        """
        rate = self.lr
        if self.schedule == "cosine":
            rate *= (1 + math.cos(math.pi * step / steps)) / 2
        elif self.schedule == "steps":
            rate *= self.gamma ** sum(step >= round(turn * (steps / self.epochs)) for turn in self.turns)
        return rate * min(1.0, (step + 1) / self.warmup) if self.warmup else rate

    def make_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser over these parameters, which may be none: of several ranks, one may have nothing to train."""
        groups = [{"params": list(parameters)}]
        if self.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=self.lr, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay, nesterov=self.nesterov
        )

    def loss(self, output: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of logits ``(batch, classes)``, with smoothed labels where asked for."""
        return functional.cross_entropy(output, labels.to(output.device), label_smoothing=self.label_smoothing)

    def to_dict(self) -> dict[str, Any]:
        """All values, as JSON knows them."""
        values = dataclasses.asdict(self)
        return values | {"milestones": None if self.milestones is None else list(self.milestones)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Recipe":
        """What :meth:`to_dict` gave.

        Raises:
            RecipeError: a name is unknown, or a value out of range.
        """
        names = [field.name for field in dataclasses.fields(Recipe)]
        if unknown := sorted(set(values) - set(names)):
            raise RecipeError(f"{', '.join(unknown)}: no such value of a recipe; there are {', '.join(names)}")
        return Recipe(**values)

    def __str__(self) -> str:
        method = {"sgd": f"SGD, momentum {self.momentum:g}", "adamw": "AdamW"}[self.optimizer]
        turns = ", ".join(f"{turn:g}" for turn in self.turns)
        falling = {
            "steps": f", times {self.gamma:g} after {turns} epochs" if self.turns else "",
            "cosine": ", falling as a cosine",
            "constant": "",
        }[self.schedule]
        others = [
            f"warm-up of {self.warmup} steps" if self.warmup else "",
            f"labels smoothed by {self.label_smoothing:g}" if self.label_smoothing else "",
            f"gradients clipped at {self.clip:g}" if self.clip else "",
            f"autocast to {self.amp}" if self.amp else "",
        ]
        epochs = "1 epoch" if self.epochs == 1 else f"{self.epochs} epochs"
        first = f"{epochs} of {method}, weight decay {self.weight_decay:g}, lr {self.lr:g}{falling}"
        return "; ".join([first, *filter(None, others)])


def he_weights(net: nn.Module, seed: int) -> int:
    """Draw the weights of all convolutions anew, normal with mean 0 and variance 2 / fan-out, and zero their biases.

    Each is drawn from the seed and its own name, of several names the first, so that a rank that holds a part of the
    network draws what one process would. What conversion added (``adapters``, ``coarse``) keeps its own initial
    weights, and so does all that is no convolution. Over several ranks all of them call it.

    Returns:
        How many convolutions were drawn, of those that are here.

    Source: He, Zhang, Ren and Sun, "Delving deep into rectifiers", ICCV 2015.
    """
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    convolutions = [
        module
        for name, module in net.named_modules()
        if isinstance(module, kinds) and name.split(".")[0] not in ("adapters", "coarse")
    ]
    names = _first_names(net)
    weights = {names[module.weight] for module in convolutions if module.weight in names}
    biases = {names[module.bias] for module in convolutions if module.bias in names}
    # a rank that shares a convolution's weight need not hold the convolution
    for its_weights, its_biases in processes_of(net).gather((weights, biases)):
        weights, biases = weights | its_weights, biases | its_biases
    with torch.no_grad():
        for parameter, name in names.items():
            if name in weights:
                weight = torch.empty(parameter.shape, dtype=parameter.dtype)
                generator = torch.Generator().manual_seed(derived_seed(seed, name.removesuffix(".weight")))
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
                parameter.copy_(weight)
            elif name in biases:
                parameter.zero_()
    return len(convolutions)


def _first_names(net: nn.Module) -> dict[torch.Tensor, str]:
    """Each parameter with the first of its names in the whole network, which is the same on every rank."""
    tied = net.tied_names if isinstance(net, Stage) else {}
    names: dict[torch.Tensor, str] = {}
    for name, parameter in net.named_parameters(remove_duplicate=False):
        names[parameter] = min(name, *tied.get(name, ()), names.get(parameter, name))
    return names


def _is_integer(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_number(value: object, *, below: float = math.inf) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < below


def _is_positive(value: object) -> bool:
    return _is_number(value) and value != 0


def _rises(values: tuple[float, ...]) -> bool:
    return (
        isinstance(values, tuple)
        and all(map(_is_positive, values))
        and all(a < b for a, b in itertools.pairwise(values))
    )
