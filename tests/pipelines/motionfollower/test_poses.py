"""Alignment of stick figures whose right answer is known."""

import numpy as np
import pytest

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.poses import LEGS, MID_HIP, NECK, align, draw_pose, positions
from animatediff.pipelines.motionfollower.skeleton import draw_skeleton
from tests.pipelines.motionfollower.layout import waving

SIZE = (512, 512)


def keypoints(body, hands=None, scores=1.0):
    """(f 60 3) from body joints (f 18 2) and hands (f 42 2)."""
    result = np.zeros((len(body), 60, 3))
    result[:, :18, :2] = body
    result[:, :18, 2] = scores
    if hands is not None:
        result[:, 18:, :2] = hands
        result[:, 18:, 2] = scores
    return result


@pytest.fixture
def figure():
    """A figure that waves over 8 frames, 256 wide, away from the edges."""
    return np.add(waving(8, 256), (128, 100))


def test_the_same_person_stays_as_it_is(figure):
    found = align(keypoints(figure), keypoints(figure), SIZE)
    np.testing.assert_allclose(found.keypoints[:, :18, :2], figure, atol=1e-3)
    assert (found.scale, found.root, found.without_legs) == (pytest.approx(1.0), MID_HIP, False)
    assert np.all(found.keypoints[:, 18:, 2] == 0)


def test_a_moved_and_scaled_person_comes_onto_the_source(figure):
    driving = 1.6 * (figure - 250) + (300, 260)
    for proportions in (True, False):
        found = align(keypoints(figure), keypoints(driving), (512, 512), (800, 800), proportions=proportions)
        assert found.scale == pytest.approx(1 / 1.6)
        np.testing.assert_allclose(found.keypoints[:, :18, :2], figure, atol=1e-3)


def test_bones_take_the_sources_lengths_and_keep_direction_and_foreshortening(figure):
    driving = figure.copy()
    arms = {3: 2, 4: 3, 6: 5, 7: 6}
    for joint, parent in arms.items():  # arms twice as long
        driving[:, joint] = driving[:, parent] + 2 * (figure[:, joint] - figure[:, parent])
    driving[0, 7] = driving[0, 6] + 0.5 * (driving[0, 7] - driving[0, 6])  # one forearm points at the camera
    found = align(keypoints(figure), keypoints(driving), (600, 600)).keypoints[:, :18, :2]
    wanted = figure.copy()
    wanted[0, 7] = wanted[0, 6] + 0.5 * (figure[0, 7] - figure[0, 6])
    np.testing.assert_allclose(found, wanted, atol=0.5)
    plain = align(keypoints(figure), keypoints(driving), (600, 600), proportions=False).keypoints[:, :18, :2]
    np.testing.assert_allclose(plain, driving, atol=1e-3)


def test_the_body_goes_the_drivers_way_or_the_sources(figure):
    walk = np.arange(8)[:, None, None] * np.array([4.0, 0.0])
    driving, still = keypoints(2 * (figure + walk)), keypoints(figure)
    followed = align(still, driving, SIZE, (1024, 1024)).keypoints[:, :18, :2]
    np.testing.assert_allclose(followed, figure + walk, atol=1e-3)
    other = align(keypoints(figure - walk), driving, SIZE, (1024, 1024), root="source").keypoints[:, :18, :2]
    np.testing.assert_allclose(other, figure - walk, atol=1e-3)
    with pytest.raises(UserError, match="root is 'feet', expected one of driving, source"):
        align(still, driving, SIZE, root="feet")


def test_hands_move_with_their_wrists(figure):
    offsets = np.random.default_rng(0).uniform(-6, 6, (2, 21, 2))
    hands = np.concatenate([figure[:, [7]] + offsets[0], figure[:, [4]] + offsets[1]], axis=1)
    driving = keypoints(2 * figure, 2 * hands)
    found = align(keypoints(figure), driving, SIZE, (1024, 1024)).keypoints
    np.testing.assert_allclose(found[:, 18:, :2], hands, atol=1e-3)
    assert np.all(found[:, 18:, 2] == 1)


def test_joints_that_are_not_seen(figure):
    driving = keypoints(figure)
    driving[3, 6, 2] = 0.2  # an elbow: its wrist hangs on the shoulder
    driving[4, 1] = np.nan  # the neck
    found = align(keypoints(figure), driving, SIZE).keypoints
    assert found[3, 6, 2] == 0
    np.testing.assert_allclose(found[3, 7, :2], figure[3, 7], atol=0.5)
    assert found[4, 1, 2] == 0
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found[4, 2, :2], figure[4, 2], atol=0.5)


def test_without_hips_the_neck_is_the_root(figure):
    source = keypoints(figure)
    source[1:, [8, 11], 2] = 0
    assert align(source, keypoints(figure), SIZE).root == NECK
    source[:, [8, 11], 2] = 0
    with pytest.raises(UserError, match="no frame of the source clip shows a person's torso"):
        align(source, keypoints(figure), SIZE)


def test_legs_that_the_source_lacks_and_what_the_frame_does_not_show(figure):
    source = keypoints(figure)
    source[:, list(LEGS), 2] = 0
    found = align(source, keypoints(figure), SIZE)
    assert found.without_legs
    assert np.all(found.keypoints[:, list(LEGS), 2] == 0)
    low = align(keypoints(figure), keypoints(figure), (280, 512)).keypoints  # the frame ends above the knees
    assert figure[0, 9, 1] > 280 > figure[0, 8, 1]
    assert np.all(low[:, 9, 2] == 1)  # the thigh is drawn to the edge
    assert np.all(low[:, 10, 2] == 0)


def test_a_cut_bone_says_nothing_about_lengths(figure):
    source = keypoints(figure)
    source[:, [10, 13], 1] = 299  # ankles at the lower edge of a frame 300 high
    found = align(source, keypoints(figure), (300, 512), (512, 512)).keypoints
    np.testing.assert_allclose(found[:, 9, :2], figure[:, 9], atol=0.5)
    np.testing.assert_allclose(found[:, 10, :2], figure[:, 10], atol=0.5)


def test_shapes_and_counts_are_checked(figure):
    with pytest.raises(UserError, match=r"keypoints have shape \[8, 18, 3\], expected \[frames, 60, 3\]"):
        positions(keypoints(figure)[:, :18])
    with pytest.raises(UserError, match="the source has 7 frames of keypoints and the driving clip 8"):
        align(keypoints(figure)[1:], keypoints(figure), SIZE)


def test_drawing_keypoints_is_drawing_the_skeleton(figure):
    given = keypoints(figure)
    assert np.array_equal(draw_pose(given[0], SIZE), draw_skeleton(figure[0], None, SIZE))
