"""The held-out edits of the people world: prepared folders whose exact answers are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from animatediff.files import write_jsonl
from animatediff.miniature.people.motions import CLIP_FRAMES
from animatediff.miniature.people.world import Clip, sample_twins
from animatediff.pipelines.motionfollower.masks import predict_masks
from animatediff.pipelines.motionfollower.prepare.writer import write_prepared

JOBS = 48
FIRST_SEED = 900_000  # of the held-out draws
BUNDLED = (0, 4, 6, 12)  # numbers of the jobs that come with the project
TUNING = 500  # the first number of the held-out draws that settings are tuned on, which are none of the jobs
FIRST_NOISE = 1000  # seed of the first job


@dataclass(frozen=True)
class Job:
    """One edit. The person in these clothes was never trained on in either motion."""

    name: str
    source: Clip
    wanted: Clip  # the perfect answer: the same scene in the other motion
    seed: int


def heldout_jobs(count: int = JOBS, frames: int = CLIP_FRAMES, first: int = 0) -> list[Job]:
    """`count` held-out jobs from number `first` on, always the same."""
    jobs = []
    for number in range(first, first + count):
        source, wanted = sample_twins(FIRST_SEED + number, "heldout", frames)
        name = f"{number:02d}-{source.motion.family}-{wanted.motion.family}"
        jobs.append(Job(name, source, wanted, FIRST_NOISE + number))
    return jobs


def predicted_masks(job: Job) -> NDArray[np.bool_]:
    """The target masks as they are predicted where nobody knows the answer: [f, h, w]."""
    return predict_masks(job.source.masks(), job.source.keypoints, job.wanted.keypoints)


def write_job(folder: Path, job: Job, exact_masks: bool = True) -> None:
    """Write a job as a prepared folder.

    exact_masks: the target masks are the renderer's; otherwise `predicted_masks`.
    """
    keypoints = job.wanted.keypoints
    write_prepared(
        folder,
        source_images=job.source.frames(),
        target_images=job.wanted.frames(),
        source_masks=job.source.masks(),
        predicted_masks=job.wanted.masks() if exact_masks else predicted_masks(job),
        keypoints={"source": job.source.keypoints, "target": keypoints, "aligned": keypoints},
        log={"made by": "the people world's renderer"},
    )


def write_jobs(
    folder: str | Path, jobs: Sequence[Job], listing: str | Path | None = None, exact_masks: bool = True
) -> Path:
    """Write `jobs` into `folder` and list them in `listing` (its jobs.jsonl), which inference.py reads and which is
    returned.
    """
    folder = Path(folder)
    listing = folder / "jobs.jsonl" if listing is None else Path(listing)
    for job in jobs:
        write_job(folder / job.name, job, exact_masks)
    write_jsonl(listing, [{"prepared": (folder / job.name).as_posix(), "seed": job.seed} for job in jobs])
    return listing


def bundled_jobs() -> list[Job]:
    """The jobs that come with the project."""
    jobs = heldout_jobs()
    return [jobs[number] for number in BUNDLED]
