"""The miniature's own measures as columns of scripts/evaluate.py (`measures: [miniature]`).

An output belongs to one of the 64 held-out jobs (animatediff/miniature/heldout.py) by the name of its reference and
by its prompt; which way the reference plays is read from its frames.
"""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np

from animatediff.data.export import save_video
from animatediff.errors import UserError
from animatediff.evaluation.measures import Column, Measured, Sample
from animatediff.files import write_json
from animatediff.miniature.heldout import JOBS, Job, heldout_jobs, score, write_jobs

FPS = 8
INDEPENDENT = {"moved-marks": "shared", "turned-marks": "turned", "scattered-marks": "scattered"}  # folder: layout
SHARES = ("colour", "shape", "background", "leak")


class Miniature:
    """Motion and content against the exact ground truth of the moving-shape world."""

    reason = None
    columns = (
        Column("subject_cosine", "subject motion cosine", "higher"),
        Column("subject_distance", "subject distance", "lower", "% of width", 2),
        Column("camera_cosine", "camera motion cosine", "higher"),
        Column("subject_size", "subject size followed", "higher"),
        Column("colour", "colour right", "higher", "%", 1),
        Column("shape", "shape right", "higher", "%", 1),
        Column("background", "background right", "higher", "%", 1),
        Column("leak", "reference's colour shows", "lower", "%", 1),
    )

    def __call__(self, sample: Sample) -> Measured:
        """UserError where the sample is not an output of one of the held-out jobs."""
        frames, height, width = sample.frames.shape[:3]
        name = Path(str(sample.record.get("reference") or sample.record.get("ref_video_path") or "")).stem
        jobs = {job.name: job for job in _jobs(frames, height, width)}
        if name not in jobs:
            raise UserError(f"its reference '{name}' is not one of the miniature's held-out jobs")
        job = jobs[name]
        if sample.prompt != job.prompt:
            raise UserError(f"its prompt '{sample.prompt}' is not that of the held-out job {name}: '{job.prompt}'")
        found = score(sample.frames, job, _plays_backwards(sample, job))
        values = {
            "subject_cosine": found["cosine"],
            "subject_distance": found["distance"],
            "camera_cosine": found["camera"],
            "subject_size": found["size"],
            **{key: 100.0 * found[key] for key in SHARES},
        }
        return Measured({key: math.nan if value is None else float(value) for key, value in values.items()})


def write_benchmark(folder: str | Path, count: int = JOBS, frames: int = 16, anchored: bool = True) -> list[Path]:
    """Render what the miniature (models/miniature_dit: 17 frames, not anchored) is evaluated on into `folder`.

    references/ and reversed/ hold the references, forwards and backwards, each with the jobs.jsonl that inference.py
    reads; moved-marks/, turned-marks/ and scattered-marks/ hold those whose camera moves, with the background's marks
    where the content puts them, not the motion: on the grid of training moved elsewhere, turned as well, or at random
    places. exact/ holds the perfect answers as if they were outputs, the upper bound of every measure.
    """
    folder, jobs = Path(folder), heldout_jobs(count, frames, anchored=anchored)
    lists = [write_jobs(folder / "references", jobs), write_jobs(folder / "reversed", jobs, backwards=True)]
    for name, layout in INDEPENDENT.items():
        drawn = heldout_jobs(count, frames, anchored=False, layout=layout)
        lists.append(write_jobs(folder / name, [job for job in drawn if job.reference.motion.moves_camera]))
    for job in jobs:
        output, shown = folder / "exact" / f"{job.name}.mp4", job.wanted.frames()
        reference = str(folder / "references" / f"{job.name}.mp4")
        save_video(output, shown, FPS)
        record = {"output": output.name, "method": "rendered", "reference": reference, "prompt": job.prompt}
        write_json(output.with_suffix(".json"), {**record, "seed": job.seed, "num_frames": len(shown)})
    return [*lists, folder / "exact"]


@functools.cache
def _jobs(frames: int, height: int, width: int) -> tuple[Job, ...]:
    return tuple(heldout_jobs(frames=frames, size=(height, width)))


def _plays_backwards(sample: Sample, job: Job) -> bool:
    """Whether the reference's frames are nearer to the job's clip reversed than to the clip, anchored or not."""
    if sample.reference is None:
        return False
    shown = sample.reference.astype(np.int16)
    away = {}
    for marks in (("shared", True), *((layout, False) for layout in INDEPENDENT.values())):
        layout, anchored = marks
        clip = replace(job.reference, anchored=anchored, layout=layout).frames().astype(np.int16)
        away[marks, False], away[marks, True] = (np.abs(shown - c).mean() for c in (clip, clip[::-1]))
    return min(away, key=lambda way: away[way])[1]


MEASURE = Miniature()
