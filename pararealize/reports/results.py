"""What was measured on data -> Section: calibrations, trade-offs, training runs, scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pararealize.calibration.report import Calibration
from pararealize.calibration.rows import indices
from pararealize.calibration.tuning_report import FineTuning
from pararealize.comparison.report import Comparison
from pararealize.table import duration, quantity, share
from pararealize.tradeoffs.report import Tradeoff, TradeoffRow, parallel_blocks
from pararealize.train.run.history import History, StepRow
from pararealize.train.run.score import Score

from .charts import Chart, Series
from .elements import Section, Table

__all__ = [
    "section_of_calibration",
    "section_of_comparison",
    "section_of_history",
    "section_of_score",
    "section_of_tradeoff",
    "section_of_tuning",
]

MOST_POINTS = 300  # of the rows of steps in a chart; of more, means over neighbours
MOST_LETTERS = 300


def section_of_calibration(calibration: Calibration) -> Section:
    """Residual norms at every interface, before and after, and accuracies."""
    places = list(indices(calibration.windows))
    inputs = [_place("x", place) for place in places if place[1] > 1]
    outputs = [*(_place("z", place) for place in places[1:]), "output"]
    adapters, interfaces = [], []
    for errors in calibration.stages:
        adapters.append(Series(name=errors.stage, points=tuple(enumerate(errors.adapters))))
        values = (*errors.interfaces[1:], errors.output)
        interfaces.append(Series(name=errors.stage, points=tuple(enumerate(values))))
    charts = (
        Chart(
            title="Inputs of segments, from adapters", x="value", y="relative error", log=True, names=tuple(inputs),
            series=tuple(adapters), description="‖x_j − true value‖ / ‖true value‖, over all samples.",
        ),
        Chart(
            title="Corrected outputs of segments: residual norms", x="value", y="relative error", log=True,
            names=tuple(outputs), series=tuple(interfaces),
            description="‖z_j − true value‖ / ‖true value‖, over all samples; the last is the network's output.",
        ),
    )  # fmt: skip
    fits = tuple((fit.part, fit.kind, fit.method, f"{fit.seconds:.2f}") for fit in calibration.fits)
    last = calibration.stages[-1]
    facts = [("error of the output, before", f"{calibration.stages[0].output:.3g}")]
    facts.append((f"error of the output, {last.stage}", f"{last.output:.3g}"))
    facts += [] if last.accuracy is None else [(f"accuracy, {last.stage}", share(last.accuracy, 1))]
    facts += [] if calibration.accuracy is None else [("accuracy of the original", share(calibration.accuracy, 1))]
    others = f"{calibration.tested} others" if calibration.held_out else "the same"
    return Section(
        title="Calibration",
        lead=f"{calibration.model} in {quantity(calibration.n, 'segment')}, coarse {calibration.coarse!r}: fitted to "
        f"{quantity(calibration.samples, 'sample')}, errors on {others}. 1 is the error of a value of zero.",
        facts=tuple(facts),
        figures=tuple(chart for chart in charts if not chart.is_empty),
        tables=tuple(table for table in (
            _accuracies(calibration), _kinds_of_corrections(calibration),
            Table(
                caption="How parts were fitted", head=("part", "kind", "method", "seconds"), rows=fits, columns="lll",
                folded=True,
            ),
        ) if table.rows),
        notes=tuple(_notes(calibration)),
    )  # fmt: skip


def _notes(calibration: Calibration) -> Iterator[str]:
    yield calibration.verdict.sentence
    yield from calibration.warnings
    if calibration.renewed:
        yield f"running statistics renewed: {', '.join(calibration.renewed)}"


def section_of_tuning(tuning: FineTuning) -> Section:
    """The loss of a fine-tuning, step by step, and what came of it."""
    held_out = tuple((row.step, row.held_out) for row in tuning.rows)
    trained = tuple((row.step, row.loss) for row in tuning.rows if row.loss is not None)
    series = (Series(name="held out", points=held_out), Series(name="training", points=trained))
    log = all(loss > 0 for _, loss in (*held_out, *trained))
    chart = Chart(title="Loss of the outputs", x="step", y=tuning.loss, series=series, log=log)
    rows = (
        ("error of the output", f"{tuning.before.output:.4g}", f"{tuning.after.output:.4g}"),
        ("loss on the batches held out", f"{tuning.loss_before:.4g}", f"{tuning.loss_after:.4g}"),
    )
    where = f", {tuning.held_out}" if tuning.held_out else ""
    return Section(
        title="Fine-tuning",
        lead=f"{quantity(tuning.steps, 'step')} towards {tuning.teacher}; {tuning.train} trained, {tuning.trained} "
        f"numbers; measured on {quantity(tuning.tested, 'sample')}{where}.",
        facts=(("best weights behind step", str(tuning.best)), ("took", duration(tuning.seconds))),
        figures=() if chart.is_empty else (chart,),
        tables=(Table(caption="Before and after", head=("", "before", "after"), rows=rows),),
        notes=(tuning.verdict.sentence,),
    )


def _place(letter: str, place: tuple[int, int]) -> str:
    m, j = place
    return f"{letter} {m},{j}" if m else f"{letter} {j}"


def _accuracies(calibration: Calibration) -> Table:
    rows = tuple(
        (
            errors.stage,
            f"{errors.output:.4g}",
            None if errors.agreement is None else share(errors.agreement, 2),
            None if errors.accuracy is None else share(errors.accuracy, 2),
        )
        for errors in calibration.stages
    )
    head = ("stage", "error of the output", "same class as the original", "accuracy")
    return Table(caption="The network's output", head=head, rows=rows)


def _kinds_of_corrections(calibration: Calibration) -> Table:
    kinds = tuple(dict.fromkeys(kind for choice in calibration.corrections for kind in choice.errors))
    rows = []
    for choice in calibration.corrections:
        cells = (f"{choice.errors[kind]:.4g}" if kind in choice.errors else None for kind in kinds)
        rows.append((str(choice.m or 1), choice.name if choice.used else "none", *cells))
    head = ("window", "used", *kinds)
    return Table(caption="What output corrections leave of a window's error", head=head, rows=tuple(rows), columns="ll")


def section_of_tradeoff(tradeoff: Tradeoff) -> Section:
    """Error against speed, plan by plan."""
    rows = [row for row in tradeoff.rows if row.windows]
    series = [
        Series(name=quantity(n, "device"), points=_by_speed([row for row in rows if row.n == n]), line=False)
        for n in sorted({row.n for row in rows})
    ]
    front = [row for row in tradeoff.front if row.windows]
    series.append(Series(name="nothing is better in both", points=_by_speed(front), marked=False))
    chart = Chart(
        title="Error against speed", x="predicted speed-up", y="error of the output", log=True, percent=True,
        series=tuple(series), description="Each mark is a plan, calibrated and measured on held-out samples: to the "
        "right is faster, down is nearer to the original.",
    )  # fmt: skip
    best = set(map(id, tradeoff.front))
    head = ("n", "windows", "speed-up", "error", "predicted error", *([tradeoff.measure] if tradeoff.measure else []))
    cells = tuple(_tradeoff_row(row, best=id(row) in best, measured=bool(tradeoff.measure)) for row in tradeoff.rows)
    fastest = max(tradeoff.rows, key=lambda row: row.speedup, default=None)
    facts: list[tuple[str, str]] = []
    if fastest is not None:
        facts += [("fastest plan", f"{fastest.speedup:.2f}×"), ("its error", f"{fastest.error:.3g}")]
    head, columns = (*head, "", "parallel blocks"), "r" * len(head) + "ll"
    return Section(
        title="Error against speed",
        lead=f"{tradeoff.model} with coarse {tradeoff.coarse!r}, fitted to {quantity(tradeoff.samples, 'sample')}, "
        f"errors on {tradeoff.tested} others, of the output's norm. Speed-ups are predicted, with free messages.",
        facts=tuple(facts),
        figures=() if chart.is_empty else (chart,),
        tables=(Table(caption="Plans", head=head, rows=cells, columns=columns),),
        notes=("★ no other plan is both faster and nearer to the original",),
    )  # fmt: skip


def _by_speed(rows: Sequence[TradeoffRow]) -> tuple[tuple[float, float], ...]:
    return tuple((row.speedup, row.error) for row in rows)


def _tradeoff_row(row: TradeoffRow, *, best: bool, measured: bool) -> tuple[str | None, ...]:
    predicted = None if row.predicted is None else f"{row.predicted:.3g}"
    cells: list[str | None] = [str(row.n), str(row.windows), f"{row.speedup:.2f}×", f"{row.error:.3g}", predicted]
    if measured:
        cells.append(None if row.agreement is None else f"{row.agreement:.4g}")
    names = parallel_blocks(row.plan)
    return (*cells, "★" if best else "", names if len(names) <= MOST_LETTERS else names[: MOST_LETTERS - 1] + "…")


def section_of_history(history: History) -> Section:
    """Curves of loss, error and gradient over a training run."""
    epochs, steps = history.epochs, _thinned(history.steps)
    each = epochs[-1].step / epochs[-1].epoch if epochs else 1.0  # steps an epoch
    charts = []
    for name, title in (("loss", "Loss"), ("error", "Error: share of samples classified wrong")):
        series = (
            Series(name="test", points=tuple((row.epoch, getattr(row, f"test_{name}")) for row in epochs)),
            Series(name="training, an epoch", points=tuple((row.epoch, getattr(row, name)) for row in epochs)),
            Series(
                name="training, some steps", marked=False,
                points=tuple((row.step / each, getattr(row, name)) for row in steps),
            ),
        )  # fmt: skip
        log = name == "loss" and all(y > 0 for one in series for _, y in one.points)
        charts.append(Chart(title=title, x="epoch", y=name, series=series, log=log, percent=name == "error"))
    norms = tuple((row.step / each, row.gradient) for row in steps if row.gradient is not None)
    gradients = Series(name="before clipping", points=norms, marked=False)
    log = bool(norms) and all(norm > 0 for _, norm in norms)
    charts.append(Chart(title="Norm of the gradients", x="epoch", y="norm", series=(gradients,), log=log))
    rows = tuple(
        (
            str(row.epoch), str(row.step), f"{row.lr:.3g}", f"{row.loss:.4f}", share(row.error, 2),
            f"{row.test_loss:.4f}", share(row.test_error, 2),
        )
        for row in epochs
    )  # fmt: skip
    head = ("epoch", "step", "learning rate", "loss", "error", "test loss", "test error")
    events = tuple((str(event.step), event.why, f"{event.forward}/{event.backward}") for event in history.events)
    score = history.score
    return Section(
        title="Training",
        lead=f"{quantity(len(epochs), 'epoch')}, {quantity(epochs[-1].step, 'step')}." if epochs else "",
        facts=() if score is None else _score_facts(score),
        figures=tuple(chart for chart in charts if not chart.is_empty),
        tables=tuple(table for table in (
            Table(caption="Epochs", head=head, rows=rows, columns="r", folded=len(rows) > 20),
            Table(
                caption="What the monitor changed", head=("step", "why", "iterations"), rows=events, columns="rll",
            ),
        ) if table.rows),
    )  # fmt: skip


def _thinned(rows: Sequence[StepRow]) -> list[StepRow]:
    """Rows at equal distances where there are too many."""
    return list(rows[:: max(1, -(-len(rows) // MOST_POINTS))])


def section_of_comparison(comparison: Comparison) -> Section:
    """An original and its parareal network side by side: quality and times."""
    c = comparison
    facts = [("relative error of the output", f"{c.relative_error:.3g}"), ("cosine", f"{c.cosine:.4g}")]
    facts += [] if c.same_class is None else [("same class", share(c.same_class, 2))]
    quality = [("original", c.original), ("parareal network", c.parareal)]
    rows = tuple((name, share(q.accuracy, 2), f"{q.loss:.4f}") for name, q in quality if q is not None)
    times = tuple(
        (str(row.batch), duration(row.original), duration(row.parareal), f"{row.ratio:.2f}", str(row.rounds))
        for row in c.latencies
    )
    tables = (
        Table(caption="On the same samples", head=("", "accuracy", "loss"), rows=rows),
        Table(
            caption=f"A call in this process, on {c.device}, {quantity(c.threads, 'thread')}: medians",
            head=("batch", "original", "parareal network", "original / parareal", "calls"), rows=times, columns="r",
        ),
    )  # fmt: skip
    return Section(
        title="Beside its original",
        lead=f"{c.model} in {quantity(c.n, 'segment')}, on {quantity(c.samples, 'sample')}. With a device for each "
        f"segment and free messages its plan predicts {c.predicted_speedup:.2f}×; here both ran on one device.",
        facts=tuple(facts),
        tables=tuple(table for table in tables if table.rows),
    )


def section_of_score(score: Score) -> Section:
    """A network's score on the test part."""
    return Section(title="Score", lead=f"On {quantity(score.count, 'sample')}.", facts=_score_facts(score))


def _score_facts(score: Score) -> tuple[tuple[str, str], ...]:
    return (
        ("test accuracy", share(score.accuracy, 2)),
        ("test loss", f"{score.loss:.4f}"),
        ("samples", str(score.count)),
    )
