"""Global motion: transforms that are known are found, whatever the subject does."""

import math

import numpy as np
import pytest

from animatediff.evaluation.camera import global_motion, global_motion_error

SIZE = (128, 96)
RNG = np.random.default_rng(0)
GRID = RNG.uniform(5, 90, (60, 2))


def moved(transform, frames=5, points=GRID):
    """Tracks of points under the same transform [2, 3] at every step."""
    path = [points]
    for _ in range(frames - 1):
        path.append(path[-1] @ transform[:, :2].T + transform[:, 2])
    return np.stack(path, axis=1)


def similarity(scale=1.0, degrees=0.0, shift=(0.0, 0.0)):
    a = math.radians(degrees)
    turn = scale * np.array([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
    return np.concatenate([turn, np.array(shift)[:, None]], axis=1)


@pytest.mark.parametrize("known", [similarity(shift=(2, -1)), similarity(1.02, 1.5, (0.5, 0)), similarity(0.97)])
def test_a_known_transform_is_found_beside_a_moving_subject_and_noise(known):
    tracks = moved(known) + RNG.normal(0, 0.02, (60, 5, 2))
    tracks[:15] = moved(similarity(shift=(-5, 6)), points=GRID[:15])  # a quarter follows the subject
    assert np.abs(global_motion(tracks) - known)[:, :, :2].max() < 5e-3
    assert np.abs(global_motion(tracks) - known)[:, :, 2].max() < 0.2


def test_error_is_in_pixels_per_frame():
    assert global_motion_error(moved(similarity(shift=(3, 4))), moved(similarity()), SIZE) == pytest.approx(5, abs=1e-6)
    same = moved(similarity(1.03, 2))
    assert global_motion_error(same, same[::2], SIZE) == pytest.approx(0, abs=1e-6)
    opposite = global_motion_error(moved(similarity(1.03)), moved(similarity(1 / 1.03)), SIZE)
    assert 3 < opposite < 6  # 6% of the mean distance (77 pixels) from the origin


def test_hidden_points_are_left_out_and_too_few_give_nan():
    tracks = moved(similarity(shift=(1, 0)))
    seen = np.ones(tracks.shape[:2], dtype=bool)
    tracks[:50, 2:] = np.nan
    seen[:50, 2:] = False
    assert global_motion_error(tracks, moved(similarity(shift=(1, 0))), SIZE, seen) == pytest.approx(0, abs=1e-6)
    seen[:, 3:] = False
    transforms = global_motion(tracks, seen)
    assert np.isnan(transforms[2:]).all()
    assert np.isfinite(transforms[:2]).all()
    assert math.isnan(global_motion_error(tracks[:1], tracks[:1], SIZE, seen[:1], seen[:1]))
