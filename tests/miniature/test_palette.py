"""Reading clips of the moving-shape world: exact on rendered frames, before and after video compression."""

import numpy as np
import pytest

from animatediff.data.export import save_video
from animatediff.data.video import read_frames
from animatediff.miniature.palette import read_clip, shows_colour, subject_cover
from animatediff.miniature.world import COLOURS, Clip, Content, make_clip, sample_content

NAMES = ("colour", "shape", "pattern", "background")


@pytest.mark.parametrize("first", [0, 30, 60, 90])
def test_every_name_and_the_track_are_read_from_rendered_frames(first):
    for seed in range(first, first + 30):
        clip = make_clip(50_000 + seed, "heldout", frames=3)
        reading = read_clip(clip.frames())
        assert [getattr(reading, name) for name in NAMES] == [getattr(clip.content, name) for name in NAMES]
        assert np.abs(reading.track - clip.track()).max() < 0.5


def test_the_same_after_compression(tmp_path):
    for seed in range(12):
        clip = make_clip(seed, "train", frames=8)
        save_video(tmp_path / "clip.mp4", clip.frames())
        reading = read_clip(read_frames(tmp_path / "clip.mp4", 8).frames)
        assert [getattr(reading, name) for name in NAMES] == [getattr(clip.content, name) for name in NAMES]
        assert np.abs(reading.track - clip.track()).max() < 0.7


def test_an_empty_scene_has_no_subject():
    frames = np.full((3, 64, 64, 3), 112, np.uint8)
    reading = read_clip(frames)
    assert reading.colour is None
    assert reading.shape is None
    assert np.isnan(reading.track).all()
    assert (reading.pattern, reading.background) == ("cloudy", "grey")


def test_noise_is_not_read_as_a_shape_of_its_own():
    for seed in range(6):
        clip = make_clip(seed, frames=4)
        noise = np.random.default_rng(seed).normal(0, 12, (4, 64, 64, 3))
        frames = np.clip(clip.frames() + noise, 0, 255).astype(np.uint8)
        assert [colour for colour in COLOURS if shows_colour(frames, colour)] == [clip.content.colour]
        assert read_clip(frames).shape == clip.content.shape


def test_a_second_colour_is_seen():
    motion = make_clip(0).motion
    first = Clip(Content("circle", "red", "cloudy", "grey"), motion).frames()
    second = Clip(Content("square", "green", "cloudy", "grey"), make_clip(5).motion).frames()
    both = np.where((second.astype(int)[..., 1:2] > 150), second, first)
    assert shows_colour(both, "green")
    assert shows_colour(both, "red")
    assert not shows_colour(first, "green")


def test_cover_has_the_area_of_the_subject():
    content = sample_content(2)
    clip = Clip(Content("circle", content.colour, content.pattern, content.background), make_clip(1).motion)
    area = subject_cover(clip.frames(), content.colour).sum(axis=(1, 2))
    assert np.allclose(area, np.pi * (0.86 * clip.radii()) ** 2, rtol=0.1)
