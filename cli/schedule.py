"""A model, a plan and what messages cost -> the timeline of one step: ``pararealize schedule``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import print_result, working
from .folder import SCHEDULE_FILES, output_folder
from .options import (
    AsJson,
    Batch,
    Coarse,
    Cuts,
    Force,
    InputShape,
    InputType,
    Leaf,
    Model,
    NumClasses,
    Picture,
    PictureFormat,
    Seed,
    SourceOfAdapters,
    StemBlocks,
    to_folder,
)

if TYPE_CHECKING:
    from torch import nn

    from pararealize import Plan
    from pararealize.plan.timeline import Timeline
    from pararealize.plan.times import Times

__all__ = ["EXAMPLES", "schedule"]

EXAMPLES = """
[bold]Examples[/]

  pararealize schedule resnet1001 --n 12 --latency 20 --bandwidth 12

  pararealize schedule resnet1001 --n 12 --coarse linear --reduce-linear --out schedule-n12

  pararealize schedule resnet110 --plan plan.json --seconds --batch 8
"""


def schedule(
    model: Model,
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="How many segments; not needed with --plan.", show_default=False)
    ] = None,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A plan.json made before.", show_default=False)
    ] = None,
    coarse: Coarse = "paper",
    cuts: Cuts = "cost",
    source: SourceOfAdapters = None,
    stem_blocks: StemBlocks = 0,
    seconds: Annotated[
        bool, typer.Option("--seconds", help="Measure every part here and now; otherwise count operations.")
    ] = False,
    rate: Annotated[
        float, typer.Option("--rate", metavar="TFLOPS", help="Counted operations that a device does, 10¹² a second.")
    ] = 1.0,
    latency: Annotated[float, typer.Option("--latency", metavar="MICROSECONDS", help="Of a message.")] = 0.0,
    bandwidth: Annotated[
        float | None,
        typer.Option(
            "--bandwidth",
            metavar="GB/S",
            help="Of a message, 10⁹ bytes a second. [dim]\\[default: unlimited][/]",
            show_default=False,
        ),
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option(
            "--ranks", help="Devices, where fewer than segments. [dim]\\[default: one a segment][/]", show_default=False
        ),
    ] = None,
    no_overlap: Annotated[
        bool, typer.Option("--no-overlap", help="The paper's way: the coarse chain waits for all segments.")
    ] = False,
    reduce_linear: Annotated[
        bool, typer.Option("--reduce-linear", help="Take neighbouring linear coarse blocks as one reduction.")
    ] = False,
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass alone.")] = False,
    batch: Batch = 2,
    input_shape: InputShape = None,
    input_dtype: InputType = "float32",
    num_classes: NumClasses = None,
    leaf: Leaf = None,
    seed: Seed = 0,
    output: Annotated[
        Path | None,
        to_folder(help="Write timeline.json, trace.json (for ui.perfetto.dev) and a picture into a new folder."),
    ] = None,
    force: Force = False,
    picture: PictureFormat = Picture.svg,
    as_json: AsJson = False,
) -> None:
    """Simulate one step of MODEL in N segments: who computes, sends and waits, and when."""
    with working(f"building {model}") as progress, output_folder(output, force=force, files=SCHEDULE_FILES) as folder:
        from pararealize import Transfer, simulate

        from . import arguments

        net = arguments.model(model, num_classes=num_classes, seed=seed, meta=not seconds)
        example = arguments.example(model, input_shape, input_dtype, batch, meta=not seconds)
        leaves = arguments.leaf_modules(leaf)
        progress(f"measuring {model}" if seconds else f"planning {model}")
        options: dict[str, Any] = {
            "coarse": arguments.coarse(coarse),
            "cuts": arguments.cuts(cuts),
            "source": None if source is None else source.value,
            "stem_blocks": stem_blocks,
        }
        link = Transfer(latency * 1e-6, float("inf") if bandwidth is None else bandwidth * 1e9)
        options["transfer"] = link if latency or bandwidth is not None else None
        options |= {} if seconds else {"rate": rate * 1e12}
        made, times = _planned(net, n, plan, example, leaves, options, seconds=seconds)
        timeline = simulate(
            made,
            times,
            latency=link.latency,
            bandwidth=link.bandwidth,
            batch=batch,
            ranks=ranks,
            overlap=not no_overlap,
            reduce_linear=reduce_linear,
            training=not inference,
            rate=rate * 1e12,
        )
        written = [] if folder is None else _write(timeline, folder, model, picture.value)
    found = {"timeline": json.loads(timeline.to_json()), "step": timeline.step, "serial": timeline.serial}
    found |= {"speedup": timeline.speedup, "efficiency": timeline.efficiency}
    print_result(found, str(timeline), output, written, as_json=as_json)


def _planned(
    net: nn.Module,
    n: int | None,
    path: Path | None,
    example: Any,
    leaves: tuple[type, ...],
    options: dict[str, Any],
    *,
    seconds: bool,
) -> tuple[Plan, Times | None]:
    """The plan, read or made, and measured times where they are asked for."""
    from pararealize import capture, find_blocks, make_plan, measure_network, pararealize
    from pararealize.errors import PlanError

    given = None if path is None else _read(path)
    stem = options["stem_blocks"]
    if given is not None and stem not in (0, given.stem_blocks):
        raise PlanError(f"--stem-blocks is {stem} and {path} has {given.stem_blocks}; give one of them")
    if given is None and n is None:
        raise PlanError("neither --n nor --plan is given; write --n 12, or --plan plan.json")
    if not seconds:
        stem = stem if given is None else given.stem_blocks
        chain = find_blocks(capture(net, example, leaf_modules=leaves), stem_blocks=stem)
        if given is None:
            assert n is not None
            decided = {name: value for name, value in options.items() if name != "stem_blocks"}
            return make_plan(chain, n, **decided), None
        given.check(chain)
        return given, None
    if example is None:
        raise PlanError("--seconds runs the model, whose input is not known; write --input-shape as well")
    made = pararealize(net, n, example_inputs=example, leaf_modules=leaves, plan=given, cost="seconds", **options)
    return made.plan, measure_network(made, example)[0]


def _read(path: Path) -> Plan:
    from pararealize import Plan
    from pararealize.errors import PlanError

    try:
        return Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"cannot read {str(path)!r}: {error}; name the plan.json that convert wrote") from error


def _write(timeline: Timeline, folder: Path, title: str, picture: str) -> list[str]:
    from pararealize.plan.timeline_figure import draw_timeline
    from pararealize.plan.trace import chrome_trace

    whole, trace = folder / "timeline.json", folder / "trace.json"
    whole.write_text(timeline.to_json(), encoding="utf-8")
    trace.write_text(json.dumps(chrome_trace(timeline), ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = draw_timeline(timeline, folder / f"timeline.{picture}", title=title)
    return [whole.name, trace.name, drawn.name]
