"""A model -> a parareal network, its plan printed and its files written: ``pararealize convert``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import print_result, working
from .folder import output_folder
from .model_file import Origin, source_code, source_of_callable

if TYPE_CHECKING:
    from pararealize import PararealModule, Plan

__all__ = ["EXAMPLES", "command", "write_network"]

EXAMPLES = """
[bold]Examples[/]

  pararealize convert resnet1001 --n 12 --out resnet1001-n12

  pararealize convert vit_b_16 --n 4 --coarse block --devices cuda:0,cuda:1

  pararealize convert mynets.py:deep --n 8 --input-shape 3,64,64 --json
"""

HEADER = '''\
"""{name} as a parareal network of {size}, written by pararealize {version}.

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
    from pararealize import Plan, models, pararealize
    from pararealize.distributed.checkpoint import load_state
{imports}
    plan = Plan.from_json((HERE / "plan.json").read_text(encoding="utf-8"))
    pnet = pararealize(
        models.build({model}),
        plan=plan,
{arguments}    )
    weights = HERE / "weights.safetensors"
    if weights.exists():
        load_state(pnet, weights)
    return pnet


'''


def command(
    *,
    model: options.Model,
    n: options.N,
    conversion: options.ConversionOptions,
    cost: options.CostOfCuts = options.CostUnit.flops,
    devices: Annotated[
        str | None,
        options.on_devices(
            help="Such as cuda:0,cuda:1; fewer than segments wrap round. [dim]\\[default: where the model is][/]"
        ),
    ] = None,
    example: options.ExampleOptions,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write plan.json, weights.safetensors, model.py and a picture into a new folder."),
    ] = None,
    force: options.Force = False,
    picture: options.PictureFormat = options.Picture.svg,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Plan and print only, without memory for the weights.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Cut MODEL into N segments, print the plan, and write the parareal network into a folder."""
    with working(f"building {model}") as progress, output_folder(output, force=force) as folder:
        from pararealize import pararealize

        from . import arguments, report

        net = network.build(model, meta=no_weights)
        inputs = example.values(model, meta=no_weights)
        progress(f"converting {model}")
        pnet = pararealize(
            net,
            n,
            devices=arguments.devices(devices),
            example_inputs=inputs,
            **conversion.arguments(),
            seed=network.seed,
            cost=cost.value,
            leaf_modules=network.leaf_modules(),
        )
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            origin = Origin(model=model, options=network, example=inputs)
            files = write_network(pnet, folder, origin, coarse=conversion.coarse, picture=picture)
    print_result(report.plan_json(pnet.plan), report.plan_tables(pnet.plan, model), output, files, as_json=as_json)


def _size(plan: Plan) -> str:
    """How many windows and segments, in words."""
    from pararealize.table import quantity

    segments = quantity(plan.n, "segment")
    return segments if len(plan.windows) == 1 else f"{len(plan.windows)} windows of at most {segments}"


def write_network(
    pnet: PararealModule, folder: Path, origin: Origin, *, coarse: str, picture: options.Picture
) -> list[str]:
    """Write ``plan.json``, ``weights.safetensors``, ``model.py`` and ``network.svg`` (or ``.png``); give their names.

    Tensors that share memory, such as tied embeddings, are stored once. A network on the meta device has no weights to
    write.
    """
    from pararealize.distributed.checkpoint import save_state
    from pararealize.plan.figure import draw_plan

    plan, code, weights = folder / "plan.json", folder / "model.py", folder / "weights.safetensors"
    plan.write_text(pnet.plan.to_json(), encoding="utf-8")
    arguments = origin.source_of_example()
    if ":" in coarse:
        arguments["coarse"] = f"find({source_of_callable(coarse)})"
    arguments |= origin.source_of_leaf_modules()
    text = source_code(HEADER, origin, arguments, pnet.code, name=pnet.plan.model, size=_size(pnet.plan))
    code.write_text(text, encoding="utf-8")
    drawn = draw_plan(pnet.plan, folder / f"network.{picture}", title=origin.model)
    if any(tensor.is_meta for tensor in pnet.state_dict().values()):
        return [plan.name, code.name, drawn.name]
    save_state(pnet, weights, once=True)
    return [plan.name, weights.name, code.name, drawn.name]
