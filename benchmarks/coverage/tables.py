"""Rows of the coverage table -> Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness import Results, table

from .refusals import reason

__all__ = ["COLUMNS", "by_column", "markdown", "result", "summary", "unjustified"]

COLUMNS = (
    "modes", "gradients", "second call", "batch 1", "other sizes", "iterations", "trained", "causality", "bfloat16",
)  # fmt: skip
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "Hugging Face", "public": "public style"}
_NAMED = ("torch", "torchvision", "timm", "transformers")
_VERDICTS = ("right", "refused", "wrong", "crash")
_HEAD = (
    "model", "parameters", "input", "blocks", "covered", "n", "coarse", "speed-up", "opaque", "verdict", *COLUMNS, "s",
)  # fmt: skip

Rows = Mapping[str, Mapping[str, Any]]


def markdown(results: Results) -> str:
    """The whole table, with what failed first."""
    return "\n\n".join(_sections(results)) + "\n"


def _sections(results: Results) -> Iterator[str]:
    yield "# Coverage: what converts, model by model"
    yield "Written by `python -m benchmarks.coverage`; the columns are explained in [README.md](README.md)."
    yield _commits(results.rows)
    yield summary(results.rows)
    yield by_column(results.rows)
    yield from _failures(results.rows)
    for library, title in _LIBRARIES.items():
        rows = {name: row for name, row in results.rows.items() if name.startswith(f"{library}:")}
        if rows:
            yield f"## {title}"
            yield table(_HEAD, [_row(name.partition(":")[2], row) for name, row in rows.items()])


def result(results: Results) -> str:
    """What README.md says of the result: machine, counts, goals, and every refusal with its reason."""
    machine, rows = results.about.get("machine", {}), results.rows
    versions = ", ".join(f"{name} {machine[name]}" for name in _NAMED if name in machine)
    converted, refused = [row for row in rows.values() if _is_converted(row)], list(_refusals(rows))
    failed = Counter(row.get("failed") for row in rows.values())
    reasoned = sum(bool(reason(error)) for _, _, error in refused)
    goals = [
        ("converted", "95%", f"{len(converted) / max(len(rows), 1):.1%} ({len(converted)} of {len(rows)})"),
        ("wrong", "none", failed["wrong"] or "none"),
        ("other exceptions, time-outs", "none", _other_failures(rows) or "none"),
        ("refusals that a sentence justifies", "all", f"{reasoned} of {len(refused)}"),
    ]
    about = f"{machine.get('processor', '')}, one thread a model; Python {machine.get('python', '')}, {versions}."
    parts = [about, _commits(rows), summary(rows), table(("", "goal", "here"), goals), by_column(rows)]
    return "\n\n".join([*parts, *_failures(rows)])


def _failures(rows: Rows) -> Iterator[str]:
    failed = {name: row for name, row in rows.items() if row.get("failed", "refused") != "refused"}
    if failed:
        yield "### Wrong, or no typed error"
        lines = [(name, *found, _short(error)) for name, row in failed.items() for *found, error in _faults(row)]
        yield table(("model", "at", "what", "error"), lines)
    refused = [(name, at, _short(error), reason(error) or "**not said**") for name, at, error in _refusals(rows)]
    if refused:
        yield "### Refusals, each with its reason"
        yield table(("model", "at", "error", "why it is right"), refused)


def _faults(row: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Everything that is wrong with a row, and not refused: where, what, the error."""
    if not _is_converted(row):
        yield row.get("stage", ""), row["failed"], row["error"]
    for column, verdict in row.get("columns", {}).items():
        if verdict in ("wrong", "crash"):
            yield column, verdict, row["faults"][column]


def _short(error: str, most: int = 240) -> str:
    return error if len(error) <= most else error[: most - 1] + "…"


def _commits(rows: Rows) -> str:
    """Which rows were made by which commit."""
    counts = Counter(row.get("commit", "?") for row in rows.values())
    return "Rows by commit of the library: " + ", ".join(f"{commit} {count}" for commit, count in counts.most_common())


def _refusals(rows: Rows) -> Iterator[tuple[str, str, str]]:
    """Every typed error: of whole models, and of single comparisons."""
    for name, row in rows.items():
        if row.get("failed") == "refused":
            yield name, row["stage"], row["error"]
        for column, verdict in row.get("columns", {}).items():
            if verdict == "refused":
                yield name, column, row["faults"][column]


def unjustified(rows: Rows) -> list[str]:
    """The models of refusals of which nobody has said why they are right."""
    return [name for name, _, error in _refusals(rows) if not reason(error)]


def _row(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    columns = row.get("columns", {})
    return (
        f"{name} ({row['built_with']})" if row.get("built_with") and "(" not in name else name,
        f"{row['parameters'] / 1e6:.1f}M" if "parameters" in row else "–",
        row.get("input", "–"),
        f"{row['blocks']}: {row['kinds']}" if "blocks" in row else "–",
        f"{row['covered']:.0%}" if "covered" in row else "–",
        row.get("n", "–"),
        row.get("coarse", "–"),
        row.get("speedup", "–"),
        ", ".join(row.get("opaque", {})),
        row.get("failed", "meta" if row.get("meta") else "same bits" if row.get("exact") else "right"),
        *(columns.get(column, "–") for column in COLUMNS),
        row["seconds"],
    )


def _is_converted(row: Mapping[str, Any]) -> bool:
    return bool(row.get("columns"))


def summary(rows: Rows) -> str:
    """How many were converted, right, refused and wrong, by library."""
    head = (
        "", "models", "converted", "all right", "right, but refuses something", "refused", "wrong", "other failures",
        "on meta",
    )  # fmt: skip
    lines = [
        _counts(title, {n: r for n, r in rows.items() if n.startswith(f"{key}:")}) for key, title in _LIBRARIES.items()
    ]
    return table(head, [*(line for line in lines if line[1]), _counts("all", rows)])


def _counts(title: str, rows: Rows) -> tuple[Any, ...]:
    converted = [row for row in rows.values() if _is_converted(row)]
    right = [row for row in converted if "failed" not in row]
    partly = [row for row in right if "refused" in row["columns"].values()]
    kinds = [row.get("failed") for row in rows.values()]
    crashes = _other_failures(rows)
    share = f"{len(converted)} ({len(converted) / max(len(rows), 1):.1%})"
    on_meta = sum(bool(row.get("meta")) for row in right)
    return (
        title, len(rows), share, len(right) - len(partly), len(partly), kinds.count("refused"), kinds.count("wrong"),
        crashes, on_meta,
    )  # fmt: skip


def _other_failures(rows: Rows) -> int:
    return sum(row.get("failed") in ("crash", "timeout", "memory", "killed") for row in rows.values())


def by_column(rows: Rows) -> str:
    """How often each comparison came out how; ``–`` where the original itself does not do it."""
    lines = []
    for column in COLUMNS:
        counts = Counter(row["columns"].get(column, "–") for row in rows.values() if _is_converted(row))
        lines.append((column, *(counts[verdict] for verdict in _VERDICTS), counts["–"]))
    return table(("comparison", *_VERDICTS, "nothing to compare"), lines)
