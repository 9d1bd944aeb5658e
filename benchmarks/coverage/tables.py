"""Rows of the coverage table -> Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.harness import Results, table

__all__ = ["markdown", "summary"]

_LIBRARIES = {"torchvision": "torchvision", "timm": "timm", "hf": "Hugging Face"}
_HEAD = (
    "model", "parameters", "input", "blocks", "covered", "n", "coarse", "speed-up", "opaque",
    "captured", "converted", "trained", "modes", "s",
)  # fmt: skip

Rows = Mapping[str, Mapping[str, Any]]


def markdown(results: Results) -> str:
    """The whole table, with what failed first."""
    return "\n\n".join(_sections(results)) + "\n"


def _sections(results: Results) -> Iterator[str]:
    yield "# Coverage: what converts, model by model"
    yield "Written by `python -m benchmarks.coverage`; the columns are explained in [README.md](README.md)."
    yield summary(results.rows)
    failed = {name: row for name, row in results.rows.items() if "failed" in row}
    if failed:
        yield "## What failed, and the error a user gets"
        yield table(
            ("model", "at", "what", "error"),
            [(name, row.get("stage", ""), row["failed"], row["error"]) for name, row in failed.items()],
        )
    for library, title in _LIBRARIES.items():
        rows = {name: row for name, row in results.rows.items() if name.startswith(f"{library}:")}
        if rows:
            yield f"## {title}"
            yield table(_HEAD, [_row(name.partition(":")[2], row) for name, row in rows.items()])


def _row(name: str, row: Mapping[str, Any]) -> tuple[Any, ...]:
    reached = _reached(row)
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
        *("yes" if reached > stage else "no" for stage in range(3)),
        _modes(row) if reached == 4 else "–",
        row["seconds"],
    )


def _modes(row: Mapping[str, Any]) -> str:
    return "meta" if row.get("meta") else "same bits" if row.get("exact") else "same"


def _reached(row: Mapping[str, Any]) -> int:
    """How many of the stages capture, convert, train, switch were passed."""
    if "failed" not in row:
        return 4
    if row["failed"] == "refused" and row["error"].startswith("CutError"):
        return 1  # read, but not cut
    return {"capture": 0, "convert": 1, "train": 2, "switch": 3}.get(str(row.get("stage")), 0)


def summary(rows: Rows) -> str:
    """How many were captured, converted, trained and right, by library."""
    head = (
        "",
        "models",
        "captured",
        "converted",
        "trained",
        "right in both modes",
        "of these on meta",
        "wrong",
        "other failures",
    )
    lines = [
        _counts(title, {n: r for n, r in rows.items() if n.startswith(f"{key}:")}) for key, title in _LIBRARIES.items()
    ]
    return table(head, [*(line for line in lines if line[1]), _counts("all", rows)])


def _counts(title: str, rows: Rows) -> tuple[Any, ...]:
    reached = [_reached(row) for row in rows.values()]
    kinds = [row.get("failed") for row in rows.values()]
    meta = sum(bool(row.get("meta")) and _reached(row) == 4 for row in rows.values())
    crashes = sum(kind in ("crash", "timeout", "memory", "killed") for kind in kinds)
    return (
        title,
        len(rows),
        *(sum(r > stage for r in reached) for stage in range(4)),
        meta,
        kinds.count("wrong"),
        crashes,
    )
