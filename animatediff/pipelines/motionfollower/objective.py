"""What MotionFollower's training minimises: the error of the predicted velocity (arXiv 2405.20325).

The paper names MSE under its schedule; weight, noise offset and dropped embeddings are those of the AnimateAnyone
reproduction that the published program grew from.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from diffusers import DDIMScheduler, UNetMotionModel
from einops import rearrange
from torch import nn

from animatediff.models.hooks import inject
from animatediff.pipelines.motionfollower.networks import Networks, conditioned
from animatediff.pipelines.motionfollower.schedule import build_scheduler

SNR_GAMMA = 5.0
NOISE_OFFSET = 0.05
DROPPED = 0.1  # share of samples whose embeddings are zeros


def velocity_loss(
    networks: Networks,
    latents: torch.Tensor,
    noise: torch.Tensor,
    timesteps: torch.Tensor,
    embeds: torch.Tensor,
    pose: torch.Tensor | None,
    appearance: Sequence[torch.Tensor] | None,
    *,
    motion: bool = True,
    snr_gamma: float = SNR_GAMMA,
) -> torch.Tensor:
    """The loss of a batch, a float32 scalar with gradients to whatever asks for them.

    latents (b 4 f h w): clean and scaled; noise likewise (see `offset_noise`); timesteps int64 (b,), 0 to 999; embeds
    (b f dim), zeros where they are dropped (see `drop_embeds`); pose and appearance (b c f h w), or (1 c f h w) for
    the whole batch, as `pose_features` and `appearance_features` give them of (b f) images at once. motion: False
    leaves the motion modules out, as in the training on images.
    """
    noisy, target = noised(latents, noise, timesteps)
    predicted = training_velocity(networks.unet, noisy, timesteps, embeds, pose, appearance, motion)
    return velocity_error(predicted, target, timesteps, snr_gamma)


def noised(latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents (b 4 f h w) under `noise` at `timesteps` (b,), and their velocity (Salimans and Ho 2022, appendix D)."""
    schedule = _schedule()
    return schedule.add_noise(latents, noise, timesteps), schedule.get_velocity(latents, noise, timesteps)


def training_velocity(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    embeds: torch.Tensor,
    pose: torch.Tensor | None,
    appearance: Sequence[torch.Tensor] | None,
    motion: bool = True,
) -> torch.Tensor:
    """`predict` with gradients to weights, a timestep for each sample, and the cross-attentions as they are.

    A backward pass may follow at any time, under gradient checkpointing, too. Arguments as for `velocity_loss`; returns
    float32 (b 4 f h w).
    """
    still = {} if motion else {path: NoMotion() for path in motion_paths(unet)}
    tokens = rearrange(embeds, "b f dim -> (b f) 1 dim")
    with inject(unet, still), conditioned(unet, {}, pose, appearance):
        return unet(latents.to(unet.dtype), timesteps, tokens.to(unet.dtype)).sample.float()


def velocity_error(
    predicted: torch.Tensor,
    target: torch.Tensor,
    timesteps: torch.Tensor,
    snr_gamma: float = SNR_GAMMA,
    importance: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """The weighted mean squared error of velocities (b 4 f h w): a float32 scalar.

    importance: a further weight of every element, of a shape that broadcasts to theirs.
    """
    error = (importance * (predicted.float() - target.float()).square()).mean(dim=(1, 2, 3, 4))  # b
    return (snr_weight(timesteps, snr_gamma) * error).mean()


def snr_weight(timesteps: torch.Tensor, snr_gamma: float = SNR_GAMMA) -> torch.Tensor:
    """min(s, gamma) / s with s = SNR(t) + 1, float32 (b,) for `timesteps` (b,).

    1 at zero SNR, small where there is little noise: min-SNR weighting (Hang et al. 2023, section 3.4), the SNR raised
    by 1 for velocities.
    """
    abar = _schedule().alphas_cumprod.to(timesteps.device)[timesteps].float()
    raised = abar / (1 - abar) + 1
    return raised.clamp(max=snr_gamma) / raised


def offset_noise(noise: torch.Tensor, shift: torch.Tensor, amount: float = NOISE_OFFSET) -> torch.Tensor:
    """noise (b c f h w) + amount x shift, standard normal (b c): lets a clip's mean brightness be learned."""
    return noise + amount * shift[:, :, None, None, None]


def drop_embeds(embeds: torch.Tensor, uniform: torch.Tensor, share: float = DROPPED) -> torch.Tensor:
    """embeds (b f dim), zeros for the samples whose `uniform` (b,) in [0, 1) is below `share`."""
    return embeds * (uniform >= share).to(embeds)[:, None, None]


def motion_paths(unet: UNetMotionModel) -> list[str]:
    """The paths of all motion modules, the middle one too."""
    stages = {f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)} | {"mid_block": unet.mid_block}
    stages |= {f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)}
    return [
        f"{stage}.motion_modules.{i}"
        for stage, block in stages.items()
        for i in range(len(getattr(block, "motion_modules", ())))
    ]


class NoMotion(nn.Module):
    """Stands for a motion module where there is none."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """hidden_states ((b f) c h w), as they are."""
        return hidden_states


@cache
def _schedule() -> DDIMScheduler:
    return build_scheduler()
