"""The miniature's base model: a text-to-image UNet on single frames first, then motion modules on clips."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel

from animatediff.miniature.loop import train
from animatediff.miniature.text import WIDTH
from animatediff.miniature.world import Clip
from animatediff.models import VideoUNet, build_unet
from animatediff.models.motion_module import MotionModule
from animatediff.pipelines.backbones.schedulers import build_scheduler

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
PREDICTS = "v_prediction"  # see velocity_loss
DROP = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance
SUBJECT_WEIGHT, NEAR = 8.0, 1.0  # see subject_importance
GROUND_WEIGHT = 2.0  # while the motion modules are trained
PIECE, PIECES, PIECE_TIMES = 8, 5, 750  # see train_frames
NEIGHBOURS = ((-1, 1, -2, 2, -4, 4, 0), (-1, 1, -3, 3, -6, 6))  # see start_as_neighbours
NEAREST, QUIET = 3.0, 0.1


def velocity_loss(
    predicted: Tensor, clean: Tensor, noise: Tensor, alphas: Tensor, importance: Tensor | float = 1.0
) -> Tensor:
    """Squared error on v = sqrt(alpha_bar) noise - sqrt(1 - alpha_bar) clean (Salimans and Ho 2022, section 4); scalar.

    Where noise hides the picture, a network that predicts the noise must first of all pass it on: at t = 900 an error
    of 0.05% of the noise's variance is as large as all of a background's texture. v is the picture itself there.
    predicted, clean, noise: [n, ...]; alphas [n]: alpha_bar at each sample's step; importance: of every element.
    """
    scale = alphas.view(-1, *[1] * (clean.ndim - 1))
    velocity = scale.sqrt() * noise - (1 - scale).sqrt() * clean
    return (importance * (predicted.float() - velocity).square()).mean()


def subject_importance(clips: Sequence[Clip], shape: Sequence[int], background: float = 1.0) -> Tensor:
    """SUBJECT_WEIGHT where the subject is or is near, `background` elsewhere: float16 [n, f, h, w], latents of `shape`.

    A subject is a fifteenth of a frame and its outline a fraction of that: with an even weight the background's
    texture is learnt long before any shape.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side) for side in shape), indexing="ij")
    maps = []
    for clip, path in zip(clips, subject_centres(clips, shape), strict=True):
        centre = path[:, :, None, None]  # f 2 1 1
        reach = torch.tensor(clip.radii() * shape[0] / clip.size[0] + NEAR)[:, None, None]
        near = (columns - centre[:, 0]).square() + (rows - centre[:, 1]).square() <= reach.square()
        maps.append(background + (SUBJECT_WEIGHT - background) * near)
    return torch.stack(maps).half()


def subject_centres(clips: Sequence[Clip], shape: Sequence[int]) -> Tensor:
    """Where the subjects are in latents of `shape` (h, w): float64 [n, f, 2], (x, y)."""
    return torch.tensor(np.stack([(clip.track() + 0.5) * shape[0] / clip.size[0] - 0.5 for clip in clips]))


def _noised(latents: Tensor, alphas: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    noise = torch.randn(latents.shape, generator=generator)
    scale = alphas.view(-1, *[1] * (latents.ndim - 1))
    return scale.sqrt() * latents + (1 - scale).sqrt() * noise, noise


def take_pieces(maps: Tensor, rows: Iterable[int], columns: Iterable[int]) -> Tensor:
    """From each of `maps` [n, ..., h, w] the piece whose first row and column are given: [n, ..., PIECE, PIECE]."""
    places = zip(maps, rows, columns, strict=True)
    return torch.stack([part[..., y : y + PIECE, x : x + PIECE] for part, y, x in places])


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
        return velocity_loss(
            unet(noisy, time, text).sample, clean.float(), noise, alphas[time], weight[:, None].float()
        )

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
        whole = loss_at(clip[:batch], time[:batch], clean[:batch], weight[:batch], generator)
        part, importances = (take_pieces(maps[batch:], rows, columns) for maps in (clean, weight))
        pieces = loss_at(clip[batch:], time[batch:] * PIECE_TIMES // 1000, part, importances, generator)
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
    """Train the motion modules of `unet` on clips, its spatial layers along with them at `spatial_lr`.

    latents [n, f, 4, h, w]; text [n, LENGTH, WIDTH]: caption embeddings; empty [LENGTH, WIDTH]: the empty prompt's;
    importance [n, f, h, w]: weight of each place of each frame; chances [n]: how often each clip is drawn, up to a
    factor. Resumes from `checkpoint`.

    Half of the timesteps are drawn in proportion to themselves, for how frames hang together has least to add where
    every frame shows what it is; half evenly, for that is where outlines are drawn.
    """
    alphas = build_scheduler("ddim").alphas_cumprod
    frames = latents.shape[1]

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        clip = torch.multinomial(chances, batch, replacement=True, generator=generator)
        share = torch.rand(2, batch, generator=generator)
        time = (1000 * torch.where(share[0] < 0.5, share[1], share[1].sqrt())).long().clamp(max=999)
        clean = latents[clip].float().transpose(1, 2)  # b c f h w
        noisy, noise = _noised(clean, alphas[time], generator)
        dropped = torch.rand(batch, 1, 1, generator=generator) < DROP
        prompt = torch.where(dropped, empty[None], text[clip]).repeat_interleave(frames, dim=0)  # (b f) tokens dim
        predicted = unet(noisy, time, prompt).sample
        return velocity_loss(predicted, clean, noise, alphas[time], importance[clip][:, None].float())

    motion = [p for name, p in unet.named_parameters() if "motion_modules" in name]
    spatial = [p for name, p in unet.named_parameters() if "motion_modules" not in name]
    groups = [{"params": motion, "lr": lr}, {"params": spatial, "lr": spatial_lr}]
    train("clips", groups, loss_of, steps, checkpoint, seed)


def build_image_unet() -> UNet2DConditionModel:
    """The untrained spatial UNet."""
    return UNet2DConditionModel(**UNET_CONFIG)


def to_video_unet(unet: UNet2DConditionModel) -> VideoUNet:
    """A VideoUNet with the spatial weights of `unet` and fresh motion modules: see `start_as_neighbours`."""
    video = build_unet(UNET_CONFIG)
    missing, unexpected = video.load_state_dict(unet.state_dict(), strict=False)
    if unexpected or any("motion_modules" not in name for name in missing):
        raise ValueError(f"the two UNets do not match: {[*missing, *unexpected][:3]}")
    for module in video.modules():
        if isinstance(module, MotionModule):
            start_as_neighbours(module)
    return video


@torch.no_grad()
def start_as_neighbours(module: MotionModule) -> None:
    """Fresh weights: nothing is added yet, and head n of each attention looks at the frame NEIGHBOURS[n] away.

    p(f), the sinusoidal position of frame f, holds pairs (sin w f, cos w f); turning each pair by w d gives p(f + d).
    So with q the turned and k the plain pairs of the first channels, q . k is largest at the frame d away. On these
    channels the content is turned down, so that the positions decide; the last heads start at random. In a trial of 150
    steps on nothing but the optical flow, 0.36 of its variance could be read in the last up block, and 0.24 in that of
    modules that had been trained for 2,600 steps without such a start.
    """
    nn.init.zeros_(module.proj_out.weight)
    nn.init.zeros_(module.proj_out.bias)
    for block in module.transformer_blocks:
        stages = ((block.norm1, block.attn1), (block.norm2, block.attn2))
        for (norm, attention), offsets in zip(stages, NEIGHBOURS, strict=True):
            channels, heads = attention.to_q.in_features, attention.heads
            width = channels // heads
            rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / channels))
            gain = (NEAREST * math.sqrt(width) / (1 - rates.cos()).sum()).sqrt()  # NEAREST more than the next frame
            norm.weight[:width] = QUIET
            for head, offset in enumerate(offsets):
                rows = slice(head * width, (head + 1) * width)
                cos, sin = (rates * offset).cos(), (rates * offset).sin()
                turns = torch.stack([cos, sin, -sin, cos], dim=-1).view(-1, 2, 2)
                attention.to_q.weight[rows] = gain * F.pad(torch.block_diag(*turns), (0, channels - width))
                attention.to_k.weight[rows] = gain * torch.eye(width, channels)
