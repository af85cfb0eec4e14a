"""What a finished job leaves on disk: the video, what was asked for beside it, and last its sidecar."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from animatediff.config import to_dict
from animatediff.data.export import save_frames, save_gif, save_video, side_by_side
from animatediff.files import atomic_group, is_there, remove_stale_parts, write_json
from animatediff.inference.engine import Result
from animatediff.inference.jobs import Job
from animatediff.inference.run import weight_files
from animatediff.pipelines.method import Run


def write(job: Job, result: Result) -> None:
    """Write one result, all of it or nothing; a process killed midway leaves no sidecar beside other files."""
    run = job.run
    pixels = (result.frames * 255).astype(np.uint8)  # truncated, as the published program writes it
    fps = frames_per_second(run, result)
    remove_stale_parts(job.output.parent)
    with atomic_group(job.sidecar) as new:
        save_video(new(job.output), pixels, fps)
        if run.gif:
            save_gif(new(job.gif), pixels, fps)
        if run.frames:
            save_frames(new(job.frames), pixels)
        if run.side_by_side:
            save_video(new(job.beside), side_by_side(result.reference.pixels, pixels), fps)
        for ending, save in result.files.items():
            save(new(job.output.with_name(job.output.stem + ending)))
        write_json(new(job.sidecar), sidecar(job, result, pixels.shape, fps))


def frames_per_second(run: Run, result: Result) -> float:
    """The rate of the video written: as configured, or `source`, at which it moves as fast as the clip does."""
    return result.reference.pace if run.fps == "source" else float(run.fps)


def sidecar(job: Job, result: Result, shape: tuple[int, ...], fps: float) -> dict[str, Any]:
    """Everything needed to make the output again (`--config` takes this JSON), and what it took."""
    run, reference = job.run, result.reference
    return {
        "output": job.output.name,
        "method": run.method,
        "reference": run.ref_video_path,
        "reference_sha256": job.reference_sha256,
        "reference_frames": {"indices": list(reference.indices), "of": reference.total},
        "prompt": run.prompt,
        "seed": run.seed,
        **result.facts,
        "num_frames": shape[0],
        "height": shape[1],
        "width": shape[2],
        "fps": fps,
        "fit": run.fit,
        "seconds": round(result.seconds, 3),
        "extract_seconds": round(reference.seconds, 3),
        "peak_memory_bytes": result.peak_memory,
        "warnings": list(result.warnings),
        "weights": {file.what: str(file.path) for file in weight_files(run) if is_there(file.path)},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "fingerprint": job.fingerprint,
        "config": to_dict(run),
    }
