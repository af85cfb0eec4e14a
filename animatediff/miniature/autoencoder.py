"""The miniature's VAE: diffusers' AutoencoderKL, tiny, four pixels to one latent, trained on single frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX
from numpy.typing import NDArray
from torch import Tensor

from animatediff.miniature.loop import train

CROP = 32
SQUARED = 4.0
KL = 1e-5
LATENT_STD = 0.5  # of the scaled latents; see scale_latents


def build_vae() -> AutoencoderKL:
    """An untrained VAE: [n, 3, h, w] in [-1, 1] to [n, 4, h / 4, w / 4] and back."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=64,
        mid_block_add_attention=False,
    )
    torch.nn.init.constant_(vae.quant_conv.bias[4:], -6.0)  # little noise at first: the means are learnt sooner
    return vae


def to_images(frames: NDArray[np.uint8]) -> Tensor:
    """RGB frames [..., h, w, 3] of 0 to 255 as float32 [n, 3, h, w] in [-1, 1]."""
    tensor = torch.tensor(frames).flatten(0, -4)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1


def vae_loss(
    vae: AutoencoderKL | AutoencoderKLCogVideoX, pixels: Tensor, generator: torch.Generator, kl: float = KL
) -> Tensor:
    """Absolute plus SQUARED times the squared error of the reconstruction, plus kl times the divergence; scalar.

    pixels: images [n, 3, h, w] or videos [n, 3, f, h, w] in [-1, 1], as the VAE takes them.
    """
    with torch.autocast(pixels.device.type, torch.bfloat16):
        mean, log_variance = vae._encode(pixels).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-30, 20)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn(mean.shape, generator=generator)
        decoded = vae._decode(latents).sample
    divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    error = decoded.float() - pixels
    return error.abs().mean() + SQUARED * error.square().mean() + kl * divergence


def train_vae(
    vae: AutoencoderKL,
    clips: NDArray[np.uint8],
    centres: NDArray[np.float64],
    steps: int,
    batch: int,
    lr: float,
    checkpoint: Path,
    seed: int,
) -> None:
    """Train `vae` on random frames of `clips` [n, f, h, w, 3]; resumes from `checkpoint`.

    A step takes `batch` whole frames and twelve times as many CROP x CROP pieces around the subject, whose centre is
    centres [n, f, 2] in pixels (x, y): subjects fill a twentieth of a whole frame and would be learnt last.
    """
    height, width = clips.shape[2:4]

    def draw(count: int, generator: torch.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        clip = torch.randint(clips.shape[0], (count,), generator=generator).numpy()
        return clip, torch.randint(clips.shape[1], (count,), generator=generator).numpy()

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        whole = to_images(clips[draw(batch, generator)])
        chosen = draw(12 * batch, generator)
        jitter = torch.randint(-8, 9, (12 * batch, 2), generator=generator).numpy()
        corners = (centres[chosen] - CROP / 2).round().astype(int) + jitter
        corners = corners.clip(0, (width - CROP, height - CROP))
        pieces = [clips[c, f, y : y + CROP, x : x + CROP] for c, f, (x, y) in zip(*chosen, corners, strict=True)]
        return vae_loss(vae, to_images(np.stack(pieces)), generator) + vae_loss(vae, whole, generator)

    train("vae", [{"params": list(vae.parameters()), "lr": lr}], loss_of, steps, checkpoint, seed)


@torch.no_grad()
def encode_mean(vae: AutoencoderKL, clips: NDArray[np.uint8], batch: int = 128) -> Tensor:
    """Means of the unscaled latents of `clips` [n, f, h, w, 3]: [n, f, 4, h / 4, w / 4]."""
    images = clips.reshape(-1, *clips.shape[2:])
    parts = []
    for start in range(0, len(images), batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(to_images(images[start : start + batch])).latent_dist.mean.float())
    means = torch.cat(parts)
    return means.view(*clips.shape[:2], *means.shape[1:])


@torch.no_grad()
def scale_latents(vae: AutoencoderKL, clips: NDArray[np.uint8]) -> None:
    """Give each latent channel mean 0 and deviation 1 over `clips`, and set scaling_factor to LATENT_STD.

    The 1x1 convolutions around the latents absorb the change, so reconstructions stay what they were. LATENT_STD is
    below 1 because the noise schedule of SD1.5 was made for 64x64 latents: in 16x16 of deviation 1 a subject shows
    through all but the last of the noise, and nothing would be left for a reference to say.
    """
    means = encode_mean(vae, clips)
    centre, deviation = means.mean(dim=(0, 1, 3, 4)), means.std(dim=(0, 1, 3, 4))
    channels = len(centre)
    inner, outer = vae.quant_conv, vae.post_quant_conv
    outer.bias += outer.weight[:, :, 0, 0] @ centre
    outer.weight *= deviation[None, :, None, None]
    inner.bias[:channels] -= centre
    inner.bias[:channels] /= deviation
    inner.weight[:channels] /= deviation[:, None, None, None]
    inner.bias[channels:] -= 2 * deviation.log()
    vae.register_to_config(scaling_factor=LATENT_STD)
