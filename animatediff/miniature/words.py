"""Measures for filtering where no CLIP is present: they need no weights."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from animatediff.evaluation.measures import Column, Measured, Sample
from animatediff.miniature.palette import read_clip
from animatediff.miniature.world import BACKGROUNDS, COLOURS, PATTERNS, SHAPES

BINS = 8  # of each colour channel


class WeightFree:
    """Temporal consistency by colour histograms, and text alignment for captions of the moving-shape world."""

    reason = None
    columns = (
        Column("colour_consistency", "colour consistency", "higher"),
        Column("words_shown", "words of the caption shown", "higher"),
    )

    def __call__(self, sample: Sample) -> Measured:
        steps = colour_consistency_per_step(sample.frames)
        values = {
            "colour_consistency": float(steps.mean()) if steps.size else math.nan,
            "words_shown": words_shown(sample.frames, sample.prompt or ""),
        }
        return Measured(values, {"colour consistency": steps.tolist()})


MEASURE = WeightFree()


def colour_consistency_per_step(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Overlap of the colour histograms of adjacent frames, in [0, 1]: 1 where the same colours fill the same areas.

    frames [f, h, w, 3]; returns [f-1]. Motion hardly changes it; flicker and a changing subject do.
    """
    bins = (frames // (256 // BINS)).astype(np.int64) @ np.array([BINS * BINS, BINS, 1])
    counts = np.stack([np.bincount(frame.ravel(), minlength=BINS**3) for frame in bins])
    return np.minimum(counts[:-1], counts[1:]).sum(axis=1) / bins[0].size


def words_shown(frames: NDArray[np.uint8], caption: str) -> float:
    """Share of colour, shape, pattern and background in `caption` that the pixels show; NaN where it names none.

    Only for the moving-shape world: of other captions nothing can be said without weights.
    """
    words = set(re.findall(r"[a-z]+", caption.lower()))
    seen = read_clip(frames)
    sets = ((COLOURS, seen.colour), (SHAPES, seen.shape), (PATTERNS, seen.pattern), (BACKGROUNDS, seen.background))
    named = [(wanted, found) for known, found in sets for wanted in known if wanted in words]
    return sum(wanted == found for wanted, found in named) / len(named) if named else math.nan
