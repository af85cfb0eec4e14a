"""The moving-shape world: exact ground truth, determinism, splits."""

import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from animatediff.miniature.motions import FAMILIES, LIMIT, sample_motion, sector_is_held_out
from animatediff.miniature.world import BACKGROUNDS, COLOURS, WAVES, Clip, contents, make_clip, sample_content


def subject_mask(clip, frames):
    """Pixels nearer the subject's colour than any background can be, by rendering without shades of grey."""
    target = np.asarray(COLOURS[clip.content.colour], float)
    return np.linalg.norm(frames - target, axis=-1) < 90


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_track_is_where_the_subject_is_drawn(family, split):
    content = sample_content(3, split)
    clip = Clip(type(content)("circle", "red", content.pattern, content.background), sample_motion(5, split, family))
    mask = subject_mask(clip, clip.frames().astype(float))
    rows, columns = np.mgrid[:64, :64]
    for frame, centre in zip(mask, clip.track(), strict=True):
        found = np.array([columns[frame].mean(), rows[frame].mean()])
        assert np.abs(found - centre).max() < 0.35


@pytest.mark.parametrize("family", FAMILIES)
def test_subject_stays_in_the_frame(family):
    for seed in range(20):
        clip = Clip(sample_content(seed), sample_motion(seed, "train", family))
        reach = np.abs(clip.track() - 31.5).max(axis=1) + clip.radii()
        slack = 1.12 if family.startswith("zoom") else 1.0
        assert reach.max() <= LIMIT * 64 * slack


def test_radius_scales_the_drawn_area():
    clip = Clip(type(sample_content(0))("circle", "blue", "cloudy", "grey"), sample_motion(1, "train", "grow"))
    area = subject_mask(clip, clip.frames().astype(float)).sum(axis=(1, 2))
    assert np.allclose(area, np.pi * (0.86 * clip.radii()) ** 2, rtol=0.08)


@pytest.mark.parametrize("family", ["pan", "zoom_in", "zoom_out"])
def test_background_points_keep_their_colour_under_the_camera(family):
    clip = Clip(sample_content(8), sample_motion(2, "train", family), (128, 128))
    frames = clip.frames().astype(float)
    x, y = np.rint(clip.points_on_background(24)).astype(int).transpose(2, 0, 1)
    seen = frames[np.arange(16), y, x]  # n f 3
    assert np.abs(seen - seen[:, :1]).max(axis=(1, 2)).mean() < 14


def test_subject_points_keep_their_colour_through_rotation():
    clip = Clip(sample_content(4), sample_motion(2, "train", "rotate"), (128, 128))
    frames = clip.frames().astype(float)
    x, y = np.rint(clip.points_on_subject(24)).astype(int).transpose(2, 0, 1)
    seen = frames[np.arange(16), y, x]
    assert np.abs(seen - seen[:, :1]).max() < 30


def test_camera_moves_background_points_and_track_alike():
    clip = Clip(sample_content(1), sample_motion(6, "heldout", "zoom_in"))
    camera = clip.camera()
    still = Clip(clip.content, dataclasses.replace(clip.motion, zoom=np.ones(16), shift=np.zeros((16, 2)))).track()
    moved = np.einsum("fij,fj->fi", camera[:, :, :2], still) + camera[:, :, 2]
    assert np.allclose(moved, clip.track())


@pytest.mark.parametrize("pattern", ["striped", "dotted", "checkered"])
@pytest.mark.parametrize("family", ["pan", "zoom_out", "line"])
def test_every_pattern_has_its_light_marks_where_the_motion_puts_them(pattern, family):
    content = dataclasses.replace(sample_content(8), pattern=pattern)
    clip = Clip(content, sample_motion(3, "train", family), (128, 128))
    corners = np.stack(np.meshgrid(np.arange(-9, 10), np.arange(-9, 10)), axis=-1).reshape(-1, 2)
    marks = np.concatenate([corners, corners + 0.5]) / WAVES - clip.motion.origin  # n 2, in units of length
    on_screen = clip.motion.zoom[:, None, None] * marks + clip.motion.shift[:, None]
    points = 63.5 + 128 * on_screen  # f n 2
    light = clip.frames().astype(float).mean(axis=-1) - np.mean(BACKGROUNDS[content.background])
    for frame, places, track, radius in zip(light, points, clip.track(), clip.radii(), strict=True):
        clear = ((places > 2) & (places < 125)).all(axis=1) & (np.linalg.norm(places - track, axis=1) > radius + 2)
        x, y = np.rint(places[clear]).astype(int).T
        assert len(x) > 1
        assert frame[y, x].min() > 34  # of 40 grey levels


def test_another_origin_is_another_place_on_the_ground():
    clip = make_clip(2)
    moved = dataclasses.replace(clip.motion, origin=clip.motion.origin + 0.3)
    assert np.array_equal(Clip(clip.content, moved).track(), clip.track())
    assert (Clip(clip.content, moved).frames() != clip.frames()).mean() > 0.5


@pytest.mark.parametrize("family", ["pan", "zoom_in", "line"])
def test_camera_steps_take_background_points_from_frame_to_frame(family):
    clip = Clip(sample_content(6), sample_motion(6, "train", family))
    steps, points = clip.camera_steps(), clip.points_on_background(8)  # f-1 2 3, n f 2
    moved = np.einsum("fij,nfj->nfi", steps[..., :2], points[:, :-1]) + steps[..., 2]
    assert moved == pytest.approx(points[:, 1:])


def test_same_seed_same_pixels_in_another_process():
    code = (
        "import hashlib; from animatediff.miniature.world import make_clip;"
        "print(hashlib.sha256(b''.join(make_clip(s, 'heldout').frames().tobytes() for s in range(4))).hexdigest())"
    )
    elsewhere = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    here = hashlib.sha256(b"".join(make_clip(s, "heldout").frames().tobytes() for s in range(4))).hexdigest()
    assert here == elsewhere


def test_splits_share_neither_motions_nor_combinations():
    train, heldout = ({c.caption for c in contents(split)} for split in ("train", "heldout"))
    assert (len(train), len(heldout)) == (400, 80)
    assert not train & heldout
    words = {word for caption in train for word in caption.split()}
    assert {word for caption in heldout for word in caption.split()} == words
    for seed in range(200):
        assert not sector_is_held_out(sample_motion(seed, "train").phase)
        assert sector_is_held_out(sample_motion(seed, "heldout").phase)
        assert sample_content(seed, "heldout").caption in heldout


def test_captions_never_name_motion():
    words = {word for split in ("train", "heldout") for c in contents(split) for word in c.caption.split()}
    assert len(words) == 5 + 6 + 4 + 4 + 3
    assert not words & {family.split("_")[0] for family in FAMILIES}


def test_reversed_motion_is_the_track_backwards():
    clip = make_clip(11)
    assert np.array_equal(Clip(clip.content, clip.motion.reversed()).track(), clip.track()[::-1])


@pytest.mark.parametrize(("frames", "size"), [(1, (64, 64)), (8, (96, 128)), (5, (128, 72))])
def test_any_length_and_size(frames, size):
    clip = make_clip(9, frames=frames, size=size)
    assert clip.frames().shape == (frames, *size, 3)
    assert clip.frames().dtype == np.uint8
    assert clip.track().shape == (frames, 2)
    assert (clip.track() >= 0).all()
    assert (clip.track() <= np.array(size[::-1])).all()


def test_bad_arguments_name_themselves():
    with pytest.raises(ValueError, match="'test'"):
        sample_motion(0, "test")
    with pytest.raises(ValueError, match="'fly'"):
        sample_motion(0, "train", "fly")
    with pytest.raises(ValueError, match="frames is 0"):
        sample_motion(0, frames=0)
    with pytest.raises(ValueError, match="'all'"):
        sample_content(0, "all")
