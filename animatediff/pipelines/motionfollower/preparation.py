"""The preparation as other doors see it: from a source and a driving clip to the folder that a job takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from animatediff.data.video import read_frames
from animatediff.pipelines.method import Input, Run, View
from animatediff.pipelines.motionfollower.prepare import PrepareOptions, prepare
from animatediff.project import PROJECT

TINT = np.array([255, 90, 60], np.float32)  # of a mask over its frames
SHADE = 0.55  # of frames under a skeleton


class MotionFollowerPreparation:
    """Skeletons, their alignment and masks, found in two clips."""

    key = "prepared"
    clips: tuple[Input, ...] = (Input("source_path", "video", True, "the video to edit"),)
    examples = tuple(sorted((PROJECT / "assets/people").glob("*/")))  # the miniature's

    def make(
        self,
        run: Run,
        clips: Mapping[str, Path],
        subjects: Mapping[str, tuple[float, float]],
        folder: Path,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        source, driving = clips["source_path"], Path(run.ref_video_path)
        options = PrepareOptions(
            height=run.height,
            width=run.width,
            num_frames=run.num_frames,
            source_subject=_pixel(source, subjects.get("source_path")),
            driving_subject=_pixel(driving, subjects.get("ref_video_path")),
        )
        prepare(source, driving, folder, options, on_progress=on_progress)

    def views(self, folder: Path) -> list[View]:
        images = {
            name: read_frames(folder / name, None).frames
            for name in ("source_images", "target_images", "source_poses", "target_aligned_poses")
        }
        masks = {name: read_frames(folder / name, None).frames for name in ("source_masks", "predicted_masks")}
        source = images["source_images"]
        return [
            View("The video to edit: its person", _tinted(source, masks["source_masks"]), "source_path"),
            View("Its skeleton", _drawn_over(source, images["source_poses"])),
            View("The driving clip", images["target_images"], "ref_video_path"),
            View("Its motion on that person", _drawn_over(source, images["target_aligned_poses"])),
            View("Where the person will be", _tinted(source, masks["predicted_masks"])),
        ]


def _pixel(clip: Path, point: tuple[float, float] | None) -> str:
    """A point, each side from 0 to 1, as "x,y" in pixels of the clip's frames; "" for none."""
    if point is None:
        return ""
    height, width = read_frames(clip, 1).frames.shape[1:3]
    return f"{point[0] * (width - 1):.1f},{point[1] * (height - 1):.1f}"


def _tinted(frames: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Frames (f h w 3) with what masks (f h w 3) show in colour; both uint8."""
    inside = masks.mean(axis=-1, keepdims=True) > 127
    return np.where(inside, 0.45 * frames + 0.55 * TINT, frames).astype(np.uint8)


def _drawn_over(frames: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """Skeletons drawn on black (f h w 3) over darkened frames (f h w 3); both uint8."""
    drawn = poses.max(axis=-1, keepdims=True) > 24
    return np.where(drawn, poses, SHADE * frames).astype(np.uint8)
