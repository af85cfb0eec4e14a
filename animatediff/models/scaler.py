"""The scaler: which of the reference's temporal features concern motion (EfficientMT, section 3.2).

a_i = sigmoid(S(y_i, r_i) - 5) weighs the reference feature r_i against the feature y_i of the video being
generated, one number per frame and position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

CLOSED = 5.0  # sigmoid(-5) = 0.0067: an untrained scaler keeps the reference almost out


def sinusoidal_positions(num_frames: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """Positions 0 .. num_frames-1 as (1 f width), sine on even and cosine on odd channels, on `like`'s device/dtype."""
    frame = torch.arange(num_frames, device=like.device)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, device=like.device) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(frame * rate), torch.cos(frame * rate)], dim=-1).flatten(1)[None].to(like.dtype)


class Scaler(nn.Module):
    """Three 3x3 convolutions over (h, w): 2 dim -> dim/4 -> dim/16 -> 1; the last one starts at zero."""

    def __init__(self, dim: int, initial_bias: float = 0.0) -> None:
        """dim: channels of one feature. initial_bias: start of the last bias; the map starts at sigmoid(it - 5)."""
        super().__init__()
        widths = (2 * dim, max(2 * dim // 8, 1), max(2 * dim // 32, 1), 1)
        self.dim = dim
        convs = [nn.Conv2d(i, o, 3, padding=1) for i, o in pairwise(widths)]
        nn.init.zeros_(convs[-1].weight)
        nn.init.constant_(cast("nn.Parameter", convs[-1].bias), initial_bias)
        self.spatial_convs = nn.ModuleList(convs)

    def forward(self, y: torch.Tensor, r: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The scale map of y given r, both ((b h w) f c), size = (h, w). Returns ((b h w) f 1) in (0, 1)."""
        return self.scale_map(y, self.reference_half(r, size), size)

    def reference_half(self, r: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """All of the first convolution that does not depend on y, ((b f) dim/4 h w): constant over sampling steps.

        The convolution is linear, so conv([y, r] + p) = conv_y(y) + conv([0, r] + p), bias in the second term.
        """
        pair = F.pad(r, (self.dim, 0)) + sinusoidal_positions(r.shape[1], 2 * self.dim, r)
        return self.spatial_convs[0](_to_maps(pair, size))

    def scale_map(self, y: torch.Tensor, reference_half: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """The scale map from y ((b h w) f c) and `reference_half`, whose batch divides y's."""
        first, *rest = cast("Sequence[nn.Conv2d]", self.spatial_convs)
        own = F.conv2d(_to_maps(y, size), first.weight[:, : self.dim], padding=1)
        # own ((n b f) dim/4 h w) + reference_half ((b f) dim/4 h w)
        hidden = (own.unflatten(0, (-1, len(reference_half))) + reference_half).flatten(0, 1)
        for conv in rest:
            hidden = conv(F.gelu(hidden))
        return torch.sigmoid(rearrange(hidden, "(b f) 1 h w -> (b h w) f 1", f=y.shape[1]) - CLOSED)


def _to_maps(tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    return rearrange(tokens, "(b h w) f c -> (b f) c h w", h=size[0], w=size[1])
