"""MotionClone's sampling (arXiv 2406.05338, section 4.3): early steps guided by the reference's motion, later ones not.

Timesteps, ramp, DDIM step and loop, as the published program has them. Nothing here draws random numbers: with eta 0
the result is a function of the arguments.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from diffusers import UNetMotionModel

from animatediff.errors import UserError
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.motionclone.guidance import AttentionMotion, Control, noise_and_loss, predict_noise
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS

Callback = Callable[[int, torch.Tensor], torch.Tensor | None]


def alphas_cumprod() -> torch.Tensor:
    """Cumulative products of 1 - beta over the 1000 steps of the linear schedule, float32 on the CPU."""
    return build_scheduler("ddim").alphas_cumprod


def alpha_at(timestep: int | None) -> float:
    """The cumulative alpha at `timestep`; 1 after the last step (None)."""
    return 1.0 if timestep is None else alphas_cumprod()[timestep].item()


def add_noise(latents: torch.Tensor, noise: torch.Tensor, timestep: int) -> torch.Tensor:
    """Latents of any shape noised to `timestep`: sqrt(abar) latents + sqrt(1 - abar) noise, computed in float32."""
    schedule = build_scheduler("ddim")  # made anew: diffusers' schedulers keep their tensors on the last device
    noisy = schedule.add_noise(latents.float(), noise.float(), torch.tensor([timestep]))
    return noisy.to(latents.dtype)


def uneven_timesteps(num_inference_steps: int, guidance_steps: int, guidance_scale: float) -> list[int]:
    """The timesteps, descending: `guidance_steps` of them over the first `guidance_scale` of the noise range.

    The others share the rest of the range. UserError where one part has steps and no range.
    """
    check_steps(num_inference_steps, guidance_steps, guidance_scale)
    boundary = int((1 - guidance_scale) * NUM_TRAIN_TIMESTEPS)
    guided = np.linspace(boundary, NUM_TRAIN_TIMESTEPS - 1, guidance_steps).round()[::-1]
    plain = np.linspace(0, boundary - 1, num_inference_steps - guidance_steps).round()[::-1]
    return [int(t) for t in (*guided, *plain)]


def check_steps(
    num_inference_steps: int,
    guidance_steps: int,
    guidance_scale: float,
    names: tuple[str, str] = ("guidance_steps", "guidance_scale"),
) -> None:
    """UserError unless the three make a schedule; `names`: what the caller's user knows the last two as."""
    steps_name, share_name = names
    if not 1 <= num_inference_steps <= NUM_TRAIN_TIMESTEPS:
        raise UserError(f"num_inference_steps is {num_inference_steps}, expected 1 to {NUM_TRAIN_TIMESTEPS}")
    if not 0 <= guidance_steps <= num_inference_steps:
        raise UserError(f"{steps_name} is {guidance_steps}, expected 0 to num_inference_steps, {num_inference_steps}")
    if not 0 <= guidance_scale <= 1:
        raise UserError(f"{share_name} is {guidance_scale}, expected 0 to 1: the share of the noise range to guide")
    if guidance_steps < num_inference_steps and int((1 - guidance_scale) * NUM_TRAIN_TIMESTEPS) < 1:
        raise UserError(
            f"{share_name} is {guidance_scale}, which leaves no noise range to the "
            f"{num_inference_steps - guidance_steps} unguided steps; lower it, or guide all {num_inference_steps} steps"
        )


def guidance_ramp(i: int, guidance_steps: int, warm_up: int, cool_down: int) -> float:
    """Weight of guided step `i`: rises over the first `warm_up` steps, falls over the last `cool_down`."""
    rise = (i + 1) / warm_up if i < warm_up else 1.0
    fall = (guidance_steps - i) / cool_down if i > guidance_steps - cool_down else 1.0
    return rise * fall


def ddim_step(
    latents: torch.Tensor, noise: torch.Tensor, timestep: int, following: int | None, score: torch.Tensor | None = None
) -> torch.Tensor:
    """One deterministic DDIM step from `timestep` to the `following` one (None: the end); all tensors of one shape.

    x0 comes from the unguided noise; `score`, the gradient of the guidance, turns the direction only.
    """
    # By hand: DDIMScheduler.step knows evenly spaced timesteps only, and one noise for both x0 and the direction.
    abar, abar_next = alpha_at(timestep), alpha_at(following)
    x0 = (latents - (1 - abar) ** 0.5 * noise) / abar**0.5
    direction = noise if score is None else noise - (1 - abar) ** 0.5 * score
    return abar_next**0.5 * x0 + (1 - abar_next) ** 0.5 * direction


def noise_of_velocity(latents: torch.Tensor, velocity: torch.Tensor, timestep: int) -> torch.Tensor:
    """The noise in `latents` where the backbone predicts v (Salimans and Ho 2022, appendix D); all of one shape."""
    return add_noise(velocity, latents, timestep)  # sqrt(abar) v + sqrt(1 - abar) x_t: the same rotation


def sample(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    text: torch.Tensor,
    motion: AttentionMotion,
    *,
    num_inference_steps: int,
    guidance_steps: int,
    guidance_scale: float,
    cfg_scale: float = 7.5,
    weight: float = 2000.0,
    warm_up: int = 10,
    cool_down: int = 10,
    control: Control | None = None,
    callback: Callback | None = None,
    prediction_type: str = "epsilon",
) -> torch.Tensor:
    """Latents (1 c f h w) from initial noise, under text (2 tokens dim): [negative, positive], moving like `motion`.

    guidance_scale: see `uneven_timesteps`. cfg_scale: e_c + cfg_scale (e_c - e_u), one less than diffusers' scale.
    The state is float32 whatever the backbone's dtype; the result has the dtype of `latents`. `callback(i, latents)`
    follows each step and may return other latents. prediction_type: what the backbone predicts, one of PREDICTIONS.
    UserError at the step where NaN or infinite values arise.
    """
    timesteps = uneven_timesteps(num_inference_steps, guidance_steps, guidance_scale)
    dtype, latents = latents.dtype, latents.float()
    for i, (t, following) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        if i < guidance_steps:
            ramp = guidance_ramp(i, guidance_steps, warm_up, cool_down)
            noise, score = _guided(unet, latents, t, text, motion, cfg_scale, weight * ramp, control)
        else:
            noise, score = _unguided(unet, latents, t, text, cfg_scale, control), None
        if prediction_type == "v_prediction":
            noise = noise_of_velocity(latents, noise, t)
        latents = ddim_step(latents, noise, t, following, score)
        _check_finite(latents, score, i, num_inference_steps)
        changed = callback(i, latents) if callback else None
        latents = latents if changed is None else changed
    return latents.to(dtype)


def _guided(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timestep: int,
    text: torch.Tensor,
    motion: AttentionMotion,
    cfg_scale: float,
    weight: float,
    control: Control | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and score, both (1 c f h w) float32. The two passes run one after the other, so memory holds one graph."""
    with torch.no_grad():
        negative = predict_noise(unet, latents, timestep, text[:1], control).float()
    with torch.enable_grad():
        moving = latents.detach().requires_grad_()
        positive, loss = noise_and_loss(unet, moving, timestep, text[1:], motion, control)
        # Weighted before the backward pass: in half precision the bare gradient would underflow.
        (score,) = torch.autograd.grad(weight * loss, moving)
    return _guide(negative, positive.float(), cfg_scale), score


@torch.no_grad()
def _unguided(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timestep: int,
    text: torch.Tensor,
    cfg_scale: float,
    control: Control | None,
) -> torch.Tensor:
    both = predict_noise(unet, latents.expand(2, *latents.shape[1:]), timestep, text, control).float()
    return _guide(both[:1], both[1:], cfg_scale)


def _guide(negative: torch.Tensor, positive: torch.Tensor, cfg_scale: float) -> torch.Tensor:
    return positive + cfg_scale * (positive - negative)


def _check_finite(latents: torch.Tensor, score: torch.Tensor | None, i: int, total: int) -> None:
    if torch.isfinite(latents).all():
        return
    guilty = score is not None and not torch.isfinite(score).all()
    cause = "the gradient of the motion guidance" if guilty else "the predicted noise"
    advice = "a smaller motion_guidance_weight or dtype=fp32" if guilty else "dtype=fp32 or dtype=bf16"
    raise UserError(f"step {i + 1} of {total} gave NaN or infinite latents, from {cause}; try {advice}")
