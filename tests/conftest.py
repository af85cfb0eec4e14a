"""Shared set-up: one thread, no network, the tiny published layout written once, inference.py on it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

from animatediff.data.export import save_video
from animatediff.inference import cli
from animatediff.pipelines.efficientmt import method
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles as Files
from animatediff.pipelines.efficientmt.loading import load_pipeline
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from tests.browser import MISSING, Browser, find_browser, launch
from tests.goldens import write_tiny_layout

torch.set_num_threads(1)

# Generated inputs: the same hundred every time, or with HYPOTHESIS_PROFILE=long thousands of new ones.
_COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
settings.register_profile("short", max_examples=100, derandomize=True, **_COMMON)
settings.register_profile("long", max_examples=5000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "short"))


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """The published layout at a tiny size; every file holds different values for the same parameter."""
    return Files(**write_tiny_layout(tmp_path_factory.mktemp("layout")))


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A square that moves to the right: 8 frames of 48x64."""
    path = tmp_path_factory.mktemp("clips") / "clip.mp4"
    frames = np.full((8, 48, 64, 3), 40, np.uint8)
    for i, frame in enumerate(frames):
        frame[16:32, 4 * i : 4 * i + 16] = (220, 60, 30)
    save_video(path, frames)
    return path


@pytest.fixture(scope="session")
def load_once() -> Callable[..., EfficientMTPipeline]:
    """`load_pipeline`, which gives the same pipeline for the same files: loading has tests of its own."""
    loaded: dict[str, EfficientMTPipeline] = {}

    def load(weights: Files, **settings) -> EfficientMTPipeline:
        key = repr([weights, settings])
        if key not in loaded:
            loaded[key] = load_pipeline(weights, **settings)
        return loaded[key]

    return load


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless browser, or a skip that says why."""
    path = find_browser()
    if path is None:
        pytest.skip(MISSING)
    with launch(path) as opened:
        yield opened


@pytest.fixture
def small_config(tiny_weights: Files, tmp_path: Path) -> Path:
    """A configuration of inference.py: the tiny layout, 2 frames, 2 steps."""
    lines = {key: value for key, value in asdict(tiny_weights).items() if value}
    small = {"num_frames": 2, "height": 32, "width": 32, "num_inference_steps": 2, "device": "cpu"}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(lines | small))
    return path


@pytest.fixture
def command(small_config: Path, clip: Path, monkeypatch: pytest.MonkeyPatch, load_once) -> Callable[..., int]:
    """inference.py's main with `small_config` on `clip`, in an empty current folder."""
    monkeypatch.setattr(method, "load_pipeline", load_once)
    monkeypatch.chdir(small_config.parent)

    def call(*arguments: str, prompt: str | None = "a red star", reference: Path | str | None = clip) -> int:
        flags = ["--config", str(small_config)]
        flags += [] if prompt is None else ["--prompt", prompt]
        flags += [] if reference is None else ["--ref_video_path", str(reference)]
        return cli.main([*flags, *arguments])

    return call


@pytest.fixture(scope="session")
def video_layouts(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind (2b, 5b, wan) -> the folder of a tiny base of that layout, written once; not to be changed."""
    from tests.video_layouts import write_layout

    written: dict[str, Path] = {}

    def layout(kind: str) -> Path:
        if kind not in written:
            written[kind] = write_layout(tmp_path_factory.mktemp("video_layout") / kind, kind)
        return written[kind]

    return layout
