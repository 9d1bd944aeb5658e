"""How an original is built: a registry's name with arguments, code of the user's with its digest, or by the user alone.

A file decides nothing that runs code: what a registry of this library, torchvision's or timm's builds from numbers is
built; everything else is named by who loads it, and compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic.dataclasses import dataclass
from torch import nn

from pararealize import models
from pararealize.errors import CheckpointError, ModelError
from pararealize.files import file_digest
from pararealize.manifest import STRICT
from pararealize.random_state import preserve_state
from pararealize.table import shortened

__all__ = ["ModelSource", "build_original", "source_of", "state_misfit"]

Plain = bool | int | float | None
_FETCHING = ("pretrained", "weights", "checkpoint", "cache", "hf_hub", "url", "file", "progress")  # how arguments begin


@dataclass(frozen=True, kw_only=True, config=STRICT)
class ModelSource:
    """How the original is built.

    Attributes:
        kind: ``"registry"`` of names that load by themselves, ``"file"`` and ``"module"`` of the user's own code, which
            is named anew where it is loaded, or ``"given"``, a module that whoever loads it passes.
        class_name: of the original.
        name: by which :func:`pararealize.models.build` has it; of a file without its folder.
        arguments: of that call.
        sha256: of the file's bytes, so that other code of the same name is told.
    """

    kind: Literal["registry", "file", "module", "given"]
    class_name: str
    name: str = ""
    arguments: dict[str, Plain | list[Plain]] = dataclasses.field(default_factory=dict)
    sha256: str = ""

    def __str__(self) -> str:
        words = [f"{name}={value!r}" for name, value in self.arguments.items()]
        return f"{self.name}({', '.join(words)})" if self.name else self.class_name


def source_of(
    class_name: str,
    name: str | None,
    arguments: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    asked: bool = True,
) -> ModelSource:
    """How a model is built, as far as that can be said in a file.

    Args:
        class_name: of the model.
        name: by which :func:`pararealize.models.build` gives it; ``None`` where it has none.
        arguments: of that call.
        tensors: the model's state, which what the name builds has to have by names and shapes.
        asked: whether the user says so, and what does not build on the meta device is built with memory; otherwise it
            was built so in this process, and is taken at that.

    Raises:
        ModelError: the name is none, arguments are no plain numbers, it does not build, or builds another model.
    """
    given = ModelSource(kind="given", class_name=class_name)
    if name is None:
        return given
    kind: Literal["registry", "file", "module"] = "registry"
    sha256, by = "", name
    if not models.is_registered(name):
        where, _, attribute = name.rpartition(":")
        kind = "file" if where.endswith(".py") else "module"
        file = Path(where) if kind == "file" else Path(getattr(sys.modules.get(where), "__file__", None) or "")
        try:
            sha256 = file_digest(file.resolve())[1]
        except OSError as error:
            if kind == "file":
                raise ModelError(
                    f"{name!r} cannot be read: {error.strerror or error}; name the file that has the model"
                ) from error
        name = f"{Path(where).name}:{attribute}" if kind == "file" else name
    if faults := [key for key, value in arguments.items() if not _is_harmless(key, value)]:
        raise ModelError(
            f"{name} was built with {', '.join(f'{key}={shortened(repr(arguments[key]), 60)}' for key in faults)}, and "
            "a file may decide on numbers alone; leave model= out, and pass the model itself where it is loaded"
        )
    source = ModelSource(kind=kind, class_name=class_name, name=name, arguments=dict(arguments), sha256=sha256)
    if fault := _misfit(by, arguments, tensors, asked=asked):
        raise ModelError(f"{source} is not this model: {fault}; name what it was built by, or leave model= out")
    return source


def _is_harmless(name: object, value: Any) -> bool:
    """Whether an argument is a number, or a list of such, that asks no constructor to fetch anything."""
    values = value if isinstance(value, list) else [value]
    is_plain = all(item is None or isinstance(item, bool | int | float) for item in values)
    return is_plain and isinstance(name, str) and not name.lower().startswith(_FETCHING)


def _misfit(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], *, asked: bool) -> str:
    """Where what a name builds has other tensors; nothing where it has these.

    It is built on the meta device first, where that costs nothing; code that does not run there is run as it is.
    """
    state = None
    with preserve_state():
        with contextlib.suppress(Exception), torch.device("meta"):
            state = models.build(name, **arguments).state_dict()
        if state is None and asked:
            try:
                state = models.build(name, **arguments).state_dict()
            except ModelError as error:
                return f"it cannot be built: {error}"
    return "" if state is None else state_misfit(state, tensors)


def state_misfit(state: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> str:
    """Where two models' states differ in names or shapes, in words; nothing where they agree."""
    others = [key for key in dict.fromkeys((*state, *tensors)) if (key in state) != (key in tensors)]
    others += [
        key
        for key in state
        if key in tensors and getattr(state[key], "shape", None) != getattr(tensors[key], "shape", None)
    ]
    more = ", …" if len(others) > 3 else ""
    return f"{len(others)} tensors differ ({', '.join(others[:3])}{more})" if others else ""


def build_original(source: ModelSource, model: nn.Module | str | None) -> nn.Module:
    """The original, with weights that mean nothing yet.

    Args:
        source: what its folder says.
        model: of who loads it: the module, or the name of the code that builds it.

    Raises:
        CheckpointError: it has to be passed, or is other code than it was saved with.
        ModelError: it cannot be built.
    """
    if isinstance(model, nn.Module):
        return model
    if model is not None:
        if source.kind in ("file", "module"):
            _check_code(source, model)
        built = models.build(model, **source.arguments)
        where = model.rpartition(":")[0]
        if source.kind == "module" and (module := sys.modules.get(where)) is not None:
            _check_digest(source, model, Path(getattr(module, "__file__", None) or ""))
        return built
    if source.kind != "registry":
        code = f"was built by {source.name!r}" if source.name else f"is a {source.class_name}"
        name = f"model={source.name!r}, where that is yours, or " if source.name else ""
        raise CheckpointError(
            f"the original {code}, which no file may run by itself; pass {name}the module: "
            f"load(folder, model={source.class_name}(...)) (--built-by file.py:callable)"
        )
    if faults := [name for name, value in source.arguments.items() if not _is_harmless(name, value)]:
        raise CheckpointError(
            f"the folder asks to build {source.name} with {', '.join(faults)}, which a file may not decide; pass the "
            "module itself as model="
        )
    if not models.is_registered(source.name):
        raise CheckpointError(f"the folder calls {source.name!r} a registry's model, and it is none; pass model=")
    return models.build(source.name, **source.arguments)


def _check_code(source: ModelSource, name: str) -> None:
    """Refuse other code than the model was built by, before it runs."""
    where, _, attribute = name.rpartition(":")
    if attribute != source.name.rpartition(":")[2]:
        raise CheckpointError(
            f"the original was built by {source.name!r}, and model= names {name!r}; name that, or pass the module"
        )
    if where.endswith(".py"):
        _check_digest(source, name, Path(where))


def _check_digest(source: ModelSource, name: str, file: Path) -> None:
    """Refuse a file with other content; who means it passes the module itself."""
    try:
        sha256 = file_digest(file.resolve())[1]
    except OSError:  # building it says so, or it has no file
        return
    if source.sha256 and sha256 != source.sha256:
        raise CheckpointError(
            f"{name!r} is not the code that the original was built by: the SHA-256 of {file.name} was "
            f"{source.sha256[:12]}… and is {sha256[:12]}…; take the file as it was, or pass the module itself, where "
            "the change does not matter"
        )
