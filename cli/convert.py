"""A model -> a parareal network, its plan printed and its files written: ``pararealize convert``."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import options
from .console import print_result, working
from .example_options import ExampleOptions
from .folder import output_folder, writing
from .html import blocks_of, check_page, write_page

if TYPE_CHECKING:
    from torch import nn

    from pararealize import PararealModule, Plan
    from pararealize.calibration.report import Calibration

__all__ = ["EXAMPLES", "command", "title_of", "write_network"]

EXAMPLES = """
[bold]Examples[/]

  pararealize convert resnet1001 --n 12 --out resnet1001-n12

  pararealize convert vit_b_16 --n 4 --coarse block --devices cuda:0,cuda:1

  pararealize convert mynets.py:deep --n 8 --input-shape 3,64,64 --json

  pararealize convert resnet1001-n12 --n 24 --out resnet1001-n24
"""

HEADER = '''\
"""{name} as a parareal network of {size}, written by pararealize {version}.

``load()`` gives the network of the folder that this file is in. ``forward`` is what it computes: ``x_j`` enters
segment g^j and ``y_j`` leaves it, ``r_j`` is the residual at an interface, F^j a coarse block, ``z_j`` the corrected
value. It is equation (3) of Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural Network".
"""

from pathlib import Path

import torch


def load(model=None, **arguments):
    """The network; for ``model`` and the other arguments see ``pararealize.load``{remark}."""
    from pararealize import load

    return load(Path(__file__).resolve().parent, model, **arguments)


'''


def command(
    *,
    model: options.Model,
    n: options.NOrSaved = None,
    conversion: options.ConversionOptions,
    cost: options.CostOfCuts = options.CostUnit.flops,
    devices: Annotated[
        str | None,
        options.on_devices(
            help="Such as cuda:0,cuda:1; fewer than segments wrap round. [dim]\\[default: where the model is][/]"
        ),
    ] = None,
    example: ExampleOptions,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(help="Write the network's folder, with model.py and a picture in it; a new one."),
    ] = None,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Plan and print only, without memory for the weights.")
    ] = False,
    result: options.ResultOptions,
) -> None:
    """Cut MODEL into N segments, print the plan, and write the parareal network into a folder."""
    check_page(result.page, output)
    with working(f"building {model}") as progress, output_folder(output, force=result.force) as folder:
        from pararealize import pararealize, simulate

        from . import arguments, report

        chain, places = None, arguments.devices(devices)
        if n is None and conversion.plan is None:
            unused = options.words_of(cost) + options.differing(example) + options.differing(network, "built_by")
            pnet = conversion.saved_network(model, built_by=network.built_by, devices=places, unused=unused)
            pnet = pnet.to("meta") if no_weights else pnet
        else:
            net = network.build(model, meta=no_weights)
            inputs = example.values(model, meta=no_weights)
            progress(f"converting {model}")
            pnet = pararealize(
                net,
                n,
                devices=places,
                example_inputs=inputs,
                **conversion.arguments(),
                seed=network.seed,
                cost=None if conversion.plan is not None else cost.value,
                leaf_modules=network.leaf_modules(model),
            )
            chain = blocks_of(result.page, net, inputs, network.leaf_modules(model), pnet.plan.granularity)
        files: list[str] = []
        if folder is not None:
            progress("writing the files")
            with writing(output):
                files = write_network(pnet, folder, title=title_of(model), picture=result.picture)
    print_result(
        report.plan_json(pnet.plan), report.plan_tables(pnet.plan, model), output, files, as_json=result.as_json
    )
    step = None if result.page is None else simulate(pnet.plan)
    write_page(result.page, pnet.plan, chain, step, title=model, seed=network.seed, quiet=result.as_json)


def title_of(model: str) -> str:
    """MODEL without the folders before it, which are this machine's own."""
    return Path(model).name or model


def _size(plan: Plan) -> str:
    """How many windows and segments, in words."""
    from pararealize.table import quantity

    segments = quantity(plan.n, "segment")
    return segments if len(plan.windows) == 1 else f"{len(plan.windows)} windows of at most {segments}"


def write_network(
    pnet: PararealModule,
    folder: Path,
    *,
    title: str,
    picture: options.Picture,
    calibration: Calibration | None = None,
    original: nn.Module | None = None,
    more: Callable[[Path], object] = lambda _: None,
) -> list[str]:
    """Write a network's folder, as ``network.save`` does, with ``model.py`` and ``network.svg`` (or ``.png``).

    Args:
        pnet: the network; one on the meta device has no weights to write.
        folder: an empty one.
        title: of the picture.
        picture: its format.
        calibration: the report of the network's calibration.
        original: the trained original, where its weights in the network were trained further.
        more: writes more files.

    Returns:
        The files' names.
    """
    from pararealize.plan.figure import draw_plan
    from pararealize.saving.network_folder import fill_folder, write_weights

    def write(part: Path) -> None:
        write_weights(pnet, part, original=original)
        (part / "model.py").write_text(_source(pnet), encoding="utf-8")
        draw_plan(pnet.plan, part / f"network.{picture}", title=title)
        more(part)

    fill_folder(folder, pnet.saved_record(), pnet.plan, write, calibration=calibration)
    names = [entry.name for entry in folder.iterdir()]
    order = ["plan.json", "weights.safetensors", "model.py", f"network.{picture}"]
    return sorted(names, key=lambda name: (order.index(name) if name in order else len(order), name))


def _source(pnet: PararealModule) -> str:
    """``model.py``: what the network computes, and how it is loaded."""
    source = pnet.saved_record().model
    remark = "" if source.kind == "registry" else f"; the original, {source}, is passed as ``model``"
    plan = pnet.plan
    # names may have come from a file: nothing of them may end the docstring that they stand in
    name, remark = (re.sub(r"[^\w.:,;=()\[\]` -]", "_", text) for text in (plan.model, remark))
    header = HEADER.format(name=name, size=_size(plan), version=version("pararealize"), remark=remark)
    return header + pnet.code.strip() + "\n"
