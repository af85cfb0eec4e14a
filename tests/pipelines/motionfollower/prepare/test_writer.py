"""Prepared folders as they lie on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.poses import draw_pose
from animatediff.pipelines.motionfollower.prepare import write_prepared
from animatediff.pipelines.motionfollower.prepare.writer import POSES, SEQUENCES, read_keypoints
from tests.pipelines.motionfollower.layout import waving
from tests.pipelines.motionfollower.prepare.conftest import keypoints_of


@pytest.fixture
def given():
    rng = np.random.default_rng(0)
    keypoints = keypoints_of(waving(12, 48))
    return {
        "source_images": rng.integers(0, 256, (12, 48, 64, 3), np.uint8),
        "target_images": rng.integers(0, 256, (12, 32, 40, 3), np.uint8),
        "source_masks": rng.random((12, 48, 64)) > 0.5,
        "predicted_masks": rng.integers(0, 256, (12, 48, 64), np.uint8),
        "keypoints": {name: keypoints + i for i, name in enumerate(POSES.values())},
    }


def test_everything_is_read_back(given, tmp_path):
    folder = tmp_path / "one"
    write_prepared(folder, **given, log={"made_by": "a renderer"})
    write_prepared(folder, **given, log={"made_by": "a renderer"})  # in place of the first
    assert sorted(path.name for path in folder.iterdir()) == sorted([*SEQUENCES, "keypoints.npz", "log.json"])
    assert {path.name for path in (folder / "source_masks").iterdir()} == {f"frame_{i}.png" for i in range(12)}
    for name in ("source_images", "target_images"):
        np.testing.assert_array_equal(read_frames(folder / name, None).frames, given[name])
    np.testing.assert_array_equal(
        np.asarray(Image.open(folder / "source_masks" / "frame_11.png")) > 0, given["source_masks"][11]
    )
    masks = read_frames(folder / "predicted_masks", None).frames[..., 0]
    np.testing.assert_array_equal(masks, np.where(given["predicted_masks"] > 127, 255, 0))
    for name, key in POSES.items():
        size = (32, 40) if name == "target_poses" else (48, 64)
        drawn = np.stack([draw_pose(frame, size) for frame in given["keypoints"][key]])
        np.testing.assert_array_equal(read_frames(folder / name, None).frames, drawn)
        np.testing.assert_array_equal(read_keypoints(folder / "keypoints.npz", [key])[key], given["keypoints"][key])
    assert json.loads((folder / "log.json").read_text()) == {"made_by": "a renderer"}


def test_what_does_not_fit_leaves_nothing(given, tmp_path):
    folder = tmp_path / "one"
    with pytest.raises(UserError, match=r"numbers of frames differ \(source_images 12, .*source_masks 11"):
        write_prepared(folder, **given | {"source_masks": given["source_masks"][1:]})
    with pytest.raises(UserError, match=r"predicted_masks are 40x48 and source_images 64x48"):
        write_prepared(folder, **given | {"predicted_masks": given["predicted_masks"][..., :40]})
    with pytest.raises(UserError, match="keypoints lack 'target'"):
        write_prepared(folder, **given | {"keypoints": {"source": given["keypoints"]["source"]}})
    with pytest.raises(UserError, match=r"keypoints have shape \[12, 18, 3\]"):
        write_prepared(folder, **given | {"keypoints": {key: v[:, :18] for key, v in given["keypoints"].items()}})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_replaced(given, tmp_path):
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(UserError, match=r"holds thesis\.tex, which no prepared folder does; choose another"):
        write_prepared(tmp_path, **given)
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_files_that_are_no_keypoints(given, tmp_path):
    write_prepared(tmp_path / "one", **given)
    with pytest.raises(UserError, match=r"expected keypoints at .*source_poses, where a folder, as drawings of"):
        read_keypoints(tmp_path / "one" / "source_poses", ["source"])
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text\.npz is no file of keypoints"):
        read_keypoints(tmp_path / "text.npz", ["source"])
    np.savez(tmp_path / "other.npz", left=np.zeros((3, 60, 3)))
    with pytest.raises(UserError, match=r"other\.npz lacks 'source'; it holds left"):
        read_keypoints(tmp_path / "other.npz", ["source"])
    np.savez(tmp_path / "objects.npz", source=np.array([{}], object))
    with pytest.raises(UserError, match=r"objects\.npz is no file of keypoints"):
        read_keypoints(tmp_path / "objects.npz", ["source"])
    np.savez(tmp_path / "flat.npz", source=np.zeros((3, 18, 2)))
    with pytest.raises(UserError, match=r"keypoints have shape \[3, 18, 2\]"):
        read_keypoints(tmp_path / "flat.npz", ["source"])
