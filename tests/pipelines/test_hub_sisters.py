"""The sister pipelines: saved, they load by diffusers' own loader, in a process of its own, and give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from animatediff.pipelines.ditflow.pipeline import DiTFlowPipeline
from tests.pipelines import sisters

LOAD = """
import sys, torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
made = {}
for folder in sys.argv[2:]:
    pipe = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    from tests.pipelines.sisters import make
    made[folder] = (type(pipe).__name__, make(pipe))
torch.save(made, sys.argv[1])
"""
KINDS = {"MotionClonePipeline", "DiTFlowPipeline", "DiTFlowWanPipeline", "MotionFollowerPipeline"}


@pytest.fixture(scope="module")
def pipes(video_layouts) -> dict[str, Any]:
    found = [
        sisters.motionclone(),
        sisters.motionfollower(),
        *(sisters.ditflow(video_layouts(k)) for k in ("5b", "wan")),
    ]
    return {type(pipe).__name__: pipe for pipe in found}


def test_diffusers_loader_gives_the_same_pipelines(pipes, tmp_path: Path, repository: Path):
    assert set(pipes) == KINDS
    for name, pipe in pipes.items():
        pipe.save_pretrained(tmp_path / name)
    environment = os.environ | {"PYTHONPATH": str(repository), "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(tmp_path / "out.pt"), *(str(tmp_path / name) for name in pipes)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    made = torch.load(tmp_path / "out.pt")
    for name, pipe in pipes.items():
        loaded, latents = made[str(tmp_path / name)]
        assert loaded == name
        wanted = sisters.make(pipe)
        assert (latents - wanted).norm() < 1e-4 * wanted.norm(), name  # weights lie elsewhere in memory, which rounds


def test_its_own_class_runs_no_code_of_the_folder(pipes, tmp_path: Path):
    pipes["DiTFlowPipeline"].save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.py"):
        file.write_text("raise AssertionError('ran')")
    loaded = DiTFlowPipeline.from_pretrained(tmp_path)
    assert torch.equal(sisters.make(loaded), sisters.make(pipes["DiTFlowPipeline"]))


def test_a_folder_has_a_card(pipes, tmp_path: Path):
    pipes["MotionClonePipeline"].save_pretrained(tmp_path / "clone")
    card = (tmp_path / "clone" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: diffusers\n")
    assert 'DiffusionPipeline.from_pretrained("clone", custom_pipeline="clone", trust_remote_code=True)' in card
    assert "- `unet`: VideoUNet" in card
    assert str(tmp_path) not in card
