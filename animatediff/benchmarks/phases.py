"""Where the time of one transfer goes, from the start of the command to the written video."""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from animatediff.benchmarks.memory import PROMPT
from animatediff.benchmarks.networks import Setup, fill_randomly, site_channels
from animatediff.benchmarks.timing import isolated
from animatediff.data.export import save_video
from animatediff.data.video import fit_frames, read_frames
from animatediff.files import write_json
from animatediff.miniature.text import build_tokenizer
from animatediff.models import Adapter, build_unet
from animatediff.models.key_names import original_name
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles, load_pipeline

PUBLISHED_STEPS = 25
PROMPTS = 10


@dataclass
class Phases:
    """Seconds by phase, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def measure_phases(setup: Setup) -> dict[str, Any]:
    """Seconds and share of each phase of one transfer of 25 steps, and what follows for ten prompts on a reference.

    A fresh process imports everything and loads files of real shapes by the real code. The files hold zeros and take
    no room on the disk, so reading from a slow disk is not in the start-up. Of the 25 steps as many run as the
    setup has rounds; the others are taken to last as long as the median of those after the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = write_blank_weights(setup, Path(folder))
        seconds = isolated(run_phases, setup, weights, folder, time.time())
    total = sum(seconds.values())
    return {
        "phases": {name: {"seconds": value, "share": value / total} for name, value in seconds.items()},
        "total_seconds": total,
        "measured_steps": setup.rounds,
        "ten_prompts": compare_prompts(seconds, PROMPTS),
    }


def compare_prompts(seconds: Mapping[str, float], prompts: int) -> dict[str, float]:
    """Seconds of `prompts` single runs and of one run over all of them on one reference, and their ratio.

    In one run, start-up and extraction happen once.
    """
    once = seconds["start-up"] + seconds["extraction"]
    total = sum(seconds.values())
    singles, together = prompts * total, once + prompts * (total - once)
    return {"single_runs": singles, "one_run": together, "ratio": together / singles}


def run_phases(setup: Setup, weights: EfficientMTFiles, folder: str, launched: float) -> dict[str, float]:
    """Seconds of every phase, for a process that was launched at `launched` (seconds since the epoch)."""
    imported = time.time() - launched
    phases = Phases()
    with phases("loading"):
        pipeline = load_pipeline(weights, device=setup.device, dtype=setup.dtype)
    pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    for model in (pipeline.unet, pipeline.adapter, pipeline.vae, pipeline.text_encoder):
        fill_randomly(model)
    clip, output = Path(folder) / "clip.mp4", Path(folder) / "output.mp4"
    rng = np.random.default_rng(0)
    save_video(clip, rng.integers(0, 256, (setup.frames, setup.height, setup.width, 3), dtype=np.uint8))
    with phases("extraction"):
        video = fit_frames(read_frames(clip, setup.frames).frames, setup.height, setup.width)
        reference = pipeline.extract(video, generator=torch.Generator().manual_seed(0))
    steps: list[float] = []

    def note(_pipeline: Any, _step: int, _timestep: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        inputs["latents"].sum().item()  # waits for the device
        steps.append(time.perf_counter())
        return inputs

    with phases("sampling"):
        latents, *_ = pipeline(
            PROMPT,
            reference=reference,
            num_inference_steps=setup.rounds,
            guidance_scale=6.0,
            output_type="latent",
            callback_on_step_end=note,
            return_dict=False,
        )
    if len(steps) > 1:
        phases.seconds["sampling"] += (PUBLISHED_STEPS - len(steps)) * float(np.median(np.diff(steps)))
    else:
        phases.seconds["sampling"] *= PUBLISHED_STEPS
    with phases("decoding"), torch.no_grad():
        decoded = pipeline.decode_latents(latents)
        frames = pipeline.video_processor.postprocess_video(decoded, output_type="np")[0]
    with phases("writing"):
        save_video(output, (frames * 255).astype(np.uint8))
    loading = phases.seconds.pop("loading")
    return {"start-up": imported + loading, **phases.seconds}


def write_blank_weights(setup: Setup, folder: Path) -> EfficientMTFiles:
    """Weight files in the published layout and of the setup's shapes, all zeros, sparse on the disk.

    The text encoder embeds the miniature's tokens, as the tokenizer beside it has them, not CLIP's 49,408.
    """
    base, tokenizer = folder / "base", build_tokenizer()
    text = {**setup.shapes.text_encoder, "vocab_size": len(tokenizer)}
    tokenizer.model_max_length = CLIPTextConfig(**text).max_position_embeddings
    with init_empty_weights():
        unet = build_unet(setup.shapes.unet)
        vae = AutoencoderKL.from_config(setup.shapes.vae)
        text_encoder = CLIPTextModel(CLIPTextConfig(**text))
        adapter = Adapter(site_channels(unet))
    spatial = {name: tuple(p.shape) for name, p in unet.named_parameters() if ".motion_modules." not in name}
    motion = {original_name(name): tuple(p.shape) for name, p in unet.named_parameters() if ".motion_modules." in name}
    diffusers_name = "diffusion_pytorch_model.safetensors"
    write_blank(base / "unet" / diffusers_name, spatial)
    write_blank(base / "vae" / diffusers_name, {name: tuple(p.shape) for name, p in vae.named_parameters()})
    text_shapes = {name: tuple(p.shape) for name, p in text_encoder.named_parameters()}
    write_blank(base / "text_encoder" / "model.safetensors", text_shapes)
    write_blank(folder / "mm.safetensors", motion)
    write_blank(folder / "adapter" / diffusers_name, {name: tuple(p.shape) for name, p in adapter.named_parameters()})
    write_json(base / "unet" / "config.json", setup.shapes.unet)
    write_json(base / "vae" / "config.json", setup.shapes.vae)
    write_json(base / "text_encoder" / "config.json", text)
    write_json(folder / "adapter" / "config.json", {"site_channels": adapter.config.site_channels})
    tokenizer.save_pretrained(base / "tokenizer")
    return EfficientMTFiles(str(base), str(folder / "mm.safetensors"), ckpt_path=str(folder / "adapter"))


def write_blank(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """A safetensors file of float32 zeros: its header, then a hole that reads as zeros."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
