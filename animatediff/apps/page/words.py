"""What was measured of a result, in words that a person understands, and the tracks to draw over it. No weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from animatediff.evaluation.evaluate import EvaluationConfig
from animatediff.evaluation.measures import MotionFidelity, Sample
from animatediff.evaluation.sources import Frames
from animatediff.evaluation.trackers import Tracks, build_tracker

SHOWN = 60  # tracks
# Of each measure: its name in words, how a value is written, what it means, whether higher is better, and from which
# value on it is called what.
SAID: dict[str, tuple[str, str, str, bool, list[tuple[float, str]]]] = {
    "motion_fidelity": (
        "Follows the motion",
        "{:.2f}",
        "how far its points move in the directions in which the reference's do; 1 is best, -1 is the opposite",
        True,
        [(0.85, "closely"), (0.6, "well"), (0.3, "in part"), (-1.0, "hardly")],
    ),
    "track_distance": (
        "Off its path",
        "{:.1f} %",
        "how far its points stray from where the reference's are, in % of the width",
        False,
        [(2.0, "as good as none"), (5.0, "a little"), (12.0, "clearly"), (math.inf, "far")],
    ),
    "global_motion_error": (
        "Camera differs",
        "{:.1f} %",
        "how far the picture as a whole moves otherwise than the reference's, in % of the width a frame",
        False,
        [(0.5, "as good as none"), (1.5, "a little"), (4.0, "clearly"), (math.inf, "far")],
    ),
}


def describe(frames: Frames, reference: Frames | None) -> dict[str, Any]:
    """The measures and tracks of a result (f h w 3) and of its reference, of the same shape.

    {"measures": [{"name", "value", "word"}], "tracks": ..., "reference_tracks": ...}; a measure that cannot be had is
    left out, and all that needs the reference where there is none.
    """
    config = EvaluationConfig()
    track = build_tracker(config.tracker, config.grid, "", "cpu")
    own = track(frames)
    told: dict[str, Any] = {"measures": [], "tracks": drawn(own, frames), "reference_tracks": []}
    if reference is None:
        return told
    far = track(reference)
    sample = Sample(frames, reference=reference, tracks=own, reference_tracks=far)
    found = MotionFidelity(config.static)(sample).values
    told["reference_tracks"] = drawn(far, reference)
    told["measures"] = [said(key, found[key]) for key in SAID if math.isfinite(found.get(key, math.nan))]
    return told


def said(key: str, value: float) -> dict[str, str]:
    """One measure in words."""
    name, form, about, higher, steps = SAID[key]
    word = next((word for bound, word in steps if (value >= bound if higher else value <= bound)), steps[-1][1])
    return {"key": key, "name": name, "value": form.format(value), "word": word, "about": about}


def drawn(tracks: Tracks, frames: Frames) -> list[list[list[float] | None]]:
    """The tracks that move most, as (x, y) from 0 to 1 for each frame, null where the point is not seen."""
    height, width = frames.shape[1:3]
    steps = np.linalg.norm(np.diff(tracks.tracks, axis=1), axis=-1) * tracks.visibility[:, 1:]  # N T 2 -> N T-1
    most = np.argsort(-steps.sum(1), kind="stable")[:SHOWN]
    return [
        [
            [round(float(x + 0.5) / width, 4), round(float(y + 0.5) / height, 4)] if seen else None
            for (x, y), seen in zip(tracks.tracks[n], tracks.visibility[n], strict=True)
        ]
        for n in most
    ]
