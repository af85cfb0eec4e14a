"""The instrument: joints read by colour, clothes, background; a perfect answer is perfect, the source is not."""

import numpy as np
import pytest

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.evaluation.measures import Sample, load_measure
from animatediff.files import read_jsonl
from animatediff.miniature.people.heldout import heldout_jobs, write_job, write_jobs
from animatediff.miniature.people.reading import JOINTS, background_psnr, clothes_kept, pose_error, read_joints
from animatediff.pipelines.motionfollower.masks import iou
from animatediff.pipelines.motionfollower.method import METHOD, PREPARED

OPENPOSE = [0, 1, 2, 3, 4, 8, 9, 10, 5, 6, 7, 11, 12, 13]  # JOINTS


@pytest.fixture(scope="module")
def jobs():
    return heldout_jobs(6)


def test_joints_are_read_where_they_are(jobs):
    away = []
    for job in jobs:
        found = read_joints(job.wanted.frames(), job.wanted.scene.clothes)
        assert found.shape == (16, 14, 2)
        away.append(np.linalg.norm(found - job.wanted.joints[:, OPENPOSE], axis=-1))
    away = np.concatenate(away)
    assert np.isnan(away).mean() < 0.01
    assert np.nanmedian(away) < 0.8  # pixels of 64
    bare = [
        name for name in JOINTS if name.split()[-1] in ("nose", "wrist", "ankle", "shoulder")
    ]  # nothing covers them
    assert np.nanmedian(away[:, [JOINTS.index(name) for name in bare]]) < 0.3


def test_the_exact_answer_is_perfect_and_the_source_is_not(jobs):
    for job in jobs:
        exact, source = job.wanted.frames(), job.source.frames()
        assert pose_error(exact, job.wanted) == 0
        assert clothes_kept(exact, job.wanted) == 1
        assert background_psnr(exact, job.source, job.wanted) > 60
        assert pose_error(source, job.wanted) > 3
        assert clothes_kept(source, job.wanted) < 0.8


def test_a_shifted_answer_has_the_error_of_its_shift(jobs):
    frames = jobs[0].wanted.frames()
    assert pose_error(np.roll(frames, 2, axis=2), jobs[0].wanted) == pytest.approx(100 * 2 / 64, rel=0.15)


def test_an_empty_clip_loses_every_joint_and_its_colours(jobs):
    wanted = jobs[0].wanted
    empty = np.full_like(wanted.frames(), 100)
    assert pose_error(empty, wanted) == 25
    assert clothes_kept(empty, wanted) <= 0.2


def test_exchanged_clothes_are_told(jobs):
    frames, wanted = jobs[0].wanted.frames(), jobs[0].wanted
    _, parts = wanted.render()
    frames[parts == 0], frames[parts == 3] = (250, 250, 250), (12, 12, 12)
    assert clothes_kept(frames, wanted) < 0.95


def test_the_measure_finds_the_job_and_refuses_what_is_none(jobs):
    measure = load_measure("people")
    record = {"reference": f"runs/people/jobs/{jobs[0].name}/target_images"}
    values = measure(Sample(jobs[0].wanted.frames(), record)).values
    assert set(values) == {column.key for column in measure.columns}
    assert values["pose_share"] == 0
    assert values["clothes"] == 100
    assert measure(Sample(jobs[0].source.frames(), record)).values["pose_share"] == 100
    with pytest.raises(UserError, match="not of one of"):
        measure(Sample(jobs[0].wanted.frames(), {"reference": "a.mp4"}))
    with pytest.raises(UserError, match="expected 64x64"):
        measure(Sample(jobs[0].wanted.frames()[:, ::2, ::2], record))


def test_jobs_are_prepared_folders(jobs, tmp_path):
    listing = write_jobs(tmp_path, jobs[:2])
    rows = [row for _, row in read_jsonl(listing)]
    assert [row["seed"] for row in rows] == [1000, 1001]
    folder = tmp_path / jobs[1].name
    assert str(folder) == rows[1]["prepared"]
    read = {name: read_frames(folder / name, 16).frames for name in PREPARED.values()}
    np.testing.assert_array_equal(read["source_images"], jobs[1].source.frames())
    np.testing.assert_array_equal(read["predicted_masks"][..., 0] > 127, jobs[1].wanted.masks())
    assert METHOD.name == "motionfollower"


def test_predicted_target_masks_are_near_the_exact_ones(jobs, tmp_path):
    write_job(tmp_path / "job", jobs[0], exact_masks=False)
    masks = read_frames(tmp_path / "job" / "predicted_masks", 16).frames[..., 0] > 127
    exact = jobs[0].wanted.masks()
    assert 0.6 < np.mean([iou(*pair) for pair in zip(masks, exact, strict=True)]) < 1
