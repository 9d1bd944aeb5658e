"""A model and a scheme -> the restacked network, printed and written: ``pararealize restack``."""

from __future__ import annotations

import json
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_result, working
from .folder import RESTACK_FILES, output_folder
from .options import AsJson, Batch, Force, InputShape, InputType, Leaf, Model, NumClasses, Seed, to_folder

if TYPE_CHECKING:
    from pararealize import RestackedModule

__all__ = ["EXAMPLES", "restack"]

EXAMPLES = """
[bold]Examples[/]

  pararealize restack resnet110 --scheme rk4 --out resnet110-rk4

  pararealize restack resnet1001 --scheme rk8 --adaptive all

  pararealize restack vit_b_16 --scheme midpoint --per block --json
"""

HEADER = '''\
"""{name} restacked as {scheme}, written by pararealize {version}.

``load()`` gives the network with the weights that stand beside this file. ``forward`` is what it computes: in step g,
``k1_2`` is f_2 of ``z1_2``, and ``y1`` the step's result.
"""

from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent


def load():
    """The network, its weights read from weights.safetensors."""
    from safetensors.torch import load_model

    from pararealize import models, restack
{imports}
    net = restack(
        models.build({model}),
{arguments}    )
    load_model(net, str(HERE / "weights.safetensors"))
    return net


'''


class Adaptive(StrEnum):
    """What a learnable step scales."""

    all = "all"
    output = "output"


class Per(StrEnum):
    """What an f is."""

    residual = "residual"
    block = "block"


def restack(
    model: Model,
    scheme: Annotated[
        str,
        typer.Option(
            "--scheme",
            metavar="NAME",
            help="euler, midpoint, rk4, rk4-last, rk8, or file.py:name of a Tableau or of a function that gives one.",
        ),
    ] = "rk4",
    h: Annotated[float, typer.Option("--h", help="The step; the number of stages keeps the total step.")] = 1.0,
    adaptive: Annotated[
        Adaptive | None,
        typer.Option(
            "--adaptive",
            help="A learnable h a step, that scales stages and result, or the output alone. [dim]\\[default: fixed][/]",
            show_default=False,
        ),
    ] = None,
    per: Annotated[
        Per, typer.Option("--per", help="Each residual is an f, or each block (both residuals of a transformer layer).")
    ] = Per.residual,
    no_strict: Annotated[
        bool, typer.Option("--no-strict", help="Allow rk8 without a norm at the head of f, or with dropout.")
    ] = False,
    batch: Batch = 2,
    input_shape: InputShape = None,
    input_dtype: InputType = "float32",
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, to_folder(help="Write restacking.json, weights.safetensors and model.py into a new folder.")
    ] = None,
    force: Force = False,
    as_json: AsJson = False,
) -> None:
    """Rewire the residual blocks of MODEL as steps of a Runge-Kutta method, with no new parameters."""
    with working(f"building {model}") as progress, output_folder(output, force=force, files=RESTACK_FILES) as folder:
        import pararealize

        from . import arguments

        net = arguments.model(model, num_classes=num_classes, seed=seed)
        example = arguments.example(model, input_shape, input_dtype, batch)
        progress(f"restacking {model}")
        options: dict[str, Any] = {
            "h": h,
            "adaptive": False if adaptive is None else adaptive.value,
            "per": per.value,
            "strict": not no_strict,
        }
        restacked = pararealize.restack(
            net,
            arguments.scheme(scheme),
            example_inputs=example,
            leaf_modules=arguments.leaf_modules(leaf),
            **options,
        )
        written: list[str] = []
        if folder is not None:
            progress("writing the files")
            words = {"model": model, "scheme": scheme, "num_classes": num_classes, "leaf": leaf or []}
            written = _write(restacked, folder, words, options, example)
    found = {"restacking": restacked.restacking.to_dict(), "parameters": _parameters(restacked)}
    print_result(found, str(restacked.restacking), output, written, as_json=as_json)


def _parameters(net: RestackedModule) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _write(
    net: RestackedModule, folder: Path, words: dict[str, Any], options: dict[str, Any], example: Any
) -> list[str]:
    from safetensors.torch import save_model

    described, weights, code = folder / "restacking.json", folder / "weights.safetensors", folder / "model.py"
    text = json.dumps(net.restacking.to_dict(), indent=2, ensure_ascii=False)
    described.write_text(text + "\n", encoding="utf-8")
    save_model(net, str(weights))
    code.write_text(_source_code(net, words, options, example), encoding="utf-8")
    return [described.name, weights.name, code.name]


def _source_code(net: RestackedModule, words: dict[str, Any], options: dict[str, Any], example: Any) -> str:
    """An importable file: ``load()``, which makes the network again, and its forward pass as printed."""
    from .convert import anywhere, quoted

    model, scheme = quoted(anywhere(words["model"])), quoted(anywhere(words["scheme"]))
    if words["num_classes"] is not None:
        model += f", num_classes={words['num_classes']}"
    lines = {"scheme": f"scheme({scheme})" if ":" in scheme else scheme} | {k: repr(v) for k, v in options.items()}
    if example is not None:
        lines["example_inputs"] = f"torch.zeros({tuple(example.shape)}, dtype={example.dtype})"
    imports = ["    from pararealize_cli.arguments import scheme"] if ":" in scheme else []
    if words["leaf"]:
        lines["leaf_modules"] = f"[{', '.join(f'find({quoted(anywhere(name))})' for name in words['leaf'])}]"
        imports.append("    from pararealize.lookup import find")
    header = HEADER.format(
        name=net.restacking.model,
        scheme=net.restacking.scheme,
        version=version("pararealize"),
        imports="".join(f"{line}\n" for line in imports),
        model=model,
        arguments="".join(f"        {name}={value},\n" for name, value in lines.items()),
    )
    return header + net.code.strip() + "\n"
