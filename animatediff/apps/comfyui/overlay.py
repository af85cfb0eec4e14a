"""Tracks drawn over frames."""

from __future__ import annotations

import cv2
import numpy as np

from animatediff.evaluation.trackers import Frames, Tracks

SIDE = 256  # pixels: smaller frames are enlarged, so that lines can be seen
MOST = 60  # tracks drawn


def draw_tracks(frames: Frames, tracks: Tracks) -> Frames:
    """Frames uint8 (f h w 3) with the way up to there of the points that move most: uint8 (f s*h s*w 3), s whole.

    A track ends where its point is lost. Its hue tells where it began, from left to right.
    """
    height, width = frames.shape[1:3]
    scale = max(1, -(-SIDE // min(height, width)))
    large = np.ascontiguousarray(frames.repeat(scale, axis=1).repeat(scale, axis=2))
    lengths = np.linalg.norm(np.diff(tracks.tracks, axis=1), axis=-1).sum(1)  # N T 2 -> N
    for number in np.argsort(-lengths, kind="stable")[:MOST]:
        path, seen = tracks.tracks[number], tracks.visibility[number]
        lasts = len(path) if seen.all() else int(np.argmin(seen))
        points = np.rint((path[:lasts] + 0.5) * scale).astype(np.int32)
        hue = 150 * min(max(float(path[0, 0]) / max(width - 1, 1), 0), 1)
        colour = cv2.cvtColor(np.array([[[hue, 255, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
        for k in range(min(lasts, len(large))):
            cv2.polylines(large[k], [points[: k + 1, None]], False, colour, 1, cv2.LINE_AA)
            cv2.circle(large[k], points[k].tolist(), 2, colour, -1, cv2.LINE_AA)
    return large
