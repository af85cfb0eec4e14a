"""Who a clip is about."""

import numpy as np
import pytest

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.prepare.subject import boxes_of, choose_subject, follow


def people(*tracks):
    """Boxes (n 6) of tracks, each a mapping of frame to (x, y, side)."""
    rows = [[frame, x, y, x + side, y + side, 0.9] for track in tracks for frame, (x, y, side) in track.items()]
    return np.array(sorted(rows), float).reshape(-1, 6)


SMALL = {frame: (10 + 3 * frame, 20, 20) for frame in range(10)}
LARGE = {frame: (100 - 3 * frame, 10, 40) for frame in range(10)}
BRIEF = {4: (0, 0, 90)}  # the largest of all, in one frame


def test_the_biggest_most_continuous_person_is_taken():
    found = choose_subject(people(SMALL, LARGE, BRIEF), 10, None, "source")
    np.testing.assert_array_equal(found.boxes[:, 0], [100 - 3 * frame for frame in range(10)])
    assert (found.found, found.rivals) == (10, 1)  # the passer-by, who is large
    assert choose_subject(people(SMALL, LARGE), 10, None, "source").rivals == 0


def test_a_click_and_a_box_win():
    both = people(SMALL, LARGE)
    for wish in ((15, 25), (8, 18, 32, 42)):
        assert choose_subject(both, 10, wish, "source").boxes[0].tolist() == [10, 20, 30, 40]
    with pytest.raises(UserError, match=r"nobody is at 200,5 in frame 0 of the driving clip; .* 100,10,140,50; 10,20,"):
        choose_subject(both, 10, (200, 5), "driving")


def test_gaps_are_bridged_and_people_who_come_back_much_later_are_others():
    gap = {frame: place for frame, place in LARGE.items() if frame not in (3, 4)}
    found = choose_subject(people(gap), 10, None, "source")
    assert found.found == 8
    assert found.boxes[3, 0] == pytest.approx(91)
    late = LARGE | dict.fromkeys(range(30, 33), (73, 10, 40))
    assert len(follow(people(late))) == 2
    found = choose_subject(people(late), 33, None, "source")
    assert np.isnan(found.boxes[20]).all()


def test_nobody():
    with pytest.raises(UserError, match="no person was found in the driving clip; give a clip that shows one"):
        choose_subject(np.zeros((0, 6)), 5, None, "driving")


def test_boxes_around_joints():
    keypoints = np.zeros((2, 60, 3))
    keypoints[0, :2] = [[10, 20, 1], [30, 60, 0.9]]
    boxes = boxes_of(keypoints)
    np.testing.assert_allclose(boxes[0], [6, 16, 34, 64])
    assert np.isnan(boxes[1]).all()
