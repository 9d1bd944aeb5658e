"""A model and a scheme -> the restacked network, printed and written: ``pararealize restack``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import print_result, working
from .example_options import ExampleOptions
from .folder import RESTACK_FILES, output_folder, writing
from .html import blocks_of, check_page, write_page
from .model_file import Origin, source_code, source_of_callable

if TYPE_CHECKING:
    from pararealize import RestackedModule

__all__ = ["EXAMPLES", "Adaptive", "Per", "SchemeOptions", "command"]

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


def load(model=None):
    """The network, its weights read from weights.safetensors.

    ``model`` is the original, any weights, where it cannot be built by its name from here.
    """
    from pararealize import models, restack
    from pararealize.distributed.checkpoint import load_state
{imports}
    net = restack(
        models.build({model}) if model is None else model,
{arguments}    )
    load_state(net, HERE / "weights.safetensors")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeOptions:
    """Which Runge-Kutta method the blocks become steps of, and how."""

    scheme: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="euler, midpoint, rk4, rk4-last, rk8, or file.py:name of a Tableau or of a function that gives one.",
        ),
    ] = "rk4"
    h: Annotated[float, typer.Option(help="The step; the number of stages keeps the total step.")] = 1.0
    adaptive: Annotated[
        Adaptive | None,
        typer.Option(
            help="A learnable h a step, that scales stages and result, or the output alone. [dim]\\[default: fixed][/]"
        ),
    ] = None
    per: Annotated[
        Per, typer.Option(help="Each residual is an f, or each block (both residuals of a transformer layer).")
    ] = Per.residual
    no_strict: Annotated[
        bool, typer.Option("--no-strict", help="Allow rk8 without a norm at the head of f, or with dropout.")
    ] = False

    def arguments(self) -> dict[str, Any]:
        """All but the scheme, as keyword arguments of :func:`pararealize.restack`."""
        return {
            "h": self.h,
            "adaptive": False if self.adaptive is None else self.adaptive.value,
            "per": self.per.value,
            "strict": not self.no_strict,
        }


def command(
    *,
    model: options.Model,
    scheme: SchemeOptions,
    example: ExampleOptions,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write restacking.json, weights.safetensors and model.py into a new folder."),
    ] = None,
    force: options.Force = False,
    page: options.Report = None,
    as_json: options.AsJson = False,
) -> None:
    """Rewire the residual blocks of MODEL as steps of a Runge-Kutta method, with no new parameters."""
    check_page(page, output)
    with working(f"building {model}") as progress, output_folder(output, force=force, files=RESTACK_FILES) as folder:
        from pararealize import restack

        from . import arguments

        net = network.build(model)
        inputs = example.values(model)
        progress(f"restacking {model}")
        chain = blocks_of(page, net, inputs, network.leaf_modules(model))
        restacked = restack(
            net,
            arguments.scheme(scheme.scheme),
            example_inputs=inputs,
            leaf_modules=network.leaf_modules(model),
            **scheme.arguments(),
        )
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            origin = Origin(model=model, options=network, folder=output or folder, example=inputs)
            with writing(output):
                files = _write(restacked, folder, scheme, origin)
    parameters = sum(parameter.numel() for parameter in restacked.parameters())
    document = {"restacking": restacked.restacking.to_dict(), "parameters": parameters}
    print_result(document, str(restacked.restacking), output, files, as_json=as_json)
    write_page(page, restacked.restacking, chain, title=model, seed=network.seed, quiet=as_json)


def _write(net: RestackedModule, folder: Path, settings: SchemeOptions, origin: Origin) -> list[str]:
    from pararealize.distributed.checkpoint import save_state

    restacking, weights, code = folder / "restacking.json", folder / "weights.safetensors", folder / "model.py"
    text = json.dumps(net.restacking.to_dict(), indent=2, ensure_ascii=False)
    restacking.write_text(text + "\n", encoding="utf-8")
    save_state(net, weights, once=True)
    scheme = source_of_callable(settings.scheme, origin.folder)
    arguments = {"scheme": f"scheme({scheme})" if ":" in scheme else scheme}
    arguments |= {name: repr(value) for name, value in settings.arguments().items()}
    arguments |= origin.source_of_example() | origin.source_of_leaf_modules()
    fields = {"name": net.restacking.model, "scheme": net.restacking.scheme}
    code.write_text(source_code(HEADER, origin, arguments, net.code, **fields), encoding="utf-8")
    return [restacking.name, weights.name, code.name]
