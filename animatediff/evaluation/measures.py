"""What can be measured of one output: named groups of columns, each a function of a Sample."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from animatediff.errors import UserError, nearest
from animatediff.evaluation import metrics
from animatediff.evaluation.camera import global_motion, global_motion_error_per_step
from animatediff.evaluation.embeddings import ClipEmbeddings, DinoEmbeddings
from animatediff.evaluation.trackers import Tracks

Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class Column:
    """One number per video."""

    key: str
    title: str
    better: str = ""  # "higher", "lower", or "" where neither is
    unit: str = ""
    digits: int = 3


@dataclass(frozen=True)
class Sample:
    """One output as the measures see it; what is None could not be had."""

    frames: Frames  # [f, h, w, 3]
    record: Mapping[str, Any] = field(default_factory=dict)  # the sidecar
    prompt: str | None = None
    reference: Frames | None = None  # [f, h, w, 3], fitted to the output
    tracks: Tracks | None = None
    reference_tracks: Tracks | None = None


@dataclass(frozen=True)
class Measured:
    """The values of a measure's columns (NaN: not to be had), and those that have one per frame or step."""

    values: dict[str, float]
    curves: dict[str, list[float]] = field(default_factory=dict)


class Measure(Protocol):
    """A group of columns that are computed together. `reason` says why they cannot be, in this whole run."""

    @property
    def columns(self) -> Sequence[Column]: ...

    @property
    def reason(self) -> str | None: ...

    def __call__(self, sample: Sample) -> Measured: ...


@dataclass(frozen=True)
class Embedded:
    """Temporal consistency and text alignment by CLIP, as the papers report them."""

    clip: ClipEmbeddings | None
    reason: str | None = None
    columns = (
        Column("temporal_consistency", "temporal consistency", "higher"),
        Column("text_alignment", "text alignment", "higher"),
    )

    def __call__(self, sample: Sample) -> Measured:
        if self.clip is None:
            return Measured({})
        frames = self.clip.frames(sample.frames)
        consistency = metrics.temporal_consistency_per_step(frames)
        values = {"temporal_consistency": consistency.mean().item()}
        curves = {"temporal consistency": consistency.tolist()}
        if sample.prompt is not None:
            alignment = metrics.text_alignment_per_frame(frames, self.clip.text(sample.prompt))
            values["text_alignment"] = alignment.mean().item()
            curves["text alignment"] = alignment.tolist()
        return Measured(values, curves)


@dataclass(frozen=True)
class DinoConsistency:
    """Temporal consistency by DINO, which looks at the subject's shape and texture more than at its name."""

    dino: DinoEmbeddings | None
    reason: str | None = None
    columns = (Column("dino_consistency", "DINO consistency", "higher"),)

    def __call__(self, sample: Sample) -> Measured:
        if self.dino is None:
            return Measured({})
        consistency = metrics.temporal_consistency_per_step(self.dino.frames(sample.frames))
        return Measured({"dino_consistency": consistency.mean().item()}, {"DINO consistency": consistency.tolist()})


@dataclass(frozen=True)
class MotionFidelity:
    """Motion fidelity, track distance and global motion error from the tracks of output and reference."""

    static: float  # pixels: a shorter step stands still
    compat: str | None = None  # also report the value of the published script of that name
    reason: str | None = None

    @property
    def columns(self) -> Sequence[Column]:
        shown = [
            Column("motion_fidelity", "motion fidelity", "higher"),
            Column("track_distance", "track distance", "lower", "% of width", 2),
            Column("global_motion_error", "global motion error", "lower", "% of width per frame", 2),
        ]
        if self.compat:
            shown.insert(1, Column(f"motion_fidelity_{self.compat}", f"motion fidelity ({self.compat})", "higher"))
        return shown

    def __call__(self, sample: Sample) -> Measured:
        own, far = sample.tracks, sample.reference_tracks
        if own is None or far is None:
            return Measured({})
        height, width = sample.frames.shape[1:3]
        sets = (own.tracks, far.tracks, own.visibility, far.visibility)
        errors = global_motion_error_per_step(
            global_motion(own.tracks, own.visibility), global_motion(far.tracks, far.visibility), (width, height)
        )
        known = errors[~np.isnan(errors)]
        values = {
            "motion_fidelity": metrics.motion_fidelity(*sets, static=self.static),
            "track_distance": 100 / width * metrics.track_distance(*sets, static=self.static),
            "global_motion_error": 100 / width * float(known.mean()) if known.size else math.nan,
        }
        if self.compat:
            count = min(len(own.tracks), len(far.tracks))  # the published value needs as many of each
            values[f"motion_fidelity_{self.compat}"] = metrics.motion_fidelity(
                own.tracks[:count], far.tracks[:count], compat=self.compat
            )
        curves = {
            "motion fidelity": metrics.motion_fidelity_per_step(*sets, static=self.static).tolist(),
            "global motion error": (100 / width * errors).tolist(),
        }
        return Measured(values, curves)


@dataclass(frozen=True)
class Cost:
    """What the output took, as its sidecar says."""

    reason: str | None = None
    columns = (
        Column("seconds", "time", "lower", "s", 1),
        Column("peak_memory", "peak memory", "lower", "GiB", 2),
    )

    def __call__(self, sample: Sample) -> Measured:
        seconds, peak = sample.record.get("seconds"), sample.record.get("peak_memory_bytes")
        return Measured(
            {
                "seconds": math.nan if seconds is None else float(seconds),
                "peak_memory": math.nan if peak is None else float(peak) / 2**30,
            }
        )


# Further measures by name: module and the name in it of a Measure, imported only when asked for.
PLUGINS = {
    "miniature": "animatediff.miniature.measure:MEASURE",
    "people": "animatediff.miniature.people.measure:MEASURE",
    "weight_free": "animatediff.miniature.words:MEASURE",
}


def load_measure(name: str) -> Measure:
    """The further measure of that name; UserError for a name that is not known."""
    if name not in PLUGINS:
        raise UserError(f"measures names '{name}'; {nearest(name, list(PLUGINS))}")
    module, _, attribute = PLUGINS[name].partition(":")
    return getattr(importlib.import_module(module), attribute)


def try_to_load(build: Callable[..., Any], key: str, device: str) -> tuple[Any, str | None]:
    """What `build(key, device)` gives and no reason, or None and the reason why it cannot be had."""
    try:
        return build(key, device), None
    except UserError as error:
        return None, str(error)


def pick_device(name: str) -> str:
    """`auto` as cuda, mps or cpu, whichever is there; any other name as it is."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
