"""Rows of the coverage table -> Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness import Results, table

from .refusals import reason

__all__ = ["COLUMNS", "markdown", "summary", "unjustified"]

COLUMNS = (
    "modes", "gradients", "second call", "batch 1", "other sizes", "iterations", "trained", "causality", "bfloat16",
)  # fmt: skip
_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "Hugging Face", "public": "public style"}
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
    failed = {name: row for name, row in results.rows.items() if row.get("failed", "refused") != "refused"}
    if failed:
        yield "## Wrong, or no typed error"
        yield table(
            ("model", "at", "what", "error"),
            [(name, row.get("stage", ""), row["failed"], row["error"]) for name, row in failed.items()],
        )
    refused = list(_refusals(results.rows))
    if refused:
        yield "## Refusals, each with its reason"
        yield table(
            ("model", "at", "error", "why"), [(*line, reason(line[2]) or "**nobody has said why**") for line in refused]
        )
    for library, title in _LIBRARIES.items():
        rows = {name: row for name, row in results.rows.items() if name.startswith(f"{library}:")}
        if rows:
            yield f"## {title}"
            yield table(_HEAD, [_row(name.partition(":")[2], row) for name, row in rows.items()])


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
    crashes = sum(kind in ("crash", "timeout", "memory", "killed") for kind in kinds)
    share = f"{len(converted)} ({len(converted) / max(len(rows), 1):.1%})"
    on_meta = sum(bool(row.get("meta")) for row in right)
    return (
        title, len(rows), share, len(right) - len(partly), len(partly), kinds.count("refused"), kinds.count("wrong"),
        crashes, on_meta,
    )  # fmt: skip


def by_column(rows: Rows) -> str:
    """How often each comparison came out how; ``–`` where the original itself does not do it."""
    lines = []
    for column in COLUMNS:
        counts = Counter(row["columns"].get(column, "–") for row in rows.values() if _is_converted(row))
        lines.append((column, *(counts[verdict] for verdict in _VERDICTS), counts["–"]))
    return table(("comparison", *_VERDICTS, "nothing to compare"), lines)
