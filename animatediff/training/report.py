"""What a person reads about a training run: the dry run, the progress bar, the closing lines."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import nn

from animatediff.config import to_yaml
from animatediff.memory import peak_memory
from animatediff.pipelines.method import WeightFile
from animatediff.training.config import TrainingConfig
from animatediff.training.objective import objective_of


def describe_run(config: TrainingConfig) -> str:
    """The resolved configuration, and what its objective says of files, parameters and data."""
    return "\n".join([to_yaml(config).rstrip(), *objective_of(config.method).describe(config)])


def describe_files(files: Iterable[WeightFile]) -> list[str]:
    """A line for each weight file, there or not; optional ones only where they are."""
    return [
        f"  {'present' if file.path.exists() else 'MISSING'}  {file.what}: {file.path}"
        for file in files
        if file.path.exists() or not file.optional
    ]


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
    return "\n".join([f"what was trained is in {output / 'adapter'}", *problems])
