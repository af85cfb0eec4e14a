"""The measures of the miniature: perfect answers score perfectly, wrong ones do not, the jobs are held out."""

import json
from pathlib import Path

import numpy as np
import pytest

from animatediff.data.video import read_frames
from animatediff.miniature.heldout import (
    UNSEEN,
    bundled_jobs,
    camera_cosine,
    displacement_cosine,
    heldout_jobs,
    mean_distance,
    score,
    size_followed,
    write_jobs,
)
from animatediff.miniature.motions import sector_is_held_out
from animatediff.miniature.world import Clip, Content

REPOSITORY = Path(__file__).resolve().parents[2]
JOBS = heldout_jobs()


def test_jobs_are_fixed_held_out_and_share_no_colour():
    assert [job.prompt for job in JOBS] == [job.prompt for job in heldout_jobs()]
    assert len({job.name for job in JOBS}) == 64
    for job in JOBS:
        assert sector_is_held_out(job.reference.motion.phase)
        assert job.reference.content.split == job.content.split == "heldout"
        assert job.reference.content.colour != job.content.colour
        assert job.reference.content.shape != job.content.shape


@pytest.mark.parametrize("number", [0, 4, 6, 9, 10, 11])
def test_the_perfect_answer_scores_perfectly(number):
    found = score(JOBS[number].wanted.frames(), JOBS[number])
    assert found["distance"] < 0.5
    assert np.isnan(found["cosine"]) or found["cosine"] > 0.98
    assert np.isnan(found["camera"]) == (number < 9)
    assert np.isnan(found["camera"]) or found["camera"] > 0.98
    assert np.isnan(found["size"]) == (number not in (6, 10, 11))
    assert np.isnan(found["size"]) or found["size"] == pytest.approx(1, abs=0.1)
    assert all(found[name] for name in ("colour", "shape", "pattern", "background"))
    assert not found["leak"]


def test_the_reversed_motion_scores_as_backwards():
    job = JOBS[0]
    frames = job.wanted.frames()[::-1]
    assert score(frames, job)["cosine"] < -0.9
    assert score(frames, job, backwards=True)["cosine"] > 0.98


def test_the_references_own_colour_is_a_leak():
    job = JOBS[3]
    leaking = Content(job.content.shape, job.reference.content.colour, job.content.pattern, job.content.background)
    found = score(Clip(leaking, job.reference.motion).frames(), job)
    assert found["leak"]
    assert not found["colour"]
    assert found["shape"]


def test_cosine_by_hand():
    reference = np.array([[0.0, 0], [2, 0], [2, 0.1], [2, 2]])
    track = np.array([[0.0, 0], [0, 3], [9, 9], [9, 12]])
    assert displacement_cosine(reference, reference, 64) == pytest.approx(1)
    assert displacement_cosine(track, reference, 64) == pytest.approx(0.5)  # 90 degrees, still (left out), the same
    assert displacement_cosine(np.full((4, 2), np.nan), reference, 64) == 0
    assert np.isnan(displacement_cosine(track, np.zeros((4, 2)), 64))


def test_distance_by_hand():
    reference = np.zeros((2, 2))
    assert mean_distance(np.array([[3.0, 4], [0, 0]]), reference, 50) == pytest.approx(5)
    assert mean_distance(np.array([[3.0, 4], [np.nan, np.nan]]), reference, 50) == pytest.approx(5 + UNSEEN / 2)


def test_size_followed_by_hand():
    radii = np.geomspace(4, 8, 5)
    disc = np.hypot(*(np.mgrid[:64, :64] - 31.5))
    grown = np.stack([disc < r for r in 1.3 * radii]).astype(float)  # too large throughout, and growing as it should
    assert size_followed(grown, radii) == pytest.approx(1, abs=0.05)
    assert size_followed(grown[::-1], radii) == pytest.approx(-1, abs=0.05)
    assert size_followed(grown[:1].repeat(5, axis=0), radii) == pytest.approx(0, abs=1e-9)
    slower = np.stack([disc < r for r in np.geomspace(8, 8 * 2**0.5, 5)])
    assert size_followed(slower, radii) == pytest.approx(0.5, abs=0.05)
    grown[1:] = 0
    assert size_followed(grown, radii) == size_followed(np.zeros_like(grown), radii) == 0
    assert np.isnan(size_followed(grown, np.linspace(5, 5.9, 5)))


def test_camera_cosine_knows_opposite_zooms():
    zoom_in = JOBS[10].reference.camera_steps()
    backwards = Clip(JOBS[10].content, JOBS[10].reference.motion.reversed())
    assert camera_cosine(zoom_in, zoom_in, (64, 64)) == pytest.approx(1)
    assert camera_cosine(backwards.camera_steps(), zoom_in, (64, 64)) < -0.95
    assert camera_cosine(np.full((15, 2, 3), np.nan), zoom_in, (64, 64)) == 0


def test_written_jobs_can_be_read_back(tmp_path):
    path = write_jobs(tmp_path, heldout_jobs(2))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["prompt"] for line in lines] == [job.prompt for job in JOBS[:2]]
    assert [line["ref_video_path"] for line in lines] == [(tmp_path / f"{job.name}.mp4").as_posix() for job in JOBS[:2]]
    assert all((tmp_path / line["ref_video_path"].rpartition("/")[2]).is_file() for line in lines)


def test_the_bundled_clips_are_what_the_code_renders():
    listed = [json.loads(line) for line in (REPOSITORY / "assets" / "jobs.jsonl").read_text().splitlines()]
    assert [(line["prompt"], line["seed"]) for line in listed] == [(job.prompt, job.seed) for job in bundled_jobs()]
    for line, job in zip(listed, bundled_jobs(), strict=True):
        frames = read_frames(REPOSITORY / line["ref_video_path"], 16).frames
        assert np.abs(frames.astype(float) - job.reference.frames()).mean() < 3
