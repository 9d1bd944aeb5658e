"""Words of the command line -> arguments of the library. Nothing here imports torch before it is needed."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararealize.errors import CalibrationError, CoarseError, DeviceError, ExampleError, PlanError, TableauError
from pararealize.lookup import find

if TYPE_CHECKING:
    import torch
    from torch import nn

    from pararealize import Plan
    from pararealize.restacking.tableaux import Tableau

__all__ = [
    "batch_size",
    "coarse",
    "cuts",
    "devices",
    "example",
    "inputs",
    "is_mask",
    "leaf_modules",
    "loss",
    "model",
    "numbers",
    "plan",
    "scheme",
    "sequential",
    "shape",
    "trained",
    "whole_number",
    "windows",
]

_MOST_BYTES = 1 << 26  # of a plan
_LOSSES = ("auto", "kl", "cross_entropy", "cosine", "mse")
_PLAIN = {"true": True, "false": False, "none": None}  # inputs that are no tensors
_TYPES = (
    "float16", "bfloat16", "float32", "float64", "half", "float", "double", "uint8", "int8", "int16", "int32", "int64",
    "short", "int", "long", "bool", "complex64", "complex128",
)  # fmt: skip


def model(name: str, *, num_classes: int | None, seed: int, meta: bool = False) -> nn.Module:
    """The model of that name, its weights drawn from ``seed``; on the meta device it has shapes and no weights."""
    import torch

    from pararealize import models

    torch.manual_seed(seed)
    arguments = {} if num_classes is None else {"num_classes": num_classes}
    with torch.device("meta" if meta else "cpu"):
        return models.build(name, **arguments)


def shape(text: str) -> tuple[int, ...]:
    """``3,32,32``, ``3x32x32`` or ``3×32×32``.

    Example:
        >>> shape("3x32x32")
        (3, 32, 32)
    """
    if not (sizes := _sizes(text)):
        raise ExampleError(
            f"--input-shape {text!r} is not a shape; write positive sizes without the batch dimension, such as 3,32,32"
        )
    return sizes


def _sizes(text: str) -> tuple[int, ...]:
    """The sizes of a shape; none where the text is no list of positive numbers."""
    sizes = tuple(map(whole_number, re.split(r"\s*[,x×]\s*", text.strip())))
    return tuple(size for size in sizes if size) if all(sizes) else ()


def whole_number(text: str) -> int | None:
    """A number of at most 18 ASCII digits, which fits into 64 bits; None for any other text.

    ``str.isdigit`` is true of characters that ``int`` refuses.

    Example:
        >>> whole_number("12"), whole_number("²"), whole_number("-1"), whole_number("9" * 5000)
        (12, None, None, None)
    """
    return int(text) if re.fullmatch("[0-9]{1,18}", text) else None


def batch_size(size: int) -> int:
    """``--batch-size``, which is positive."""
    if size < 1:
        raise ExampleError(f"--batch-size {size} is not positive; write 1 or more")
    return size


def example(name: str, text: str | None, dtype: str, samples: int, *, meta: bool = False) -> torch.Tensor | None:
    """Example inputs of the shape ``text``, or of the model's default shape; None leaves it to the library to infer.

    Integer inputs are zeros, which are valid token ids everywhere.
    """
    from pararealize import models

    kind = _type("--input-dtype", dtype)
    samples = batch_size(samples)
    sizes = models.default_input(name) if text is None else shape(text)
    if sizes is None and dtype != "float32":
        raise ExampleError(f"--input-dtype {dtype} is of an input whose shape nobody knows; write --input-shape, too")
    return None if sizes is None else _values("", (samples, *sizes), kind, "meta" if meta else "cpu")


def inputs(texts: list[str], *, meta: bool = False) -> dict[str, Any]:
    """Example inputs by name: of ``NAME=SHAPE:DTYPE``, where the shape has the batch in front, or ``NAME=true``.

    Integers are zeros, which are valid token ids everywhere; those of masks are ones, so that nothing is masked.

    Example:
        >>> {name: value.shape for name, value in inputs(["ids=2x128:int64", "image=2,3,8,8"]).items()}
        {'ids': torch.Size([2, 128]), 'image': torch.Size([2, 3, 8, 8])}
        >>> inputs(["ids=2x128:int64", "use_cache=false"])["use_cache"]
        False
    """
    values: dict[str, Any] = {}
    for text in texts:
        match = re.fullmatch(r"(?P<name>\w+)=(?P<value>[^:]+)(?::(?P<dtype>\w+))?", text.strip())
        sizes = () if match is None else _sizes(match["value"])
        word = "" if match is None or match["dtype"] else match["value"].strip().lower()
        if match is None or not (word in _PLAIN or sizes):
            raise ExampleError(
                f"--input {text!r} is no input; write NAME=SHAPE:DTYPE with the batch in front, such as "
                "--input input_ids=2x128:int64 (float32 where no type is said), or --input NAME=true, false or none"
            )
        if match["name"] in values:
            raise ExampleError(f"--input {match['name']} is there twice; write each input once")
        if word in _PLAIN:
            values[match["name"]] = _PLAIN[word]
            continue
        kind = _type(f"--input {text!r}:", match["dtype"] or "float32")
        device = "meta" if meta else "cpu"
        values[match["name"]] = _values(match["name"], sizes, kind, device)
    return values


def _type(where: str, text: str) -> torch.dtype:
    """The type of an input's numbers; ``where`` it stands, for the error where it is none."""
    import torch

    if text not in _TYPES:
        close = difflib.get_close_matches(text, _TYPES, n=1)
        hint = f"did you mean {close[0]}? Write" if close else "write"
        raise ExampleError(
            f"{where} {text!r} is not a type of inputs; {hint} float32, bfloat16, int64 or another of torch's"
        )
    kind: torch.dtype = getattr(torch, text)
    return kind


def _values(name: str, sizes: tuple[int, ...], kind: torch.dtype, device: str) -> torch.Tensor:
    import torch

    if kind.is_floating_point:
        return torch.randn(sizes, device=device).to(kind)
    return (torch.ones if is_mask(name) else torch.zeros)(sizes, dtype=kind, device=device)


def is_mask(name: str) -> bool:
    """Whether an input of that name says which positions count; zeros would leave none.

    Example:
        >>> is_mask("attention_mask"), is_mask("input_ids")
        (True, False)
    """
    return "mask" in name.lower()


def coarse(text: str) -> str | Callable[..., Any]:
    """A coarse kind such as ``block`` or ``low-rank:16``, or the callable that ``file.py:name`` stands for."""
    if ":" not in text:
        return text
    from pararealize.coarse.output_correction import correction_kind

    if correction_kind(text) is not None:
        return text
    value = find(text)
    if not callable(value):
        raise CoarseError(f"--coarse {text!r} is a {type(value).__name__}, which cannot be called; name a function")
    return value  # type: ignore[no-any-return]


def loss(text: str) -> str | Callable[..., Any]:
    """A loss by its name, or the function that ``file.py:name`` or ``package.module:name`` stands for."""
    if ":" not in text:
        if text not in _LOSSES:
            raise CalibrationError(f"--loss is {text!r}; write {', '.join(_LOSSES)}, or file.py:function")
        return text
    value = find(text)
    if not callable(value):
        raise CalibrationError(f"--loss {text!r} is a {type(value).__name__}, which cannot be called; name a function")
    return value  # type: ignore[no-any-return]


def trained(text: str) -> str | list[str]:
    """``all``, ``added``, ``lora:8``, or names of parameters and modules, separated by commas.

    Example:
        >>> trained("lora:8"), trained("head,layer3.0"), trained("head,")
        ('lora:8', ['head', 'layer3.0'], ['head'])
    """
    names = [part.strip() for part in text.split(",") if part.strip()]
    word = text.strip()
    return word if word in ("all", "added") or word.partition(":")[0] == "lora" else names


def cuts(text: str) -> str | list[str]:
    """``cost``, ``paper``, or the block names at which segments begin, separated by commas."""
    names = [part.strip() for part in text.split(",") if part.strip()]
    return names[0] if names in (["cost"], ["paper"]) else names


def plan(path: Path) -> Plan:
    """The plan of a file, or of the ``plan.json`` of a folder."""
    from pararealize import Plan
    from pararealize.files import read_file

    try:
        path = path / "plan.json" if path.is_dir() else path
        return Plan.from_json(read_file(path, most=_MOST_BYTES, follow=True).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PlanError(
            f"cannot read {str(path)!r}: {reason}; name the plan.json that tradeoff, convert or calibrate wrote"
        ) from error


def numbers(text: str, option: str) -> tuple[int, ...]:
    """``2,4`` as ``(2, 4)``.

    Example:
        >>> numbers("2, 4", "n")
        (2, 4)
    """
    values = [whole_number(part.strip()) for part in text.split(",") if part.strip()]
    sizes = tuple(value for value in values if value is not None)
    if not sizes or len(sizes) < len(values):
        raise PlanError(f"--{option} {text!r} is no list of numbers; write numbers such as 2,4")
    return sizes


def windows(text: str) -> int | str | list[str]:
    """How many windows, ``auto``, or the block names at which they begin, separated by commas.

    Example:
        >>> windows("4"), windows("auto"), windows("layer2.0,layer3.0"), windows("4,")
        (4, 'auto', ['layer2.0', 'layer3.0'], ['4'])
    """
    return "auto" if text.strip() == "auto" else _count_or_names(text)


def sequential(text: str) -> int | str | list[str]:
    """How many of the first blocks, ``auto``, or the names of some, separated by commas.

    Example:
        >>> sequential("2"), sequential("auto"), sequential("layer1.0")
        (2, 'auto', ['layer1.0'])
    """
    return "auto" if text.strip() == "auto" else _count_or_names(text)


def _count_or_names(text: str) -> int | list[str]:
    """A number, or names of blocks; a block whose name is a number has a comma behind it."""
    if re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", text):
        return int(text)
    return [part.strip() for part in text.split(",") if part.strip()]


def devices(text: str | None) -> list[str] | None:
    """``cuda:0,cuda:1`` as a list."""
    if text is None:
        return None
    names = [part.strip() for part in text.split(",") if part.strip()]
    if not names:
        raise DeviceError(f"--devices {text!r} names no device; write for instance --devices cuda:0,cuda:1")
    return names


def scheme(text: str) -> str | Tableau:
    """A scheme's name, or the tableau that ``package.module:name`` or ``file.py:name`` stands for or gives."""
    if ":" not in text:
        return text
    from pararealize.restacking.tableaux import Tableau

    value = find(text)
    if callable(value):
        value = value()
    if not isinstance(value, Tableau):
        raise TableauError(f"--scheme {text!r} is a {type(value).__name__} and no Tableau; name one, or a function")
    return value


def leaf_modules(names: list[str] | None) -> tuple[type | str, ...]:
    """The classes that ``package.module:Class`` stands for; without a colon, a name is a submodule's qualified one."""
    leaves = [find(name) if ":" in name else name for name in names or []]
    for name, value in zip(names or [], leaves, strict=True):
        if not isinstance(value, type | str):
            raise ExampleError(f"--leaf {name!r} is a {type(value).__name__} and not a class; name a module's class")
    return tuple(leaves)
