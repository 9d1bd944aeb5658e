"""A converted or restacked network -> ``model.py``, source that makes it again with the weights beside it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .options import ModelOptions

__all__ = ["Origin", "source_code", "source_of_callable"]

IMPORTS = {  # lines of load(), and the call in its arguments that needs each
    "scheme(": "    from pararealize_cli.arguments import scheme\n",
    "find(": "    from pararealize.lookup import find\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a network was made from, in the words of the command line, so that ``model.py`` can make it again.

    Attributes:
        model: the name of the original.
        options: how it was built.
        folder: where ``model.py`` will stand, from which files are named.
        example: the example inputs.
    """

    model: str
    options: ModelOptions
    folder: Path
    example: Any = None

    def source_of_model(self) -> str:
        """The arguments of ``models.build``; of a network's folder, those that its original is built with."""
        from . import saved_model

        if saved_model.is_saved(self.model):
            name, arguments = saved_model.built_with(self.model, self.options.built_by)
            return ", ".join(
                [source_of_callable(name, self.folder), *(f"{key}={value!r}" for key, value in arguments.items())]
            )
        classes = self.options.num_classes
        return source_of_callable(self.model, self.folder) + ("" if classes is None else f", num_classes={classes}")

    def source_of_example(self) -> dict[str, str]:
        """The example inputs as a keyword argument; none where the library inferred them."""
        if self.example is None:
            return {}
        return {"example_inputs": _source_of_input("", self.example)}

    def source_of_leaf_modules(self) -> dict[str, str]:
        """The classes that were not looked into as a keyword argument; none where there are none."""
        names = self.options.leaf_names(self.model)
        if not names:
            return {}
        sources = {name: source_of_callable(name, self.folder) for name in names}
        leaves = [f"find({source})" if ":" in name else source for name, source in sources.items()]
        return {"leaf_modules": f"[{', '.join(leaves)}]"}


def _source_of_input(name: str, value: Any) -> str:
    """A call that makes an input of this shape and type, containers of such, or the value of a plain one."""
    if isinstance(value, dict):
        items = (
            f"{json.dumps(key, ensure_ascii=False)}: {_source_of_input(key, inner)}" for key, inner in value.items()
        )
        return f"{{{', '.join(items)}}}"
    if isinstance(value, tuple | list):
        inside = "".join(f"{_source_of_input(name, inner)}, " for inner in value)
        return f"({inside.rstrip()})" if isinstance(value, tuple) else f"[{inside.rstrip(', ')}]"
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


def source_of_callable(name: str, folder: Path) -> str:
    """A name as Python writes it, the file of ``file.py:callable`` as seen from the folder of ``model.py``, ``HERE``.

    Where both move together it still holds, and no folder of this machine is written down.

    Example:
        >>> source_of_callable("package.module:callable", Path("out"))
        '"package.module:callable"'
        >>> source_of_callable("nets.py:deep", Path("out"))
        'str(HERE / "../nets.py") + ":deep"'
    """
    path, _, attribute = name.rpartition(":")
    if not path.endswith(".py"):
        return json.dumps(name, ensure_ascii=False)
    relative = Path(os.path.relpath(Path(path).resolve(), folder.resolve())).as_posix()
    return f"str(HERE / {json.dumps(relative, ensure_ascii=False)}) + {json.dumps(':' + attribute, ensure_ascii=False)}"
