"""Sample n of a run: its clips, its noise, its timesteps. All of it follows from (seed, n), so that a resumed run, a
run on more processes and a run with another split into batches see the same samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from einops import rearrange
from torch.utils.data import DataLoader, Dataset

from animatediff.data.pairs import PairOrder, TrainingClip
from animatediff.training.config import TrainingConfig
from animatediff.training.diffusion import TimestepRule, draw_reference_timestep, generator_for


@dataclass(frozen=True)
class SampleRule:
    """How a sample is drawn: one reference and `targets` clips that are predicted from it."""

    seed: int
    latent_shape: tuple[int, int, int, int]  # c f h w
    timesteps: TimestepRule
    targets: int = 1
    reference_timestep: int = 400
    reference_timestep_max: int | None = None
    null_text: float = 0.1


@dataclass(frozen=True)
class Batch:
    """b references and k b targets in the order (k b): target i is predicted from reference i % b.

    `reference` and `targets` are what Inputs.read gives of each clip. Noises are standard normal, (b c f h w) and
    (k b c f h w): `*_posterior` samples the VAE's posterior, `*_noise` is added by the forward process.
    """

    numbers: list[int]
    names: list[str]
    captions: list[str]
    reference: torch.Tensor
    reference_posterior: torch.Tensor
    reference_noise: torch.Tensor
    reference_timesteps: torch.Tensor  # (b,)
    targets: torch.Tensor
    target_posterior: torch.Tensor
    target_noise: torch.Tensor
    timesteps: torch.Tensor  # (k b,)

    def to(self, device: torch.device) -> Batch:
        """This batch on `device`."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if torch.is_tensor(v)}
        return replace(self, **moved)


class Samples(Dataset):
    """Sample n, for any n: a Batch of one."""

    def __init__(self, order: PairOrder, rule: SampleRule, read: Callable[[TrainingClip], torch.Tensor]) -> None:
        self.order, self.rule, self.read = order, rule, read

    def __getitem__(self, number: int) -> Batch:
        rule = self.rule
        generator = generator_for(rule.seed, number)
        reference, targets = self.order.draw(number, rule.targets, generator)
        dropped = torch.rand(rule.targets, generator=generator) < rule.null_text
        normal = torch.randn((2, 1 + rule.targets, *rule.latent_shape), generator=generator)
        reference_timestep = draw_reference_timestep(rule.reference_timestep, rule.reference_timestep_max, generator)
        return Batch(
            numbers=[number],
            names=[clip.name for clip in (reference, *targets)],
            captions=["" if drop else clip.caption for drop, clip in zip(dropped.tolist(), targets, strict=True)],
            reference=self.read(reference)[None],
            reference_posterior=normal[0, :1],
            reference_noise=normal[1, :1],
            reference_timesteps=reference_timestep[None],
            targets=torch.stack([self.read(clip) for clip in targets]),
            target_posterior=normal[0, 1:],
            target_noise=normal[1, 1:],
            timesteps=rule.timesteps.draw(rule.targets, generator),
        )


def join(samples: Sequence[Batch]) -> Batch:
    """Batches of one made into one batch."""

    def references(field: str) -> torch.Tensor:
        return torch.cat([getattr(sample, field) for sample in samples])

    def targets(field: str) -> torch.Tensor:
        return rearrange([getattr(sample, field) for sample in samples], "b k ... -> (k b) ...")

    return Batch(
        numbers=[number for sample in samples for number in sample.numbers],
        names=[name for sample in samples for name in sample.names],
        captions=[caption for of_k in zip(*(sample.captions for sample in samples), strict=True) for caption in of_k],
        reference=references("reference"),
        reference_posterior=references("reference_posterior"),
        reference_noise=references("reference_noise"),
        reference_timesteps=references("reference_timesteps"),
        targets=targets("targets"),
        target_posterior=targets("target_posterior"),
        target_noise=targets("target_noise"),
        timesteps=targets("timesteps"),
    )


@dataclass(frozen=True)
class BatchPlan:
    """Which samples each forward of each process takes: every step uses `per_step` consecutive numbers."""

    batch_size: int
    accumulation: int = 1
    process: int = 0
    processes: int = 1

    @property
    def per_step(self) -> int:
        return self.batch_size * self.accumulation * self.processes

    def numbers(self, first: int, steps: int) -> Iterator[list[int]]:
        """The sample numbers of this process's forwards in `steps` steps, when `first` is the next unused number."""
        for start in range(first, first + steps * self.per_step, self.batch_size * self.processes):
            own = start + self.process * self.batch_size
            yield list(range(own, own + self.batch_size))


def plan_of(config: TrainingConfig, accelerator: Accelerator) -> BatchPlan:
    """The plan of this process of a run."""
    processes = accelerator.num_processes
    return BatchPlan(config.batch_size, config.accumulation, accelerator.process_index, processes)


def batches(samples: Samples, plan: BatchPlan, first: int, steps: int, workers: int = 0) -> Iterator[Batch]:
    """This process's batches from sample `first` on, `accumulation` for each step; `workers` processes read ahead."""
    forwards = list(plan.numbers(first, steps))
    return iter(DataLoader(samples, batch_sampler=forwards, collate_fn=join, num_workers=workers))
