"""Training by denoising: what a step draws and minimises. Everything random follows from a number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler

from animatediff.pipelines.video import BETAS, NUM_TRAIN_TIMESTEPS

SAMPLINGS = ("uniform", "cubic")
WEIGHTINGS = ("none", "inverse_alpha_bar")


def generator_for(*name: object) -> torch.Generator:
    """A CPU generator that depends on `name` alone (a seed, a purpose, a sample's number), on every machine."""
    digest = hashlib.sha256("/".join(map(str, name)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class TimestepRule:
    """Which noise levels are trained on: integers low..high, by one of SAMPLINGS."""

    low: int = 0
    high: int = NUM_TRAIN_TIMESTEPS - 1
    sampling: str = "uniform"

    def draw(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """`count` timesteps, int64 (count,): each follows the rule, and together they are spread evenly over it.

        uniform: as published. cubic: the quantile u becomes 1 - u^3, which leans to high noise (density ~ at t = 999
        highest), as in the training of T2I-Adapter (Mou et al. 2023, section 3.3).
        """
        u = (torch.rand((), generator=generator, dtype=torch.float64) + torch.arange(count) / count) % 1
        if self.sampling == "cubic":
            u = 1 - u**3
        return (self.low + (u * (self.high - self.low + 1)).long()).clamp(max=self.high)


def draw_reference_timestep(low: int, high: int | None, generator: torch.Generator) -> torch.Tensor:
    """The noise level of one reference pass, int64 (): `low`, or uniform over low..high where `high` is given."""
    return torch.randint(low, (low if high is None else high) + 1, (), generator=generator)


def loss_weight(timestep: torch.Tensor, alphas_cumprod: torch.Tensor, weighting: str, largest: float) -> torch.Tensor:
    """The weight of each sample's noise loss, float32 (b,), for `timestep` (b,).

    none: 1, as published. inverse_alpha_bar: 1 / alpha_bar(t), at most `largest`. The error of the noise times
    (1 - alpha_bar) / alpha_bar is the error of the clean latents, so this weighs all high noise levels by what they
    contribute to the picture; plain MSE leaves next to nothing there, where the reference is what decides. The error
    of v is that of the noise over alpha_bar already: a backbone that predicts v needs no weight.
    """
    if weighting == "none":
        return torch.ones(timestep.shape, device=timestep.device)
    return (1 / alphas_cumprod.to(timestep.device)[timestep]).clamp(max=largest).float()


def target_of(
    schedule: DDPMScheduler, clean: torch.Tensor, noise: torch.Tensor, timestep: torch.Tensor
) -> torch.Tensor:
    """The target of the prediction, as `schedule` names it: the noise, or v = sqrt(abar) noise - sqrt(1 - abar) clean
    (Salimans and Ho 2022). clean and noise (b c f h w), timestep (b,); (b c f h w)."""
    return noise if schedule.config.prediction_type == "epsilon" else schedule.get_velocity(clean, noise, timestep)


def noise_loss(prediction: torch.Tensor, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean squared error of what is predicted, both (b c f h w), weight (b,); float32 scalar."""
    error = F.mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3, 4))
    return (weight * error).mean()


def published_noise_schedule(prediction_type: str = "epsilon") -> DDPMScheduler:
    """The forward process, linear betas 0.00085..0.012 over 1000 steps, and what is predicted (one of PREDICTIONS)."""
    options = {"num_train_timesteps": NUM_TRAIN_TIMESTEPS, "clip_sample": False, "prediction_type": prediction_type}
    return DDPMScheduler(**BETAS, **options)
