"""Whether sequences are what a run takes them for: drawn skeletons, and masks of the person that they show."""

from __future__ import annotations

import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.masks import points_inside
from animatediff.pipelines.motionfollower.skeleton import read_skeleton

BLACK = 40  # grey level up to which a pixel of a drawing counts as background
LEAST_BLACK = 0.6  # share of a drawing that is background
LEAST_INSIDE = 0.5  # share of the joints that a person's masks hold, over the clip
FEWEST_JOINTS = 4  # of a frame, to judge its mask by


def check_skeletons(frames: np.ndarray, name: str) -> None:
    """UserError unless frames uint8 (f h w 3) are skeletons drawn on black; `name`: what the user knows them as."""
    dark = (frames.max(axis=-1) <= BLACK).mean(axis=(1, 2))  # f h w 3 -> f
    if np.median(dark) < LEAST_BLACK:
        raise UserError(
            f"{name} is no sequence of skeletons: {100 * np.median(dark):.0f}% of a frame is black, expected "
            f"{100 * LEAST_BLACK:.0f}% or more; give skeletons drawn on black"
        )
    if not (frames.max(axis=(1, 2, 3)) > BLACK).any():
        raise UserError(f"{name} is black in every frame: it shows no person; choose a clip that does")


def check_masks(masks: np.ndarray, poses: np.ndarray, name: str) -> None:
    """UserError unless masks uint8 (f h w 3) hold the person that the drawn skeletons (f h w 3) show.

    Refused: masks that are empty, or full, in all frames, and those that most joints lie outside of.
    """
    person = masks[..., 0] > 127
    for word, found in (("empty (all 0)", ~person), ("full (all 255)", person)):
        if found.all():
            raise UserError(f"{name} is {word} in every frame, expected white on the person, black elsewhere; mend it")
    shares = []
    for mask, pose in zip(person, poses, strict=True):
        joints = read_skeleton(pose) * np.divide(mask.shape[::-1], pose.shape[1::-1])  # in the mask's pixels
        joints = joints[np.isfinite(joints).all(axis=-1)]
        if len(joints) >= FEWEST_JOINTS:
            shares.append(points_inside(mask, joints))
    share = float(np.nanmean(shares)) if np.isfinite(shares).any() else 1.0
    if share < LEAST_INSIDE:
        raise UserError(
            f"{name} is not of the person: {100 * share:.0f}% of the skeleton's joints lie inside, expected "
            f"{100 * LEAST_INSIDE:.0f}% or more; give masks of the person"
        )
