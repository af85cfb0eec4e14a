"""The noise schedule and what happens at which step of an edit (MotionFollower, arXiv 2405.20325)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from diffusers import DDIMScheduler

from animatediff.errors import UserError
from animatediff.pipelines.video import BETAS, NUM_TRAIN_TIMESTEPS

PUBLISHED_STEPS = 50
THRESHOLDS = (10, 20, 30)  # steps of the published 50 at which the rules change
RUNS = 3  # how often a repeated step is run
STEP_SCALINGS = ("absolute", "proportional")
NOISE_SHARE = 0.4  # of the standard deviation of DDPM, in the noisy steps


@dataclass(frozen=True)
class StepRules:
    """What step i is: its timesteps and which rules hold. previous: below 0 at the end of the run."""

    timestep: int
    previous: int
    guided: bool
    noisy: bool  # draws noise inside the target mask
    late: bool  # camera mode acts
    runs: int  # 3 where the guided step is repeated, else 1

    def takes(self, camera: bool) -> bool:
        """Whether the edit takes something from the reconstruction in this step."""
        return self.guided or (camera and self.late)


def build_scheduler() -> DDIMScheduler:
    """DDIM on linear betas rescaled to zero terminal SNR, v-prediction, trailing timesteps (Lin et al. 2023)."""
    return DDIMScheduler(
        **BETAS,
        num_train_timesteps=NUM_TRAIN_TIMESTEPS,
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


@cache
def timesteps(num_inference_steps: int) -> tuple[int, ...]:
    """The timesteps of a run, descending from 999. UserError for a number of steps that no run can have."""
    if not 1 <= num_inference_steps <= NUM_TRAIN_TIMESTEPS:
        raise UserError(f"num_inference_steps is {num_inference_steps}, expected 1 to {NUM_TRAIN_TIMESTEPS}")
    scheduler = build_scheduler()
    scheduler.set_timesteps(num_inference_steps)
    return tuple(scheduler.timesteps.tolist())


@cache
def _alphas() -> tuple[float, ...]:
    return tuple(build_scheduler().alphas_cumprod.tolist())


def alpha_at(timestep: int) -> float:
    """The cumulative alpha at `timestep`, 0 at 999; 1 below 0, which is the end of a run."""
    return _alphas()[timestep] if timestep >= 0 else 1.0


def variance(timestep: int, previous: int) -> float:
    """DDIM's variance of the step from `timestep` to `previous` (Song et al. 2021, equation 16, with eta 1)."""
    abar, abar_previous = alpha_at(timestep), alpha_at(previous)
    return (1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)


def rules_at(i: int, num_inference_steps: int, guidance_strength: float, step_scaling: str = "absolute") -> StepRules:
    """What step `i` of a run does.

    The thresholds 10, 20, 30 are step numbers (`absolute`, as published), or shares of 50 steps (`proportional`).
    Strength 0 switches off guidance and repeats, not the noise. UserError for an unknown `step_scaling`.
    """
    if step_scaling not in STEP_SCALINGS:
        raise UserError(f"step_scaling is '{step_scaling}', expected one of {', '.join(STEP_SCALINGS)}")
    factor = num_inference_steps / PUBLISHED_STEPS if step_scaling == "proportional" else 1.0
    first, second, third = (factor * threshold for threshold in THRESHOLDS)
    timestep = timesteps(num_inference_steps)[i]
    guided = guidance_strength != 0 and i < third and (i < first or i % 2 == 0)
    return StepRules(
        timestep=timestep,
        previous=timestep - NUM_TRAIN_TIMESTEPS // num_inference_steps,
        guided=guided,
        noisy=first < i < second,
        late=i >= second,
        runs=RUNS if guided and i > second else 1,
    )


def split(
    latents: torch.Tensor, velocity: torch.Tensor, timestep: int, plain: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 and noise in `latents` of any shape (Salimans and Ho 2022, appendix D).

    x0 comes from `velocity`; the noise from `plain`, the velocity without guidance, where that differs.
    """
    abar = alpha_at(timestep)
    plain = velocity if plain is None else plain
    x0 = abar**0.5 * latents - (1 - abar) ** 0.5 * velocity
    return x0, abar**0.5 * plain + (1 - abar) ** 0.5 * latents


def join(x0: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    """Latents at `timestep` from x0 and noise."""
    abar = alpha_at(timestep)
    return abar**0.5 * x0 + (1 - abar) ** 0.5 * noise
