"""What the video transformer learns beside its clips: that its attention follows points, in one block, at any noise."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from animatediff.miniature.token_flow import true_flow
from animatediff.miniature.world import Clip
from animatediff.pipelines.ditflow.flow import grid_coordinates

MOVING = 0.5  # tokens: a token that moves less counts as still
STILL_WEIGHT = 0.2  # beside 1 for background that a camera moves
SUBJECT_WEIGHT = 3.0


def points_followed(clips: Sequence[Clip], height: int, width: int) -> tuple[Tensor, Tensor]:
    """Where the tokens of each clip go, as `true_flow` has it, and how much each counts.

    float16 [n, F F, height width, 2] and [n, F F, height width]. What leaves the view or is covered counts nothing.
    """
    flows, weights = [], []
    for clip in clips:
        flow, visible, on = true_flow(clip, height, width)
        still = np.linalg.norm(flow, axis=-1) < MOVING
        flows.append(torch.from_numpy(flow).half())
        weights.append(
            torch.from_numpy(visible * np.where(still, STILL_WEIGHT, np.where(on, SUBJECT_WEIGHT, 1))).half()
        )
    return torch.stack(flows), torch.stack(weights)


def matching_loss(query: Tensor, key: Tensor, flow: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
    """Cross entropy between where attention looks and where points go, a scalar.

    query, key: [b, heads, F height width, d], video tokens alone. The map is that of `attention_motion_flow` at
    temperature 1; the truth lies on the four tokens around a point's destination, shared as bilinear sampling shares.
    flow, weight: as `points_followed` gives them, of b clips. Pairs of a frame with itself do not count.
    """
    frames, scale = query.shape[2] // (height * width), query.shape[1] * query.shape[3] ** 0.5
    query, key = (rearrange(x.float(), "b n (f s) d -> b f s (n d)", f=frames) for x in (query, key))  # b f S (n d)
    logits = torch.einsum("b i s c, b j t c -> b i j s t", query, key) / scale
    there = rearrange(flow.float(), "b (i j) s xy -> b i j s xy", i=frames) + grid_coordinates(height, width, logits)
    across, down = (
        (1 - (there[..., axis, None].clamp(0, size - 1) - torch.arange(size)).abs()).clamp(min=0)  # b i j S size
        for axis, size in ((0, width), (1, height))
    )
    truth = rearrange(down[..., :, None] * across[..., None, :], "... h w -> ... (h w)")  # b i j S (h w)
    entropy = -(truth * logits.log_softmax(dim=-1)).sum(dim=-1)
    weight = (
        rearrange(weight.float(), "b (i j) s -> b i j s", i=frames) * ~torch.eye(frames, dtype=torch.bool)[:, :, None]
    )
    return (weight * entropy).sum() / weight.sum().clamp(min=1)
