"""The outline of the source's person in the target pose, without a trained predictor.

The source's mask is cut into ten parts along its skeleton; every part moves as its bones do from the source's pose to
the aligned target's, and what lies between them is closed. All masks are (H W) bool, keypoints as in `poses`.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.poses import (
    LEFT_ANKLE,
    LEFT_ELBOW,
    LEFT_HIP,
    LEFT_KNEE,
    LEFT_SHOULDER,
    LEFT_WRIST,
    RIGHT_ANKLE,
    RIGHT_ELBOW,
    RIGHT_HIP,
    RIGHT_KNEE,
    RIGHT_SHOULDER,
    RIGHT_WRIST,
    positions,
)
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS, NECK, NOSE

HEAD = (NOSE, NECK, 14, 15, 16, 17)
HEAD_BONES = ((NECK, NOSE), (NOSE, 14), (14, 16), (NOSE, 15), (15, 17))
TORSO = (NECK, RIGHT_SHOULDER, RIGHT_HIP, LEFT_HIP, LEFT_SHOULDER)  # in order around it
LIMB_PARTS = (
    *((RIGHT_SHOULDER, RIGHT_ELBOW), (RIGHT_ELBOW, RIGHT_WRIST), (LEFT_SHOULDER, LEFT_ELBOW)),
    *((LEFT_ELBOW, LEFT_WRIST), (RIGHT_HIP, RIGHT_KNEE), (RIGHT_KNEE, RIGHT_ANKLE)),
    *((LEFT_HIP, LEFT_KNEE), (LEFT_KNEE, LEFT_ANKLE)),
)
PART_BONES = {
    "head": HEAD_BONES,
    **{f"limb {i}": (bone,) for i, bone in enumerate(LIMB_PARTS)},
    "torso": tuple(zip(TORSO, (*TORSO[1:], TORSO[0]), strict=True)),
}
SHORT_PARTS = ("head", "limb 0", "limb 1", "limb 2", "limb 3")  # head and arms
MARGIN = 0.5  # of each side, by which a mask that the frame cuts is continued
REACH = 0.25  # of the torso's length: how far arms and head go on beyond the frame; legs and torso go on to the end
INNER = 0.9  # share of the mask's inner distance that discs along a bone take
FORESHORTENED = 0.4  # share of a limb's greatest length over the clip below which it points at the camera
CLOSING = 0.03  # of the height: the ellipse that closes gaps
MEDIAN_FRAMES = 3

Matrix = np.ndarray  # (2 3): x' = M [x, y, 1]


def predict_masks(masks: np.ndarray, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The source person's masks (f H W) bool in the target pose, from masks (f H W) and keypoints (f 60 3) of both.

    A part whose bone a source frame does not show comes from the frame nearest in pose that does. A median over three
    frames ends flicker. UserError where the numbers of frames differ.
    """
    if not len(masks) == len(source) == len(target):
        counts = f"{len(masks)} masks, {len(source)} source and {len(target)} target skeletons"
        raise UserError(f"the numbers of frames differ: {counts}; give as many of each")
    here, there = (positions(keypoints)[:, :BODY_JOINTS] for keypoints in (source, target))
    clip = [_Source(mask, joints) for mask, joints in zip(np.asarray(masks, bool), here, strict=True)]
    moved = np.stack([_moved(clip, j, joints) for j, joints in enumerate(there)])
    return _median(moved)


def share_inside(mask: np.ndarray, keypoints: np.ndarray) -> float:
    """The share of the body joints seen (of 60 3) that lie in a mask (H W), of those in the frame; NaN without any."""
    joints = positions(keypoints[None])[0, :BODY_JOINTS]
    return points_inside(mask, joints[np.isfinite(joints).all(axis=-1)])


def points_inside(mask: np.ndarray, points: np.ndarray) -> float:
    """The share of points (n 2) that lie in a mask (H W), of those in the frame; NaN where none does."""
    places = np.floor(points).astype(int)
    height, width = mask.shape
    places = places[((places >= 0) & (places < (width, height))).all(axis=-1)]
    return float(np.asarray(mask, bool)[places[:, 1], places[:, 0]].mean()) if len(places) else float("nan")


def iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Intersection over union of two masks of one shape, 1 where both are empty."""
    mask, other = np.asarray(mask, bool), np.asarray(other, bool)
    union = (mask | other).sum()
    return float((mask & other).sum() / union) if union else 1.0


def split_parts(mask: np.ndarray, joints: np.ndarray) -> dict[str, np.ndarray]:
    """A mask (H W) by part: "head", "torso", "limb 0" .. "limb 7", those whose joints (18 2) are seen.

    Every pixel belongs to the part that is nearest; inside the polygon of the torso that is the torso.
    """
    y, x = np.nonzero(mask)
    pixels = np.stack([x, y], axis=-1).astype(np.float32)  # n x y
    distances: dict[str, np.ndarray] = {}
    for name, bones in PART_BONES.items():
        seen = [joints[list(bone)] for bone in bones if np.isfinite(joints[list(bone)]).all()]
        if seen:
            distances[name] = np.min([_distance(pixels, *bone) for bone in seen], axis=0)
    polygon = joints[list(TORSO)]
    if "torso" in distances and np.isfinite(polygon).all():
        filled = cv2.fillPoly(np.zeros(mask.shape, np.uint8), [np.round(polygon).astype(np.int32)], 1)
        distances["torso"][filled[y, x] > 0] = 0
    if not distances:
        return {}
    owner = np.argmin(list(distances.values()), axis=0)
    parts = {}
    for i, name in enumerate(distances):
        part = np.zeros(mask.shape, bool)
        part[y[owner == i], x[owner == i]] = True
        parts[name] = part
    return parts


def similarity(source: np.ndarray, target: np.ndarray) -> Matrix | None:
    """The similarity that takes points (n 2) onto others by least squares; None for fewer than two seen in both."""
    both = np.isfinite(source).all(axis=-1) & np.isfinite(target).all(axis=-1)
    if both.sum() < 2:
        return None
    a, b = (points[both] @ (1, 1j) for points in (source, target))  # x + iy
    da, db = a - a.mean(), b - b.mean()
    if not (np.abs(da) ** 2).sum():
        return None
    turn = (da.conj() * db).sum() / (np.abs(da) ** 2).sum()
    shift = b.mean() - turn * a.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def limb_transform(source: np.ndarray, target: np.ndarray, across: float) -> Matrix | None:
    """Takes bone `source` (2 2) onto `target`, scaled along it by the ratio of lengths, across it by `across`."""
    (a, b), (c, d) = source, target
    old, new = b - a, d - c
    length, new_length = np.linalg.norm(old), np.linalg.norm(new)
    if not (length > 0 and new_length > 0):  # neither for NaN
        return None
    u, v = old / length, new / new_length
    frame = lambda axis: np.array([[axis[0], -axis[1]], [axis[1], axis[0]]])  # noqa: E731  # columns: along, across
    linear = frame(v) @ np.diag([new_length / length, across]) @ frame(u).T
    return np.concatenate([linear, (c - linear @ a)[:, None]], axis=1)


class _Source:
    """One source frame: mask and joints in a larger picture, where what the frame cuts goes on; cut into parts."""

    def __init__(self, mask: np.ndarray, joints: np.ndarray) -> None:
        self.size = mask.shape
        self.margin = tuple(round(MARGIN * side) for side in mask.shape)
        self.mask = np.pad(mask, [(side, side) for side in self.margin], mode="edge")
        self.joints = joints + self.margin[::-1]
        self.parts = split_parts(self.mask, self.joints)
        for name in SHORT_PARTS:
            self._shorten(name)
        self.inner = cv2.distanceTransform(self.mask.astype(np.uint8), cv2.DIST_L2, 5)

    def _shorten(self, name: str) -> None:
        """Let a part end REACH beyond its bones where it lies outside the frame."""
        torso = np.linalg.norm(self.joints[NECK] - self.joints[[RIGHT_HIP, LEFT_HIP]].mean(axis=0))
        if name not in self.parts or np.isnan(torso):
            return
        (top, left), part = self.margin, self.parts[name]
        outside = part.copy()
        outside[top : top + self.size[0], left : left + self.size[1]] = False
        y, x = np.nonzero(outside)
        pixels = np.stack([x, y], axis=-1).astype(np.float32)
        bones = [self.joints[list(bone)] for bone in PART_BONES[name]]
        near = np.min([_distance(pixels, *bone) for bone in bones if np.isfinite(bone).all()], axis=0)
        part[y[near > REACH * torso], x[near > REACH * torso]] = False

    def torso_scale(self, target: np.ndarray) -> float:
        """By how much the torso grows towards target joints (18 2) of the larger picture; 1 where it is not seen."""
        matrix = similarity(self.joints[list(TORSO)], target[list(TORSO)])
        return 1.0 if matrix is None else float(np.clip(np.hypot(matrix[0, 0], matrix[1, 0]), 0.5, 2.0))


def _moved(clip: Sequence[_Source], j: int, joints: np.ndarray) -> np.ndarray:
    """The mask (H W) of frame `j` in the pose of target joints (18 2)."""
    own = clip[j]
    target = joints + own.margin[::-1]
    across = own.torso_scale(target)
    union = np.zeros(own.mask.shape, np.uint8)
    jobs = [("head", list(HEAD)), ("torso", list(TORSO)), *((f"limb {i}", list(b)) for i, b in enumerate(LIMB_PARTS))]
    for name, part_joints in jobs:
        limb = name.startswith("limb")
        frame = _frame_that_shows(clip, j, part_joints, every=limb)
        if frame is None or name not in frame.parts:
            continue
        here, there = frame.joints[part_joints], target[part_joints]
        matrix = limb_transform(here, there, across) if limb else similarity(here, there)
        if matrix is None:
            continue
        union |= _warped(frame.parts[name], matrix)
        if limb:
            _discs(union, frame, here, there, across)
    top, left = own.margin
    closed = _closed(union, own.size[0])
    return closed[top : top + own.size[0], left : left + own.size[1]]


def _frame_that_shows(clip: Sequence[_Source], j: int, joints: list[int], every: bool) -> _Source | None:
    """Frame j where it shows the part's joints (all, or two), else the one nearest in pose that does.

    A limb that points at the camera, and would be stretched out of shape, is not shown.
    """
    need = len(joints) if every else 2
    able = [k for k, frame in enumerate(clip) if np.isfinite(frame.joints[joints]).all(axis=-1).sum() >= need]
    if not able:
        return None
    if every:
        lengths = [np.linalg.norm(np.subtract(*clip[k].joints[joints])) for k in able]
        able = [k for k, length in zip(able, lengths, strict=True) if length >= FORESHORTENED * max(lengths)]
    return clip[j] if j in able else clip[min(able, key=lambda k: _pose_distance(clip[j].joints, clip[k].joints))]


def _pose_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The mean distance of joints (18 2) seen in both; infinite where none is."""
    distances = np.linalg.norm(a - b, axis=-1)
    return float(np.nanmean(distances)) if np.isfinite(distances).any() else float("inf")


def _distance(pixels: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Of pixels (n 2) to a segment: (n,)."""
    along = (end - start).astype(np.float32)
    offset = pixels - start.astype(np.float32)
    share = np.clip(offset @ along / max(float(along @ along), 1e-6), 0, 1)
    return np.linalg.norm(offset - share[:, None] * along, axis=-1)


def _warped(part: np.ndarray, matrix: Matrix) -> np.ndarray:
    moved = cv2.warpAffine(part.astype(np.uint8) * 255, matrix, part.shape[::-1], flags=cv2.INTER_LINEAR)
    return (moved > 127).astype(np.uint8)


def _discs(union: np.ndarray, source: _Source, here: np.ndarray, there: np.ndarray, scale: float) -> None:
    """Draw discs into `union` along a target bone, as wide as the mask is around the source's."""
    steps = max(2, int(np.linalg.norm(there[1] - there[0]) / 2))
    height, width = source.mask.shape
    for share in np.linspace(0, 1, steps):
        x, y = np.clip(here[0] + share * (here[1] - here[0]), 0, (width - 1, height - 1)).astype(int)
        radius = INNER * source.inner[y, x] * scale
        if radius >= 1:
            middle = np.clip(there[0] + share * (there[1] - there[0]), -32000, 32000)
            cv2.circle(union, (int(middle[0]), int(middle[1])), round(float(radius)), 1, thickness=-1)


def _closed(union: np.ndarray, height: int) -> np.ndarray:
    """Gaps closed, holes filled, the biggest piece: bool."""
    side = max(1, round(CLOSING * height)) | 1
    union = cv2.morphologyEx(union, cv2.MORPH_CLOSE, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side)))
    outlines, _ = cv2.findContours(union, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return union.astype(bool)
    biggest = max(outlines, key=cv2.contourArea)
    return cv2.drawContours(np.zeros_like(union), [biggest], -1, 1, thickness=cv2.FILLED).astype(bool)


def _median(masks: np.ndarray) -> np.ndarray:
    """The median over three frames of masks (f H W); the ends stand for what is before and after them."""
    reach = MEDIAN_FRAMES // 2
    padded = np.pad(masks, ((reach, reach), (0, 0), (0, 0)), mode="edge")
    votes = np.sum([padded[k : k + len(masks)] for k in range(MEDIAN_FRAMES)], axis=0)
    return votes > reach
