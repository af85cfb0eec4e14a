"""The moving-shape world as training pairs, through the table of sources."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from animatediff.data.pairs import ClipShape, all_clips
from animatediff.data.sources import SOURCES
from animatediff.data.video import to_levels
from animatediff.errors import UserError
from animatediff.miniature.pairs import synthetic_groups

SHAPE = ClipShape(num_frames=4, height=16, width=24)


def test_the_camera_gets_its_share() -> None:
    groups = synthetic_groups(12, clips=2, seed=3, camera_share=0.5)
    moves = [group.clips[0].clip(SHAPE).motion.moves_camera for group in groups]
    assert sum(moves) == 6
    assert len({group.name for group in groups}) == 12
    assert not any(g.clips[0].clip(SHAPE).motion.moves_camera for g in synthetic_groups(12, 2, 3, camera_share=0.0))


def test_synthetic_groups_share_a_motion_and_differ_in_content() -> None:
    groups = synthetic_groups(3, clips=3, seed=5)
    assert groups == synthetic_groups(3, clips=3, seed=5)
    assert groups != synthetic_groups(3, clips=3, seed=6)
    assert len({clip.content_hash for clip in all_clips(groups)}) == 9
    for group in groups:
        clips = [clip.clip(SHAPE) for clip in group.clips]
        assert len({clip.caption for clip in clips}) == 3
        assert all(np.array_equal(clip.track(), clips[0].track()) for clip in clips)


def test_the_table_draws_the_same_groups_and_levels_are_the_rendered_ones() -> None:
    (group,) = SOURCES["synthetic"].draw(1, clips=2, seed=5, split="heldout")
    assert [group] == synthetic_groups(1, clips=2, seed=5, split="heldout")
    clip = group.clips[0]
    assert np.array_equal(to_levels(clip.pixels(SHAPE)), clip.clip(SHAPE).frames())
    with pytest.raises(UserError, match="synthetic_split is 'heldot'; did you mean 'heldout'"):
        SOURCES["synthetic"].draw(1, clips=2, seed=5, split="heldot")


def test_training_data_and_curation_import_no_toy_world() -> None:
    rooms = "animatediff.training.config, animatediff.training.data, animatediff.data.sources, animatediff.data.latents"
    code = f"import sys, {rooms}; print([name for name in sys.modules if name.startswith('animatediff.miniature')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
