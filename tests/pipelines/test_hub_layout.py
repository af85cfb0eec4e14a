"""A saved pipeline loads by diffusers' own loader, in a process of its own, from the disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from animatediff.pipelines.efficientmt import EfficientMTPipeline
from tests.pipelines.small import extract, sample, small_components, small_pipeline

LOAD = """
import sys
from pathlib import Path
import torch
from diffusers import DiffusionPipeline
torch.set_num_threads(1)
folder, out, *named = sys.argv[1:]
options = {"custom_pipeline": named[0]} if named else {}
pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)
pipe.set_progress_bar_config(disable=True)
video = torch.zeros(4, 3, 8, 8)
reference = pipe.extract(video, generator=torch.Generator().manual_seed(0))
frames = pipe("a cat", reference=reference, generator=torch.Generator().manual_seed(42), num_inference_steps=2,
              output_type="latent").frames
torch.save({"frames": frames, "types": [type(c).__name__ for c in pipe.components.values()]}, out)
"""


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "pipe"
    small_pipeline().save_pretrained(folder)
    return folder


def load(folder: Path, out: Path, path: Path, *named: str) -> subprocess.CompletedProcess[str]:
    """Run LOAD with `path` alone to import from, and the hub's cache of code in `out`'s folder."""
    environment = os.environ | {"PYTHONPATH": str(path), "HF_HOME": str(out.parent / "hf"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-P", "-c", LOAD, str(folder), str(out), *named],
        env=environment, cwd=out.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_folder_names_files_of_code_for_what_is_not_diffusers_own(saved):
    index = json.loads((saved / "model_index.json").read_text())
    assert index["_class_name"] == ["pipeline", "EfficientMTPipeline"]
    assert (saved / "pipeline.py").is_file()
    for component in ("unet", "adapter", "scheduler"):
        assert (saved / component / f"{index[component][0]}.py").is_file()
    assert index["vae"] == ["diffusers", "AutoencoderKL"]


@pytest.mark.parametrize("by", ["folder", "index"])
def test_diffusers_loader_gives_the_same_pipeline(saved, tmp_path, repository, by):
    named = [str(saved)] if by == "folder" else []
    done = load(saved, tmp_path / "out.pt", repository, *named)
    assert done.returncode == 0, done.stderr
    pipe = small_pipeline()
    reference = pipe.extract(torch.zeros(4, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    loaded = torch.load(tmp_path / "out.pt")
    assert torch.equal(loaded["frames"], sample(pipe, reference))
    assert {"VideoUNet", "Adapter", "EvenDDIMScheduler"} <= set(loaded["types"])


def test_without_the_package_the_last_line_says_which_one_is_missing(saved, tmp_path):
    """The package is not on the path of the process, nor installed beside diffusers."""
    blocker = tmp_path / "sitecustomize.py"
    blocker.write_text("import sys\nsys.modules['animatediff'] = None\n")
    done = load(saved, tmp_path / "out.pt", tmp_path, str(saved))
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        "ImportError: EfficientMTPipeline needs the package animatediff, which EfficientMT's repository installs"
    )


def test_its_own_class_loads_it_without_running_the_code_in_the_folder(saved, tmp_path):
    for file in saved.rglob("*.py"):
        assert "animatediff" in file.read_text()
    copy = tmp_path / "pipe"
    small_pipeline().save_pretrained(copy)
    for file in copy.rglob("*.py"):
        file.write_text("raise AssertionError('ran')")
    loaded = EfficientMTPipeline.from_pretrained(copy)
    loaded.set_progress_bar_config(disable=True)
    pipe = small_pipeline()
    reference = extract(pipe)
    assert torch.equal(sample(loaded, reference), sample(pipe, reference))
    replaced = EfficientMTPipeline.from_pretrained(copy, adapter=None, scheduler=small_components()["scheduler"])
    assert replaced.adapter is None
