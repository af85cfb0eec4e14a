"""Peak memory of one transfer, by one shared backbone and by the published scheme of two UNets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from animatediff.benchmarks.networks import Setup, random_adapter, random_pipeline, random_unet
from animatediff.benchmarks.published import directly, load_features, move_into, save_features
from animatediff.benchmarks.timing import isolated, memory_now, peak_memory

STEPS = 1  # of sampling: memory is the same in every one
PROMPT = "a red star on sand"


def measure_memory(setup: Setup) -> dict[str, Any]:
    """Encode and extract a reference, sample, decode: peak memory of each scheme in a process of its own.

    `start`: with the libraries imported and nothing loaded; `weights`: all weights resident; `peak`: the highest.
    `ratio` compares the peaks, `ratio_above_start` what lies above each start.
    """
    schemes: dict[str, Callable[[Setup], dict[str, int]]] = {"shared": shared_scheme, "published": published_scheme}
    return compare_memory({name: isolated(scheme, setup) for name, scheme in schemes.items()}, "published")


def compare_memory(schemes: dict[str, dict[str, int]], baseline: str) -> dict[str, Any]:
    """`schemes` with the ratios of each one's memory to that of `baseline`."""
    base = schemes[baseline]
    return {
        name: memory
        | {
            "ratio": memory["peak"] / base["peak"],
            "ratio_above_start": (memory["peak"] - memory["start"]) / max(base["peak"] - base["start"], 1),
        }
        for name, memory in schemes.items()
    }


def shared_scheme(setup: Setup) -> dict[str, int]:
    """This project: one backbone, the adapter beside it, features kept in memory."""
    start = memory_now(setup.device)
    pipeline = random_pipeline(setup)
    weights = memory_now(setup.device)
    reference = pipeline.extract(random_video(setup))
    pipeline(PROMPT, reference=reference, num_inference_steps=STEPS, guidance_scale=6.0, output_type="np")
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def published_scheme(setup: Setup) -> dict[str, int]:
    """One UNet extracts into a file; another, which holds the trained projections and scalers, reads and generates."""
    start = memory_now(setup.device)
    first, second = random_unet(setup), random_unet(setup)
    adapter = random_adapter(second, setup).requires_grad_(False)
    move_into(second, adapter)
    pipeline = random_pipeline(setup, first, adapter)
    weights = memory_now(setup.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "features.safetensors"
        reference = pipeline.extract(random_video(setup))
        save_features(reference, file)
        reference = load_features(file, reference, setup.device)
    pipeline.unet = second
    _, _, frames, height, width = setup.latent_shape
    with torch.no_grad(), directly(second, adapter, reference):
        pipeline(
            PROMPT,
            num_frames=frames,
            height=8 * height,
            width=8 * width,
            num_inference_steps=STEPS,
            guidance_scale=6.0,
            output_type="np",
        )
    del first
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def random_video(setup: Setup) -> torch.Tensor:
    """Random pixels (f 3 h w) in [-1, 1]."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(setup.frames, 3, setup.height, setup.width, generator=generator) * 2 - 1
