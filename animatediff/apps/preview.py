"""A glimpse of a video in the making: its middle frame, from the latents, where that costs next to nothing."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

CHEAP = 5_000_000  # parameters of a VAE that decodes a whole frame in less time than a step takes
PIECE = 8  # latents a side of the piece that a larger one decodes, to which the colours of all others are fitted
SIDE = 256  # pixels of a glimpse, at least


@torch.no_grad()
def preview(pipe: Any, latents: torch.Tensor) -> np.ndarray | None:
    """The middle frame of `latents`, (1 c f h w) or (1 f c h w), as uint8 (h w 3).

    None where the pipeline decodes in no way known here, where its VAE is kept off the device, and where channels and
    frames are as many, so that one cannot be told from the other.
    """
    vae = getattr(pipe, "vae", None)
    decode = getattr(pipe, "decode_video", None) or getattr(pipe, "decode_latents", None)
    if vae is None or decode is None or latents.ndim != 5 or hasattr(vae, "_hf_hook"):
        return None
    config = vae.config
    channels = getattr(config, "latent_channels", None) or getattr(config, "z_dim", None)
    if channels not in latents.shape[1:3] or latents.shape[1] == latents.shape[2]:
        return None
    axis = 2 if latents.shape[1] == channels else 1  # of the frames
    frame = latents[:1].narrow(axis, latents.shape[axis] // 2, 1)
    frame = (frame / frame.float().std().clamp(min=1.0).to(frame.dtype)).to(vae.dtype)  # early ones are mostly noise
    if sum(parameter.numel() for parameter in vae.parameters()) <= CHEAP:
        pixels = _picture(decode(frame))
    else:
        pixels = _fitted(decode, frame)
    levels = ((pixels.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).cpu().numpy()  # 3 h w -> h w 3
    return levels.astype(np.uint8)


def _picture(video: torch.Tensor) -> torch.Tensor:
    """The first frame of a decoded video (1 3 f h w), as (3 h w)."""
    return video[0, :, 0].float()


def _fitted(decode: Any, frame: torch.Tensor) -> torch.Tensor:
    """A frame of latents as colours (3 h w): linear in the channels, by least squares on its middle piece, decoded."""
    height, width = frame.shape[-2:]
    rows, columns = min(PIECE, height), min(PIECE, width)
    top, left = (height - rows) // 2, (width - columns) // 2
    piece = frame[..., top : top + rows, left : left + columns]
    known = F.adaptive_avg_pool2d(_picture(decode(piece))[None], (rows, columns))[0].flatten(1).T  # 3 h w -> (h w) 3
    solution = torch.linalg.lstsq(_with_one(piece).cpu(), known.cpu()).solution  # c + 1, 3
    colours = (_with_one(frame).cpu() @ solution).T.reshape(3, height, width)  # (h w) 3 -> 3 h w
    scale = max(1, round(SIDE / max(height, width)))
    return F.interpolate(colours[None], scale_factor=scale, mode="bilinear")[0]


def _with_one(frame: torch.Tensor) -> torch.Tensor:
    """The latents of one frame as rows (h w) c, each followed by a 1."""
    rows = frame.float().reshape(-1, *frame.shape[-2:]).flatten(1).T  # 1 c 1 h w -> (h w) c
    return torch.cat([rows, torch.ones_like(rows[:, :1])], dim=1)
