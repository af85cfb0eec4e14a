"""The small video VAE of models/miniature_dit: diffusers' AutoencoderKLCogVideoX, four frames of 4x4 pixels a latent.

It gives 1 + (n - 1) / 4 latent frames for n = 8m + 1 frames: the first stands for the first frame alone, every other
for four frames.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX
from diffusers.models.autoencoders.autoencoder_kl_cogvideox import CogVideoXSpatialNorm3D
from numpy.typing import NDArray
from torch import Tensor

from animatediff.miniature.autoencoder import vae_loss
from animatediff.miniature.loop import train
from animatediff.miniature.muon import muon

FRAMES = 17  # of the clips: five latent frames
CHANNELS = 16  # of the latents, as CogVideoX has
SPACE, TIME = 4, 4  # pixels and frames to a latent, along each axis
VIEW = 48  # pixels a side of a view of a whole clip
CROP, WINDOW = 32, 9  # of a piece around the subject: pixels a side, frames
KL = 5e-5


def build_video_vae() -> AutoencoderKLCogVideoX:
    """An untrained VAE: [n, 3, f, h, w] in [-1, 1] to [n, CHANNELS, 1 + (f - 1) / 4, h / 4, w / 4] and back."""
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(16, 32, 48),
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        temporal_compression_ratio=TIME,
        sample_height=64,
        sample_width=64,
        scaling_factor=1.0,
    )
    little_noise = -6.0  # at first, as a log-variance: the means are learnt sooner
    torch.nn.init.constant_(vae.encoder.conv_out.conv.bias[CHANNELS:], little_noise)
    return vae


def to_video(clips: NDArray[np.uint8]) -> Tensor:
    """RGB clips [n, f, h, w, 3] of 0 to 255 as float32 [n, 3, f, h, w] in [-1, 1]."""
    return torch.tensor(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


def to_clips(video: Tensor) -> NDArray[np.uint8]:
    """The way back from `to_video`, values outside the range cut."""
    levels = ((video.float() + 1) * 127.5).round().clamp(0, 255).byte()
    return levels.permute(0, 2, 3, 4, 1).numpy()  # n f h w 3


def train_video_vae(
    vae: AutoencoderKLCogVideoX,
    clips: NDArray[np.uint8],
    centres: NDArray[np.float64],
    steps: int,
    batch: int,
    lr: float,
    checkpoint: Path,
    seed: int,
    decoder_only: bool = False,
) -> None:
    """Train `vae`, or its decoder alone, on `clips` [n, f, h, w, 3]; resumes from `checkpoint`.

    A step takes a view of one clip, VIEW x VIEW pixels of all its frames, and `batch` pieces around the subject, WINDOW
    frames of CROP x CROP pixels; the subject's centre is centres [n, f, 2] in pixels (x, y). Subjects fill a fifteenth
    of a frame and would be learnt last.
    """
    height, width = clips.shape[2:4]

    def view(generator: torch.Generator) -> NDArray[np.uint8]:
        clip = int(torch.randint(len(clips), (), generator=generator))
        y, x = (int(torch.randint(side - VIEW + 1, (), generator=generator)) for side in (height, width))
        return clips[clip : clip + 1, :, y : y + VIEW, x : x + VIEW]

    def pieces(count: int, generator: torch.Generator) -> NDArray[np.uint8]:
        chosen = torch.randint(len(clips), (count,), generator=generator).numpy()
        first = torch.randint(clips.shape[1] - WINDOW + 1, (count,), generator=generator).numpy()
        jitter = torch.randint(-8, 9, (count, 2), generator=generator).numpy()
        corners = (centres[chosen, first + WINDOW // 2] - CROP / 2).round().astype(int) + jitter
        corners = corners.clip(0, (width - CROP, height - CROP))
        places = zip(chosen, first, corners, strict=True)
        return np.stack([clips[n, f : f + WINDOW, y : y + CROP, x : x + CROP] for n, f, (x, y) in places])

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        parts = vae_loss(vae, to_video(pieces(batch, generator)), generator, KL)
        return parts + vae_loss(vae, to_video(view(generator)), generator, KL)

    trained = vae.decoder if decoder_only else vae
    vae.requires_grad_(False)
    trained.requires_grad_(True)
    train(
        "decoder" if decoder_only else "vae",
        [{"params": list(trained.parameters()), "lr": lr}],
        loss_of,
        steps,
        checkpoint,
        seed,
        save_every=100,
        make_optimizer=lambda groups: muon(trained, lr, _at_the_pixels),
    )


def _at_the_pixels(name: str) -> bool:
    return name.startswith(("encoder.conv_in", "decoder.conv_out", "conv_out"))


@torch.no_grad()
def encode_video(vae: AutoencoderKLCogVideoX, clips: NDArray[np.uint8], batch: int = 8) -> Tensor:
    """Means of the latents of `clips` [n, f, h, w, 3] in the transformer's order: [n, F, CHANNELS, h / 4, w / 4]."""
    parts = []
    for start in range(0, len(clips), batch):
        with torch.autocast("cpu", torch.bfloat16):
            parts.append(vae.encode(to_video(clips[start : start + batch])).latent_dist.mean.float())
    return torch.cat(parts).transpose(1, 2)  # n F c h w


@torch.no_grad()
def even_out(vae: AutoencoderKLCogVideoX, clips: NDArray[np.uint8]) -> None:
    """Give each latent channel deviation 1 over `clips`.

    The convolutions that write and read the latents absorb the change, so reconstructions stay what they were.
    """
    deviation = encode_video(vae, clips).std(dim=(0, 1, 3, 4))
    channels = len(deviation)
    outer = vae.encoder.conv_out.conv
    outer.weight[:channels] /= deviation[:, None, None, None, None]
    outer.bias[:channels] /= deviation
    outer.bias[channels:] -= 2 * deviation.log()
    readers = [vae.decoder.conv_in]
    for module in vae.decoder.modules():
        if isinstance(module, CogVideoXSpatialNorm3D):
            readers += [module.conv_y, module.conv_b]
    for reader in readers:
        reader.conv.weight *= deviation[None, :, None, None, None]
