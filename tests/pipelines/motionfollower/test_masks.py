"""Target masks of stick figures whose outline is known."""

import cv2
import numpy as np
import pytest

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.masks import (
    LIMB_PARTS,
    iou,
    limb_transform,
    points_inside,
    predict_masks,
    share_inside,
    similarity,
    split_parts,
)
from tests.pipelines.motionfollower.layout import waving
from tests.pipelines.motionfollower.test_poses import keypoints

SIDE = 256


def person(body, side=SIDE):
    """A filled figure (side side) bool around joints (18 2)."""
    canvas = np.zeros((side, side), np.uint8)
    for a, b in LIMB_PARTS:
        cv2.line(canvas, *(tuple(body[j].astype(int).tolist()) for j in (a, b)), 1, 13)
    cv2.fillPoly(canvas, [body[[2, 8, 11, 5]].astype(np.int32)], 1)
    for joint, radius in ((0, 24), (1, 10)):
        cv2.circle(canvas, tuple(body[joint].astype(int).tolist()), radius, 1, -1)
    return canvas.astype(bool)


@pytest.fixture(scope="module")
def figure():
    return waving(13, SIDE)


def test_a_waving_arm_takes_its_mask_along(figure):
    source = np.repeat(figure[:1], 13, axis=0)
    masks = np.stack([person(body) for body in source])
    wanted = np.stack([person(body) for body in figure])
    found = predict_masks(masks, keypoints(source), keypoints(figure))
    assert found.dtype == bool
    scores = [iou(a, b) for a, b in zip(found, wanted, strict=True)]
    unmoved = [iou(a, b) for a, b in zip(masks, wanted, strict=True)]
    assert min(scores) > 0.9
    assert scores[6] > unmoved[6] + 0.05


def test_the_same_pose_gives_the_same_mask(figure):
    masks = np.stack([person(body) for body in figure[[0, 0, 0]]])
    same = keypoints(figure[[0, 0, 0]])
    assert iou(predict_masks(masks, same, same)[1], masks[1]) > 0.97


def test_a_person_that_walks_away_is_taken_along(figure):
    body = figure[:3] * 0 + figure[0]
    moved = 0.8 * body + 20
    found = predict_masks(np.stack([person(body[0])] * 3), keypoints(body), keypoints(moved))
    smaller = cv2.warpAffine(person(body[0]).astype(np.uint8), np.array([[0.8, 0, 20], [0, 0.8, 20]]), (SIDE, SIDE))
    assert iou(found[1], smaller > 0) > 0.9


def test_a_limb_that_the_frame_hides_comes_from_another_frame(figure):
    body = np.repeat(figure[:1], 3, axis=0)
    masks = np.stack([person(joints) for joints in body])
    hidden = keypoints(body)
    hidden[1, [6, 7], 2] = 0  # in the middle frame the left arm is not seen, nor in its mask
    without = body[1].copy()
    without[[6, 7]] = without[5]
    masks[1] = person(without)
    found = predict_masks(masks, hidden, keypoints(body))
    elbow = np.add(body[1, [6]], (0, 4))
    assert points_inside(found[1], elbow) == 1.0


def test_what_the_frame_cuts_goes_on(figure):
    body = np.add(np.repeat(figure[:1], 3, axis=0), (0, 40))  # feet below the frame
    masks = np.stack([person(joints) for joints in body])
    found = predict_masks(masks, keypoints(body), keypoints(np.subtract(body, (0, 40))))
    shin = (figure[0, [9, 12]] + figure[0, [10, 13]]) / 2
    assert points_inside(found[1], shin) == 1.0


def test_every_pixel_belongs_to_the_nearest_part(figure):
    mask = person(figure[0])
    parts = split_parts(mask, figure[0])
    assert set(parts) == {"head", "torso", *(f"limb {i}" for i in range(8))}
    assert np.array_equal(np.sum(list(parts.values()), axis=0), mask.astype(int))  # each once
    middle = figure[0, [1, 8, 11]].mean(axis=0).astype(int)
    assert parts["torso"][middle[1], middle[0]]
    shin = ((figure[0, 9] + figure[0, 10]) / 2).astype(int)
    assert parts["limb 5"][shin[1], shin[0]]
    assert split_parts(mask, np.full((18, 2), np.nan)) == {}


def test_transforms():
    points = np.array([[0.0, 0.0], [2.0, 0.0], [0.0, 1.0]])
    turned = 3 * points[:, ::-1] * (-1, 1) + (5, 7)
    matrix = similarity(points, turned)
    np.testing.assert_allclose(points @ matrix[:, :2].T + matrix[:, 2], turned, atol=1e-9)
    assert similarity(points, np.full((3, 2), np.nan)) is None
    bone = limb_transform(np.array([[0.0, 0.0], [10.0, 0.0]]), np.array([[1.0, 1.0], [1.0, 21.0]]), across=0.5)
    np.testing.assert_allclose(np.array([[10, 0, 1], [0, 4, 1]]) @ bone.T, [[1, 21], [-1, 1]], atol=1e-9)
    assert limb_transform(np.zeros((2, 2)), points[:2], 1.0) is None


def test_measures(figure):
    mask = person(figure[0])
    assert share_inside(mask, keypoints(figure[:1])[0]) > 0.9
    assert share_inside(~mask, keypoints(figure[:1])[0]) < 0.1
    assert np.isnan(share_inside(mask, keypoints(figure[:1], scores=0.0)[0]))
    assert iou(mask, mask) == 1.0
    assert iou(mask, ~mask) == 0.0
    assert iou(mask & ~mask, mask & ~mask) == 1.0


def test_counts_are_checked(figure):
    masks = np.stack([person(body) for body in figure])
    with pytest.raises(UserError, match="the numbers of frames differ: 12 masks, 13 source and 13 target skeletons"):
        predict_masks(masks[1:], keypoints(figure), keypoints(figure))


def test_nobody_gives_empty_masks(figure):
    masks = np.zeros((13, SIDE, SIDE), bool)
    assert not predict_masks(masks, keypoints(figure, scores=0.0), keypoints(figure)).any()
