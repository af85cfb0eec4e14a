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
