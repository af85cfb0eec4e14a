"""Measures in words, and tracks to draw."""

from __future__ import annotations

import numpy as np
import pytest

from animatediff.apps.page import words
from animatediff.evaluation.trackers import Tracks


def moving(step: int, frames: int = 8) -> np.ndarray:
    """A textured square that moves to the right."""
    video = np.full((frames, 64, 64, 3), 60, np.uint8)
    texture = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    for i, frame in enumerate(video):
        at = (20 + step * i) % 44
        frame[20:40, at : at + 20] = texture
    return video


class TestWords:
    def test_a_copy_follows_closely(self):
        told = words.describe(moving(2), moving(2))
        first = told["measures"][0]
        assert (first["name"], first["value"], first["word"]) == ("Follows the motion", "1.00", "closely")
        assert (told["measures"][1]["value"], told["measures"][1]["word"]) == ("0.0 %", "as good as none")
        assert told["tracks"] == told["reference_tracks"]

    def test_the_opposite_hardly(self):
        told = words.describe(moving(-2)[:, :, ::-1][:, :, ::-1], moving(2))
        assert (told["measures"][0]["value"], told["measures"][0]["word"]) == ("-1.00", "hardly")

    def test_without_a_reference_there_are_tracks_alone(self):
        told = words.describe(moving(2), None)
        assert told["measures"] == []
        assert len(told["tracks"]) == words.SHOWN

    @pytest.mark.parametrize(("value", "word"), [(0.85, "closely"), (0.84, "well"), (0.3, "in part"), (-1.0, "hardly")])
    def test_bounds(self, value, word):
        assert words.said("motion_fidelity", value)["word"] == word

    def test_a_track_is_given_in_shares_of_the_frame(self):
        tracks = Tracks(np.array([[[0.0, 0.0], [31.5, 63.5]]], np.float32), np.array([[True, False]]))
        assert words.drawn(tracks, np.zeros((2, 64, 64, 3), np.uint8)) == [[[0.0078, 0.0078], None]]
