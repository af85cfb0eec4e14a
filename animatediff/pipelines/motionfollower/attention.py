"""Camera mode: the edited video's self-attention also looks at the source's background (arXiv 2405.20325).

The keys and values of the reconstruction of the same step are appended to the edit's own; what the source's person
covers in the one and what the edited person does not cover in the other is multiplied by zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import UNetMotionModel
from diffusers.models.attention_processor import Attention
from einops import rearrange
from torch import nn
from torch.nn import functional

from animatediff.models.hooks import capture
from animatediff.pipelines.motionfollower.networks import spatial_attentions

KeysValues = dict[str, torch.Tensor]  # "<path of a self-attention>.to_k" and ".to_v" -> (f tokens c)


def attend_with_background(
    attention: Attention,
    hidden: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    size: tuple[int, int],
    mask_attention: bool = False,
) -> torch.Tensor:
    """Self-attention of hidden ((b f) tokens c) with the background's keys and values appended; the same shape.

    key, value (f tokens c): what the attention's to_k and to_v gave in the reconstruction, not masked; they serve the
    whole batch. Masks (f 1 H W) in [0, 1] of the person in the source and in the edit, taken to the tokens' grid
    `size` = (rows, columns) by nearest. A key multiplied by zero stays in the softmax with logit 0, as in the
    published program; `mask_attention` takes it out.
    """
    frames = key.shape[0]
    inside = _on_tokens(target_masks, size).to(hidden)  # f tokens 1: the edited person
    outside = 1 - _on_tokens(source_masks, size).to(hidden)  # f tokens 1: the source's background
    batch = hidden.shape[0] // frames
    inside, background_key, background_value = (
        tensor.repeat(batch, 1, 1) for tensor in (inside, key.to(hidden) * outside, value.to(hidden) * outside)
    )
    keys = torch.cat([attention.to_k(hidden) * inside, background_key], dim=1)
    values = torch.cat([attention.to_v(hidden) * inside, background_value], dim=1)
    kept = None
    if mask_attention:
        kept = _kept(inside, outside.repeat(batch, 1, 1))
    query, keys, values = (
        rearrange(tensor, "n tokens (heads d) -> n heads tokens d", heads=attention.heads)
        for tensor in (attention.to_q(hidden), keys, values)
    )
    out = functional.scaled_dot_product_attention(query, keys, values, attn_mask=kept)
    return attention.to_out[0](rearrange(out, "n heads tokens d -> n tokens (heads d)"))


@contextmanager
def record_background(unet: UNetMotionModel, active: bool = True) -> Iterator[KeysValues]:
    """Yield what fills with keys and values of the up blocks' self-attention while the reconstruction runs."""
    attentions = spatial_attentions(unet, "attn1", ("up_blocks",)) if active else {}
    sides = {f"{path}.{side}": getattr(a, side) for path, a in attentions.items() for side in ("to_k", "to_v")}
    with capture(sides) as outputs:
        yield outputs


def background_attentions(
    unet: UNetMotionModel,
    background: Mapping[str, torch.Tensor],
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    latent_size: tuple[int, int],
    mask_attention: bool = False,
) -> dict[str, nn.Module]:
    """Replacements for the up blocks' self-attentions that look at `background` (see `record_background`)."""
    attentions = spatial_attentions(unet, "attn1", ("up_blocks",)) if background else {}
    last = len(unet.up_blocks) - 1
    replacements: dict[str, nn.Module] = {}
    for path, attention in attentions.items():
        halvings = last - int(path.split(".")[1])
        size = (-(-latent_size[0] // 2**halvings), -(-latent_size[1] // 2**halvings))  # each halving rounds up
        replacements[path] = _WithBackground(
            attention, background[f"{path}.to_k"], background[f"{path}.to_v"], source_masks, target_masks, size,
            mask_attention,
        )  # fmt: skip
    return replacements


class _WithBackground(nn.Module):
    """A self-attention of camera mode, called as diffusers' Attention is."""

    def __init__(self, attention: Attention, *arguments: Any) -> None:
        super().__init__()
        self.attention = attention
        self.arguments = arguments

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """hidden_states ((b f) tokens c) -> the same shape."""
        return attend_with_background(self.attention, hidden_states, *self.arguments)


def _on_tokens(masks: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(f 1 H W) -> (f tokens 1), nearest."""
    return rearrange(functional.interpolate(masks.float(), size, mode="nearest"), "f 1 h w -> f (h w) 1")


def _kept(inside: torch.Tensor, outside: torch.Tensor) -> torch.Tensor:
    """Which keys take part, (n 1 1 2tokens) bool, from masks (n tokens 1); all own ones where that would be none."""
    kept = torch.cat([inside, outside], dim=1)[..., 0] > 0
    own = torch.arange(kept.shape[1], device=kept.device) < inside.shape[1]
    kept = kept | (own & ~kept.any(dim=1, keepdim=True))
    return rearrange(kept, "n keys -> n 1 1 keys")
