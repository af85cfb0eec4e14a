"""A glimpse of a video in the making: the middle frame of the latents, decoded where that costs next to nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from animatediff.apps.page.clips import jpeg

CHEAP = 5_000_000  # parameters of a VAE that decodes a frame in less time than a step takes


@torch.no_grad()
def preview(pipe: Any, latents: torch.Tensor) -> bytes | None:
    """One frame of `latents` (1 c f h w) as JPEG; None where the pipeline's VAE is not small or decodes whole clips."""
    vae = getattr(pipe, "vae", None)
    if vae is None or latents.ndim != 5 or not hasattr(vae.config, "scaling_factor"):
        return None
    if hasattr(vae.config, "temporal_compression_ratio") or sum(p.numel() for p in vae.parameters()) > CHEAP:
        return None
    frame = latents[:1, :, latents.shape[2] // 2].to(vae.dtype) / vae.config.scaling_factor  # 1 c f h w -> 1 c h w
    spread = frame.std().clamp(min=1e-6)
    frame = frame * min(1.0, float(1 / vae.config.scaling_factor / spread))  # noise of early steps lies far outside
    pixels = vae.decode(frame).sample[0].clamp(-1, 1)
    levels = ((pixels.permute(1, 2, 0).float().cpu().numpy() + 1) * 127.5).astype(np.uint8)  # 3 h w -> h w 3
    return jpeg(levels)
