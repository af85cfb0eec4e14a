"""How far tokens of a video transformer truly move in a clip of the world: what attention motion flow should say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from animatediff.miniature.motions import Array
from animatediff.miniature.video_autoencoder import TIME
from animatediff.miniature.world import Clip, shape_distance


def true_flow(clip: Clip, height: int, width: int) -> tuple[Array, NDArray[np.bool_], NDArray[np.bool_]]:
    """Displacements of tokens between latent frames, in tokens: [F * F, height * width, 2], row i F + j from i to j.

    A token moves with the subject where its centre lies on it, else with the background. A latent frame stands for
    the middle of its frames. Also: which tokens stay in view and uncovered, and which lie on the subject; both
    [F * F, height * width].
    """
    poses = [_at(clip, frame) for frame in _middles(clip.motion.frames)]
    y, x = (axis.ravel() + 0.5 for axis in np.mgrid[:height, :width])
    token = np.array([clip.size[1] / width, clip.size[0] / height])
    points = np.stack([x, y], axis=1) * token - 0.5  # S 2, in pixels
    rows = []
    for centre, radius, turn, camera in poses:
        on = shape_distance(clip.content.shape, (points - centre) / radius @ turn) < 0
        for other, larger, turned, view in poses:
            with_subject = other + (points - centre) @ turn @ turned.T * (larger / radius)
            with_ground = ((points - camera[:, 2]) / camera[0, 0]) * view[0, 0] + view[:, 2]
            there = np.where(on[:, None], with_subject, with_ground)
            inside = ((there >= 0) & (there <= np.array(clip.size[::-1]) - 1)).all(axis=1)
            covered = np.linalg.norm(there - other, axis=1) < larger
            rows.append(((there - points) / token, inside & (on | ~covered), on))
    flow, visible, on = (np.stack(parts) for parts in zip(*rows, strict=True))
    return flow, visible, on


def _middles(frames: int) -> list[float]:
    return [0.0, *(TIME * k - (TIME - 1) / 2 for k in range(1, (frames - 1) // TIME + 1))]


def _at(clip: Clip, time: float) -> tuple[Array, float, Array, Array]:
    """Centre and radius of the subject in pixels, its turn [2, 2] and the camera [2, 3] at a time between frames."""
    motion, low = clip.motion, int(time)
    high, share = min(low + 1, clip.motion.frames - 1), time - low
    centre, radius, angle, camera = (
        (1 - share) * values[low] + share * values[high]
        for values in (clip.track(), clip.radii(), motion.angle, clip.camera())
    )
    cos, sin = np.cos(angle), np.sin(angle)
    return centre, float(radius), np.array([[cos, -sin], [sin, cos]]), camera


def flow_errors(flow: Array, clip: Clip, height: int, width: int, least: float = 0.5) -> dict[str, float]:
    """How near a flow [F * F, height * width, 2] is to the true one, over tokens that move by `least` tokens or more.

    Keys: error (mean distance, tokens), cosine, and truth (mean length of the true displacements: the error of
    standing still), each also as subject_... over the subject's tokens; nan where none moves.
    """
    truth, visible, on = true_flow(clip, height, width)
    moving = visible & (np.linalg.norm(truth, axis=-1) >= least)
    found: dict[str, float] = {}
    for prefix, mask in (("", moving & ~on), ("subject_", moving & on)):
        a, b = flow[mask], truth[mask]
        lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
        cosines = np.divide((a * b).sum(axis=-1), lengths, out=np.zeros(len(a)), where=lengths > 0)
        values = {"error": np.linalg.norm(a - b, axis=-1), "cosine": cosines, "truth": np.linalg.norm(b, axis=-1)}
        found |= {prefix + name: float(v.mean()) if len(v) else float("nan") for name, v in values.items()}
    return found
