"""The miniature's base model: a text-to-image UNet on single frames first, then motion modules on clips."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel

from animatediff.data.synthetic import Clip
from animatediff.miniature.loop import train
from animatediff.miniature.text import WIDTH
from animatediff.models import VideoUNet, build_unet
from animatediff.models.motion_module import MotionModule
from animatediff.pipelines.loading import build_scheduler

UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 96, 128),
    "layers_per_block": 1,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,  # SD1.5's spelling of the number of heads
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
DROP = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance
MAX_WEIGHT = 5.0
SUBJECT_WEIGHT, NEAR = 8.0, 1.0  # see subject_importance
MOVING_GROUND_WEIGHT = 3.0  # while the motion modules are trained
PIECE, PIECES, PIECE_TIMES = 8, 5, 750  # see train_frames


def noise_loss(predicted: Tensor, noise: Tensor, alphas: Tensor, importance: Tensor | float = 1.0) -> Tensor:
    """Squared error on the noise, weighted per sample by 1 / alpha_bar up to MAX_WEIGHT; scalar.

    1 / alpha_bar is the weight that turns the error on the noise into the error on v. It gives the high-noise steps,
    where colour and place are decided, a voice that the plain error denies them. predicted, noise: [n, ...];
    alphas [n]: alpha_bar at each sample's step; importance: of every element, broadcast.
    """
    error = (importance * (predicted.float() - noise).square()).flatten(1).mean(dim=1)
    return (error / alphas.clamp(min=1 / MAX_WEIGHT)).mean()


def subject_importance(clips: Sequence[Clip], shape: Sequence[int], moving_ground: float = 1.0) -> Tensor:
    """SUBJECT_WEIGHT where the subject is or is near, 1 elsewhere: float16 [n, f, h, w] for latents of `shape`.

    A subject is a fifteenth of a frame and its outline a fraction of that: with an even weight the background's
    texture is learnt long before any shape. Where the camera moves, the background weighs `moving_ground`.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    maps = []
    for clip, path in zip(clips, subject_centres(clips, shape), strict=True):
        centre = path[:, :, None, None]  # f 2 1 1
        reach = torch.tensor(clip.radii() * shape[0] / clip.size[0] + NEAR)[:, None, None]
        near = (columns - centre[:, 0]).square() + (rows - centre[:, 1]).square() <= reach.square()
        ground = moving_ground if clip.motion.moves_camera else 1.0
        maps.append(ground + (SUBJECT_WEIGHT - ground) * near)
    return torch.stack(maps).half()


def subject_centres(clips: Sequence[Clip], shape: Sequence[int]) -> Tensor:
    """Where the subjects are in latents of `shape` (h, w): float64 [n, f, 2], (x, y)."""
    return torch.tensor(np.stack([(clip.track() + 0.5) * shape[0] / clip.size[0] - 0.5 for clip in clips]))


def _noised(latents: Tensor, alphas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(latents.shape, generator=generator)
    scale = alphas.view(-1, *[1] * (latents.ndim - 1))
    return scale.sqrt() * latents + (1 - scale).sqrt() * noise, noise


def _drop_captions(tokens: Tensor, empty: Tensor, generator: torch.Generator) -> Tensor:
    """`tokens` [n, LENGTH] with a random tenth replaced by the empty prompt's [LENGTH]."""
    dropped = torch.rand(len(tokens), 1, generator=generator) < DROP
    return torch.where(dropped, empty[None], tokens)


def train_frames(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    latents: Tensor,
    tokens: Tensor,
    empty: Tensor,
    importance: Tensor,
    centres: Tensor,
    steps: int,
    batch: int,
    lr: float,
    checkpoint: Path,
    seed: int,
) -> None:
    """Train `unet` and `encoder` jointly on single frames.

    latents [n, f, 4, h, w]: scaled latents of n clips; tokens [n, LENGTH]: their captions; empty [LENGTH]: the empty
    prompt; importance [n, f, h, w]: weight of each place of each frame; centres [n, f, 2]: the subject's, in latents
    (x, y). Resumes from `checkpoint`.

    A step takes `batch` whole frames and PIECES times as many pieces around the subject, PIECE latents a side, at a
    quarter of the cost each: outlines are learnt last, and from nowhere else. Above PIECE_TIMES none can be seen.
    """
    alphas = build_scheduler("ddim").alphas_cumprod
    height, width = latents.shape[-2:]

    def loss_at(clip: Tensor, time: Tensor, clean: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
        noisy, noise = _noised(clean.float(), alphas[time], generator)
        text = encoder(_drop_captions(tokens[clip], empty, generator))[0]
        return noise_loss(unet(noisy, time, text).sample, noise, alphas[time], weight[:, None].float())

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        count = batch * (1 + PIECES)
        clip = torch.randint(len(latents), (count,), generator=generator)
        frame = torch.randint(latents.shape[1], (count,), generator=generator)
        time = torch.randint(1000, (count,), generator=generator)
        jitter = torch.randint(-2, 3, (count, 2), generator=generator)
        corners = (centres[clip, frame] - (PIECE - 1) / 2).round().int() + jitter
        columns = corners[batch:, 0].clamp(0, width - PIECE).tolist()
        rows = corners[batch:, 1].clamp(0, height - PIECE).tolist()
        clean, weight = latents[clip, frame], importance[clip, frame]  # b 4 h w, b h w

        def cut(maps: Tensor) -> Tensor:
            places = zip(maps[batch:], rows, columns, strict=True)
            return torch.stack([part[..., y : y + PIECE, x : x + PIECE] for part, y, x in places])

        whole = loss_at(clip[:batch], time[:batch], clean[:batch], weight[:batch], generator)
        pieces = loss_at(clip[batch:], time[batch:] * PIECE_TIMES // 1000, cut(clean), cut(weight), generator)
        return (whole + pieces) / 2

    parameters = [*unet.parameters(), *encoder.parameters()]
    train("frames", [{"params": parameters, "lr": lr}], loss_of, steps, checkpoint, seed)


def train_clips(
    unet: VideoUNet,
    latents: Tensor,
    text: Tensor,
    empty: Tensor,
    importance: Tensor,
    chances: Tensor,
    steps: int,
    batch: int,
    lr: float,
    spatial_lr: float,
    checkpoint: Path,
    seed: int,
) -> None:
    """Train the motion modules of `unet` on whole clips, its spatial layers along with them at `spatial_lr`.

    latents [n, f, 4, h, w]; text [n, LENGTH, WIDTH]: caption embeddings; empty [LENGTH, WIDTH]: the empty prompt's;
    importance [n, f, h, w]: weight of each place of each frame; chances [n]: how often each clip is drawn, up to a
    factor. Resumes from `checkpoint`.

    Timesteps are drawn in proportion to themselves: at low ones every frame shows what it is, and how frames hang
    together has nothing to add.
    """
    alphas = build_scheduler("ddim").alphas_cumprod
    frames = latents.shape[1]

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        clip = torch.multinomial(chances, batch, replacement=True, generator=generator)
        time = (1000 * torch.rand(batch, generator=generator).sqrt()).long().clamp(max=999)
        noisy, noise = _noised(latents[clip].float().transpose(1, 2), alphas[time], generator)  # b c f h w
        dropped = torch.rand(batch, 1, 1, generator=generator) < DROP
        prompt = torch.where(dropped, empty[None], text[clip]).repeat_interleave(frames, dim=0)  # (b f) tokens dim
        weight = importance[clip][:, None].float()  # b 1 f h w
        return noise_loss(unet(noisy, time, prompt).sample, noise, alphas[time], weight)

    motion = [p for name, p in unet.named_parameters() if "motion_modules" in name]
    spatial = [p for name, p in unet.named_parameters() if "motion_modules" not in name]
    groups = [{"params": motion, "lr": lr}, {"params": spatial, "lr": spatial_lr}]
    train("clips", groups, loss_of, steps, checkpoint, seed)


def build_image_unet() -> UNet2DConditionModel:
    """The untrained spatial UNet."""
    return UNet2DConditionModel(**UNET_CONFIG)


def to_video_unet(unet: UNet2DConditionModel) -> VideoUNet:
    """A VideoUNet with the spatial weights of `unet` and fresh motion modules, whose outputs start at zero."""
    video = build_unet(UNET_CONFIG)
    missing, unexpected = video.load_state_dict(unet.state_dict(), strict=False)
    if unexpected or any("motion_modules" not in name for name in missing):
        raise ValueError(f"the two UNets do not match: {[*missing, *unexpected][:3]}")
    for module in video.modules():
        if isinstance(module, MotionModule):
            torch.nn.init.zeros_(module.proj_out.weight)
            torch.nn.init.zeros_(module.proj_out.bias)
    return video
