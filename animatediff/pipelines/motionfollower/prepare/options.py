"""What a preparation can be told, and what it takes: checked before anything is read."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from animatediff.config import checked, option
from animatediff.data.video import FITS
from animatediff.errors import UserError
from animatediff.files import check_readable, is_there, to_path
from animatediff.pipelines.method import MAX_SIDE
from animatediff.pipelines.motionfollower.poses import ROOTS

MULTIPLE = 16  # what height and width are multiples of
OnProgress = Callable[[str, int, int], None]  # (stage, done, of how many)


@dataclass
class PrepareOptions:
    """The options of `efficientmt prepare`, each also a flag; the defaults suit the published run."""

    height: int = option(512, "pixels of what is written", least=MULTIPLE, most=MAX_SIDE)
    width: int = option(512, "pixels", least=MULTIPLE, most=MAX_SIDE)
    fit: str = option("stretch", "how the source is brought to height x width; auto keeps its shape", choices=FITS)
    num_frames: int = option(24, "frames at most; fewer where a clip is shorter", least=2, most=1000)
    fps: float = option(8.0, "frames taken from a second of both videos; folders give every image", least=0.1, most=240)
    source_start: float = option(0.0, "seconds into the source", least=0)
    driving_start: float = option(0.0, "seconds into the driving clip", least=0)
    source_subject: str = option("", "who, where several are seen: x,y or x0,y0,x1,y1 in pixels of the first frame")
    driving_subject: str = option("", "likewise, in the driving clip")
    root: str = option("driving", "whose way through the picture the body takes", choices=ROOTS)
    proportions: bool = option(True, "bones take the source's lengths; false: the whole body is scaled and moved")
    poses: str = option("auto", "what finds people and their joints", choices=("auto", "rtmlib", "mediapipe"))
    masks: str = option("auto", "what finds the person's outline", choices=("auto", "sam2", "mediapipe"))
    device: str = option("auto", "where rtmlib and SAM 2 run", choices=("auto", "cuda", "cpu"), pixels=False)
    source_keypoints: str = option("", "your own: .npz with `source`, (frames 60 3), pixels of what is written")
    driving_keypoints: str = option("", "your own: .npz with `target`, likewise")
    aligned_keypoints: str = option("", "your own alignment: .npz with `aligned`, likewise")
    source_masks: str = option("", "your own masks of the source's person: a folder or a video")
    predicted_masks: str = option("", "your own masks of that person in the target's poses: likewise")


OWN = ("source_keypoints", "driving_keypoints", "aligned_keypoints", "source_masks", "predicted_masks")


def check_options(options: PrepareOptions) -> None:
    """UserError for what no preparation can take."""
    checked(options)
    for name in ("height", "width"):
        side = getattr(options, name)
        if side % MULTIPLE:
            near = max(1, round(side / MULTIPLE)) * MULTIPLE
            raise UserError(f"{name} is {side}, expected a multiple of {MULTIPLE}; the nearest is {near}")
    for name in ("source_subject", "driving_subject"):
        parse_subject(getattr(options, name), name)
    for name in OWN:
        path = getattr(options, name)
        if path:
            check_readable(path, name)


def check_clip(path: str, what: str) -> Path:
    """The path of a clip that is there. UserError otherwise."""
    if not path:
        raise UserError(f"no {what}; give --{what}, a video or a folder of frames")
    clip = to_path(path, what)
    if not is_there(clip):
        raise UserError(f"nothing at {path}; check {what}")
    return check_readable(clip, what)


def parse_subject(text: str, name: str) -> tuple[float, ...] | None:
    """A click (x, y) or a box (x0, y0, x1, y1) in pixels; None for an empty text. UserError for anything else."""
    if not text:
        return None
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    box = len(numbers) == 4 and numbers[0] < numbers[2] and numbers[1] < numbers[3]
    if not (box or len(numbers) == 2) or not all(map(math.isfinite, numbers)):
        raise UserError(f"{name} is '{text}', expected x,y or x0,y0,x1,y1 in pixels of the clip's first frame")
    return numbers


def option_names() -> list[str]:
    """The names of all options, in order."""
    return [entry.name for entry in fields(PrepareOptions)]
