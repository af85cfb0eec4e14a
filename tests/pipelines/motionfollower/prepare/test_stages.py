"""A whole preparation on drawn figures: what it makes, what it finds again, what it refuses."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.masks import iou
from animatediff.pipelines.motionfollower.poses import draw_pose, positions
from animatediff.pipelines.motionfollower.prepare import PrepareOptions, prepare
from animatediff.pipelines.motionfollower.prepare.folder import STAGES
from animatediff.pipelines.motionfollower.prepare.stages import filled, held
from animatediff.pipelines.motionfollower.prepare.writer import POSES, SEQUENCES, write_keypoints
from animatediff.pipelines.motionfollower.skeleton import draw_skeleton
from tests.pipelines.motionfollower.layout import outline, waving
from tests.pipelines.motionfollower.prepare.conftest import FRAMES, SIDE, keypoints_of, write_clip

SMALL = {"height": SIDE, "width": SIDE}


def run(clips, folder, **options):
    """Prepare; returns the folder and the lines said."""
    lines = []
    prepare(*clips, folder, PrepareOptions(**SMALL | options), say=lines.append)
    return lines


def close(joints, wanted, pixels):
    """Whether joints (f 18 2) lie where they should; on a small drawing a few are covered by others."""
    seen = np.isfinite(joints).all(axis=-1)
    assert seen.mean() > 0.85
    np.testing.assert_allclose(joints[seen], wanted[seen], atol=pixels)


def made_anew(lines):
    """The stages that were not there."""
    return [
        line.partition(":")[0] for line in lines if line.partition(":")[0] in STAGES and not line.endswith(": there")
    ]


def test_everything_is_made_and_found_again(detector, clips, tmp_path):
    folder, progress = tmp_path / "out" / "one", []
    prepare(*clips, folder, PrepareOptions(**SMALL), on_progress=lambda *said: progress.append(said))
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        [*SEQUENCES, "keypoints.npz", "log.json", "sheet.html"]
    )
    log = json.loads((folder / "log.json").read_text())
    assert (log["frames"], log["size"], list(log["stages"])) == (FRAMES, [SIDE, SIDE], list(STAGES))
    assert log["stages"]["source keypoints"]["made_by"] == log["stages"]["source masks"]["made_by"] == "drawings"
    assert ("driving keypoints", FRAMES, FRAMES) in progress
    keypoints = np.load(folder / "keypoints.npz")
    body = positions(keypoints["source"])[:, :18]
    close(body, np.repeat(waving(1, SIDE), FRAMES, axis=0), 1.0)
    aligned = positions(keypoints["aligned"])[:, :18]
    close(aligned, waving(FRAMES, SIDE), 3.0)  # the arm's way, on the source's body
    assert log["stages"]["alignment"]["torso"] == pytest.approx(1.0, abs=0.02)
    for name, key in POSES.items():
        drawn = np.stack([draw_pose(frame, (SIDE, SIDE)) for frame in keypoints[key]])
        np.testing.assert_array_equal(read_frames(folder / name, None).frames, drawn)
    masks = read_frames(folder / "predicted_masks", None).frames[..., 0] > 127
    wanted = [outline(joints, SIDE) > 0 for joints in waving(FRAMES, SIDE)]
    assert min(map(iou, masks[1:-1], wanted[1:-1])) > 0.65  # of limbs that are seven pixels wide
    assert log["stages"]["target masks"]["checks"][0]["value"] > 0.8  # the median over frames trails the arm
    calls = list(detector.calls)
    assert made_anew(run(clips, folder)) == []
    assert detector.calls == calls


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        ({"root": "source"}, ["alignment", "target masks", "sheet"]),
        ({"proportions": False}, ["alignment", "target masks", "sheet"]),
        ({"driving_subject": "60,60"}, ["driving keypoints", "alignment", "target masks", "sheet"]),
        ({"num_frames": 3}, [*STAGES]),
    ],
)
def test_a_changed_option_makes_anew_what_depends_on_it(detector, clips, tmp_path, options, stages):
    run(clips, tmp_path / "out")
    assert made_anew(run(clips, tmp_path / "out", **options)) == stages


def test_a_lost_file_and_an_interrupted_run(detector, clips, tmp_path):
    folder = tmp_path / "out"

    def interrupt(stage, done, total):
        if stage == "driving keypoints":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(*clips, folder, PrepareOptions(**SMALL), on_progress=interrupt)
    assert (folder / "source_masks").is_dir()
    assert made_anew(run(clips, folder)) == ["driving keypoints", "alignment", "target masks", "sheet"]
    (folder / "source_poses" / "frame_2.png").unlink()
    assert "driving keypoints" not in made_anew(run(clips, folder))
    assert (folder / "source_poses" / "frame_2.png").is_file()


def test_the_users_own_files_instead_of_stages(detector, clips, tmp_path):
    own = keypoints_of(np.repeat(waving(1, SIDE), FRAMES, axis=0))
    write_keypoints(tmp_path / "own.npz", {"source": own, "target": own, "aligned": own + np.array([5, 0, 0])})
    masks = tmp_path / "masks"
    masks.mkdir()
    for j in range(FRAMES):
        Image.fromarray(outline(waving(1, SIDE)[0], SIDE)).save(masks / f"{j}.png")
    moved = shutil.copytree(masks, tmp_path / "moved")
    given = {f"{name}_keypoints": str(tmp_path / "own.npz") for name in ("source", "driving", "aligned")}
    given |= {"source_masks": str(masks), "predicted_masks": str(moved)}
    run(clips, tmp_path / "out", **given)
    assert detector.calls == []
    np.testing.assert_array_equal(np.load(tmp_path / "out" / "keypoints.npz")["aligned"], own + np.array([5, 0, 0]))
    log = json.loads((tmp_path / "out" / "log.json").read_text())
    assert {log["stages"][name]["made_by"] for name in list(STAGES)[2:-1]} == {"your own"}
    np.testing.assert_array_equal(
        read_frames(tmp_path / "out" / "predicted_masks", None).frames, read_frames(moved, None).frames
    )


def test_clips_of_other_shapes_keep_the_bodys_shape(detector, clips, tmp_path):
    """A source twice as wide as high, squashed: the aligned body is as squashed as the source's."""
    wide = np.repeat(waving(1, SIDE), FRAMES, axis=0) + np.array([SIDE / 2, 0])
    folder = tmp_path / "wide"
    folder.mkdir()
    for j, joints in enumerate(wide):
        Image.fromarray(draw_skeleton(joints, size=(SIDE, 2 * SIDE))).save(folder / f"{j}.png")
    own = keypoints_of(wide / (2, 1))
    write_keypoints(tmp_path / "own.npz", {"source": own})
    masks = tmp_path / "masks"
    masks.mkdir()
    for j in range(FRAMES):
        Image.fromarray(outline(wide[j] / (2, 1), SIDE)).save(masks / f"{j}.png")
    run((folder, clips[1]), tmp_path / "out", source_keypoints=str(tmp_path / "own.npz"), source_masks=str(masks))
    aligned = positions(np.load(tmp_path / "out" / "keypoints.npz")["aligned"])[:, :18]
    close(aligned, (waving(FRAMES, SIDE) + np.array([SIDE / 2, 0])) / (2, 1), 2.5)


# ------------------------------------------------------------------ bad input


def refused(clips, folder, line, **options):
    with pytest.raises(UserError, match=line) as caught:
        run(clips, folder, **options)
    assert "\n" not in str(caught.value)


def test_a_driving_clip_of_nobody_keeps_what_is_finished(detector, clips, tmp_path):
    nobody = write_clip(tmp_path / "wall", np.full((FRAMES, 18, 2), np.nan))
    refused((clips[0], nobody), tmp_path / "out", "no person was found in the driving clip; give a clip that shows one")
    assert (tmp_path / "out" / "source_masks" / "frame_3.png").is_file()
    lines = run(clips, tmp_path / "out")
    assert made_anew(lines) == ["driving frames", "driving keypoints", "alignment", "target masks", "sheet"]


def test_a_person_who_leaves(detector, clips, tmp_path):
    body = waving(FRAMES, SIDE)
    body[2:] = np.nan
    refused(
        (clips[0], write_clip(tmp_path / "leaves", body)),
        tmp_path / "out",
        r"found in 2 of 4 frames of the driving clip, expected 90%; take a part .*driving_start",
    )


def test_half_a_person(detector, clips, tmp_path):
    body = waving(FRAMES, SIDE)
    body[:, [9, 10, 12, 13]] = np.nan
    half = write_clip(tmp_path / "half", body)
    refused((clips[0], half), tmp_path / "out", r"half a person moves no whole one: .* legs in 0% .* source in 100%")
    run((half, half), tmp_path / "two")  # both halves: nothing is missing
    body[:, [8, 11]] = np.nan
    bust = write_clip(tmp_path / "bust", body)
    refused((clips[0], bust), tmp_path / "out", r"no frame of the driving clip shows a person from the shoulders")


def test_two_people_are_told_of(detector, clips, tmp_path, monkeypatch):
    def two(frames, told):
        boxes = [[i, x, 10, x + side, 120, 1] for i in range(len(frames)) for x, side in ((0, 40), (60, 60))]
        return np.array(boxes, float)

    monkeypatch.setattr(detector, "people", two)
    lines = run(clips, tmp_path / "out")
    told = [line for line in lines if "shows another person nearly as big" in line]
    assert len(told) == 2
    assert "source_subject=x,y (in its first frame) takes another" in told[0]
    assert not [line for line in run(clips, tmp_path / "out", source_subject="10,50") if "source clip shows" in line]


@pytest.mark.parametrize(
    ("level", "line"), [(0, "mask of frame 0 is empty"), (255, "mask of frame 0 is full"), (None, "not of the person")]
)
def test_masks_of_something_else(detector, clips, tmp_path, level, line):
    masks = tmp_path / "masks"
    masks.mkdir()
    for j in range(FRAMES):
        wall = 255 - outline(waving(1, SIDE)[0], SIDE)
        Image.fromarray(wall if level is None else np.full_like(wall, level)).save(masks / f"{j}.png")
    refused(clips, tmp_path / "out", line, source_masks=str(masks))
    assert (tmp_path / "out" / "source_poses" / "frame_0.png").is_file()


def test_files_of_another_kind_or_number(detector, clips, tmp_path):
    run(clips, tmp_path / "out")
    done = tmp_path / "out"
    refused(
        clips, done, "expected keypoints at .* where a folder, as drawings", source_keypoints=str(done / "source_poses")
    )
    npz = str(done / "keypoints.npz")
    refused(clips, done, "source_masks is .*, a file of arrays; expected masks as a folder", source_masks=npz)
    refused(clips, done, "driving_keypoints has 4 frames and the clips give 3", driving_keypoints=npz, num_frames=3)
    refused(clips, done, "nothing lies there", source_masks=str(tmp_path / "nowhere"))
    refused(clips, done, "height is 100, expected a multiple of 16; the nearest is 96", height=100)
    refused(clips, done, "source_subject is 'left', expected x,y or x0,y0,x1,y1", source_subject="left")
    refused((tmp_path / "no.mp4", clips[1]), done, "nothing at .*no.mp4; check source")
    assert made_anew(run(clips, done)) == []  # none of these touched what is finished


def test_frames_without_a_person_are_bridged():
    keypoints = keypoints_of(waving(5, SIDE))
    gap = keypoints.copy()
    gap[2] = 0
    np.testing.assert_allclose(filled(gap)[2], (keypoints[1] + keypoints[3]) / 2)
    gap[4] = 0
    np.testing.assert_array_equal(filled(gap)[4], keypoints[3])
    masks = np.zeros((3, 2, 2), np.uint8)
    masks[1] = 255
    assert (held(masks) == 255).all()
