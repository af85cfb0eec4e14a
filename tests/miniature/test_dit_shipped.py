"""The shipped weights of models/miniature_dit: DiTFlow moves a subject of the prompt's colour after a clip."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from animatediff.data.export import save_video
from animatediff.inference import Engine
from animatediff.miniature.heldout import heldout_jobs, score
from animatediff.miniature.video_autoencoder import FRAMES

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "configs" / "inference" / "ditflow" / "miniature.yaml").read_text())


@pytest.fixture(scope="module")
def job():
    """The first held-out job: a subject on a line."""
    return heldout_jobs(1, frames=FRAMES, anchored=False)[0]


def made(job, folder: Path, **keys) -> np.ndarray:
    """The job's frames [f, h, w, 3], uint8."""
    reference = folder / f"{job.name}.mp4"
    save_video(reference, job.reference.frames(), CONFIG["fps"])
    row = {"ref_video_path": str(reference), "prompt": job.prompt, "seed": job.seed}
    return np.rint(Engine({**CONFIG, **keys}).generate(row) * 255).astype(np.uint8)


def test_a_subject_follows_the_reference_and_without_one_it_does_not(job, tmp_path):
    guided, alone = (score(made(job, tmp_path, **keys), job) for keys in ({}, {"use_reference": False}))
    assert guided["distance"] < 0.4 * alone["distance"]
    for found in (guided, alone):
        assert found["colour"]


def test_the_camera_follows_the_reference(tmp_path):
    pan = next(job for job in heldout_jobs(12, frames=FRAMES, anchored=False) if job.reference.motion.family == "pan")
    assert score(made(pan, tmp_path), pan)["camera"] > 0.7


def test_the_weights_are_small():
    files = [path for path in (ROOT / "models" / "miniature_dit").rglob("*") if path.is_file()]
    assert 8e6 < sum(path.stat().st_size for path in files) <= 12e6
