"""One evaluation: every item read, tracked and measured; one that fails is named and does not stop the others."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from weakref import WeakValueDictionary

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.evaluation.embeddings import NONE, load_clip, load_dino
from animatediff.evaluation.measures import (
    Column,
    Cost,
    DinoConsistency,
    Embedded,
    Measure,
    MotionFidelity,
    Sample,
    load_measure,
    pick_device,
    try_to_load,
)
from animatediff.evaluation.sources import Frames, Item, read_output, read_reference
from animatediff.evaluation.trackers import Tracker, Tracks, build_tracker


@dataclass
class EvaluationConfig:
    """What is measured and how. Every key can stand in the YAML and on the command line as key=value."""

    clip: str = option("openai/clip-vit-base-patch32", "a hub key, a folder, or none")
    dino: str = option(NONE, "likewise, for example facebook/dinov2-small")
    tracker: str = option("lucas_kanade", "or cotracker, where it is installed (non-commercial licence)")
    grid: int = option(24, "points are taken from a grid x grid division of the first frame", least=1, most=512)
    cotracker_checkpoint: str = option("models/CoTracker/scaled_offline.pth", "for tracker=cotracker")
    static: float = option(
        0.25,
        "pixels: a track's shorter step, within what the tracker trembles, stands still",
        least=0,
        most=10_000,
    )
    compat: str | None = option(
        None, "ditflow: also report motion fidelity as that published script computes it", choices=("ditflow",)
    )
    measures: list[str] = option([], "further ones by name: miniature, people")
    device: str = option("auto", "where the models run")
    references: str | None = option(None, "a folder where references are looked for too")
    jobs: str | None = option(None, "JSON Lines of the jobs that every method should have done")
    baseline: str | None = option(None, "the method that others are compared with; the first where not given")
    videos: int = option(32, "jobs whose videos are put into the HTML report", least=0, most=100_000)


@dataclass
class Row:
    """What was found for one item."""

    item: Item
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    fps: float = 8.0
    frames: Frames | None = None  # kept only where the pictures need it
    reference: Frames | None = None
    tracks: Tracks | None = None
    reference_tracks: Tracks | None = None


@dataclass
class Tools:
    """The loaded parts of an evaluation: measures, tracker, and by the hash of a reference's frames what is known of
    it: its tracks, and the frames themselves for as long as a row holds them.
    """

    measures: Sequence[Measure]
    tracker: Tracker
    references: Path | None = None
    tracked: dict[str, Tracks] = field(default_factory=dict)
    held: WeakValueDictionary[str, Frames] = field(default_factory=WeakValueDictionary)

    @property
    def columns(self) -> list[Column]:
        return [column for measure in self.measures for column in measure.columns]

    @property
    def reasons(self) -> dict[str, str]:
        """Why whole columns are empty: column key -> reason."""
        return {c.key: measure.reason for measure in self.measures if measure.reason for c in measure.columns}

    def track_reference(self, frames: Frames) -> tuple[Frames, Tracks]:
        """The frames of a reference and their tracks; the same frames are tracked once, and held once at a time."""
        key = hashlib.sha256(frames.tobytes()).hexdigest()
        if key not in self.tracked:
            self.tracked[key] = self.tracker(frames)
        return self.held.setdefault(key, frames), self.tracked[key]


def load_tools(config: EvaluationConfig) -> Tools:
    """Models, tracker and measures. A missing CLIP or DINO becomes the reason of its columns."""
    device = pick_device(config.device)
    measures: list[Measure] = [Embedded(*try_to_load(load_clip, config.clip, device))]
    if config.dino != NONE:
        measures.append(DinoConsistency(*try_to_load(load_dino, config.dino, device)))
    measures.append(MotionFidelity(config.static, config.compat))
    measures += [load_measure(name) for name in config.measures]
    measures.append(Cost())
    tracker = build_tracker(config.tracker, config.grid, config.cotracker_checkpoint, device)
    return Tools(measures, tracker, None if config.references is None else Path(config.references))


def evaluate(items: Iterable[Item], tools: Tools, keep: Callable[[Item], bool] = lambda item: True) -> Iterable[Row]:
    """Rows of the items, one after the other; frames stay in those that `keep` says."""
    for item in items:
        row = evaluate_item(item, tools)
        if not keep(item):
            row.frames = row.reference = row.tracks = row.reference_tracks = None
        yield row


def evaluate_item(item: Item, tools: Tools) -> Row:
    """Everything that can be measured of one item, and by name what cannot."""
    row = Row(item)
    if item.problem is not None:
        row.problems.append(item.problem)
    if item.output.suffix != ".json" and item.output.is_file():
        try:
            row.frames, row.fps, differs = read_output(item)
            row.problems += differs
        except UserError as error:
            row.problems.append(str(error))
    if row.frames is not None:
        _follow(row, tools)
        sample = Sample(row.frames, item.record, item.prompt, row.reference, row.tracks, row.reference_tracks)
        for measure in tools.measures:
            try:
                measured = measure(sample)
            except UserError as error:
                row.problems.append(str(error))
                continue
            row.values |= measured.values
            row.curves |= measured.curves
    for column in tools.columns:
        row.values.setdefault(column.key, math.nan)
    return row


def _follow(row: Row, tools: Tools) -> None:
    """Read the reference and track both videos, as far as that can be done."""
    if row.frames is None:
        return
    row.tracks = tools.tracker(row.frames)
    if not len(row.tracks.tracks):
        row.problems.append("the tracker finds nothing to follow in it")
    if row.item.reference is None and row.item.problem is not None:
        return  # said already
    try:
        reference = read_reference(row.item, row.frames.shape[:3], tools.references)
    except UserError as error:
        row.problems.append(str(error))
        return
    row.reference, row.reference_tracks = tools.track_reference(reference)
    if not len(row.reference_tracks.tracks):
        row.problems.append(f"the tracker finds nothing to follow in its reference {row.item.reference}")
