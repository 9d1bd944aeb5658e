"""What a training run is asked for -> plain data for ``run.json``, with which a resumed run has to agree."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from pararealize.data.dataset import Dataset
from pararealize.distributed.checkpoint.state import check_tensors
from pararealize.distributed.checkpoint.weights_plan import plan_facts
from pararealize.distributed.consistency import agree
from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import RecipeError
from pararealize.multigrid.monitor import Monitor

from .recipe import Recipe
from .structure import describe_structure, structure_facts

__all__ = ["RunSettings", "agree_on_request", "describe_request"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunSettings:
    """What a run has beside its recipe.

    Args:
        seed: of random numbers drawn in training, and of weights that the recipe draws.
        log_every: steps in a row of the metrics.
        checkpoint_every: steps between checkpoints; ``None`` for one at the end of every epoch alone.
        keep: how many checkpoints stay in the folder.

    Raises:
        RecipeError: a number of steps or checkpoints is not positive.
    """

    seed: int
    log_every: int
    checkpoint_every: int | None
    keep: int

    def __post_init__(self) -> None:
        for name in ("log_every", "checkpoint_every", "keep"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"{name} is {value}; pass an integer of at least 1")


def describe_request(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe,
    settings: RunSettings,
    processes: TrainingProcesses,
    *,
    about: Mapping[str, Any],
    monitor: Monitor | None,
) -> dict[str, Any]:
    """All that has to be the same where a run goes on, as JSON knows it. Data and network stand in it as digests.

    All ranks call it: each knows the shapes of its own part of the network alone.

    Raises:
        CheckpointError: the network's state is more than tensors.
    """
    shapes: dict[str, list[int]] = {}
    facts: list[dict[str, str]] = []
    here = {name: list(value.shape) for name, value in check_tensors(net).items()}
    for tensors, structure in processes.gather((here, structure_facts(net))):
        shapes |= tensors
        facts.append(structure)
    return {
        "about": dict(about),
        **_asked(data, recipe, settings, monitor),
        "network": {
            "tensors": len(shapes),
            "values": sum(math.prod(shape) for shape in shapes.values()),
            "digest": _digest(json.dumps(sorted(shapes.items())).encode()),
        },
        "plan": plan_facts(net),
        "structure": describe_structure(facts),
    }


def agree_on_request(
    net: nn.Module,
    data: Dataset,
    recipe: Recipe,
    settings: RunSettings,
    processes: TrainingProcesses,
    *,
    monitor: Monitor | None,
    **facts: object,
) -> None:
    """Compare what every rank asks for, before anything is drawn, changed or written.

    Args:
        net: this rank's part.
        data: what it is trained on.
        recipe: how it is trained.
        settings: of the run.
        processes: the ranks.
        monitor: of the steps, where there is one.
        **facts: what else all ranks have to pass alike.

    Raises:
        AgreedError: the ranks differ; with the value of each, on every rank.
    """
    if processes.group is None or not isinstance(net, Stage):
        return
    asked = _asked(data, recipe, settings, monitor)
    alike = {"checkpoint_every": settings.checkpoint_every, "keep": settings.keep, **facts}
    with processes.watched("what the others ask of fit"):
        agree(
            processes.group,
            dict(_flat({**asked, **alike})),
            what="train",
            remedy="call fit with the same arguments on every rank",
            timeout=net.rank_setup.groups.limit,
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings as one, by names such as ``recipe.lr``."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _asked(data: Dataset, recipe: Recipe, settings: RunSettings, monitor: Monitor | None) -> dict[str, Any]:
    """What each rank knows of a request by itself."""
    return {
        "recipe": recipe.to_dict(),
        "seed": settings.seed,
        "log_every": settings.log_every,
        "data": {
            "name": data.name,
            "samples": [data.train_count, data.test_count],
            "shape": list(data.shape),
            "classes": data.classes,
            "batch_size": data.batch_size,
            "seed": data.seed,
            "augmentation": None if data.augmentation is None else str(data.augmentation),
            "labels": _digest(data.labels.numpy().tobytes() + data.test_labels.numpy().tobytes()),
        },
        **({} if monitor is None else {"monitor": monitor.settings}),
    }


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
