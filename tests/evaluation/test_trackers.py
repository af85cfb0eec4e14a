"""Trackers on rendered clips whose motion is known, and what fidelity makes of their tracks."""

import sys
from dataclasses import replace
from types import ModuleType

import numpy as np
import pytest
import torch

from animatediff.errors import UserError
from animatediff.evaluation.camera import global_motion_error
from animatediff.evaluation.metrics import motion_fidelity
from animatediff.evaluation.trackers import CoTracker, LucasKanade, build_tracker
from animatediff.miniature.motions import CAMERA_FAMILIES, FAMILIES, Motion, sample_motion
from animatediff.miniature.world import Clip, sample_content

SIZE = (128, 128)
# Radial motions hold every direction at once, so fidelity, which is blind to place, hardly tells them from their like
# (global_motion_error does, for cameras); a rotation of up to 24 degrees a frame is beyond Lucas-Kanade, which matches
# squares that only shift.
RADIAL = ("zoom_in", "zoom_out", "grow", "shrink")
RANKED = [family for family in FAMILIES if family not in (*RADIAL, "rotate")]
track = LucasKanade()


def render(motion: Motion, seed: int) -> np.ndarray:
    return Clip(sample_content(seed), motion, SIZE).frames()


def similar(motion: Motion) -> Motion:
    """The same kind of path, turned by 30 degrees about the middle of the frame and a little smaller."""
    a = np.deg2rad(30)
    turn = 0.9 * np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])
    return replace(motion, centre=motion.centre @ turn.T, shift=motion.shift @ turn.T)


def halted(motion: Motion) -> Motion:
    """The first pose, throughout."""
    parts = {name: getattr(motion, name) for name in ("centre", "scale", "angle", "zoom", "shift")}
    return replace(motion, **{name: np.repeat(part[:1], motion.frames, axis=0) for name, part in parts.items()})


def test_median_error_is_below_one_pixel_on_subject_and_background():
    errors: dict[str, list] = {"subject": [], "background": []}
    seen = []
    for number, family in enumerate(FAMILIES):
        clip = Clip(sample_content(number), sample_motion(number, family=family), SIZE)
        for part, truth in (("subject", clip.points_on_subject(30)), ("background", clip.points_on_background(20))):
            tracks, visibility = track(clip.frames(), truth[:, 0].astype(np.float32))
            assert tracks.shape == truth.shape
            seen.append(visibility.mean())
            errors[part].extend(np.linalg.norm(tracks - truth, axis=-1)[:, 1:].ravel())  # lost points count too
    assert np.mean(seen) > 0.9
    assert min(seen) > 0.2, "16 pixels a frame over a strong ground are the hardest"
    assert np.median(errors["subject"]) < 1
    assert np.median(errors["background"]) < 0.1


def test_fidelity_ranks_same_above_similar_above_reversed_above_still():
    ranked = [(family, seed) for family in RANKED for seed in range(3)]
    assert len(ranked) >= 20
    for family, seed in ranked:
        motion = sample_motion(seed, family=family)
        reference = track(render(motion, 2 * seed))
        scores = []
        for other in (motion, similar(motion), motion.reversed(), halted(motion)):
            tracks, visibility = track(render(other, 2 * seed + 101))
            scores.append(motion_fidelity(tracks, reference.tracks, visibility, reference.visibility, static=0.1))
        assert scores == sorted(scores, reverse=True), (family, seed, scores)
        assert len(set(scores)) == 4
        assert scores[-1] == -1


@pytest.mark.parametrize("family", CAMERA_FAMILIES)
def test_global_motion_error_ranks_cameras(family):
    motion = sample_motion(3, family=family)
    reference = track(render(motion, 0))
    same, reversed_, none = (
        global_motion_error(found.tracks, reference.tracks, SIZE[::-1], found.visibility, reference.visibility)
        for found in (track(render(other, 1)) for other in (motion, motion.reversed(), halted(motion)))
    )
    assert same < 0.4 < none < reversed_


def test_points_are_lost_where_they_leave_the_frame():
    rng = np.random.default_rng(0)
    wide = np.repeat(np.repeat(rng.integers(0, 255, (32, 64, 3)), 4, axis=0), 4, axis=1).astype(np.uint8)  # 128 x 256
    frames = np.stack([wide[:, 8 * k : 8 * k + 128] for k in range(10)])  # everything moves left, 8 pixels a frame
    queries = np.array([[100.0, 60.0], [20.0, 60.0]], np.float32)
    tracks, visibility = track(frames, queries)
    assert visibility[0].all()
    assert np.abs(tracks[0] - [[100 - 8 * k, 60] for k in range(10)]).max() < 0.1
    assert visibility[1].tolist() == [True] * 3 + [False] * 7


def test_a_flat_video_gives_no_points_and_one_frame_gives_its_points():
    tracks, visibility = track(np.full((4, 32, 32, 3), 90, np.uint8))
    assert tracks.shape == (0, 4, 2)
    assert visibility.shape == (0, 4)
    single = track(render(sample_motion(0, frames=1), 0))
    assert single.tracks.shape[1:] == (1, 2)
    assert single.visibility.all()


@pytest.mark.parametrize("size", [(24, 32), (200, 90)])
def test_any_frame_size(size):
    frames = Clip(sample_content(1), sample_motion(1, family="line"), size).frames()
    tracks, visibility = track(frames)
    assert len(tracks) > 5
    assert ((tracks >= 0) & (tracks <= [size[1] - 1, size[0] - 1])).all()
    assert visibility[:, 0].all()


# ---------------------------------------------------------------------------------------------- CoTracker


class Predictor(torch.nn.Module):
    """A tracker with CoTrackerPredictor's interface, which finds the colour that each point has in its own frame.

    It reads what it is given as the published one does: video (1 T 3 H W) in 0..255, queries (1 N 3) of (frame, x, y);
    gives tracks (1 T N 2) of (x, y) and visibilities (1 T N), false where the colour is nowhere.
    """

    def __init__(self, checkpoint, offline, window_len):
        super().__init__()
        assert (checkpoint, offline, window_len) == (None, True, 60)
        self.model = torch.nn.Linear(1, 1, bias=False)

    def forward(self, video, queries=None, grid_size=0):
        (frames, _, height, width), [pixels] = video[0].shape, video
        if queries is None:
            x, y = torch.meshgrid(torch.arange(grid_size), torch.arange(grid_size), indexing="xy")
            x, y = ((p.flatten() * (side - 1)) // (grid_size - 1) for p, side in ((x, width), (y, height)))
            queries = torch.stack([torch.zeros_like(x), x, y], dim=-1)[None].float()
        tracks = queries[:, None, :, 1:].repeat(1, frames, 1, 1)
        visible = torch.zeros(1, frames, queries.shape[1], dtype=torch.bool)
        for n, (t, x, y) in enumerate(queries[0].int().tolist()):
            colour = pixels[t, :, y, x] * self.model.weight.item() / 2  # the published weights of this one are 2
            for k in range(frames):
                rows, columns = torch.nonzero(
                    (pixels[k].round() == colour.round()[:, None, None]).all(0), as_tuple=True
                )
                if len(rows) == 1:
                    tracks[0, k, n] = torch.stack([columns[0], rows[0]]).float()
                    visible[0, k, n] = True
        return tracks, visible


@pytest.fixture
def cotracker(monkeypatch):
    package, predictor = ModuleType("cotracker"), ModuleType("cotracker.predictor")
    predictor.CoTrackerPredictor = Predictor
    monkeypatch.setitem(sys.modules, "cotracker", package)
    monkeypatch.setitem(sys.modules, "cotracker.predictor", predictor)


@pytest.mark.usefixtures("cotracker")
@pytest.mark.parametrize("wrapped", [False, True])
def test_cotracker_speaks_the_same_interface(tmp_path, wrapped):
    state = {"weight": torch.tensor([[2.0]])}
    torch.save({"model": state} if wrapped else state, tmp_path / "scaled_offline.pth")
    tracker = build_tracker("cotracker", grid=3, checkpoint=tmp_path / "scaled_offline.pth", device="cpu")
    frames = np.full((5, 16, 24, 3), 100, np.uint8)
    right, up = [(1 + 4 * k, 2) for k in range(5)], [(3, 12 - 2 * k) for k in range(4)]
    for k, (x, y) in enumerate(right):
        frames[k, y, x] = (200, 201, 202)
    for k, (x, y) in enumerate(up):  # gone in the last frame
        frames[k, y, x] = (201, 200, 202)
    tracks, visibility = tracker(frames, np.array([[1, 2], [3, 12]]))
    assert tracks[0].tolist() == [list(point) for point in right]
    assert tracks[1, :4].tolist() == [list(point) for point in up]
    assert visibility.tolist() == [[True] * 5, [True] * 4 + [False]]
    grid = tracker(frames)
    assert grid.tracks.shape == (9, 5, 2)
    assert grid.tracks[:, 0].tolist() == [[x, y] for y in (0, 7, 15) for x in (0, 11, 23)]


@pytest.mark.usefixtures("cotracker")
def test_cotracker_weights_that_are_missing_or_broken_are_named(tmp_path):
    with pytest.raises(UserError, match=r"no CoTracker weights at .*absent.pth"):
        CoTracker(tmp_path / "absent.pth")
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"broken.pth cannot be read"):
        CoTracker(tmp_path / "broken.pth")


def test_cotracker_says_its_licence_where_it_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "cotracker", None)
    with pytest.raises(UserError, match=r"CC BY-NC 4\.0"):
        build_tracker("cotracker", grid=8, checkpoint="x.pth", device="cpu")
    with pytest.raises(UserError, match="did you mean 'lucas_kanade'"):
        build_tracker("lucas-kanade", grid=8, checkpoint="", device="cpu")
