"""PNG figures of an evaluation: measures by method, fidelity against alignment, curves over time, tracks on frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from animatediff.errors import one_line
from animatediff.evaluation.evaluate import Row
from animatediff.evaluation.sources import Frames
from animatediff.evaluation.tables import Summary, title
from animatediff.evaluation.trackers import Tracks
from animatediff.files import atomic_path

COLOURS = ("#2457d6", "#d6571f", "#1f9d5c", "#9a3fc4", "#c79a00", "#0e9bb3", "#c92a5b", "#6b7280")
MOST_JOBS = 6  # drawn in tracks.png


def save_plots(folder: str | Path, summary: Summary, rows: Sequence[Row]) -> list[Path]:
    """Write measures.png, tradeoff.png, curves.png and tracks.png, each where it has something to show."""
    figures = {
        "measures": measures_figure(summary, rows),
        "tradeoff": tradeoff_figure(summary),
        "curves": curves_figure(summary, rows),
        "tracks": tracks_figure(rows),
    }
    written = []
    for name, figure in figures.items():
        if figure is None:
            continue
        path = Path(folder) / f"{name}.png"
        with atomic_path(path) as part:
            figure.savefig(part, dpi=120, format="png")
        written.append(path)
    return written


def measures_figure(summary: Summary, rows: Sequence[Row]) -> Figure | None:
    """For every measure, each video as a dot and each method's mean with its 95% interval."""
    shown = [c for c in summary.columns if any(means[c.key].n for means in summary.means.values())]
    if not shown:
        return None
    figure, axes = _grid(len(shown), 3.2, 0.9 + 0.5 * len(summary.means))
    for axis, column in zip(axes, shown, strict=False):
        for place, (method, means) in enumerate(summary.means.items()):
            values = np.array([row.values[column.key] for row in rows if row.item.method == method])
            spread = np.linspace(-0.22, 0.22, len(values))
            axis.plot(values, place + spread, ".", color=_colour(place), alpha=0.35, markersize=4)
            mean = means[column.key]
            if mean.n:
                error = None if np.isnan(mean.half_width) else mean.half_width
                axis.errorbar(mean.mean, place, xerr=error, fmt="o", color=_colour(place), capsize=4)
        axis.set_yticks(range(len(summary.means)), list(summary.means))
        axis.set_ylim(len(summary.means) - 0.5, -0.5)
        axis.set_title(title(column), fontsize=9)
    return figure


def tradeoff_figure(summary: Summary) -> Figure | None:
    """Motion fidelity against text alignment, a point with both intervals per method; None where one is missing."""
    points = [(m, means.get("text_alignment"), means.get("motion_fidelity")) for m, means in summary.means.items()]
    known = [(place, m, x, y) for place, (m, x, y) in enumerate(points) if x is not None and y is not None]
    known = [point for point in known if point[2].n and point[3].n]
    if not known:
        return None
    figure, (axis,) = _grid(1, 5, 4)
    for place, method, x, y in known:
        errors = [None if np.isnan(mean.half_width) else mean.half_width for mean in (x, y)]
        axis.errorbar(x.mean, y.mean, xerr=errors[0], yerr=errors[1], fmt="o", color=_colour(place), capsize=3)
        axis.annotate(method, (x.mean, y.mean), xytext=(6, 6), textcoords="offset points", fontsize=9)
    axis.set_xlabel("text alignment ↑")
    axis.set_ylabel("motion fidelity ↑")
    return figure


def curves_figure(summary: Summary, rows: Sequence[Row]) -> Figure | None:
    """Every measure that is known per frame, over the clip's time (0 to 1): each video faintly, and their mean."""
    names = list(dict.fromkeys(name for row in rows for name in row.curves))
    if not names:
        return None
    figure, axes = _grid(len(names), 3.6, 2.6)
    time = np.linspace(0, 1, 101)
    for axis, name in zip(axes, names, strict=False):
        for place, method in enumerate(summary.means):
            curves = [
                row.curves[name] for row in rows if row.item.method == method and len(row.curves.get(name, ())) > 1
            ]
            spread = np.array([np.interp(time, np.linspace(0, 1, len(curve)), curve) for curve in curves])
            if len(spread):
                lines = [np.column_stack([time, curve]) for curve in spread]
                axis.add_collection(LineCollection(lines, colors=_colour(place), alpha=0.12, linewidths=0.8))
                known = np.ma.masked_invalid(spread).mean(axis=0)
                axis.plot(time, known, color=_colour(place), linewidth=2, label=method)
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("time", fontsize=8)
    axes[0].legend(fontsize=8)
    return figure


def tracks_figure(rows: Sequence[Row]) -> Figure | None:
    """The last frame of references (top) and outputs (below, a row a method) with the paths that led there."""
    methods = list(dict.fromkeys(row.item.method for row in rows))
    by_job: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row.reference is not None:
            by_job.setdefault(row.item.key, {})[row.item.method] = row
    jobs = list(by_job.values())[:MOST_JOBS]
    if not jobs:
        return None
    figure = Figure(figsize=(2.3 * len(jobs), 2.5 * (1 + len(methods))), layout="constrained")
    grid = figure.subplots(1 + len(methods), len(jobs), squeeze=False)
    for across, job in enumerate(jobs):
        first = next(iter(job.values()))
        _draw_tracks(grid[0, across], first.reference, first.reference_tracks, "reference")
        for down, method in enumerate(methods, start=1):
            made = job.get(method)
            if made is None:
                grid[down, across].set_axis_off()
                continue
            label = "" if len(methods) == 1 else f"{method}: "
            _draw_tracks(grid[down, across], made.frames, made.tracks, (label + one_line(made.item.prompt or ""))[:40])
    return figure


def _draw_tracks(axis: Axes, frames: Frames | None, tracks: Tracks | None, text: str) -> None:
    axis.set_axis_off()
    if frames is None or tracks is None:
        return
    axis.imshow(frames[-1])
    paths = [path[seen] for path, seen in zip(tracks.tracks, tracks.visibility, strict=True)]
    paths = [path for path in paths if len(path) > 1 and np.ptp(path, axis=0).max() >= 1]
    steps = [path[-1] - path[0] for path in paths]
    hues = [np.arctan2(y, x) / (2 * np.pi) % 1 for x, y in steps]
    axis.add_collection(LineCollection(paths, colors=mpl.colormaps["hsv"](hues), linewidths=0.8))
    axis.set_xlim(-0.5, frames.shape[2] - 0.5)
    axis.set_ylim(frames.shape[1] - 0.5, -0.5)
    axis.set_title(text, fontsize=6)


def _grid(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes, at most three to a row, each width x height inches."""
    across = min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(width * across, height * down), layout="constrained")
    axes = list(figure.subplots(down, across, squeeze=False).ravel())
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]
