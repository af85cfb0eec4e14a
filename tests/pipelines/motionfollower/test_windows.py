"""Windows: they cover the clip, wander, and leave no seam."""

from itertools import pairwise

import pytest
import torch

from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.windows import Blend, window_starts, window_weights


@pytest.mark.parametrize("frames", [25, 40, 48, 49, 100])
def test_windows_cover_the_clip_and_overlap(frames):
    for i in range(50):
        starts = window_starts(frames, i)
        assert starts[0] == 0
        assert starts[-1] == frames - 24
        assert all(0 < b - a <= 16 for a, b in pairwise(starts))
    assert window_starts(frames, 0)[:2] == [0, min(16, frames - 24)]
    assert window_starts(100, 1) == [0, 7, 23, 39, 55, 71, 76]  # moved on by 7


def test_a_short_clip_is_one_window():
    assert window_starts(24, 3) == window_starts(1, 0) == [0]
    value = torch.randn(1, 4, 5, 2, 2)
    blend = Blend([0], 5, 24)
    blend.add("v", 0, value)
    assert blend.mean("v") is value
    assert blend.mean("g") is None


def test_weights_rise_from_both_ends():
    assert window_weights(5).tolist() == [1, 2, 3, 2, 1]
    assert window_weights(4).tolist() == [1, 2, 2, 1]


def test_constant_windows_leave_no_seam():
    starts = window_starts(61, 4)
    blend = Blend(starts, 61, 24)
    for start in starts:
        blend.add("v", start, torch.full((1, 4, 24, 2, 2), 0.7))
    assert (blend.mean("v") - 0.7).abs().max() < 1e-6


@pytest.mark.parametrize(("length", "overlap", "name"), [(33, 8, "window"), (0, 0, "window"), (24, 24, "overlap")])
def test_refuses_windows_that_leave_gaps(length, overlap, name):
    with pytest.raises(UserError, match=rf"^{name} is \d+, expected"):
        window_starts(50, 0, length, overlap)
