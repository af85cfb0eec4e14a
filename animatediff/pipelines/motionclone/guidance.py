"""MotionClone's motion representation and guidance loss (arXiv 2406.05338, sections 4.1 and 4.2).

The motion of a clip is where its temporal attention looks: of P = softmax(Q K^T / sqrt(d)) over frames, the largest
entries of every row, with their places. A video being generated is pulled towards having the same values there.
Attention maps are formed for the guided attentions only, from the outputs of their to_q and to_k.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import torch
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import nn

from animatediff.errors import UserError
from animatediff.models.hooks import capture, gradient_until, stop_after
from animatediff.models.key_names import diffusers_name, original_name

AttentionMotion = dict[str, tuple[torch.Tensor, torch.Tensor]]
GUIDED_BLOCKS = ("up_blocks.1",)


class Control(Protocol):
    """Anything that conditions the backbone through residuals: a SparseCtrl encoder with its condition."""

    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor | int, text: torch.Tensor
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """Keyword arguments of the backbone's forward for latents (b c f h w), text ((b f) tokens dim)."""


@torch.no_grad()
def extract_motion(
    unet: UNetMotionModel,
    noisy_latents: torch.Tensor,
    timestep: torch.Tensor | int,
    text: torch.Tensor,
    blocks: Sequence[str] = GUIDED_BLOCKS,
    k: int = 1,
    control: Control | None = None,
) -> AttentionMotion:
    """The motion of noised reference latents (1 c f h w): one forward, no further than the last guided attention.

    text (1 tokens dim) is the embedding of the empty string. `blocks` are blocks of the backbone ("up_blocks.1") or
    motion modules in them. Returns, per temporal attention under its original name, values (float32) and indices
    (int64) of the `k` largest entries of every row of its map, each (positions heads f k), positions = h w row by
    row. UserError for a block that does not exist and a `k` beyond the number of frames.
    """
    attentions = temporal_attentions(unet, blocks)
    frames = noisy_latents.shape[2]
    if not 1 <= k <= frames:
        raise UserError(f"k is {k}, expected 1 to {frames}, the number of frames that a frame can look at")
    maps = _maps(unet, attentions, noisy_latents, timestep, text, control)
    largest = ((name, values.topk(k, dim=-1)) for name, values in maps)
    return {name: (top.values, top.indices) for name, top in largest}


def motion_loss(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor | int,
    text: torch.Tensor,
    motion: AttentionMotion,
    control: Control | None = None,
) -> torch.Tensor:
    """Distance between the motion of latents (1 c f h w) under text (1 tokens dim) and the given `motion`.

    A float32 scalar, differentiable in `latents`; the forward goes no further than the last guided attention.
    """
    return distance(_maps(unet, _attentions_of(unet, motion), latents, timestep, text, control), motion)


def noise_and_loss(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor | int,
    text: torch.Tensor,
    motion: AttentionMotion,
    control: Control | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The predicted noise (1 c f h w), without gradient, and `motion_loss`, with it, from one forward.

    Whatever runs after the last guided attention runs without gradient.
    """
    attentions = _attentions_of(unet, motion)
    with capture(_projections(attentions)) as tokens, gradient_until(_last_motion_module(unet, attentions)):
        noise = predict_noise(unet, latents, timestep, text, control)
    return noise, distance(_from_tokens(attentions, tokens), motion)


def predict_noise(
    unet: UNetMotionModel,
    latents: torch.Tensor,
    timestep: torch.Tensor | int,
    text: torch.Tensor,
    control: Control | None = None,
) -> torch.Tensor:
    """The noise predicted for latents (b c f h w) of any dtype, in the backbone's; text (b tokens dim)."""
    latents = latents.to(unet.dtype)
    per_frame = text.to(unet.dtype).repeat_interleave(latents.shape[2], dim=0)  # (b f) tokens dim
    residuals = control(latents, timestep, per_frame) if control else {}
    return unet(latents, timestep, per_frame, **residuals).sample


def distance(maps: Iterable[tuple[str, torch.Tensor]], motion: AttentionMotion) -> torch.Tensor:
    """Sum over attentions of the mean squared difference at the reference's indices (equation 6 of the paper)."""
    losses = []
    for name, current in maps:
        values, indices = motion[name]
        if current.shape[:3] != values.shape[:3]:
            raise UserError(
                f"the reference's motion was extracted at another size or number of frames: its maps are "
                f"{list(values.shape[:3])}, the video's {list(current.shape[:3])} (positions, heads, frames)"
            )
        losses.append((current.gather(-1, indices) - values).square().mean())
    return torch.stack(losses).sum()


def temporal_attentions(unet: UNetMotionModel, blocks: Sequence[str]) -> dict[str, Attention]:
    """The temporal attentions under `blocks`, by original name, in the order in which they run.

    UserError names a block that does not exist or has no temporal attention, and lists those that do.
    """
    everywhere = _all_temporal_attentions(unet)
    found: set[str] = set()
    for block in blocks:
        inside = {name for name in everywhere if f"{name}.".startswith(f"{block}.")}
        if not inside:
            known = dict.fromkeys(name.partition(".motion_modules")[0] for name in everywhere)
            raise UserError(f"'{block}' is no block with temporal attention; there are {', '.join(known)}")
        found |= inside
    if not found:
        raise UserError(f"no block to guide is named; the published one is {GUIDED_BLOCKS[0]}")
    return {name: attention for name, attention in everywhere.items() if name in found}


def _all_temporal_attentions(unet: UNetMotionModel) -> dict[str, Attention]:
    """Every temporal attention by original name, in the order in which they run: down, middle, up."""
    stages = {
        **{f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)},
        "mid_block": unet.mid_block,
        **{f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)},
    }
    return {
        original_name(f"{stage}.motion_modules.{i}.transformer_blocks.{j}.{name}.").removesuffix("."): getattr(b, name)
        for stage, block in stages.items()
        for i, module in enumerate(getattr(block, "motion_modules", ()))
        for j, b in enumerate(module.transformer_blocks)
        for name in ("attn1", "attn2")
    }


def _attentions_of(unet: UNetMotionModel, motion: AttentionMotion) -> dict[str, Attention]:
    """The attentions that `motion` speaks of, in the order in which they run."""
    everywhere = _all_temporal_attentions(unet)
    unknown = [name for name in motion if name not in everywhere]
    if unknown or not motion:
        what = f"has {unknown[0]}, which this backbone lacks" if unknown else "is empty"
        raise UserError(f"the reference's motion {what}; extract it with this backbone")
    return {name: attention for name, attention in everywhere.items() if name in motion}


def _maps(
    unet: UNetMotionModel,
    attentions: Mapping[str, Attention],
    latents: torch.Tensor,
    timestep: torch.Tensor | int,
    text: torch.Tensor,
    control: Control | None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and map of each of `attentions`, from a forward that ends with the last of them."""
    with capture(_projections(attentions)) as tokens, stop_after(_last_motion_module(unet, attentions)):
        predict_noise(unet, latents, timestep, text, control)
    return _from_tokens(attentions, tokens)


def _from_tokens(
    attentions: Mapping[str, Attention], tokens: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, torch.Tensor]]:
    """One map at a time, each (positions heads f f), float32, from the outputs of to_q and to_k."""
    for name, attention in attentions.items():
        q, k = (
            rearrange(
                tokens[f"{name}.{side}"].float(), "positions f (heads d) -> positions heads f d", heads=attention.heads
            )
            for side in ("to_q", "to_k")
        )
        yield name, torch.softmax(q @ k.mT * attention.scale, dim=-1)


def _projections(attentions: Mapping[str, Attention]) -> dict[str, nn.Module]:
    return {f"{name}.{side}": getattr(a, side) for name, a in attentions.items() for side in ("to_q", "to_k")}


def _last_motion_module(unet: UNetMotionModel, attentions: Mapping[str, Attention]) -> nn.Module:
    """The motion module that holds the last of `attentions`."""
    return unet.get_submodule(diffusers_name(list(attentions)[-1]).partition(".transformer_blocks")[0])
