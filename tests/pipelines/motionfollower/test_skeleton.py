"""Skeletons as the published weights know them."""

import numpy as np
import pytest

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower import draw_skeleton
from animatediff.pipelines.motionfollower.skeleton import LIMBS, WHEEL, read_skeleton
from tests.pipelines.motionfollower.layout import STANDING

BODY = STANDING * 8  # at 512


def test_colours_have_red_and_blue_exchanged():
    image = draw_skeleton(BODY)
    assert image.shape == (512, 512, 3)
    assert image.dtype == np.uint8

    def between(a, b):
        x, y = ((BODY[a] + BODY[b]) / 2).astype(int)
        return image[y, x].tolist()

    assert between(1, 2) == [0, 0, 153]  # neck to right shoulder
    assert between(1, 0) == [153, 0, 0]  # neck to nose
    for joint, color in enumerate(WHEEL):
        x, y = BODY[joint].astype(int)
        assert image[y, x].tolist() == list(color)
    assert len(LIMBS) == 17


def test_hands_are_drawn_last_with_dots_of_one_colour():
    hand = np.stack([np.linspace(300, 420, 21), np.full(21, 450.0)], axis=-1)
    image = draw_skeleton(BODY, [hand])
    assert all(image[450, int(x)].tolist() == [255, 0, 0] for x, _ in hand)
    seen = draw_skeleton(np.full((18, 2), np.nan), [np.where(np.arange(21)[:, None] == [0], hand, np.nan)])
    assert 40 < (seen > 0).any(axis=-1).sum() < 60  # one disc of radius 4
    line = np.full((21, 2), np.nan)
    line[[0, 1]] = (100, 50), (200, 50)
    assert draw_skeleton(np.full((18, 2), np.nan), [line])[50, 150].tolist() == [0, 0, 255]  # hue 0, exchanged


def test_a_joint_that_is_not_seen_takes_its_limbs_along():
    body = BODY.copy()
    body[4] = np.nan  # right wrist
    image = draw_skeleton(body)
    x, y = ((BODY[3] + BODY[4]) / 2).astype(int)
    assert image[y, x].tolist() == [0, 0, 0]
    assert not draw_skeleton(np.full((18, 2), np.nan)).any()


@pytest.mark.parametrize(("size", "width"), [((512, 512), 9), ((256, 512), 5), ((1024, 1024), 17), ((32, 32), 3)])
def test_widths_follow_the_shorter_side(size, width):
    body = np.full((18, 2), np.nan)
    body[[1, 8]] = (0.1 * size[1], size[0] / 2), (0.9 * size[1], size[0] / 2)
    drawn = draw_skeleton(body, size=size).any(axis=-1)
    assert drawn[:, size[1] // 2].sum() == width


def test_far_outside_and_wrong_shapes():
    body = BODY.copy()
    body[4] = (1e9, -1e9)
    draw_skeleton(body)
    with pytest.raises(UserError, match=r"the body has joints of shape \(17, 2\), expected \(18, 2\)"):
        draw_skeleton(BODY[:17])
    with pytest.raises(UserError, match=r"the hand has joints of shape \(20, 2\), expected \(21, 2\)"):
        draw_skeleton(BODY, [np.zeros((20, 2))])


def test_a_drawing_can_be_read_back():
    hand = np.stack([np.linspace(300, 340, 21), np.full(21, 300.0)], axis=-1)  # of the left knee's colour
    found = read_skeleton(draw_skeleton(BODY, [hand]))
    assert np.abs(found - BODY).max() < 1
    body = BODY.copy()
    body[[12, 13, 16]] = np.nan
    found = read_skeleton(draw_skeleton(body, [hand]))
    assert np.array_equal(np.isnan(found), np.isnan(body))
