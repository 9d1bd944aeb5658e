"""A model, a plan and what messages cost -> the timeline of one step: ``pararealize schedule``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import options
from .console import print_result, working
from .example_options import ExampleOptions
from .folder import SCHEDULE_FILES, output_folder, writing
from .html import blocks_of, check_page, write_page

if TYPE_CHECKING:
    from torch import nn

    from pararealize import Plan, Timeline, Times, Transfer

__all__ = ["EXAMPLES", "StepOptions", "command"]

EXAMPLES = """
[bold]Examples[/]

  pararealize schedule resnet1001 --n 12 --latency 20 --bandwidth 12

  pararealize schedule resnet1001 --n 12 --coarse linear --reduce-linear --out schedule-n12

  pararealize schedule resnet110 --plan plan.json --seconds --batch-size 8
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOptions:
    """What the parts and messages of the step cost, and how it runs."""

    seconds: Annotated[
        bool, typer.Option("--seconds", help="Measure every part here and now; otherwise count operations.")
    ] = False
    rate: Annotated[
        float, typer.Option(metavar="TFLOPS", help="Counted operations that a device does, 10¹² a second.")
    ] = 1.0
    latency: Annotated[float, typer.Option(metavar="MICROSECONDS", help="Of a message.")] = 0.0
    bandwidth: Annotated[
        float | None,
        typer.Option(metavar="GB/S", help="Of a message, 10⁹ bytes a second. [dim]\\[default: unlimited][/]"),
    ] = None
    ranks: Annotated[
        int | None, typer.Option(help="Devices, where fewer than segments. [dim]\\[default: one a segment][/]")
    ] = None
    no_overlap: Annotated[
        bool, typer.Option("--no-overlap", help="The paper's way: the coarse chain waits for all segments.")
    ] = False
    reduce_linear: Annotated[
        bool | None,
        typer.Option(
            "--reduce-linear/--no-reduce-linear",
            help="Take neighbouring linear coarse blocks as one reduction. [dim]\\[default: where it is faster][/]",
        ),
    ] = None
    inference: Annotated[bool, typer.Option("--inference", help="The forward pass alone.")] = False

    def transfer(self) -> Transfer:
        """What a message costs, in seconds and bytes a second."""
        from pararealize import Transfer

        return Transfer(self.latency * 1e-6, float("inf") if self.bandwidth is None else self.bandwidth * 1e9)

    def planning(self) -> dict[str, Any]:
        """What the cuts are balanced by, as keyword arguments of :func:`pararealize.make_plan`."""
        costly = self.latency or self.bandwidth is not None
        rate = {} if self.seconds else {"rate": self.rate * 1e12}
        return {"transfer": self.transfer() if costly else None} | rate

    def simulate(self, plan: Plan, times: Times | None, *, batch: int) -> Timeline:
        """The timeline of one step of a plan."""
        from pararealize import simulate

        transfer = self.transfer()
        return simulate(
            plan,
            times,
            latency=transfer.latency,
            bandwidth=transfer.bandwidth,
            batch=batch,
            ranks=self.ranks,
            overlap=not self.no_overlap,
            reduce_linear="auto" if self.reduce_linear is None else self.reduce_linear,
            training=not self.inference,
            rate=self.rate * 1e12,
        )


def command(
    *,
    model: options.Model,
    n: Annotated[
        int | None, typer.Option("--n", "-n", help="How many segments; --plan or a folder says it, too.")
    ] = None,
    conversion: options.ConversionOptions,
    step: StepOptions,
    example: ExampleOptions,
    network: options.ModelOptions,
    output: Annotated[
        Path | None,
        options.to_folder(
            help="Write timeline.json, trace.json (for ui.perfetto.dev) and a picture into a new folder."
        ),
    ] = None,
    result: options.ResultOptions,
) -> None:
    """Simulate one step of MODEL in N segments: who computes, sends and waits, and when."""
    check_page(result.page, output)
    with (
        working(f"building {model}") as progress,
        output_folder(output, force=result.force, files=SCHEDULE_FILES) as folder,
    ):
        from . import saved_model

        saved_model.check_options(model, num_classes=network.num_classes, built_by=network.built_by)
        stored = _stored(n, conversion, model)
        net = network.build(model, meta=not step.seconds)
        inputs = example.values(model, meta=not step.seconds)
        leaves = network.leaf_modules(model)
        progress(f"measuring {model}" if step.seconds else f"planning {model}")
        decisions = conversion.decisions() | step.planning() if stored is None else conversion.asked()
        chosen, times = (_measured if step.seconds else _planned)(net, n, stored, inputs, leaves, decisions)
        chain = blocks_of(result.page, net, inputs, leaves, chosen.granularity)
        timeline = step.simulate(chosen, times, batch=example.samples(inputs))
        with writing(output):
            files = [] if folder is None else _write(timeline, folder, model, result.picture)
    document = {"timeline": json.loads(timeline.to_json()), "step": timeline.step, "serial": timeline.serial}
    document |= {"speedup": timeline.speedup, "efficiency": timeline.efficiency}
    print_result(document, str(timeline), output, files, as_json=result.as_json)
    write_page(result.page, timeline, chosen, chain, title=model, seed=network.seed, quiet=result.as_json)


def _stored(n: int | None, conversion: options.ConversionOptions, model: str) -> Plan | None:
    """The plan of a file, if one is named, or of a folder in the place of MODEL; ``None`` where options ask for one.

    It says all that options of a conversion say: these must not ask for another one.
    """
    from pararealize.errors import PlanError
    from pararealize.planning.agreement import argument_faults
    from pararealize.saving import read_folder

    from . import arguments, saved_model

    plan = None if conversion.plan is None else arguments.plan(conversion.plan)
    if plan is None and n is None and saved_model.is_saved(model):
        plan = read_folder(model).plan
    if plan is None:
        if n is None:
            raise PlanError("neither --n nor --plan is given; write --n 12, or --plan plan.json")
        return None
    if faults := argument_faults(plan, conversion.asked() | ({} if n is None else {"n": n})):
        raise PlanError("; and ".join(faults))
    return plan


def _planned(
    net: nn.Module,
    n: int | None,
    stored: Plan | None,
    inputs: Any,
    leaves: tuple[type | str, ...],
    decisions: dict[str, Any],
) -> tuple[Plan, None]:
    """The stored plan, which fits the model, or a new one; nothing is run."""
    from pararealize import capture, find_blocks, make_plan
    from pararealize.errors import PlanError
    from pararealize.planning.agreement import check_plan, window_faults

    granularity = decisions.pop("granularity") if stored is None else stored.granularity
    chain = find_blocks(capture(net, inputs, leaf_modules=leaves), granularity=granularity)
    if stored is not None:
        check_plan(chain, stored)
        if faults := window_faults(chain, stored, decisions.get("windows"), decisions.get("sequential")):
            raise PlanError(faults[0])
        return stored, None
    assert n is not None  # refused beforehand
    return make_plan(chain, n, **decisions), None


def _measured(
    net: nn.Module,
    n: int | None,
    stored: Plan | None,
    inputs: Any,
    leaves: tuple[type | str, ...],
    decisions: dict[str, Any],
) -> tuple[Plan, Times]:
    """The stored plan or a new one, and the seconds of its parts: the model is run here and now."""
    from pararealize import measure_network, pararealize
    from pararealize.errors import PlanError

    if inputs is None:
        raise PlanError("--seconds runs the model, whose input is not known; write --input-shape or --input as well")
    if stored is None:
        decisions = decisions | {"cost": "seconds"}
    pnet = pararealize(net, n, example_inputs=inputs, leaf_modules=leaves, plan=stored, **decisions)
    return pnet.plan, measure_network(pnet, inputs)[0]


def _write(timeline: Timeline, folder: Path, title: str, picture: options.Picture) -> list[str]:
    from pararealize.plan.timeline_figure import draw_timeline
    from pararealize.plan.trace import chrome_trace

    document, trace = folder / "timeline.json", folder / "trace.json"
    document.write_text(timeline.to_json(), encoding="utf-8")
    trace.write_text(json.dumps(chrome_trace(timeline), ensure_ascii=False) + "\n", encoding="utf-8")
    drawn = draw_timeline(timeline, folder / f"timeline.{picture}", title=title)
    return [document.name, trace.name, drawn.name]
