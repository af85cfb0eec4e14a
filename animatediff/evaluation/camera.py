"""Global (camera) motion: one similarity transform per pair of frames, fitted to the tracks, and its error."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from animatediff.evaluation.metrics import ArrayLike, check_tracks

INLIER = 1.0  # pixels: a point this near to where the transform takes it belongs to the global motion
GRID = 9  # the error is averaged over GRID x GRID points of the frame


def global_motion(
    tracks: ArrayLike, visibility: ArrayLike | None = None, inlier: float = INLIER
) -> NDArray[np.float64]:
    """The similarity transform (shift, turn, scale) that takes most points of frame k to frame k + 1.

    tracks [N, T, 2] pixels, visibility [N, T] -> [T-1, 2, 3] matrices A with x' = A (x, y, 1); NaN where fewer than
    two points are seen in both frames. Fitted by OpenCV's estimateAffinePartial2D: RANSAC with a fixed seed, then
    least squares over the points within `inlier` pixels. What most tracks follow is taken for the camera: a subject
    that covers more of the tracked points than the background does is mistaken for it.
    """
    points, seen = (part.cpu().double().numpy() for part in check_tracks(tracks, visibility))
    transforms = np.full((max(0, points.shape[1] - 1), 2, 3), np.nan)
    for k in range(len(transforms)):
        both = (seen[:, k] > 0) & (seen[:, k + 1] > 0)
        if both.sum() < 2:
            continue
        fitted, _ = cv2.estimateAffinePartial2D(
            points[both, k], points[both, k + 1], method=cv2.RANSAC, ransacReprojThreshold=inlier, maxIters=2000
        )
        if fitted is not None:
            transforms[k] = fitted
    return transforms


def global_motion_error_per_step(
    transforms: NDArray[np.float64], reference: NDArray[np.float64], size: tuple[int, int]
) -> NDArray[np.float64]:
    """How far apart two transforms take the frame, step by step: [T-1, 2, 3] each -> [T-1] pixels per frame.

    At every step, the mean over a 9 x 9 grid of points x of the (width, height) frame of |A x - B x|: the shift, turn
    and scale errors in one number and one unit. NaN where either transform is.
    """
    width, height = size
    x, y = np.meshgrid(np.linspace(0, width - 1, GRID), np.linspace(0, height - 1, GRID))
    grid = np.stack([x.ravel(), y.ravel(), np.ones(GRID * GRID)])  # [3, 81]
    steps = min(len(transforms), len(reference))
    apart = (transforms[:steps] - reference[:steps]) @ grid  # [T-1, 2, 81]
    return np.linalg.norm(apart, axis=1).mean(-1)


def global_motion_error(
    tracks: ArrayLike,
    reference_tracks: ArrayLike,
    size: tuple[int, int],
    visibility: ArrayLike | None = None,
    reference_visibility: ArrayLike | None = None,
    inlier: float = INLIER,
) -> float:
    """Mean over time of the disagreement of two videos' global motion, in pixels per frame; 0 is best.

    Both sets of tracks lie in frames of the same (width, height) `size`; their points need not correspond, nor be of
    equal number. See global_motion and global_motion_error_per_step. Steps without two visible points are left out;
    NaN where none remains.
    """
    errors = global_motion_error_per_step(
        global_motion(tracks, visibility, inlier), global_motion(reference_tracks, reference_visibility, inlier), size
    )
    known = errors[~np.isnan(errors)]
    return float(known.mean()) if known.size else float("nan")
