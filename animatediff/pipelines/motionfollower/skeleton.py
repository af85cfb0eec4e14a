"""Skeletons as the published weights know them: OpenPose's 18 body joints and 2 x 21 hand joints, drawn on black."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Iterable

import cv2
import numpy as np

from animatediff.errors import UserError

BODY_JOINTS = 18
HAND_JOINTS = 21
JOINTS = BODY_JOINTS + 2 * HAND_JOINTS  # of one person: body, left hand, right hand
NOSE, NECK = 0, 1
REFERENCE_SIZE = 512  # shorter side in pixels at which the widths below hold
LIMB_HALF_WIDTH = 4
JOINT_RADIUS = 4
HAND_LINE = 2
HAND_RADIUS = 4
LIMB_SHADE = 0.6

LIMBS = (
    *((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10)),
    *((1, 11), (11, 12), (12, 13), (1, 0), (0, 14), (14, 16), (0, 15), (15, 17)),
)
FINGERS = tuple(
    (0 if joint == 0 else 4 * finger + joint, 4 * finger + joint + 1) for finger in range(5) for joint in range(4)
)
# OpenPose's wheel with red and blue exchanged, as the published program gave it to the networks.
WHEEL = tuple(
    (blue, green, red)
    for red, green, blue in (
        *((255, 0, 0), (255, 85, 0), (255, 170, 0), (255, 255, 0), (170, 255, 0), (85, 255, 0), (0, 255, 0)),
        *((0, 255, 85), (0, 255, 170), (0, 255, 255), (0, 170, 255), (0, 85, 255), (0, 0, 255), (85, 0, 255)),
        *((170, 0, 255), (255, 0, 255), (255, 0, 170), (255, 0, 85)),
    )
)
HAND_COLOR = (255, 0, 0)  # of a hand's joints, exchanged likewise


def draw_skeleton(
    body: np.ndarray, hands: Iterable[np.ndarray] | None = None, size: tuple[int, int] = (512, 512)
) -> np.ndarray:
    """One person's skeleton on black: (H W 3) uint8 RGB, `size` = (H, W).

    body (18 2) and hands (n 21 2): x, y in pixels; NaN where a joint is not seen: it and its limbs are left out.
    Limbs are ellipses in the shaded wheel, then joints as discs at full colour, then hands. Widths go with the
    shorter side. UserError for arrays of another shape.
    """
    body, hands = (
        np.asarray(body, np.float64),
        [np.asarray(hand, np.float64) for hand in (() if hands is None else hands)],
    )
    for name, joints, count in (("body", body, BODY_JOINTS), *(("hand", hand, HAND_JOINTS) for hand in hands)):
        if joints.shape != (count, 2):
            raise UserError(f"the {name} has joints of shape {joints.shape}, expected ({count}, 2): x and y of each")
    canvas = np.zeros((*size, 3), np.uint8)
    half_width, joint_radius, line, hand_radius = (
        max(1, round(width * min(size) / REFERENCE_SIZE))
        for width in (LIMB_HALF_WIDTH, JOINT_RADIUS, HAND_LINE, HAND_RADIUS)
    )
    for (start, end), color in zip(LIMBS, WHEEL, strict=False):
        if np.isfinite(body[[start, end]]).all():
            cv2.fillConvexPoly(canvas, _ellipse(body[start], body[end], half_width), _shaded(color))
    for joint, color in zip(body, WHEEL, strict=True):
        _disc(canvas, joint, joint_radius, color)
    for hand in hands:
        for k, (start, end) in enumerate(FINGERS):
            if np.isfinite(hand[[start, end]]).all():
                first, last = (tuple(map(int, _bounded(hand[joint]))) for joint in (start, end))
                cv2.line(canvas, first, last, _hue(k / len(FINGERS)), line)
        for joint in hand:
            _disc(canvas, joint, hand_radius, HAND_COLOR)
    return canvas


def _shaded(color: tuple[int, int, int]) -> tuple[int, ...]:
    return tuple(int(LIMB_SHADE * part) for part in color)


def _hue(hue: float) -> tuple[float, ...]:
    """The colour of a hue in [0, 1), red and blue exchanged as in the wheel."""
    red, green, blue = (255 * part for part in colorsys.hsv_to_rgb(hue, 1.0, 1.0))
    return blue, green, red


def _ellipse(start: np.ndarray, end: np.ndarray, half_width: int) -> np.ndarray:
    """The outline of a limb, (n 2) int."""
    start, end = _bounded(start), _bounded(end)
    middle, (dx, dy) = (start + end) / 2, start - end
    axes = (int(math.hypot(dx, dy) / 2), half_width)
    center = (int(middle[0]), int(middle[1]))
    return np.asarray(cv2.ellipse2Poly(center, axes, int(math.degrees(math.atan2(dy, dx))), 0, 360, 1))


def _disc(canvas: np.ndarray, joint: np.ndarray, radius: int, color: tuple[int, ...]) -> None:
    if np.isfinite(joint).all():
        x, y = _bounded(joint)
        cv2.circle(canvas, (int(x), int(y)), radius, color, thickness=-1)


def _bounded(joint: np.ndarray) -> np.ndarray:
    """A joint as OpenCV can take it: far outside of any frame there is nothing to draw."""
    return np.clip(joint, -32000, 32000)


def read_skeleton(image: np.ndarray) -> np.ndarray:
    """The body joints (18 2) of a drawing (H W 3) uint8 as `draw_skeleton` makes them; NaN where none is found.

    Joints are found by colour, as the middle of the largest spot of it. What others cover, or a lossy format has
    changed, may be missing. The left knee has the hands' colour and is the spot that its limbs lead to.
    """
    body = np.full((BODY_JOINTS, 2), np.nan)
    for joint, color in enumerate(WHEEL):
        spots = _spots(image, color)
        if color == HAND_COLOR:
            end = _end_of_limb(image, joint, body)
            reach = 2 * max(1, round(JOINT_RADIUS * min(image.shape[:2]) / REFERENCE_SIZE))
            spots = [spot for spot in spots if end is not None and np.linalg.norm(spot[0] - end) <= reach]
        if spots:
            body[joint] = max(spots, key=lambda spot: spot[1])[0]
    return body


def _spots(image: np.ndarray, color: tuple[int, ...], tolerance: int = 12) -> list[tuple[np.ndarray, int]]:
    """Middle (x y) and area of each connected spot of one colour."""
    near = (np.abs(image.astype(np.int16) - np.array(color, np.int16)) <= tolerance).all(axis=-1)
    _, _, stats, middles = cv2.connectedComponentsWithStats(np.asarray(near, np.uint8))
    return [(middle, stat[cv2.CC_STAT_AREA]) for middle, stat in zip(middles[1:], stats[1:], strict=True)]


def _end_of_limb(image: np.ndarray, joint: int, body: np.ndarray) -> np.ndarray | None:
    """Where the limb to `joint` from a joint found before ends, (x y); None where it is not drawn."""
    k, start = next((k, a) for k, (a, b) in enumerate(LIMBS) if b == joint)
    y, x = np.nonzero((image == np.array(_shaded(WHEEL[k]))).all(axis=-1))
    if np.isnan(body[start]).any() or not len(x):
        return None
    pixels = np.stack([x, y], axis=-1)
    return pixels[np.linalg.norm(pixels - body[start], axis=-1).argmax()]
