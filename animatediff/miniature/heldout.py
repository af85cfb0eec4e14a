"""How well a model of the moving-shape world transfers motion: 64 held-out jobs and their measures.

The references' motion and content are known exactly; what a generated clip shows is read from its pixels by
animatediff/miniature/palette.py. Tracks are [f, 2] in pixels (x, y), nan where no subject is seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from animatediff.data.export import save_video
from animatediff.evaluation.camera import global_motion
from animatediff.evaluation.trackers import LucasKanade
from animatediff.files import write_jsonl
from animatediff.miniature.motions import FAMILIES, Array, sample_motion
from animatediff.miniature.palette import Frames, Reading, read_clip, shows_colour
from animatediff.miniature.world import Clip, Content, sample_content

JOBS = 64
BUNDLED = ("line", "orbit", "zigzag", "bounce", "grow", "pan")
FIRST_SEED = 900_000  # of the held-out draws
STILL = 0.005  # of the frame's width per frame: a reference that moves less stands still
GROWS = 1.2  # a subject whose radius changes by less over the clip keeps its size
UNSEEN = 50.0  # percent of the frame's width: the distance of a subject that is not there


@dataclass(frozen=True)
class Job:
    """One transfer: the reference clip and the content asked for. Neither motion nor contents were trained on."""

    name: str
    reference: Clip
    content: Content
    seed: int

    @property
    def prompt(self) -> str:
        return self.content.caption

    @property
    def wanted(self) -> Clip:
        """The perfect answer: the reference's motion with the content asked for."""
        return dataclasses.replace(self.reference, content=self.content)


def heldout_jobs(
    count: int = JOBS,
    frames: int = 16,
    size: tuple[int, int] = (64, 64),
    anchored: bool = True,
    layout: str = "shared",
) -> list[Job]:
    """The first `count` held-out jobs, always the same: motion families in turn, contents that share no colour.

    For `anchored` and `layout` see `Clip`; motions, contents and prompts are the same whatever they are.
    """
    jobs = []
    for number in range(count):
        seed = FIRST_SEED + number
        family = FAMILIES[number % len(FAMILIES)]
        shown = sample_content(2 * seed, "heldout")
        candidates = (sample_content(2 * seed + 1 + k * FIRST_SEED, "heldout") for k in range(1000))
        wanted = next(c for c in candidates if c.colour != shown.colour and c.shape != shown.shape)
        reference = Clip(shown, sample_motion(seed, "heldout", family, frames), size, anchored, layout)
        jobs.append(Job(f"{number:02d}-{family}", reference, wanted, seed=1000 + number))
    return jobs


def bundled_jobs() -> list[Job]:
    """The six held-out jobs that come with the project: the first of each of these motion families."""
    jobs = heldout_jobs(len(FAMILIES))
    return [job for job in jobs if job.reference.motion.family in BUNDLED]


def write_jobs(
    folder: str | Path, jobs: Sequence[Job], fps: int = 8, backwards: bool = False, listing: str | Path | None = None
) -> Path:
    """Render the references into `folder` and list the jobs in `listing` (its jobs.jsonl), as inference.py reads it.

    With `backwards` the references are played in reverse (a control). Returns the path of the list.
    """
    folder = Path(folder)
    listing = folder / "jobs.jsonl" if listing is None else Path(listing)
    rows = []
    for job in jobs:
        video = folder / f"{job.name}.mp4"
        frames = job.reference.frames()
        save_video(video, frames[::-1] if backwards else frames, fps=fps)
        rows.append({"ref_video_path": video.as_posix(), "prompt": job.prompt, "seed": job.seed})
    write_jsonl(listing, rows)
    return listing


def displacement_cosine(track: Array, reference: Array, width: int, still: float = STILL) -> float:
    """Mean over frame pairs of the cosine between the two displacements; -1 to 1, nan where nothing moves.

    Only the pairs count at which the reference moves by at least `still` of the frame's width. There, a generated
    subject that does not move, or is not seen, has cosine 0.
    """
    return _cosine(np.nan_to_num(np.diff(track, axis=0)), np.diff(reference, axis=0), still * width)


def _cosine(found: Array, wanted: Array, still: float) -> float:
    """Mean cosine of displacements [s, 2] where `wanted` is at least `still` pixels long; 0 where `found` is zero."""
    length = np.linalg.norm(wanted, axis=-1)
    moving = length >= still
    if not moving.any():
        return float("nan")
    norms = (length * np.linalg.norm(found, axis=-1))[moving]
    dots = (wanted * found).sum(axis=-1)[moving]
    return float(np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0).mean())


def mean_distance(track: Array, reference: Array, width: int) -> float:
    """Mean distance of the two tracks in percent of the frame's width; UNSEEN where the subject is not seen."""
    distance = 100 / width * np.linalg.norm(track - reference, axis=-1)
    return float(np.where(np.isnan(distance), UNSEEN, distance).mean())


def size_followed(covers: Array, radii: Array) -> float:
    """The share of the wanted change of size that is there: 1 all of it, 0 none, below 0 the other way round.

    The slope of the logarithm of the subject's extent, the root of its area in `covers` [f, h, w], against that of the
    wanted `radii` [f], by least squares over the frames that show it. nan where the radii change by less than GROWS.
    """
    wanted = np.log(radii)
    if np.ptp(wanted) < np.log(GROWS):
        return float("nan")
    area = covers.sum(axis=(1, 2))
    seen = area > 0
    if seen.sum() < 2:
        return 0.0
    return float(np.polyfit(wanted[seen], np.log(area[seen]) / 2, 1)[0])


def camera_steps(frames: Frames, hidden: Array) -> Array:
    """The background's motion from each frame to the next as similarities in pixels: [f - 1, 2, 3], nan if lost.

    hidden [f, h, w]: how much of each pixel the subject covers, 0 to 1.
    """
    tracker = LucasKanade(grid=12)
    steps = []
    for k in range(len(frames) - 1):
        pair = frames[k : k + 2]
        start = _background_grid(hidden[k : k + 2].max(axis=0))
        tracks = tracker(pair, start)
        steps.append(global_motion(tracks.tracks, tracks.visibility)[0])
    return np.stack(steps)


def _background_grid(hidden: Array, step: int = 4, margin: int = 4) -> np.ndarray:
    """Points (x, y) every `step` pixels that lie clear of what is `hidden` [h, w]: float32 [n, 2]."""
    height, width = hidden.shape
    y, x = (axis.ravel() for axis in np.mgrid[margin : height - margin : step, margin : width - margin : step])
    return np.stack([x, y], axis=1)[hidden[y, x] < 0.05].astype(np.float32)


def camera_cosine(steps: Array, reference: Array, size: tuple[int, int]) -> float:
    """Mean cosine between where two cameras take the points of the frame, over steps and a 5 x 5 grid: -1 to 1.

    A point that the reference moves by less than STILL of the width is left out; a step that was lost has cosine 0.
    size: (height, width).
    """
    height, width = size
    y, x = (axis.ravel() for axis in np.meshgrid(np.linspace(0, height - 1, 5), np.linspace(0, width - 1, 5)))
    points = np.stack([x, y, np.ones_like(x)])  # 3 n
    found, wanted = (np.nan_to_num(part @ points - points[:2]).transpose(2, 0, 1) for part in (steps, reference))
    cosines = [_cosine(found[n], wanted[n], STILL * width) for n in range(len(x))]  # each of [s, 2]
    cosines = [cosine for cosine in cosines if not np.isnan(cosine)]
    return float(np.mean(cosines)) if cosines else float("nan")


def score(frames: Frames, job: Job, backwards: bool = False) -> dict[str, Any]:
    """All measures of one generated clip [f, h, w, 3], RGB, against its job; `backwards`: against the reversed motion.

    Keys: cosine, distance (percent of the width), camera (cosine; nan where the camera is still), size (see
    `size_followed`), and the truth values colour, shape, pattern, ground, background, leak.
    """
    wanted = job.wanted
    if backwards:
        wanted = dataclasses.replace(wanted, motion=wanted.motion.reversed())
    reading = read_clip(frames)
    width = job.reference.size[1]
    camera = float("nan")
    if wanted.motion.moves_camera:
        camera = camera_cosine(camera_steps(frames, reading.covers), wanted.camera_steps(), job.reference.size)
    return {
        "job": job.name,
        "cosine": displacement_cosine(reading.track, wanted.track(), width),
        "distance": mean_distance(reading.track, wanted.track(), width),
        "camera": camera,
        "size": size_followed(reading.covers, wanted.radii()),
        **_content_measures(reading, job),
        "leak": shows_colour(frames, job.reference.content.colour),
    }


def _content_measures(reading: Reading, job: Job) -> dict[str, bool]:
    names = ("colour", "shape", "pattern", "ground")
    right = {name: getattr(reading, name) == getattr(job.content, name) for name in names}
    return {**right, "background": right["pattern"] and right["ground"]}
