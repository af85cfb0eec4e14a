"""A glimpse of a video in the making, where it costs next to nothing beside a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL

SMALL = 5_000_000  # parameters of a video's VAE that decodes a whole clip in less time than a step takes


@torch.no_grad()
def preview(pipe: Any, latents: torch.Tensor) -> np.ndarray | None:
    """The middle frame of a pipeline's noisy latents as uint8 (h w 3); None where decoding it would cost much.

    A VAE of single frames decodes that one; one of whole clips decodes all, if it is small.
    """
    vae = getattr(pipe, "vae", None)
    if vae is None or latents.ndim != 5:
        return None
    latents = latents / latents.std().clamp(min=1)  # early noise of some schedules lies far outside of what it decodes
    if isinstance(vae, AutoencoderKL):
        frame = latents[:1, :, latents.shape[2] // 2]  # 1 c f h w -> 1 c h w
        pixels = vae.decode(frame.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample[0]
    elif hasattr(pipe, "decode_video") and sum(value.numel() for value in vae.parameters()) <= SMALL:
        video = pipe.decode_video(latents[:1])[0]  # 3 f h w
        pixels = video[:, video.shape[1] // 2]
    else:
        return None
    levels = (pixels.float().clamp(-1, 1) + 1) * 127.5
    return levels.round().byte().permute(1, 2, 0).cpu().numpy()  # 3 h w -> h w 3
