"""The transformer of models/miniature_dit: diffusers' CogVideoXTransformer3DModel, tiny, on frames and on clips."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional

from animatediff.miniature import t5
from animatediff.miniature.base import PIECE, subject_importance, take_pieces, velocity_loss
from animatediff.miniature.loop import train
from animatediff.miniature.matching import matching_loss
from animatediff.miniature.muon import muon
from animatediff.miniature.video_autoencoder import CHANNELS, FRAMES, TIME
from animatediff.miniature.world import Clip
from animatediff.models.hooks import capture, stop_after
from animatediff.pipelines.ditflow.dialects import CogVideoX
from animatediff.pipelines.ditflow.transformer import in_force

CONFIG: dict[str, Any] = {
    "num_attention_heads": 3,
    "attention_head_dim": 64,
    "num_layers": 8,
    "time_embed_dim": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "patch_size": 2,
    "text_embed_dim": t5.WIDTH,
    "max_text_seq_length": t5.LENGTH,
    "sample_height": 16,
    "sample_width": 16,
    "sample_frames": FRAMES,
    "temporal_compression_ratio": TIME,
    # The published 1.875 and 1 are for 30 x 45 tokens and 13 frames; 8 x 8 and 5 would be told apart by few channels.
    "spatial_interpolation_scale": 0.5,
    "temporal_interpolation_scale": 0.5,
}
# Of each block's heads, as (frames, rows, columns); the blocks without are to find their own.
NEIGHBOURS = (
    ((0, 0, -1), (0, 0, 1), (0, -1, 0)),
    ((0, 1, 0), (-1, 0, 0), (1, 0, 0)),
    ((0, 0, -1), (0, 0, 1), (-1, 0, 0)),
    (),
    ((0, -1, 0), (0, 1, 0)),
    (),
    ((0, 0, -1), (0, 0, 1), (1, 0, 0)),
    ((0, -1, 0), (0, 1, 0), (-1, 0, 0)),
)
PAIRS = 8  # of channels of each axis in such a head: the highest frequencies
SHARPNESS = 1.4
ALIKE = 5  # the block in which tokens look at tokens like them, see `look_at_alike`
MATCHING = 0.1  # weight of that block's `matching_loss` beside the clips' own
PIECE_TIMES = 800  # see train_dit
DROP = 0.1  # share of captions replaced by the empty prompt, for classifier-free guidance


def build_dit(config: dict[str, Any] = CONFIG) -> CogVideoXTransformer3DModel:
    """An untrained transformer. Every block starts as the identity (DiT's adaLN-Zero) and the output as zero.

    Heads look at neighbours, in block ALIKE at tokens like them: see `look_at`, `look_at_alike`.
    """
    transformer = CogVideoXTransformer3DModel(**config)
    silent = [transformer.proj_out]
    for block in transformer.transformer_blocks:
        silent += [block.norm1.linear, block.norm2.linear]
    for layer in silent:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():
        transformer.patch_embed.proj.weight.mul_(0.5)  # positions decide at first
    for block, offsets in zip(transformer.transformer_blocks, NEIGHBOURS, strict=False):
        look_at(block.attn1, offsets, transformer.config)
    for block in transformer.transformer_blocks[ALIKE : ALIKE + 1]:
        look_at_alike(block.attn1)
    return transformer


@torch.no_grad()
def look_at(attention: Attention, offsets: Sequence[tuple[int, int, int]], config: Any) -> None:
    """Start head n of `attention` as a look at the token `offsets[n]` (frames, rows, columns) away; others at random.

    The position table holds pairs (sin w p, cos w p) for frames, rows and columns. Turning each pair of the query by
    w d and leaving the key's as it is makes q . k largest at p + d. A part of each head stays random, for content.
    """
    channels = attention.to_q.in_features
    in_time, in_space = channels // 4, channels * 3 // 8  # channels of the table for frames, and for columns and rows
    axes = (
        (0, in_time, config.temporal_interpolation_scale),
        (in_time + in_space, in_space, config.spatial_interpolation_scale),
        (in_time, in_space, config.spatial_interpolation_scale),
    )
    width = channels // attention.heads
    for head, offset in enumerate(offsets):
        row = head * width
        for (first, count, scale), distance in zip(axes, offset, strict=True):
            for number in range(PAIRS):
                angle = torch.tensor(distance / scale * 10000 ** (-number / (count // 2)))
                sin, cos = first + number, first + count // 2 + number
                for layer in (attention.to_q, attention.to_k):
                    layer.weight[row : row + 2] = 0
                attention.to_k.weight[row, sin] = attention.to_k.weight[row + 1, cos] = 1
                attention.to_q.weight[row, sin] = attention.to_q.weight[row + 1, cos] = angle.cos()
                attention.to_q.weight[row, cos], attention.to_q.weight[row + 1, sin] = angle.sin(), -angle.sin()
                row += 2
    if offsets:
        for norm in (attention.norm_q, attention.norm_k):
            norm.weight.fill_(SHARPNESS)


@torch.no_grad()
def look_at_alike(attention: Attention) -> None:
    """Make queries and keys one random rotation of the tokens: attention is likeness (shared-QK, arXiv 2001.04451).

    Training leaves them so (`alike_layers`) and shapes the tokens instead, so that what moves is like itself.
    """
    nn.init.orthogonal_(attention.to_q.weight)
    attention.to_k.weight.copy_(attention.to_q.weight)
    for layer in (attention.to_q, attention.to_k):
        nn.init.zeros_(layer.bias)
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight.fill_(SHARPNESS)


def alike_layers(transformer: CogVideoXTransformer3DModel) -> list[nn.Module]:
    """What makes the queries and keys of block ALIKE."""
    chosen = [block.attn1 for block in transformer.transformer_blocks[ALIKE : ALIKE + 1]]
    return [layer for a in chosen for layer in (a.to_q, a.to_k, a.norm_q, a.norm_k)]


def build_dit_scheduler() -> CogVideoXDDIMScheduler:
    """CogVideoX-2b's: v-prediction, signal-to-noise ratios divided by 3, none left at the last timestep."""
    return CogVideoXDDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
    )


def video_importance(clips: Sequence[Clip], shape: Sequence[int], background: float) -> Tensor:
    """`subject_importance` for latent frames: the largest over the frames each stands for; float16 [n, F, h, w]."""
    importance = subject_importance(clips, shape, background)  # n f h w
    rest = importance[:, 1:].unflatten(1, (-1, TIME)).amax(dim=2)
    return torch.cat([importance[:, :1], rest], dim=1)


class Examples(NamedTuple):
    """What the transformer is trained on: clips, or (F = 1) their first frames."""

    latents: Tensor  # n F c h w
    text: Tensor  # n LENGTH WIDTH: the embedded captions
    importance: Tensor  # n F h w: the weight of each place
    chances: Tensor  # n: how often each is drawn, up to a factor
    followed: tuple[Tensor, Tensor] | None = None  # of clips: `points_followed`


def train_dit(
    name: str,
    transformer: CogVideoXTransformer3DModel,
    whole: Examples,
    frames: Examples,
    empty: Tensor,
    steps: int,
    batch: int,
    pieces: int,
    lr: float,
    checkpoint: Path,
    seed: int,
) -> None:
    """Train `transformer` on `batch` of `whole` and `pieces` of `frames` a step. Resumes from `checkpoint`.

    empty [LENGTH, WIDTH]: the empty prompt's embedding. A piece is PIECE latents a side around the subject, under the
    positions it has in the frame: a subject for a fifth of the cost, and outlines are learnt last. Above PIECE_TIMES
    none can be seen. On clips the attention of block ALIKE is to follow points, both at the step's noise and without
    any, where a reference is read (`matching_loss`). The matrices of the blocks are trained by Muon, everything else by
    AdamW, `alike_layers` not.
    """
    for layer in alike_layers(transformer):
        layer.requires_grad_(False)
    alphas = build_dit_scheduler().alphas_cumprod.float()
    dialect = CogVideoX(transformer)
    table = dialect.default_positions(1, *frames.latents.shape[-2:])  # 1 h*w/4 c
    grid = [side // dialect.patch for side in frames.latents.shape[-2:]]
    table = rearrange(table, "1 (h w) c -> h w c", h=grid[0])

    def loss_at(
        clean: Tensor, weight: Tensor, text: Tensor, time: Tensor, places: Tensor | None, generator: torch.Generator
    ) -> Tensor:
        noise = torch.randn(clean.shape, generator=generator)
        scale = alphas[time].view(-1, 1, 1, 1, 1)
        noisy = scale.sqrt() * clean + (1 - scale).sqrt() * noise
        dropped = torch.rand(len(text), 1, 1, generator=generator) < DROP
        prompt = torch.where(dropped, empty[None], text)
        own = nullcontext() if places is None else dialect.table_in_force(places, text.shape[1])
        with own, torch.autocast(clean.device.type, torch.bfloat16):
            predicted = transformer(noisy, prompt, time).sample
        return velocity_loss(predicted, clean, noise, alphas[time], weight / weight.mean())

    def clips_loss(clip: Tensor, clean: Tensor, weight: Tensor, generator: torch.Generator) -> Tensor:
        time = torch.randint(len(alphas), (batch,), generator=generator)
        with in_force(dialect, clean, None, None, tapped=[ALIKE]) as taps, capture(taps) as seen:
            loss = loss_at(clean, weight[:, :, None], whole.text[clip], time, None, generator)
            if whole.followed is None:
                return loss
            at_noise = seen[ALIKE]
            with stop_after(taps[ALIKE]), torch.autocast(clean.device.type, torch.bfloat16):
                dialect.run(clean, 0, empty.expand(batch, -1, -1), None)
            flow, counts = (values[clip] for values in whole.followed)
            for query, key, _ in (at_noise, seen[ALIKE]):
                loss = loss + MATCHING * matching_loss(query, key, flow, counts, *grid)
            return loss

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        clip, clean, weight = _drawn(whole, batch, generator)
        loss = clips_loss(clip, clean, weight, generator)
        if not pieces:
            return loss
        clip, clean, weight = _drawn(frames, pieces, generator)
        time = torch.randint(PIECE_TIMES, (pieces,), generator=generator)
        rows, columns = piece_corners(weight[:, 0], dialect.patch, generator)
        clean, weight = (take_pieces(maps, rows, columns) for maps in (clean, weight[:, :, None]))
        tokens = PIECE // dialect.patch
        starts = zip(rows // dialect.patch, columns // dialect.patch, strict=True)
        places = torch.stack([table[y : y + tokens, x : x + tokens].flatten(0, 1) for y, x in starts])  # b tokens c
        return (loss + loss_at(clean, weight, frames.text[clip], time, places, generator)) / 2

    train(
        name,
        [{"params": list(transformer.parameters()), "lr": lr}],
        loss_of,
        steps,
        checkpoint,
        seed,
        save_every=100,
        make_optimizer=lambda groups: muon(transformer, lr, _outside_blocks),
    )


def _drawn(examples: Examples, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """`count` examples by their chances: numbers [b], latents [b, F, c, h, w] and importance [b, F, h, w]."""
    drawn = torch.multinomial(examples.chances, count, replacement=True, generator=generator)
    return drawn, examples.latents[drawn].float(), examples.importance[drawn].float()


def piece_corners(importance: Tensor, patch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and columns [b] where pieces of importance [b, h, w] begin, between patches; where much is important."""
    pooled = functional.avg_pool2d(importance[:, None], PIECE, patch)[:, 0]  # b rows columns
    chosen = torch.multinomial(pooled.flatten(1) ** 4, 1, generator=generator)[:, 0]
    return chosen // pooled.shape[2] * patch, chosen % pooled.shape[2] * patch


def _outside_blocks(name: str) -> bool:
    """Parameters that are no matrices between tokens of the blocks: embeddings, modulations, the output."""
    return "transformer_blocks" not in name or "norm" in name
