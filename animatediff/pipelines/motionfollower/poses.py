"""Keypoints of a person over a clip, and their alignment: the driving person's motion on the source person's body.

A person's keypoints are (f 60 3): x and y in pixels and a score, of OpenPose's 18 body joints, then 21 of the left and
21 of the right hand. A joint with a score under 0.3, or NaN, is not seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.skeleton import (
    BODY_JOINTS,
    HAND_JOINTS,
    JOINTS,
    NECK,
    NOSE,
    draw_skeleton,
)

SEEN = 0.3  # score below which a joint is not seen
EDGE = 0.02  # share of the shorter side within which a joint is at the edge
FULL_LENGTH = 90  # percentile over the clip that stands for a bone's length without foreshortening
ROOTS = ("driving", "source")
RIGHT_SHOULDER, RIGHT_ELBOW, RIGHT_WRIST, LEFT_SHOULDER, LEFT_ELBOW, LEFT_WRIST = 2, 3, 4, 5, 6, 7
RIGHT_HIP, RIGHT_KNEE, RIGHT_ANKLE, LEFT_HIP, LEFT_KNEE, LEFT_ANKLE = 8, 9, 10, 11, 12, 13
MID_HIP = BODY_JOINTS  # a joint of our own, appended to the body's: the middle of the hips
LEGS = (RIGHT_KNEE, RIGHT_ANKLE, LEFT_KNEE, LEFT_ANKLE)
HANDS = ((LEFT_ELBOW, LEFT_WRIST, BODY_JOINTS), (RIGHT_ELBOW, RIGHT_WRIST, BODY_JOINTS + HAND_JOINTS))
_SIDES = ((2, 5), (3, 6), (4, 7), (8, 11), (9, 12), (10, 13), (14, 15), (16, 17))
MIRRORED = {**dict(_SIDES), **{left: right for right, left in _SIDES}}
# Joint -> the joint nearer to the root, when the root is the middle of the hips.
PARENTS = {
    NECK: MID_HIP,
    **{RIGHT_HIP: MID_HIP, RIGHT_KNEE: RIGHT_HIP, RIGHT_ANKLE: RIGHT_KNEE},
    **{LEFT_HIP: MID_HIP, LEFT_KNEE: LEFT_HIP, LEFT_ANKLE: LEFT_KNEE},
    **{RIGHT_SHOULDER: NECK, RIGHT_ELBOW: RIGHT_SHOULDER, RIGHT_WRIST: RIGHT_ELBOW},
    **{LEFT_SHOULDER: NECK, LEFT_ELBOW: LEFT_SHOULDER, LEFT_WRIST: LEFT_ELBOW},
    **{NOSE: NECK, 14: NOSE, 16: 14, 15: NOSE, 17: 15},
}


@dataclass(frozen=True)
class Alignment:
    """Aligned keypoints (f 60 3), and what was found on the way."""

    keypoints: np.ndarray
    scale: float  # source's torso / driving person's torso, medians over the clips
    root: int  # the joint that was placed: NECK or MID_HIP
    without_legs: bool  # the source shows none


def positions(keypoints: np.ndarray) -> np.ndarray:
    """Keypoints (f 60 3) -> (f 60 2) float64, NaN where a joint is not seen. UserError for another shape."""
    keypoints = np.asarray(keypoints, dtype=np.float64)
    if keypoints.ndim != 3 or keypoints.shape[1:] != (JOINTS, 3):
        raise UserError(
            f"the keypoints have shape {list(keypoints.shape)}, expected [frames, {JOINTS}, 3]: x, y and score of "
            "18 body and 2 x 21 hand joints"
        )
    seen = keypoints[..., 2] >= SEEN  # a NaN is not
    return np.where(seen[..., None], keypoints[..., :2], np.nan)


def draw_pose(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One frame's keypoints (60 3) as the networks see them: (H W 3) uint8, `size` = (H, W)."""
    joints = positions(keypoints[None])[0]
    return draw_skeleton(joints[:BODY_JOINTS], joints[BODY_JOINTS:].reshape(2, HAND_JOINTS, 2), size)


def align(
    source: np.ndarray,
    driving: np.ndarray,
    size: tuple[int, int],
    driving_size: tuple[int, int] | None = None,
    root: str = "driving",
    proportions: bool = True,
) -> Alignment:
    """The driving person's keypoints (f 60 3) on the source person's body and place, in the source's pixels.

    source, driving: keypoints (f 60 3) of clips whose frames belong together. size, driving_size: (H, W) of each
    (None: the same); bones that end at the edge are cut and say nothing about lengths. root: how the body moves
    through the picture: as the `driving` person from where the source stands first, or as the `source`. proportions:
    bones take the source's lengths; without, all is one similarity. UserError where no torso is seen in either clip,
    and for other words.
    """
    if root not in ROOTS:
        raise UserError(f"root is '{root}', expected one of {', '.join(ROOTS)}")
    if len(source) != len(driving):
        raise UserError(f"the source has {len(source)} frames of keypoints and the driving clip {len(driving)}")
    own, other = _with_mid_hip(positions(source)), _with_mid_hip(positions(driving))
    lengths = _Lengths(_uncut(own, size), _uncut(other, driving_size or size))
    scale = lengths.scale
    anchor = _root(own, other)
    body = _folded(lengths, other, anchor) if proportions else scale * (other - other[:, [anchor]])
    body = body + _places(own, other, scale, anchor, root)[:, None]
    aligned = np.full((len(driving), JOINTS, 2), np.nan)
    aligned[:, :BODY_JOINTS] = body[:, :BODY_JOINTS]
    without_legs = bool(np.isnan(own[:, list(LEGS)]).all(axis=(1, 2)).mean() > 0.9)
    if without_legs:
        aligned[:, list(LEGS)] = np.nan
    for elbow, wrist, first in HANDS:
        ratio = lengths.ratio(elbow, wrist) if proportions else scale
        hand = positions(driving)[:, first : first + HAND_JOINTS]
        aligned[:, first : first + HAND_JOINTS] = body[:, [wrist]] + ratio * (hand - other[:, [wrist]])
    aligned = _in_frame(aligned, size)
    there = np.isfinite(aligned).all(axis=-1)
    scores = np.where(there, np.asarray(driving)[..., 2], 0.0)
    joined = np.concatenate([np.nan_to_num(aligned), scores[..., None]], axis=-1)
    return Alignment(joined.astype(np.float32), float(scale), anchor, without_legs)


def bone_lengths(joints: np.ndarray, start: int, end: int) -> np.ndarray:
    """Lengths (f,) in pixels of one bone over a clip (f joints 2); NaN where it is not seen."""
    return np.linalg.norm(joints[:, end] - joints[:, start], axis=-1)


def _with_mid_hip(joints: np.ndarray) -> np.ndarray:
    """The body (f 18 2) of (f 60 2) with the middle of the hips appended: (f 19 2)."""
    middle = joints[:, [RIGHT_HIP, LEFT_HIP]].mean(axis=1, keepdims=True)
    return np.concatenate([joints[:, :BODY_JOINTS], middle], axis=1)


class _Lengths:
    """How long bones are in both clips, from joints (f 19 2) that no edge cuts.

    A bone's full length, without foreshortening, is a percentile over the clip, left and right averaged.
    """

    def __init__(self, own: np.ndarray, other: np.ndarray) -> None:
        self.own, self.other = own, other
        self.scale = self._torso(own, "source") / self._torso(other, "driving")

    def ratio(self, start: int, end: int) -> float:
        """By how much a driving bone becomes longer; the scale where one of the clips never shows it."""
        ours, theirs = (self._full(joints, start, end) for joints in (self.own, self.other))
        return ours / theirs if np.isfinite(ours) and theirs > 0 else self.scale

    @staticmethod
    def _torso(joints: np.ndarray, name: str) -> float:
        lengths = bone_lengths(joints, NECK, MID_HIP)
        if not np.isfinite(lengths).any():
            raise UserError(f"no frame of the {name} clip shows a person's torso, neck to hips; choose another clip")
        return float(np.nanmedian(lengths))

    @staticmethod
    def _full(joints: np.ndarray, start: int, end: int) -> float:
        mirrored = MIRRORED.get(start, start), MIRRORED.get(end, end)
        lengths = [bone_lengths(joints, *bone) for bone in dict.fromkeys([(start, end), mirrored])]
        found = [np.nanpercentile(side, FULL_LENGTH) for side in lengths if np.isfinite(side).any()]
        return float(np.mean(found)) if found else float("nan")


def _uncut(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints (f n 2) without those at the edge of the frame or outside, where detectors put what they cannot see."""
    margin = EDGE * min(size)
    with np.errstate(invalid="ignore"):
        inside = np.all((joints >= margin) & (joints < np.subtract(size[::-1], margin)), axis=-1, keepdims=True)
    return np.where(inside, joints, np.nan)


def _root(own: np.ndarray, other: np.ndarray) -> int:
    """The joint to place: the middle of the hips where both clips show it as often as the neck, else the neck."""
    seen = {joint: [np.isfinite(joints[:, joint, 0]).mean() for joints in (own, other)] for joint in (MID_HIP, NECK)}
    better = all(hip >= neck for hip, neck in zip(seen[MID_HIP], seen[NECK], strict=True))
    return MID_HIP if better else NECK


def _parents(root: int) -> dict[int, int]:
    """PARENTS seen from `root`."""
    if root == MID_HIP:
        return PARENTS
    return {MID_HIP: NECK} | {joint: parent for joint, parent in PARENTS.items() if joint != NECK}


def _outward(parents: dict[int, int], root: int) -> Iterator[int]:
    """The joints from the root outward, each after its parent."""
    done = [root]
    for joint in done:
        children = [child for child, parent in parents.items() if parent == joint]
        done += children
        yield from children


def _folded(lengths: _Lengths, other: np.ndarray, root: int) -> np.ndarray:
    """The driving body (f 19 2) with the source's bone lengths, folded outward from the root, which lies at 0.

    A bone keeps its direction and its foreshortening. Where a joint's parent is not seen, the joint hangs on the
    nearest one inward that is, by the plain scale.
    """
    parents = _parents(root)
    body = np.full_like(other, np.nan)
    body[:, root] = 0.0
    for joint in _outward(parents, root):
        inward, factor = parents[joint], lengths.ratio(parents[joint], joint)
        missing = np.ones(len(other), dtype=bool)
        while True:
            found = missing & np.isfinite(body[:, inward]).all(-1) & np.isfinite(other[:, inward]).all(-1)
            body[found, joint] = body[found, inward] + factor * (other[found, joint] - other[found, inward])
            missing &= ~found
            if inward == root:
                break
            inward, factor = parents[inward], lengths.scale
    return body


def _places(own: np.ndarray, other: np.ndarray, scale: float, root: int, path: str) -> np.ndarray:
    """Where the root lies in each frame, (f 2); in frames that do not show it, where it was last."""
    ours, theirs = _filled(own[:, root]), _filled(other[:, root])
    return ours if path == "source" else ours[0] + scale * (theirs - theirs[0])


def _filled(track: np.ndarray) -> np.ndarray:
    """A track (f 2) with gaps bridged linearly and its ends held."""
    seen = np.isfinite(track).all(axis=-1)
    frames = np.arange(len(track))
    return np.stack([np.interp(frames, frames[seen], track[seen, axis]) for axis in (0, 1)], axis=-1)


def _in_frame(joints: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Joints (f 60 2) that the frame shows: inside it, or at the far end of a limb that begins inside."""
    height, width = size
    with np.errstate(invalid="ignore"):
        inside = np.logical_and(joints >= 0, joints < (width, height)).min(axis=-1)
    kept = inside.copy()
    for joint, parent in PARENTS.items():
        if parent != MID_HIP and joint < BODY_JOINTS:
            kept[:, joint] |= inside[:, parent] & np.isfinite(joints[:, joint]).all(axis=-1)
    return np.where(kept[..., None], joints, np.nan)
