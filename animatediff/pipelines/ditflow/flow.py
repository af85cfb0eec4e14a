"""What DiTFlow compares: attention motion flow, features, and the losses on them (arXiv 2412.07776, section 4).

Functions of tensors alone; none knows a transformer. Maths in float32, or in float64 where the inputs are.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from animatediff.errors import UserError

MAP_ENTRIES = 2**24  # entries of attention maps formed at once: 64 MiB in float32
KEPT_ENTRIES = 2**25  # entries of all maps together up to which they are kept for the backward pass


def attention_motion_flow(
    query: torch.Tensor,
    key: torch.Tensor,
    frames: int,
    height: int,
    width: int,
    temperature: float = 2.0,
    hard: bool = False,
) -> torch.Tensor:
    """Where each token of each frame looks in each other frame, as displacements (section 4.1 of the paper).

    query, key: (heads f*H*W d), video tokens only, frame by frame, row by row. Heads are averaged before the softmax
    over one target frame's H*W keys, which `temperature` multiplies. Returns (f*f, H*W, 2): row i f + j goes from frame
    i to frame j; x to the right, y down, in tokens. Soft (differentiable): the expected displacement; `hard`: that of
    the largest entry, whole numbers.

    The mean over heads of q k^T is one product of the concatenated heads, so one map per pair of frames is formed, a
    few pairs at a time, and above KEPT_ENTRIES formed again in the backward pass.
    """
    heads, tokens, width_of_head = query.shape
    if tokens != frames * height * width or key.shape != query.shape:
        raise UserError(
            f"query {list(query.shape)} and key {list(key.shape)} do not fit {frames} frames of {height}x{width} tokens"
        )
    scale = temperature / (heads * width_of_head**0.5)
    query, key = (
        rearrange(_at_least_float32(x), "heads (f s) d -> f s (heads d)", f=frames)  # f S (heads d)
        for x in (query, key)
    )
    query = query * scale
    coordinates = grid_coordinates(height, width, query)
    together = max(1, MAP_ENTRIES // (height * width) ** 2)
    form = _hard_coordinates if hard else _soft_coordinates
    differentiable = torch.is_grad_enabled() and not hard and (query.requires_grad or key.requires_grad)
    formed_again = differentiable and tokens**2 > KEPT_ENTRIES
    rows = []
    for i in range(frames):
        for targets in key.split(together):
            if formed_again:
                looked_at = checkpoint(
                    form, query[i], targets, coordinates, use_reentrant=False, preserve_rng_state=False
                )
            else:
                looked_at = form(query[i], targets, coordinates)
            rows.append(looked_at - coordinates)  # n S 2
    return torch.cat(rows)


def grid_coordinates(height: int, width: int, like: torch.Tensor) -> torch.Tensor:
    """(H*W, 2): x and y of each token of a frame, row by row, in the dtype and on the device of `like`."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2).to(like)


def flow_loss(reference: torch.Tensor, current: torch.Tensor, moving_only: bool = True) -> torch.Tensor:
    """Mean squared difference of two attention motion flows (f*f, H*W, 2), a scalar (equation 7).

    `moving_only`: over the tokens that move in `reference`, both components; 0 where none does.
    """
    _check_same(reference, current, "attention motion flow")
    squared = (current - reference.to(current.dtype)).square()
    if not moving_only:
        return squared.mean()
    moving = (reference != 0).any(dim=-1, keepdim=True)  # f*f S 1
    return torch.where(moving, squared, 0).sum() / (moving.sum() * 2).clamp(min=1)


def moft_channels(features: torch.Tensor, share: float = 0.04) -> torch.Tensor:
    """The channels of features (f c H W) that carry motion: int64 (int(share c),), largest part first (MOFT).

    Features minus their mean over frames, as a (f H W, c) matrix: those with the largest |v|, v its first right
    singular vector. UserError where `share` of the channels is less than one.
    """
    channels = features.shape[1]
    count = int(share * channels)
    if not 1 <= count <= channels:
        raise UserError(
            f"moft_share is {share}, {count} of {channels} channels; expected at least {1 / channels:.3g} and at most 1"
        )
    matrix = rearrange(_centred(_at_least_float32(features)), "f c h w -> (f h w) c").double()
    direction = torch.linalg.eigh(matrix.T @ matrix).eigenvectors[:, -1]  # c
    return direction.abs().topk(count).indices


def moft_loss(reference: torch.Tensor, current: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """1 - cosine over `channels` of features (f c H W) minus their mean over frames; mean over frames and places."""
    _check_same(reference, current, "features")
    reference, current = (_centred(_at_least_float32(x)[:, channels]) for x in (reference, current))  # f n H W
    return (1 - functional.cosine_similarity(current, reference, dim=1)).mean()


def smm_loss(reference: torch.Tensor, current: torch.Tensor, published: bool = False) -> torch.Tensor:
    """Distance of how the spatial means of features (f c H W) change between frames, a scalar (SMM).

    Mean over frames k and l of 1 - cos over channels of (b_l - b_k, a_l - a_k), a and b the means of `reference` and
    `current`. `published`: the program's form, b_l - a_k with the cosine over time l for each channel.
    """
    a, b = (_at_least_float32(x).mean(dim=(2, 3)) for x in (reference, current))  # f c
    _check_same(a, b, "features' means")
    changes = a[None] - a[:, None]  # k l c
    if published:
        return (1 - functional.cosine_similarity(b[None] - a[:, None], changes, dim=1)).mean()
    return (1 - functional.cosine_similarity(b[None] - b[:, None], changes, dim=2)).mean()


def _soft_coordinates(query: torch.Tensor, targets: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Expected coordinates (n S 2) that queries (S c) of one frame look at in `n` target frames (n S c)."""
    return torch.softmax(query @ targets.mT, dim=-1) @ coordinates  # n S S @ S 2


def _hard_coordinates(query: torch.Tensor, targets: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """As `_soft_coordinates`, of the largest entry."""
    return coordinates[(query @ targets.mT).argmax(dim=-1)]


def _centred(features: torch.Tensor) -> torch.Tensor:
    return features - features.mean(dim=0, keepdim=True)


def _at_least_float32(values: torch.Tensor) -> torch.Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _check_same(reference: torch.Tensor, current: torch.Tensor, what: str) -> None:
    if reference.shape != current.shape:
        raise UserError(
            f"the reference's {what} has shape {list(reference.shape)}, the video's {list(current.shape)}; "
            f"extract the reference at the video's size and number of frames"
        )
