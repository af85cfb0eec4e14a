"""What a person reads about a training run: the dry run, the progress bar, the closing lines."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import UNet2DConditionModel
from torch import nn

from animatediff.config import to_yaml
from animatediff.data.pairs import Group
from animatediff.files import keys_of, read_json
from animatediff.memory import peak_memory
from animatediff.models.unet import build_unet
from animatediff.pipelines.backbones.sd15 import weight_files
from animatediff.training.config import TrainingConfig, trained_parts
from animatediff.training.optimizer import freeze_untrained
from animatediff.training.setup import find_groups, fresh_adapter


def describe_run(config: TrainingConfig) -> str:
    """The resolved configuration, the files it would read, the parameter counts and the data found."""
    files = [
        f"  {'present' if file.path.exists() else 'MISSING'}  {file.what}: {file.path}"
        for file in weight_files(config.weights)
        if file.path.exists() or not file.optional
    ]
    return "\n".join(
        [to_yaml(config).rstrip(), "weights:", *files, *_describe_parameters(config), *_describe_data(config)]
    )


def count_parameters(module: nn.Module, trained: bool) -> tuple[int, int]:
    """(tensors, numbers) of the parameters that are trained, or of those that are not."""
    sizes = [p.numel() for p in module.parameters() if p.requires_grad == trained]
    return len(sizes), sum(sizes)


class Meter:
    """Speed since the start of this process, and the loss smoothed over about 50 steps."""

    def __init__(self, device: torch.device, samples_per_step: int) -> None:
        self.device, self.samples_per_step = device, samples_per_step
        self.started, self.steps, self.smooth = time.monotonic(), 0, 0.0

    def update(self, loss: float, learning_rate: float) -> dict[str, float]:
        """Take in one step; returns loss, lr, samples/s and, where it is known, peak memory (GiB) for the bar and the
        trackers.
        """
        self.steps += 1
        self.smooth += (loss - self.smooth) * max(0.02, 1 / self.steps)
        speed = self.steps * self.samples_per_step / (time.monotonic() - self.started)
        values = {"loss": self.smooth, "lr": learning_rate, "samples/s": speed}
        peak = peak_memory(self.device)
        return values if peak is None else values | {"peak_GiB": peak / 2**30}

    @staticmethod
    def line(values: dict[str, float]) -> str:
        """The values of `update` as the progress bar shows them."""
        line = f"loss {values['loss']:.4f}, lr {values['lr']:.1e}, {values['samples/s']:.2f} samples/s"
        return f"{line}, peak {values['peak_GiB']:.2f} GiB" if "peak_GiB" in values else line


def closing_lines(output: Path, problems: Sequence[str]) -> str:
    """Where the result went, and everything that was left out of the data."""
    return "\n".join([f"the adapter is in {output / 'adapter'}", *problems])


def _describe_parameters(config: TrainingConfig) -> list[str]:
    path = Path(config.weights.pretrained_model_path) / "unet" / "config.json"
    if not path.is_file():
        return [f"parameters: unknown until {path} is there"]
    with init_empty_weights():
        unet = build_unet(read_json(path, keys_of(UNet2DConditionModel.__init__)))
        adapter = nn.Module.to(fresh_adapter(unet, config), "meta")
    freeze_untrained(adapter, trained_parts(config))
    tensors, numbers = count_parameters(adapter, trained=True)
    still = count_parameters(adapter, trained=False)[1]
    backbone = sum(p.numel() for p in unet.parameters())
    return [
        f"trained: {numbers:,} parameters in {tensors} tensors ({', '.join(trained_parts(config))} at {config.sites})",
        f"frozen: {backbone + still:,} parameters (backbone {backbone:,}, adapter {still:,})",
    ]


def _describe_data(config: TrainingConfig) -> list[str]:
    def line(name: str, groups: Sequence[Group]) -> str:
        return f"{name}: {sum(len(group.clips) for group in groups)} clips in {len(groups)} groups"

    train, validation = find_groups(config)
    return [line("training", train), line("validation", validation)]
