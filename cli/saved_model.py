"""MODEL on the command line, where it is a folder that a command or ``network.save`` wrote -> what stands in it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["built_with", "check_options", "example", "is_saved", "leaf_modules", "original", "segments"]


def is_saved(model: str) -> bool:
    """Whether MODEL is a network's folder, or a training run's that holds one; names of models go before folders.

    Example:
        >>> is_saved("resnet20"), is_saved("no/such/folder")
        (False, False)
    """
    if not _is_folder(model):
        return False
    from pararealize import models
    from pararealize.saving.network_folder import find_folder

    if model in models.names() or model in models.torchvision_names():
        return False  # write ./resnet20 for a folder of that name
    return find_folder(model) is not None


def check_options(model: str, *, num_classes: int | None, built_by: str | None) -> None:
    """Refuse options that would change nothing, or what a folder says already; and folders that hold no network.

    Raises:
        ModelError: it names them.
    """
    from pararealize.errors import ModelError

    if not is_saved(model) and (fault := _foreign_folder(model)):
        raise ModelError(fault)
    if num_classes is not None and is_saved(model):
        raise ModelError(f"--num-classes {num_classes}: the folder {model} says how its model is built; leave it out")
    if built_by is not None and not is_saved(model):
        raise ModelError(
            f"--built-by {built_by} says how the original of a folder is built, and {model!r} is no network's folder; "
            "write it in the place of MODEL, or name a folder"
        )


def _is_folder(model: str) -> bool:
    """Whether MODEL is the path of a folder; a name that no path can have is none."""
    try:
        return Path(model).is_dir()
    except OSError:
        return False


def _foreign_folder(model: str) -> str:
    """What a folder in the place of MODEL is that holds no network to load, and the remedy; nothing of other names."""
    if not _is_folder(model):
        return ""
    from pararealize import models

    if model in models.names() or model in models.torchvision_names():
        return ""
    file = Path(model) / "model.py"
    if (Path(model) / "restacking.json").is_file() and file.is_file():
        return (
            f"the folder {model} holds a network that pararealize restack wrote, which its model.py builds; write "
            f"{file}:load in the place of MODEL"
        )
    return (
        f"the folder {model} is there, and holds no saved network: there is no manifest.json in it; name a folder that "
        "network.save(folder), or convert, calibrate or train with --out, has written, or file.py:callable"
    )


def original(model: str, built_by: str | None) -> tuple[nn.Module, str]:
    """The original of a folder, in eval mode, with its weights; and why these may not be its own, in words, or nothing.

    A command has one thread that warns, so that warnings may be kept.
    """
    from pararealize import load_original
    from pararealize.errors import OriginalWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", OriginalWarning)
        net = load_original(model, built_by)
    notes = [str(warning.message) for warning in caught if issubclass(warning.category, OriginalWarning)]
    for warning in caught:
        if not issubclass(warning.category, OriginalWarning):
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    return net, "; ".join(notes)


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


def leaf_modules(model: str) -> list[str]:
    """The qualified names of submodules that the network of a folder was converted without looking into."""
    from pararealize.saving import read_folder

    return read_folder(model).record.conversion.leaf_modules


def built_with(model: str, built_by: str | None) -> tuple[str, dict[str, Any]]:
    """The name and the arguments by which :func:`pararealize.models.build` gives the original of a folder."""
    from pararealize.saving import read_folder

    source = read_folder(model).record.model
    return (source.name if built_by is None else built_by), dict(source.arguments)
