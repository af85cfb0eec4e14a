"""The people world: exact skeletons and masks, twins, and combinations that are held out."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from animatediff.miniature.people.heldout import heldout_jobs
from animatediff.miniature.people.motions import FAMILIES, sample_motion
from animatediff.miniature.people.world import COLOURS, FOLDS, PARTS, Clip, sample_scene, sample_twins
from animatediff.pipelines.motionfollower.poses import positions
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS

LIMBS = [name for name in PARTS if name not in ("torso", "head")]


@pytest.fixture(scope="module", params=range(6))
def clip(request):
    return sample_twins(request.param)[request.param % 2]


def test_joints_lie_on_the_limbs_that_are_painted(clip):
    _, parts = clip.render()
    for number, (name, (start, end, _)) in enumerate(PARTS.items()):
        middle = np.rint(clip.joints[:, [start, end]].mean(axis=1)).astype(int)  # f 2
        shown = parts[np.arange(len(parts)), middle[:, 1], middle[:, 0]]
        assert (shown >= number).all(), name  # the part itself, or one that is painted over it
        assert (shown == number).any(), name


def test_a_pixel_well_inside_a_part_has_its_colour_and_no_other(clip):
    frames, parts = clip.render()
    for number, colour in enumerate(clip.scene.clothes):
        plain = (frames == np.array(COLOURS[colour])).all(axis=-1)
        assert plain.any()
        assert (parts[plain] >= 0).all()
        assert (parts[plain] == number).mean() > 0.99  # a later part's edge may leave none of its own colour


def test_the_mask_is_what_the_person_changes(clip):
    unclothed = dataclasses.replace(clip.scene, clothes=tuple(reversed(clip.scene.clothes)))
    elsewhere = Clip(unclothed, clip.motion, clip.size)
    assert not (clip.frames() != elsewhere.frames()).any(axis=-1)[~clip.masks()].any()
    twin = next(twin for twin in (sample_twins(0)[0], sample_twins(1)[0]) if twin.scene != clip.scene)
    moved = Clip(clip.scene, twin.motion, clip.size)
    both = ~(clip.masks() | moved.masks())
    np.testing.assert_array_equal(clip.frames()[both], moved.frames()[both])
    assert 0.03 < clip.masks().mean() < 0.3


def test_keypoints_are_the_bodys_joints_with_hands_unseen(clip):
    keypoints = clip.keypoints
    assert keypoints.shape == (16, 60, 3)
    seen = positions(keypoints)
    assert np.isnan(seen[:, BODY_JOINTS:]).all()
    inside = np.isfinite(seen[:, :BODY_JOINTS, 0])
    assert inside.mean() > 0.95
    np.testing.assert_allclose(seen[:, :BODY_JOINTS][inside], clip.joints[:, :BODY_JOINTS][inside], atol=1e-4)


def test_bones_keep_their_length():
    scene = dataclasses.replace(sample_scene(3), camera="still")
    for family in FAMILIES:
        joints = Clip(scene, sample_motion(5, family)).joints
        for name in LIMBS:
            start, end, _ = PARTS[name]
            assert np.ptp(np.linalg.norm(joints[:, end] - joints[:, start], axis=-1)) < 1e-9, name


def test_every_family_moves_and_a_longer_clip_goes_on():
    scene = sample_scene(0)
    for family in FAMILIES:
        short, long = (Clip(scene, sample_motion(4, family, frames)) for frames in (16, 48))
        assert np.abs(np.diff(short.joints, axis=0)).max() > 0.5
        np.testing.assert_allclose(long.joints[:16], short.joints, atol=1e-9)


def test_a_part_of_the_frames_is_rendered_as_all_of_them(clip):
    frames, parts = clip.render()
    some, shown = clip.render([3, 11])
    np.testing.assert_array_equal(some, frames[[3, 11]])
    np.testing.assert_array_equal(shown, parts[[3, 11]])


def test_twins_share_all_but_the_motion_and_training_never_sees_what_is_held_out():
    held, seen = set(), set()
    for seed in range(300):
        for split, found in (("train", seen), ("heldout", held)):
            one, other = sample_twins(seed, split)
            assert one.scene == other.scene
            assert one.motion.family != other.motion.family
            torso = one.scene.clothes[list(PARTS).index("torso")]
            found |= {(one.scene.build, torso, clip.motion.family) for clip in (one, other)}
    assert not held & seen
    assert len(held) == 5 * len(COLOURS) * len(FAMILIES) // FOLDS
    assert {family for _, _, family in held} == {family for _, _, family in seen} == set(FAMILIES)


def test_the_held_out_jobs_are_what_they_were():
    names = [job.name for job in heldout_jobs()]
    assert len(set(names)) == 48
    first = heldout_jobs(3)
    assert [job.name for job in first] == names[:3]
    np.testing.assert_array_equal(first[2].wanted.joints, heldout_jobs()[2].wanted.joints)
    long = heldout_jobs(2, frames=48)
    assert [job.name for job in long] == names[:2]
    assert [job.source.scene for job in long] == [job.source.scene for job in heldout_jobs(2)]


def test_another_process_renders_the_same():
    code = (
        "import hashlib; from animatediff.miniature.people.world import sample_twins;"
        "print(hashlib.sha256(sample_twins(7)[1].frames().tobytes()).hexdigest())"
    )
    runs = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(2)}
    assert len(runs) == 1
    assert runs != {""}


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'test'"):
        sample_twins(0, "test")
