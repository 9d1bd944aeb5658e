"""The ``pararealize`` command: ``convert``, ``inspect``, ``train``, ``calibrate``, ``schedule`` and ``restack``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from .calibrate import EXAMPLES as CALIBRATE_EXAMPLES
from .calibrate import calibrate
from .console import keep_stdout, one_message, out, print_json, print_result, working
from .folder import output_folder
from .options import (
    AsJson,
    Batch,
    Coarse,
    Cost,
    CostOfCuts,
    Cuts,
    Force,
    InputShape,
    InputType,
    Leaf,
    Model,
    N,
    NumClasses,
    Picture,
    PictureFormat,
    Seed,
    SourceOfAdapters,
    StemBlocks,
    on_devices,
    to_folder,
)
from .restack import EXAMPLES as RESTACK_EXAMPLES
from .restack import restack
from .schedule import EXAMPLES as SCHEDULE_EXAMPLES
from .schedule import schedule
from .train import EXAMPLES as TRAIN_EXAMPLES
from .train import train

__all__ = ["app", "main"]

app = typer.Typer(
    name="pararealize",
    help="Turn any feed-forward PyTorch model into a parareal network, whose segments run at the same time.",
    epilog="Start with: [bold]pararealize convert resnet1001 --n 12[/]",
    no_args_is_help=True,
    rich_markup_mode="rich",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


CONVERT_EXAMPLES = """
[bold]Examples[/]

  pararealize convert resnet1001 --n 12 --out resnet1001-n12

  pararealize convert vit_b_16 --n 4 --coarse block --devices cuda:0,cuda:1

  pararealize convert mynets.py:deep --n 8 --input-shape 3,64,64 --json
"""


@app.command(epilog=CONVERT_EXAMPLES)
@one_message
def convert(
    model: Model,
    n: N,
    coarse: Coarse = "paper",
    cuts: Cuts = "cost",
    source: SourceOfAdapters = None,
    stem_blocks: StemBlocks = 0,
    cost: CostOfCuts = Cost.flops,
    devices: Annotated[
        str | None,
        on_devices(
            help="Such as cuda:0,cuda:1; fewer than segments wrap round. [dim]\\[default: where the model is][/]"
        ),
    ] = None,
    batch: Batch = 2,
    input_shape: InputShape = None,
    input_dtype: InputType = "float32",
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None, to_folder(help="Write plan.json, weights.safetensors, model.py and a picture into a new folder.")
    ] = None,
    force: Force = False,
    picture: PictureFormat = Picture.svg,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Plan and print only, without memory for the weights.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cut MODEL into N segments, print the plan, and write the parareal network into a folder."""
    with working(f"building {model}") as progress, output_folder(output, force=force) as folder:
        from pararealize import pararealize

        from . import arguments, report

        net = arguments.model(model, num_classes=num_classes, seed=seed, meta=no_weights)
        example = arguments.example(model, input_shape, input_dtype, batch, meta=no_weights)
        progress(f"converting {model}")
        pnet = pararealize(
            net,
            n,
            devices=arguments.devices(devices),
            example_inputs=example,
            coarse=arguments.coarse(coarse),
            cuts=arguments.cuts(cuts),
            source=None if source is None else source.value,
            stem_blocks=stem_blocks,
            seed=seed,
            cost=cost.value,
            leaf_modules=arguments.leaf_modules(leaf),
        )
        written: list[str] = []
        if folder is not None:
            from .convert import Recipe, write

            progress("writing the files")
            recipe = Recipe(
                model=model, num_classes=num_classes, example=example, coarse=coarse, leaf=tuple(leaf or ())
            )
            written = write(pnet, folder, recipe, picture=picture.value)
    print_result(report.plan_json(pnet.plan), report.plan_tables(pnet.plan, model), output, written, as_json=as_json)


INSPECT_EXAMPLES = """
[bold]Examples[/]

  pararealize inspect resnet50

  pararealize inspect timm:convnext_atto --all

  pararealize inspect transformers_net.py:bert --input-shape 128 --input-dtype int64
"""


@app.command(epilog=INSPECT_EXAMPLES)
@one_message
def inspect(
    model: Model,
    every: Annotated[
        bool, typer.Option("--all", help="Print every block and refused cut, equal ones not joined.")
    ] = False,
    batch: Batch = 2,
    input_shape: InputShape = None,
    input_dtype: InputType = "float32",
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Show MODEL's blocks with shapes, receptive fields and costs, and every cut point refused and why."""
    with working(f"building {model}") as progress:
        from . import arguments, report

        net = arguments.model(model, num_classes=num_classes, seed=seed)
        progress(f"reading {model}")
        found = report.inspection(
            net,
            arguments.example(model, input_shape, input_dtype, batch),
            leaf_modules=arguments.leaf_modules(leaf),
        )
    if as_json:
        print_json(report.inspection_json(found))
    else:
        out().print(report.inspection_tables(found, every=every))


app.command(epilog=CALIBRATE_EXAMPLES)(one_message(calibrate))
app.command(epilog=SCHEDULE_EXAMPLES)(one_message(schedule))
app.command(epilog=RESTACK_EXAMPLES)(one_message(restack))
app.command(epilog=TRAIN_EXAMPLES)(one_message(train))


@app.command(name="ls")
@one_message
def list_models(
    timm: Annotated[bool, typer.Option("--timm", help="List timm's models too, where it is installed.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the models that can be named."""
    from pararealize import models

    groups: dict[str, list[str]] = {"built-in": models.names(), "torchvision": models.torchvision_names()}
    if timm:
        groups["timm"] = models.timm_names()
    if as_json:
        print_json(groups)
        return
    console = out()
    about = {
        "built-in": "CIFAR pre-activation ResNets, 32×32 images",
        "torchvision": "also torchvision:NAME; resnet18 … resnet152 are torchvision's",
        "timm": "as timm:NAME",
    }
    from rich.columns import Columns

    for group, names in groups.items():
        console.print(f"[bold]{group}[/] ({about[group]})")
        console.print(Columns(names, padding=(0, 3), column_first=True, equal=True))
        console.print()
    console.print(
        "Any other: [bold]timm:NAME[/], [bold]package.module:callable[/], [bold]file.py:callable[/]; "
        "what they give must be a torch.nn.Module."
    )


DEMO_EXAMPLES = """
[bold]Examples[/]

  pararealize demo

  pararealize demo --model resnet164 --n 6 --steps 200 --plot loss.svg
"""


@app.command(epilog=DEMO_EXAMPLES)
@one_message
def demo(
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Takes images of 3 channels, tells 10 classes.")
    ] = "resnet1001",
    n: Annotated[int, typer.Option("--n", "-n", help="How many segments.")] = 12,
    coarse: Annotated[str, typer.Option("--coarse", metavar="KIND", help="As of [bold]convert[/].")] = "paper",
    steps: Annotated[int, typer.Option("--steps", help="How many training steps.", min=1)] = 30,
    batch: Annotated[int, typer.Option("--batch", help="Images a step.", min=2)] = 16,
    image_size: Annotated[int, typer.Option("--image-size", help="Pixels of a side.", min=1)] = 32,
    lr: Annotated[float, typer.Option("--lr", help="Learning rate of AdamW, after a linear rise.", min=0.0)] = 1e-3,
    seed: Seed = 0,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the losses into an .svg or .png.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert a network and train it for some steps on scikit-learn's digits: the loss falls."""
    import time

    console = out(quiet=as_json)
    with working(f"building and converting {model}"):
        from pararealize import data, pararealize

        from . import arguments, report
        from .demo import progress_lines, train

        started = time.perf_counter()
        digits = data.digits(batch, seed, image_size=image_size)
        net = arguments.model(model, num_classes=None, seed=seed)
        built = time.perf_counter()
        pnet = pararealize(net, n, coarse=arguments.coarse(coarse), seed=seed, example_inputs=digits.images[:2])
        converted = time.perf_counter()
    console.print(report.plan_tables(pnet.plan, model))
    console.print(f"built in {built - started:.1f} s, converted in {converted - built:.1f} s")
    console.print(f"training on {digits}")
    with working("step 1") as progress:
        losses = []
        for line, step in progress_lines(train(pnet, digits, steps=steps, lr=lr), steps):
            losses.append(step.loss)
            if line:
                console.print(line)
            progress(f"step {min(step.number + 1, steps)} of {steps}")
    if plot is not None:
        from pararealize.train.run.curves import draw_losses

        draw_losses(losses, plot, title=f"{model} on the digits, n = {n}")
    if as_json:
        print_json(report.plan_json(pnet.plan) | {"losses": losses})
    else:
        console.print(report.training_summary(losses, seconds=time.perf_counter() - started))


def main() -> None:
    """Run the command."""
    if "WORLD_SIZE" in os.environ:
        keep_stdout()
    app()
