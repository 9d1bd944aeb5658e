"""MODEL on the command line, where it is a folder that a command or ``network.save`` wrote -> what stands in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["built_with", "check_options", "example", "is_saved", "original", "segments"]


def is_saved(model: str) -> bool:
    """Whether MODEL is a network's folder, or a training run's that holds one; names of models go before folders.

    Example:
        >>> is_saved("resnet20"), is_saved("no/such/folder")
        (False, False)
    """
    if not Path(model).is_dir():
        return False
    from pararealize import models
    from pararealize.saving.network_folder import find_folder

    if model in models.names() or model in models.torchvision_names():
        return False  # write ./resnet20 for a folder of that name
    return find_folder(model) is not None


def check_options(model: str, *, num_classes: int | None, built_by: str | None) -> None:
    """Refuse options that would change nothing, or what a folder says already.

    Raises:
        ModelError: it names them.
    """
    from pararealize.errors import ModelError

    if num_classes is not None and is_saved(model):
        raise ModelError(f"--num-classes {num_classes}: the folder {model} says how its model is built; leave it out")
    if built_by is not None and not is_saved(model):
        raise ModelError(
            f"--built-by {built_by} says how the original of a folder is built, and {model!r} is no network's folder; "
            "write it in the place of MODEL, or name a folder"
        )


def original(model: str, built_by: str | None) -> nn.Module:
    """The original of a folder, in eval mode, with its weights."""
    from pararealize import load_original

    return load_original(model, built_by)


def example(model: str, *, meta: bool = False) -> Any:
    """Inputs like those that the network of a folder was converted with; ``None`` where nobody knows them."""
    from torch import Tensor
    from torch.utils._pytree import tree_map_only

    from pararealize.loading import example_of
    from pararealize.saving import read_folder

    inputs = example_of(read_folder(model))
    return tree_map_only(Tensor, lambda tensor: tensor.to("meta"), inputs) if meta else inputs


def segments(model: str) -> int:
    """How many segments a window of the network in a folder has; 1 where it is no converted one."""
    from pararealize.saving import read_folder

    plan = read_folder(model).plan
    return 1 if plan is None else plan.n


def built_with(model: str, built_by: str | None) -> tuple[str, dict[str, Any]]:
    """The name and the arguments by which :func:`pararealize.models.build` gives the original of a folder."""
    from pararealize.saving import read_folder

    source = read_folder(model).record.model
    return (source.name if built_by is None else built_by), dict(source.arguments)
