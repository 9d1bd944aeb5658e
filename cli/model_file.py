"""A converted or restacked network -> ``model.py``, source that makes it again with the weights beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .options import ModelOptions

__all__ = ["Origin", "source_code", "source_of_callable"]

IMPORTS = {  # lines of load(), and the call in its arguments that needs each
    "scheme(": "    from pararealize_cli.arguments import scheme\n",
    "find(": "    from pararealize.lookup import find\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a network was made from, in the words of the command line, so that ``model.py`` can make it again."""

    model: str
    options: ModelOptions
    example: torch.Tensor | dict[str, Any] | None = None

    def source_of_model(self) -> str:
        """The arguments of ``models.build``."""
        classes = self.options.num_classes
        return source_of_callable(self.model) + ("" if classes is None else f", num_classes={classes}")

    def source_of_example(self) -> dict[str, str]:
        """The example inputs as a keyword argument; none where the library inferred them."""
        if self.example is None:
            return {}
        if not isinstance(self.example, dict):
            return {"example_inputs": _source_of_input("", self.example)}
        items = (f'"{name}": {_source_of_input(name, value)}' for name, value in self.example.items())
        return {"example_inputs": f"{{{', '.join(items)}}}"}

    def source_of_leaf_modules(self) -> dict[str, str]:
        """The classes that were not looked into as a keyword argument; none where there are none."""
        if not self.options.leaf:
            return {}
        sources = {name: source_of_callable(name) for name in self.options.leaf}
        leaves = [f"find({source})" if ":" in name else source for name, source in sources.items()]
        return {"leaf_modules": f"[{', '.join(leaves)}]"}


def _source_of_input(name: str, value: Any) -> str:
    """A call that makes an input of this shape and type, or the value of a plain one."""
    if not hasattr(value, "shape"):
        return repr(value)
    from .arguments import is_mask

    function = "ones" if is_mask(name) and not value.is_floating_point() else "zeros"
    return f"torch.{function}({tuple(value.shape)}, dtype={value.dtype})"


def source_code(header: str, origin: Origin, arguments: Mapping[str, str], code: str, **fields: object) -> str:
    """An importable file: ``load()``, which makes the network from the files beside it, and the forward pass.

    Args:
        header: a template of the file's docstring and of ``load()``, with the fields ``version``, ``imports``,
            ``model``, ``arguments``, and those of ``fields``.
        origin: what the network was made from.
        arguments: keyword arguments of the call that makes the network, as source.
        code: the forward pass as the network prints it.
        fields: more fields of the template.
    """
    filled = header.format(
        version=version("pararealize"),
        imports="".join(
            line for call, line in IMPORTS.items() if any(call in argument for argument in arguments.values())
        ),
        model=origin.source_of_model(),
        arguments="".join(f"        {name}={argument},\n" for name, argument in arguments.items()),
        **fields,
    )
    return filled + code.strip() + "\n"


def source_of_callable(name: str) -> str:
    """A name as Python writes it, ``file.py:callable`` with the whole path, so that it holds in every directory.

    Example:
        >>> source_of_callable("package.module:callable")
        '"package.module:callable"'
    """
    path, _, attribute = name.rpartition(":")
    return json.dumps(f"{Path(path).resolve()}:{attribute}" if path.endswith(".py") else name, ensure_ascii=False)
