"""The shipped weights of models/miniature_people: they load as the published files do, and an edit moves the person."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from animatediff.files import read_jsonl
from animatediff.inference import Engine
from animatediff.miniature.people.heldout import bundled_jobs
from animatediff.miniature.people.reading import background_psnr, clothes_kept, pose_error

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def edited():
    """The first bundled job made with few steps: the job and its frames."""
    config = yaml.safe_load((ROOT / "configs" / "inference" / "motionfollower" / "miniature.yaml").read_text())
    _, row = next(iter(read_jsonl(ROOT / "assets" / "people_jobs.jsonl")))
    engine = Engine({**config, "num_inference_steps": 6})
    frames = engine.generate({**row, "prepared": str(ROOT / row["prepared"])})
    return bundled_jobs()[0], np.rint(frames * 255).astype(np.uint8)


def test_a_bundled_edit_has_less_pose_error_than_its_source_and_keeps_the_rest(edited):
    job, frames = edited
    assert frames.shape == (16, 64, 64, 3)
    assert pose_error(frames, job.wanted) < 0.5 * pose_error(job.source.frames(), job.wanted)
    assert clothes_kept(frames, job.wanted) > clothes_kept(job.source.frames(), job.wanted)
    assert background_psnr(frames, job.source, job.wanted) > 25


def test_the_bundled_jobs_are_those_of_the_world():
    rows = [row for _, row in read_jsonl(ROOT / "assets" / "people_jobs.jsonl")]
    assert [(Path(row["prepared"]).name, row["seed"]) for row in rows] == [
        (job.name, job.seed) for job in bundled_jobs()
    ]
    assert all((ROOT / row["prepared"] / "source_images" / "frame_15.png").is_file() for row in rows)


def test_the_weights_are_small():
    files = [path for path in (ROOT / "models" / "miniature_people").rglob("*") if path.is_file()]
    assert 8e6 < sum(path.stat().st_size for path in files) <= 12e6
