"""A method registered from outside goes through every door: nothing but the table knows its name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from animatediff.config import option
from animatediff.curation import pairs
from animatediff.errors import UserError
from animatediff.inference import Engine, cli
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Input, WeightFile


@dataclass
class ToyFiles:
    toy_path: str = "toy.bin"


@dataclass
class ToySettings:
    gain: float = option(1.0, "of the brightness", least=0, most=2)


class Toy:
    """Its 'video' is the reference's, brighter by `gain`; its model is one number in a file."""

    name, Files, Settings = "toy", ToyFiles, ToySettings
    defaults = {"num_frames": 4, "num_inference_steps": 3, "height": 32, "width": 32, "device": "cpu"}
    inputs = (Input("extra_path", "images"),)
    needs_prompt = True
    reference_keys = frozenset({"ref_prompt"})
    objective = None

    def check(self, run, settings):
        if run.prompt == "refuse":
            raise UserError("prompt is 'refuse', which this method does not draw")

    def weights(self, files):
        return [WeightFile("toy", Path(files.toy_path), by_content=True)]

    def load(self, files, settings, device, dtype):
        return {"scale": float(Path(files.toy_path).read_text())}

    def extract(self, pipe, video, inputs, run, settings, rng):
        return (video + 1) / 2

    def generate(self, pipe, reference, inputs, run, settings, rng, on_step):
        for step in range(run.num_inference_steps):
            on_step(step, run.num_inference_steps, reference)
        video = pipe["scale"] * settings.gain * reference + 0.01 * torch.rand((), generator=rng)
        return video.clamp(0, 1).permute(0, 2, 3, 1).numpy()  # f 3 h w -> f h w 3

    def facts(self, pipe, reference):
        return {"scale": pipe["scale"]}


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clip: Path) -> dict[str, str]:
    """The job's keys, with the method registered for the length of a test and its weights in the current folder."""
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("toy", Toy())
    monkeypatch.chdir(tmp_path)
    Path("toy.bin").write_text("0.5")
    Path("toy.yaml").write_text("method: toy\ntoy:\n  gain: 0.8\n")
    return {"ref_video_path": str(clip), "prompt": "a fox"}


def written(folder: str = "outputs") -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*.*") if path.is_file())


def test_yaml_command_line_sidecar_and_rerun(toy, capsys):
    flags = [f"--{name}={value}" for name, value in toy.items()]
    assert cli.main(["--config", "toy.yaml", "--dry-run", *flags]) == 0
    shown = capsys.readouterr().out
    assert "gain: 0.8" in shown
    assert "present  toy: toy.bin" in shown
    assert "motion_module_path" not in shown
    assert cli.main(["--config", "toy.yaml", *flags, "toy.gain=1.5"]) == 0
    assert written() == ["clip/a-fox-42.json", "clip/a-fox-42.mp4"]
    sidecar = json.loads(Path("outputs/clip/a-fox-42.json").read_text())
    assert (sidecar["method"], sidecar["scale"], sidecar["num_frames"]) == ("toy", 0.5, 4)
    assert sidecar["config"]["toy"] == {"gain": 1.5}
    assert cli.main(["--config", "outputs/clip/a-fox-42.json"]) == 0
    assert "already done" in capsys.readouterr().out
    assert cli.main(["--config", "outputs/clip/a-fox-42.json", "output_dir=again"]) == 0
    assert Path("again/clip/a-fox-42.mp4").read_bytes() == Path("outputs/clip/a-fox-42.mp4").read_bytes()


def test_a_job_list(toy, capsys):
    rows = [toy, toy | {"toy": {"gain": 1.2}, "seed": 1}, toy | {"prompt": "refuse"}, toy | {"toy_path": "x"}]
    rows += [toy | {"toy": {"gain": 3}}, toy | {"gif": True}]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert cli.main(["--config", "toy.yaml", "--jobs", "jobs.jsonl"]) == 1
    assert written() == [f"clip/a-fox-{end}" for end in ("1.json", "1.mp4", "42.gif", "42.json", "42.mp4")]
    said = capsys.readouterr().out
    for line in (
        "which this method does not draw",
        "sets 'toy_path', which is loaded once",
        "toy.gain is 3.0, expected 0 to 2",
        "6 jobs: 2 done, 1 repeated, 3 failed",
    ):
        assert line in said


def test_pairs(toy, tmp_path: Path):
    Path("prompts.yaml").write_text("- a fox\n")
    paths = ["--clips", str(Path(toy["ref_video_path"]).parent), "--prompts", "prompts.yaml", "--out", "pairs"]
    keys = ["evaluation.clip=none", "evaluation.grid=8", "thresholds.motion_fidelity=-1", "thresholds.words_shown=-1"]
    keys += ["thresholds.colour_consistency=-1", "inference.toy.gain=1"]
    assert pairs.main([*paths, "--method", "toy", "--config", "toy.yaml", *keys]) == 0
    assert Path("pairs/manifest.jsonl").read_text().count("\n") == 2


def test_the_engine(toy):
    steps: list[tuple[int, int]] = []
    engine = Engine({"method": "toy"})
    video = engine.generate(toy, on_step=lambda i, n, latents: steps.append((i, n)))
    assert (video.shape, steps) == ((4, 32, 32, 3), [(0, 3), (1, 3), (2, 3)])
    reference = engine.extract(toy)
    assert engine.extract(toy | {"prompt": "a cat"}) is reference, "extracted once"
    assert engine.extract(toy | {"ref_prompt": "x"}) is not reference
    frames = np.full((3, 40, 48, 3), 255, np.uint8)
    white = engine.generate(toy, engine.extract(toy, frames))
    assert white.shape == (3, 32, 32, 3)
    assert white.mean() == pytest.approx(0.5, abs=0.02)

    def stop(i, n, latents):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(toy, on_step=stop)
    assert np.array_equal(engine.generate(toy), video)
    for given in (None, reference):
        with pytest.raises(UserError, match="prompt is 'refuse', which this method does not draw"):
            engine.generate(toy | {"prompt": "refuse"}, given)
    with pytest.raises(UserError, match="unknown key 'sead' in the job; did you mean 'seed'"):
        engine.generate(toy | {"sead": 1})


def test_methods_that_do_not_exist(toy):
    with pytest.raises(UserError, match="method is 'toi'; did you mean 'toy'"):
        Engine({"method": "toi"})
