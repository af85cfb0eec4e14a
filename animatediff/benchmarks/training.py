"""One training step of the adapter: a shared backbone against the published scheme of two UNets."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from animatediff.benchmarks.memory import compare_memory
from animatediff.benchmarks.networks import Setup, random_adapter, random_unet
from animatediff.benchmarks.published import directly, load_features, move_into, save_features
from animatediff.benchmarks.sampling import noise_and_text, parameter_counts
from animatediff.benchmarks.timing import interleave, isolated, memory_now, peak_memory, summarise
from animatediff.models import Adapter, EfficientMT, VideoUNet
from animatediff.models.adapter import extract
from animatediff.pipelines.efficientmt.pipeline import REFERENCE_TIMESTEP

SCHEMES = ("published", "shared", "shared, checkpointed")
TIMESTEP = 700


@dataclass
class Training:
    """An adapter on its backbone with its optimizer; `first` extracts and `unet` generates, one network or two."""

    setup: Setup
    first: VideoUNet
    unet: VideoUNet
    adapter: Adapter

    def __post_init__(self) -> None:
        if self.first is not self.unet:
            move_into(self.unet, self.adapter)
        self.adapter.requires_grad_(True)
        self.optimizer = torch.optim.AdamW(self.adapter.parameters(), lr=0.0)  # weights stay as they are
        for parameter in self.adapter.parameters():  # the optimizer's state is there from the start
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def step(self) -> None:
        """Reference pass, prediction, gradient, update; features go through a file where there are two networks."""
        latents, text = noise_and_text(self.setup, batch=1)
        with _mixed_precision(self.setup):
            reference = extract(self.first, self.adapter, latents, REFERENCE_TIMESTEP, text)
            if self.first is self.unet:
                prediction = EfficientMT(self.unet, adapter=self.adapter)(latents, TIMESTEP, text, reference)
            else:
                with tempfile.TemporaryDirectory() as folder:
                    file = Path(folder) / "features.safetensors"
                    save_features(reference, file)
                    reference = load_features(file, reference, self.setup.device)
                with directly(self.unet, self.adapter, reference):
                    per_frame = text.repeat_interleave(self.setup.frames, dim=0)  # (f tokens dim)
                    prediction = self.unet(latents, TIMESTEP, per_frame).sample
        F.mse_loss(prediction.float(), latents.float()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure_training(setup: Setup) -> dict[str, Any]:
    """Time of a step in each of SCHEMES, interleaved in one process; peak memory, each in a process of its own."""
    result = isolated(training_times, setup)
    memory = {scheme: isolated(training_memory, setup, scheme) for scheme in SCHEMES}
    return {**result, "memory": compare_memory(memory, "published")}


def training_times(setup: Setup) -> dict[str, Any]:
    """Median seconds of a step in each of SCHEMES, with ratios to the published one; and what is trained."""
    published = _training(setup, "published")
    shared = Training(setup, published.first, published.first, _trainable(published.first, setup))

    def checkpointed() -> None:
        shared.unet.enable_gradient_checkpointing()
        try:
            shared.step()
        finally:
            shared.unet.disable_gradient_checkpointing()

    steps: tuple[Callable[[], None], ...] = (published.step, shared.step, checkpointed)
    variants = dict(zip(SCHEMES, steps, strict=True))
    times = interleave(variants, setup.device, setup.rounds, setup.seconds)
    counts = parameter_counts(shared.unet, EfficientMT(shared.unet, adapter=shared.adapter))
    return {"time": summarise(times, "published"), "parameters": counts}


def training_memory(setup: Setup, scheme: str) -> dict[str, int]:
    """Memory before anything is built, with weights and optimizer state, and at the peak of a step."""
    start = memory_now(setup.device)
    training = _training(setup, scheme)
    if scheme == "shared, checkpointed":
        training.unet.enable_gradient_checkpointing()
    weights = memory_now(setup.device)
    training.step()
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def _training(setup: Setup, scheme: str) -> Training:
    first = random_unet(setup)
    unet = random_unet(setup) if scheme == "published" else first
    return Training(setup, first, unet, _trainable(unet, setup))


def _trainable(unet: VideoUNet, setup: Setup) -> Adapter:
    """Trained weights are float32, whatever the precision of the frozen ones."""
    return torch.nn.Module.to(random_adapter(unet, setup), torch.float32)


def _mixed_precision(setup: Setup) -> Any:
    if setup.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(torch.device(setup.device).type, setup.dtype)
