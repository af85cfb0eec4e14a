"""MotionClone's guided sampling step against a plain one under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from animatediff.benchmarks.memory import compare_memory
from animatediff.benchmarks.networks import Setup, random_unet
from animatediff.benchmarks.sampling import noise_and_text
from animatediff.benchmarks.timing import interleave, isolated, memory_now, peak_memory, summarise
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.efficientmt.pipeline import REFERENCE_TIMESTEP
from animatediff.pipelines.motionclone.guidance import extract_motion
from animatediff.pipelines.motionclone.pipeline import sample

STEPS = ("plain", "guided", "guided, checkpointed")


def measure_guidance(setup: Setup) -> dict[str, Any]:
    """Time of one step of each of STEPS, interleaved in one process; peak memory, each in a process of its own."""
    time = isolated(guidance_times, setup)
    memory = {name: isolated(guidance_memory, setup, name) for name in STEPS}
    return {"time": time, "memory": compare_memory(memory, "plain")}


def guidance_times(setup: Setup) -> dict[str, Any]:
    """Median seconds of a step of each of STEPS, with ratios to the plain one."""
    steps = _steps(random_unet(setup), setup)
    return summarise(interleave(steps, setup.device, setup.rounds, setup.seconds), "plain")


def guidance_memory(setup: Setup, name: str) -> dict[str, int]:
    """Memory before anything is built, with the weights, and at the peak of a step."""
    start = memory_now(setup.device)
    unet = random_unet(setup)
    step = _steps(unet, setup)[name]
    weights = memory_now(setup.device)
    step()
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def _steps(unet: VideoUNet, setup: Setup) -> dict[str, Callable[[], torch.Tensor]]:
    """One sampling step without guidance, with it, and with it under gradient checkpointing."""
    latents, text = noise_and_text(setup, batch=1)
    text = text.repeat(2, 1, 1)  # negative, positive
    motion = extract_motion(unet, latents, REFERENCE_TIMESTEP, text[:1])

    def step(guided: bool) -> torch.Tensor:
        return sample(
            unet, latents, text, motion, num_inference_steps=1, guidance_steps=int(guided), guidance_scale=0.3
        )

    def checkpointed() -> torch.Tensor:
        unet.enable_gradient_checkpointing()
        try:
            return step(guided=True)
        finally:
            unet.disable_gradient_checkpointing()

    return dict(zip(STEPS, (lambda: step(guided=False), lambda: step(guided=True), checkpointed), strict=True))
