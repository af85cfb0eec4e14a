"""The people world's own measures as columns of scripts/evaluate.py (`measures: [people]`).

An output belongs to one of the held-out edits (animatediff/miniature/people/heldout.py) by the name of its prepared
folder.
"""

from __future__ import annotations

import functools
from pathlib import Path

from animatediff.data.export import save_video
from animatediff.errors import UserError
from animatediff.evaluation.measures import Column, Measured, Sample
from animatediff.files import write_json
from animatediff.miniature.people.heldout import Job, heldout_jobs, write_jobs
from animatediff.miniature.people.reading import background_psnr, clothes_kept, pose_error
from animatediff.pipelines.motionfollower.prepare.writer import SEQUENCES

FPS = 8
LONG = 48  # frames of the jobs that are made in windows
LONG_JOBS = 8


class People:
    """Pose, clothes and background against the exact answer."""

    reason = None
    columns = (
        Column("pose_error", "pose error", "lower", "% of width", 2),
        Column("pose_share", "pose error / source's own", "lower", "%", 1),
        Column("clothes", "clothes' colours kept", "higher", "%", 1),
        Column("background_psnr", "background PSNR", "higher", "dB", 1),
    )

    def __call__(self, sample: Sample) -> Measured:
        """UserError where the sample is not an output of one of the held-out edits, at its size."""
        reference = Path(str(sample.record.get("reference") or sample.record.get("ref_video_path") or ""))
        name = reference.parent.name if reference.name in SEQUENCES else reference.name
        jobs = {job.name: job for job in _jobs(len(sample.frames))}
        if name not in jobs:
            raise UserError(f"its reference '{reference}' is not of one of the people miniature's held-out edits")
        job = jobs[name]
        size = job.source.size
        if sample.frames.shape[1:3] != (size, size):
            raise UserError(f"it is {sample.frames.shape[2]}x{sample.frames.shape[1]}, expected {size}x{size}")
        error, own = pose_error(sample.frames, job.wanted), pose_error(job.source.frames(), job.wanted)
        return Measured(
            {
                "pose_error": error,
                "pose_share": 100 * error / own,
                "clothes": 100 * clothes_kept(sample.frames, job.wanted),
                "background_psnr": background_psnr(sample.frames, job.source, job.wanted),
            }
        )


def write_benchmark(folder: str | Path) -> list[Path]:
    """Render what models/miniature_people is evaluated on into `folder`.

    jobs/, predicted-masks/ and long/ hold prepared folders with a jobs.jsonl each, which inference.py reads: the
    held-out edits, the same with target masks as they are predicted, and LONG_JOBS of them with LONG frames. exact/ and
    source/ hold the perfect answers, and the sources unchanged, as if they were outputs: both ends of every measure.
    """
    folder, jobs = Path(folder), heldout_jobs()
    lists = [
        write_jobs(folder / "jobs", jobs),
        write_jobs(folder / "predicted-masks", jobs, exact_masks=False),
        write_jobs(folder / "long", heldout_jobs(LONG_JOBS, LONG)),
    ]
    for job in jobs:
        for kind, clip in (("exact", job.wanted), ("source", job.source)):
            output, frames = folder / kind / f"{job.name}.mp4", clip.frames()
            save_video(output, frames, FPS)
            record = {"output": output.name, "method": "rendered", "seed": job.seed, "num_frames": len(frames)}
            reference = (folder / "jobs" / job.name / "target_images").as_posix()
            write_json(output.with_suffix(".json"), {**record, "reference": reference})
    return [*lists, folder / "exact", folder / "source"]


@functools.cache
def _jobs(frames: int) -> tuple[Job, ...]:
    return tuple(heldout_jobs(frames=frames))


MEASURE = People()
