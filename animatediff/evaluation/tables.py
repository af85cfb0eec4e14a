"""Rows to numbers that can be compared: means with intervals, paired differences; as tables, JSON and CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from animatediff.errors import one_line
from animatediff.evaluation.evaluate import Row
from animatediff.evaluation.measures import Column
from animatediff.evaluation.statistics import Mean, mean_interval, paired_difference

ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}
EMPTY = "—"


@dataclass(frozen=True)
class Summary:
    """Per method, and against the baseline, one Mean a column."""

    columns: Sequence[Column]
    means: Mapping[str, Mapping[str, Mean]]  # method -> column key -> mean
    videos: Mapping[str, int]  # method -> videos
    baseline: str
    differences: Mapping[str, Mapping[str, Mean]]  # method -> column key -> method minus baseline
    reasons: Mapping[str, str]  # column key -> why it is empty throughout


def summarise(
    rows: Sequence[Row], columns: Sequence[Column], reasons: Mapping[str, str], baseline: str | None = None
) -> Summary:
    """Means of every method's videos, and paired differences over the jobs that a method shares with the baseline.

    A job is a reference, a prompt and a seed; where a method did it twice, its mean counts. `baseline` is one of the
    methods; the first where None.
    """
    methods = list(dict.fromkeys(row.item.method for row in rows))
    baseline = baseline or methods[0]
    means = {
        method: {c.key: mean_interval([r.values[c.key] for r in rows if r.item.method == method]) for c in columns}
        for method in methods
    }
    by_job = {method: _by_job(rows, method, columns) for method in methods}
    differences = {}
    for method in methods:
        if method == baseline:
            continue
        shared = [job for job in by_job[method] if job in by_job[baseline]]
        differences[method] = {
            c.key: paired_difference(
                [by_job[method][job][c.key] for job in shared], [by_job[baseline][job][c.key] for job in shared]
            )
            for c in columns
        }
    videos = {method: sum(row.item.method == method for row in rows) for method in methods}
    return Summary(columns, means, videos, baseline, differences, reasons)


def _by_job(rows: Sequence[Row], method: str, columns: Sequence[Column]) -> dict[str, dict[str, float]]:
    jobs: dict[str, list[Row]] = {}
    for row in rows:
        if row.item.method == method:
            jobs.setdefault(row.item.key, []).append(row)
    return {
        job: {c.key: math.fsum(r.values[c.key] for r in done) / len(done) for c in columns}
        for job, done in jobs.items()
    }


# ---------------------------------------------------------------------------------------------- Markdown


def to_markdown(summary: Summary, rows: Sequence[Row]) -> str:
    """The whole evaluation as Markdown, aligned so that it reads well in a console too."""
    tables = [means(summary), differences(summary), videos(summary.columns, rows)]
    parts = [table.markdown() for table in tables if table is not None]
    problems = problem_lines(rows)
    if problems:
        parts.append("Problems:\n\n" + "\n".join(f"- {line}" for line in problems))
    return "\n\n".join(parts) + "\n"


@dataclass(frozen=True)
class Table:
    """A table as text, cell by cell."""

    head: list[str]
    lines: list[list[str]]
    caption: str

    def markdown(self) -> str:
        """Aligned Markdown with the caption below."""
        cells = [[one_line(cell).replace("|", "\\|") for cell in line] for line in (self.head, *self.lines)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(self.head))]
        rows = [" | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
        rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
        text = "\n".join([f"| {rows[0]} |", rule, *(f"| {row} |" for row in rows[1:])])
        return f"{text}\n\n{self.caption}" if self.caption else text


def means(summary: Summary) -> Table:
    """One line a method, as in the paper: mean ± half width of the 95% interval."""
    lines = [
        [method, str(summary.videos[method]), *(_mean(found[c.key], c) for c in summary.columns)]
        for method, found in summary.means.items()
    ]
    notes = [f"{c.title}: {summary.reasons[c.key]}." for c in summary.columns if c.key in summary.reasons]
    caption = "Mean ± half the width of its 95% interval (Student's t over videos)."
    return Table(["method", "videos", *map(title, summary.columns)], lines, " ".join([caption, *notes]))


def differences(summary: Summary) -> Table | None:
    """One line a method: its mean paired difference to the baseline; None where there is one method only."""
    if not summary.differences:
        return None
    lines = []
    for method, found in summary.differences.items():
        jobs = max((mean.n for mean in found.values()), default=0)
        lines.append([method, str(jobs), *(_difference(found[c.key], c) for c in summary.columns)])
    caption = (
        "Mean paired difference ± half the width of its 95% interval, over the jobs (reference, prompt, seed) that "
        "both did; * where the interval does not hold 0."
    )
    return Table([f"minus {summary.baseline}", "jobs", *map(title, summary.columns)], lines, caption)


def videos(columns: Sequence[Column], rows: Sequence[Row]) -> Table:
    """One line a video."""
    lines = [[row.item.method, row.item.name, *(number(row.values[c.key], c) for c in columns)] for row in rows]
    return Table(["method", "video", *map(title, columns)], lines, "")


def problem_lines(rows: Iterable[Row]) -> list[str]:
    """Every problem with the name of its video."""
    return [f"{row.item.method}: {row.item.name}: {one_line(p)}" for row in rows for p in row.problems]


def number(value: float, column: Column) -> str:
    """A value with the column's digits, or a dash."""
    return EMPTY if math.isnan(value) else f"{value:.{column.digits}f}"


def _mean(mean: Mean, column: Column) -> str:
    if math.isnan(mean.half_width):
        return number(mean.mean, column)
    return f"{number(mean.mean, column)} ± {number(mean.half_width, column)}"


def _difference(mean: Mean, column: Column) -> str:
    if math.isnan(mean.mean):
        return EMPTY
    shown = f"{mean.mean:+.{column.digits}f}"
    if math.isnan(mean.half_width):
        return shown
    clear = "" if mean.low <= 0 <= mean.high else " *"
    return f"{shown} ± {number(mean.half_width, column)}{clear}"


def title(column: Column) -> str:
    """The column's heading: title, unit, and an arrow towards the better."""
    return f"{column.title}{f' ({column.unit})' if column.unit else ''}{ARROWS[column.better]}"


# ---------------------------------------------------------------------------------------------- JSON and CSV


def to_json(summary: Summary, rows: Sequence[Row]) -> dict[str, Any]:
    """Everything, with null where there is no value."""

    def mean(value: Mean) -> dict[str, Any]:
        return {"mean": _or_null(value.mean), "low": _or_null(value.low), "high": _or_null(value.high), "n": value.n}

    return {
        "columns": {c.key: {"title": c.title, "unit": c.unit, "better": c.better} for c in summary.columns},
        "unavailable": dict(summary.reasons),
        "methods": {
            method: {"videos": summary.videos[method], **{key: mean(value) for key, value in found.items()}}
            for method, found in summary.means.items()
        },
        "baseline": summary.baseline,
        "differences": {
            method: {key: mean(value) for key, value in found.items()} for method, found in summary.differences.items()
        },
        "videos": [
            {
                "method": row.item.method,
                "name": row.item.name,
                "output": str(row.item.output),
                "reference": row.item.reference,
                "prompt": row.item.prompt,
                "seed": row.item.seed,
                "values": {key: _or_null(value) for key, value in row.values.items()},
                "curves": {key: [_or_null(value) for value in curve] for key, curve in row.curves.items()},
                "problems": row.problems,
            }
            for row in rows
        ],
    }


def to_csv(summary: Summary, rows: Sequence[Row]) -> str:
    """One line a video; empty where there is no value."""
    written = io.StringIO()
    writer = csv.writer(written)
    writer.writerow(["method", "video", "reference", "prompt", "seed", *(c.key for c in summary.columns), "problems"])
    for row in rows:
        item = row.item
        known = ["" if math.isnan(v) else repr(v) for v in (row.values[c.key] for c in summary.columns)]
        writer.writerow(
            [item.method, item.name, item.reference, item.prompt, item.seed, *known, "; ".join(row.problems)]
        )
    return written.getvalue()


def _or_null(value: float) -> float | None:
    return value if math.isfinite(value) else None
