"""What a preparation checks of itself, with the figures that the log and the sheet show."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.masks import TORSO, share_inside
from animatediff.pipelines.motionfollower.poses import LEGS, positions
from animatediff.pipelines.motionfollower.selfcheck import FEWEST_JOINTS, LEAST_INSIDE
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS

FOUND = 0.9  # share of frames in which a person is found
INSIDE = 0.9  # share of a frame's joints that lie in its mask
SEEN_OFTEN, SEEN_SELDOM = 0.5, 0.1  # share of frames in which legs are seen, and are not


@dataclass(frozen=True)
class Figure:
    """One self-check: what was measured, and from where on it is good."""

    what: str
    value: float
    least: float

    @property
    def good(self) -> bool:
        return self.value >= self.least

    @property
    def line(self) -> str:
        return f"{self.what}: {100 * self.value:.0f}% ({100 * self.least:.0f}% or more is good)"


def person_found(keypoints: np.ndarray, clip: str, found: int | None = None) -> Figure:
    """In how many frames a person's joints were read. UserError, with what to do, where they are too few.

    found: of how many frames there is a person, where it is known otherwise than from the keypoints.
    """
    body = np.isfinite(positions(keypoints)[:, :BODY_JOINTS]).all(axis=-1)  # f 18
    count = int((body.sum(axis=1) >= FEWEST_JOINTS).sum()) if found is None else found
    figure = Figure(f"frames that show the {clip} clip's person", count / len(body), FOUND)
    if not figure.good:
        raise UserError(
            f"the person was found in {count} of {len(body)} frames of the {clip} clip, expected {100 * FOUND:.0f}%; "
            f"take a part that shows the person ({clip}_start, num_frames), say who it is ({clip}_subject), or give "
            f"{clip}_keypoints"
        )
    if not body[:, list(TORSO)].all(axis=1).any():
        raise UserError(
            f"no frame of the {clip} clip shows a person from the shoulders to the hips; give a clip that does"
        )
    return figure


def whole_enough(source: np.ndarray, driving: np.ndarray) -> None:
    """UserError where the source's legs are to follow a driving clip that shows none."""
    shares = [
        np.isfinite(positions(keypoints)[:, list(LEGS)]).all(axis=-1).any(axis=1).mean()
        for keypoints in (source, driving)
    ]
    if shares[0] >= SEEN_OFTEN and shares[1] < SEEN_SELDOM:
        raise UserError(
            f"half a person moves no whole one: the driving clip shows legs in {100 * shares[1]:.0f}% of its frames, "
            f"the source in {100 * shares[0]:.0f}%; give a driving clip that shows the legs, or a source that does not"
        )


def masks_hold(masks: np.ndarray, keypoints: np.ndarray, name: str) -> Figure:
    """How many of the joints lie in masks uint8 (f h w). UserError for masks that are empty, full, or of another."""
    shares = (masks > 127).mean(axis=(1, 2))
    for word, bad in (("empty", shares == 0), ("full", shares == 1)):
        if bad.any():
            first = int(np.flatnonzero(bad)[0])
            raise UserError(
                f"{name}: the mask of frame {first} is {word} ({int(bad.sum())} of {len(masks)} are), expected white "
                "on the person and black elsewhere; give your own masks"
            )
    inside = [share_inside(mask > 127, frame) for mask, frame in zip(masks, keypoints, strict=True)]
    value = float(np.nanmean(inside)) if np.isfinite(inside).any() else 1.0
    if value < LEAST_INSIDE:
        raise UserError(
            f"{name} are not of the person: {100 * value:.0f}% of the joints lie inside, expected {100 * INSIDE:.0f}%; "
            "give masks of the person, or say who it is (source_subject)"
        )
    return Figure(f"joints inside {name.replace('_', ' ')}", value, INSIDE)
