"""What a clip of the people world shows, read from its pixels alone: joints found by the colours of the clothes."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from animatediff.miniature.people.world import COLOURS, PARTS, Clip, Image

Array = NDArray[np.float64]

NEAR = 62.0  # a pixel has a garment's colour up to this distance in RGB
FEWEST = 4  # pixels that a part must show to be found
ROUNDING = 0.4  # of a limb's width: what its round ends add to its half length, as its spread tells it
LOST = 0.25  # of the frame's width: the error of a joint that is not found, and the most that any has
JOINTS = ("nose", "neck", *(f"{side} {joint}" for side in ("right", "left") for joint in
          ("shoulder", "elbow", "wrist", "hip", "knee", "ankle")))  # fmt: skip


def read_joints(frames: Image, clothes: Sequence[str]) -> Array:
    """Where JOINTS are in `frames` [f, h, w, 3]: [f, 14, 2] in pixels (x, y), nan where a part is not seen.

    clothes: the colour's name of each of PARTS.
    """
    return np.stack([_read(frame, clothes) for frame in frames])


def _read(frame: Image, clothes: Sequence[str]) -> Array:
    palette = np.array([COLOURS[name] for name in clothes], np.float32)
    away = np.linalg.norm(frame[..., None, :].astype(np.float32) - palette, axis=-1)  # h w parts
    shown = np.where(away.min(axis=-1) < NEAR, away.argmin(axis=-1), -1)
    ends = {part: _ends(shown == number, part, frame.shape[1]) for number, part in enumerate(PARTS)}
    found = dict.fromkeys(JOINTS, np.full(2, np.nan))
    if ends["head"] is not None:
        found["nose"] = ends["head"].mean(axis=0)
    neck = hips = None
    if ends["torso"] is not None:
        torso = ends["torso"]
        top = found["nose"] if ends["head"] is not None else np.array([torso[:, 0].mean(), -np.inf])
        order = np.argsort(np.linalg.norm(torso - top, axis=-1)) if np.isfinite(top).all() else np.argsort(torso[:, 1])
        neck, hips = torso[order]
        found["neck"] = neck
    for side in ("right", "left"):
        for names, bones, root in (
            (("shoulder", "elbow", "wrist"), ("arm", "forearm"), neck),
            (("hip", "knee", "ankle"), ("thigh", "shin"), hips),
        ):
            chain = _chain(ends[f"{side}_{bones[0]}"], ends[f"{side}_{bones[1]}"], root)
            found |= {f"{side} {name}": place for name, place in zip(names, chain, strict=True)}
    return np.stack([found[name] for name in JOINTS])


def _ends(mask: NDArray[np.bool_], part: str, width: int) -> Array | None:
    """Both ends [2, 2] of the bone in the largest spot of a part's pixels, from its middle and its spread."""
    count, spots, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if stats[largest, cv2.CC_STAT_AREA] < FEWEST:
        return None
    y, x = np.nonzero(spots == largest)
    points = np.stack([x, y], axis=-1).astype(float)
    middle = points.mean(axis=0)
    spread, axes = np.linalg.eigh(np.cov(points.T))
    half = max(0.0, np.sqrt(3 * max(0.0, spread[1])) - ROUNDING * 2 * PARTS[part][2] * width)
    return np.stack([middle - half * axes[:, 1], middle + half * axes[:, 1]])


def _chain(upper: Array | None, lower: Array | None, root: Array | None) -> tuple[Array, Array, Array]:
    """Shoulder, elbow, wrist from both bones' ends, turned so that the chain starts at `root` and hangs together."""
    unseen = np.full(2, np.nan)
    best, least = (unseen, unseen, unseen), np.inf
    for first in (upper, None if upper is None else upper[::-1]):
        for second in (lower, None if lower is None else lower[::-1]):
            start, bend = (unseen, unseen) if first is None else (first[0], first[1])
            again, end = (unseen, unseen) if second is None else (second[0], second[1])
            gaps = [bend - again, unseen if root is None else start - root]
            if first is None and root is not None:
                gaps.append(again - root)
            cost = float(np.nansum([np.linalg.norm(gap) for gap in gaps]))
            if cost < least:
                seen = [place for place in (bend, again) if np.isfinite(place).all()]
                best, least = (start, np.mean(seen, axis=0) if seen else unseen, end), cost
    return best


def pose_error(frames: Image, wanted: Clip) -> float:
    """How far the joints in `frames` [f, h, w, 3] are from those of the clip `wanted`, in percent of the width.

    The mean over all joints that the same reading finds in the exact clip; a joint counts LOST at most.
    """
    clothes, width = wanted.scene.clothes, frames.shape[2]
    exact = read_joints(wanted.frames(), clothes)
    away = np.linalg.norm(read_joints(frames, clothes) - exact, axis=-1) / width
    away = np.minimum(np.nan_to_num(away, nan=LOST), LOST)[np.isfinite(exact[..., 0])]
    return float(100 * away.mean())


def clothes_kept(frames: Image, wanted: Clip) -> float:
    """The share of garments, over frames, that have their colour where the clip `wanted` shows them: 0 to 1.

    A garment's colour is the mean over the pixels well inside it; right where no other of the ten is nearer.
    """
    palette = np.array([COLOURS[name] for name in wanted.scene.clothes], np.float32)
    parts = wanted.render()[1]
    right = []
    for frame, shown in zip(frames, parts, strict=True):
        for number in range(len(PARTS)):
            inside = cv2.erode((shown == number).astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
            if inside.sum() >= FEWEST:
                mean = frame[inside].astype(np.float32).mean(axis=0)
                right.append(np.linalg.norm(palette - mean, axis=-1).argmin() == number)
    return float(np.mean(right))


def background_psnr(frames: Image, source: Clip, wanted: Clip) -> float:
    """PSNR in dB, over the whole clip, of what the person hides in neither clip, against the source."""
    outside = ~(source.masks() | wanted.masks())
    error = (frames.astype(np.float32) - source.frames().astype(np.float32))[outside]
    return float(10 * np.log10(255**2 / max(float((error**2).mean()), 1e-6)))
