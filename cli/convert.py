"""A converted network -> the four files of ``pararealize convert --out``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from pararealize import PararealModule

__all__ = ["Recipe", "anywhere", "quoted", "source_code", "write"]

HEADER = '''\
"""{name} as a parareal network of {n} segments, written by pararealize {version}.

``load()`` gives the network with the weights that stand beside this file. ``forward`` is what it computes: ``x_j``
enters segment g^j and ``y_j`` leaves it, ``r_j`` is the residual at an interface, F^j a coarse block, ``z_j`` the
corrected value. It is equation (3) of Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural
Network".
"""

from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def load():
    """The network, its weights read from weights.safetensors where that is there."""
    from safetensors.torch import load_model

    from pararealize import Plan, models, pararealize
{imports}
    plan = Plan.from_json((HERE / "plan.json").read_text(encoding="utf-8"))
    pnet = pararealize(
        models.build({model}),
        plan=plan,
{arguments}    )
    weights = HERE / "weights.safetensors"
    if weights.exists():
        load_model(pnet, str(weights))
    return pnet


'''


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What the network was made from, in the words of the command line, so that ``model.py`` can make it again."""

    model: str
    num_classes: int | None = None
    example: torch.Tensor | None = None
    coarse: str = "paper"
    leaf: tuple[str, ...] = ()


def write(pnet: PararealModule, folder: Path, recipe: Recipe, *, picture: str) -> list[str]:
    """Write ``plan.json``, ``weights.safetensors``, ``model.py`` and ``network.svg`` (or ``.png``); give their names.

    Tensors that share memory, such as tied embeddings, are stored once; safetensors notes the other names in the file's
    metadata and ``safetensors.torch.load_model`` restores them. A network on the meta device has no weights to write.
    """
    from safetensors.torch import save_model

    from pararealize.plan.figure import draw_plan

    plan, code, weights = folder / "plan.json", folder / "model.py", folder / "weights.safetensors"
    plan.write_text(pnet.plan.to_json(), encoding="utf-8")
    code.write_text(source_code(pnet, recipe), encoding="utf-8")
    drawn = draw_plan(pnet.plan, folder / f"network.{picture}", title=recipe.model)
    if any(tensor.is_meta for tensor in pnet.state_dict().values()):
        return [plan.name, code.name, drawn.name]
    save_model(pnet, str(weights))
    return [plan.name, weights.name, code.name, drawn.name]


def source_code(pnet: PararealModule, recipe: Recipe) -> str:
    """An importable file: ``load()``, which makes the network from the other files, and its forward pass as printed."""
    model = quoted(anywhere(recipe.model))
    if recipe.num_classes is not None:
        model += f", num_classes={recipe.num_classes}"
    arguments = {}
    if recipe.example is not None:
        arguments["example_inputs"] = f"torch.zeros({tuple(recipe.example.shape)}, dtype={recipe.example.dtype})"
    if ":" in recipe.coarse:
        arguments["coarse"] = f"find({quoted(anywhere(recipe.coarse))})"
    if recipe.leaf:
        arguments["leaf_modules"] = f"[{', '.join(f'find({quoted(anywhere(name))})' for name in recipe.leaf)}]"
    found = any("find(" in value for value in arguments.values())
    header = HEADER.format(
        name=pnet.plan.model,
        n=pnet.plan.n,
        version=version("pararealize"),
        imports="    from pararealize.lookup import find\n" if found else "",
        model=model,
        arguments="".join(f"        {name}={value},\n" for name, value in arguments.items()),
    )
    return header + pnet.code.strip() + "\n"


def quoted(text: str) -> str:
    """A string as Python writes it."""
    return json.dumps(text, ensure_ascii=False)


def anywhere(name: str) -> str:
    """The same name, ``file.py:callable`` with the whole path, so that it holds in every working directory."""
    path, _, attribute = name.rpartition(":")
    return f"{Path(path).resolve()}:{attribute}" if path.endswith(".py") else name
