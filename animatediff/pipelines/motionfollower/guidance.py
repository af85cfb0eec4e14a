"""The score guidance: what pulls the edited person and background to the source's (arXiv 2405.20325).

Features of the edit, E, are compared with those of the reconstruction, R, inside regions made of the two masks. All
is computed at the features' own size: a region of the (2h, 2w) grid enters as the number of its cells under each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch.nn import functional

from animatediff.errors import UserError
from animatediff.models.hooks import capture, gradient_until
from animatediff.pipelines.motionfollower.networks import (
    Features,
    Networks,
    captured_features,
    conditioned,
    feature_blocks,
    forward_features,
    image_vectors,
    velocity,
)

REGIONS = ("published", "paper")
LEARNING_RATE = 0.04  # the published program's factors on the gradient
LOSS_SCALE = 1000.0
Losses = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class TermWeights:
    """Weights of the four terms; defaults are the published ones."""

    foreground: float = 4.0
    body: float = 6.0
    overlap: float = 1.2
    complement: float = 1.2


def guidance_losses(
    edit: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    foreground: float = 4.0,
    body: float = 6.0,
    overlap: float = 1.2,
    complement: float = 1.2,
    regions: str = "published",
) -> Losses:
    """The losses of foreground and background, two float32 scalars.

    edit, reference: features (1 c f h w) of some sizes, the largest being half the grid of the masks; masks (f 1 H W)
    in [0, 1]. A frame in which a region of a term is empty leaves that term's mean; where it is empty in all frames
    the term is 0. regions: the published program takes the body's region (what the person leaves free) and the
    overlap's (background in both) for each other's terms; `paper` takes each for its own. UserError for another word.
    """
    if regions not in REGIONS:
        raise UserError(f"regions is '{regions}', expected one of {', '.join(REGIONS)}")
    grid = (2 * max(e.shape[-2] for e in edit), 2 * max(e.shape[-1] for e in edit))
    source, target = (
        functional.interpolate(m.float(), grid, mode="nearest") > 0.5 for m in (source_masks, target_masks)
    )
    left_free, background = source & ~target, ~source & ~target
    near, apart = (left_free, background) if regions == "published" else (background, left_free)
    loss_fg = loss_bg = edit[0].new_zeros((), dtype=torch.float32)
    for e, r in zip(edit, reference, strict=True):
        e, r = e.float(), r.float()
        cells = {
            name: _cells(region, (e.shape[-2], e.shape[-1]))
            for name, region in (
                *(("source", source), ("target", target), ("not source", ~source)),
                *(("left free", left_free), ("near", near), ("apart", apart)),
            )
        }
        alike = functional.cosine_similarity(e, r, dim=1, eps=1e-8)[0]  # f h w
        alike_near, alike_apart = _region_mean(alike, cells["near"]), _region_mean(alike, cells["apart"])
        alike_person = _similarity(e, cells["target"], r, cells["source"])
        alike_filled = _similarity(e, cells["left free"], r, cells["not source"])
        loss_fg = loss_fg + 0.5 * foreground * _inverse(alike_person)
        loss_bg = loss_bg + 0.5 * body * _inverse(alike_near)
        loss_bg = loss_bg + 0.5 * overlap * _mean_over_frames((alike_apart[0] + 1) / 2, alike_apart[1])
        loss_bg = loss_bg + complement * _inverse(((alike_filled[0] + 1) / 2, alike_filled[1]))
    return loss_fg, loss_bg


def guidance(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    pose: torch.Tensor | None,
    appearance: Sequence[torch.Tensor] | None,
    reference: Sequence[torch.Tensor],
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    strength: float = 4.0,
    *,
    pose_scale: float = 1.0,
    weights: TermWeights | None = None,
    regions: str = "published",
) -> torch.Tensor:
    """The guidance g (1 4 f h w), float32, for latents (1 4 f h w): what is added to the velocity of a guided step.

    embeds, pose (the target's), appearance: as for `features`, by whatever networks; reference: their `features` of
    the reconstruction. strength: the published program's `w`.
    """
    unet = networks.unet
    with conditioned(unet, image_vectors(unet, embeds), pose, appearance, pose_scale), torch.enable_grad():
        moving = latents.detach().requires_grad_()
        edit = forward_features(unet, moving, timestep)
        return gradient(moving, edit, reference, source_masks, target_masks, strength, weights, regions)


def velocity_and_guidance(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    reference: Sequence[torch.Tensor],
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    strength: float,
    weights: TermWeights | None = None,
    regions: str = "published",
) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity, without gradient, and `guidance`, from one forward inside `conditioned`.

    Whatever runs after the last compared block runs without gradient.
    """
    unet = networks.unet
    blocks = feature_blocks(unet)
    moving = latents.detach().requires_grad_()
    with capture(blocks) as outputs, gradient_until(list(blocks.values())[-1]):
        predicted = velocity(unet, moving, timestep)
    with torch.enable_grad():
        edit = captured_features(outputs, latents.shape[2])
        g = gradient(moving, edit, reference, source_masks, target_masks, strength, weights, regions)
    return predicted.detach(), g


def gradient(
    latents: torch.Tensor,
    edit: Features,
    reference: Sequence[torch.Tensor],
    source_masks: torch.Tensor,
    target_masks: torch.Tensor,
    strength: float,
    weights: TermWeights | None = None,
    regions: str = "published",
) -> torch.Tensor:
    """g from features `edit` that depend on `latents`: each loss's gradient in its part of the picture."""
    losses = guidance_losses(
        edit, reference, source_masks, target_masks, **asdict(weights or TermWeights()), regions=regions
    )
    inside = functional.interpolate(target_masks.to(latents), latents.shape[-2:], mode="nearest")
    inside = inside.transpose(0, 1)[None]  # f 1 h w -> 1 1 f h w
    # Scaled before the backward pass: in half precision the bare gradients would underflow.
    loss_fg, loss_bg = (LOSS_SCALE * strength * loss for loss in losses)
    (toward_person,) = torch.autograd.grad(loss_fg, latents, retain_graph=True)
    (toward_background,) = torch.autograd.grad(loss_bg, latents)
    return (LEARNING_RATE * (inside * toward_person + (1 - inside) * toward_background)).float()


def _cells(region: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """How many cells of region (f 1 H W) each cell of a coarser grid covers when that is enlarged by nearest: f h w."""
    counts = region[:, 0].float()  # f H W
    for axis, cells in ((-2, size[0]), (-1, size[1])):
        fine = counts.shape[axis]
        places = torch.arange(cells, dtype=torch.float32, device=counts.device)
        owner = functional.interpolate(places[None, None], fine, mode="nearest")[0, 0].long()
        shape = list(counts.shape)
        shape[axis] = cells
        counts = counts.new_zeros(shape).index_add_(axis, owner, counts)
    return counts


def _region_mean(values: torch.Tensor, cells: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per frame the mean of values (f h w) over a region given as `cells` (f h w), and whether there is one: (f,)."""
    total = cells.sum(dim=(-2, -1))
    return (values * cells).sum(dim=(-2, -1)) / total.clamp(min=1), total > 0


def _similarity(
    e: torch.Tensor, cells_e: torch.Tensor, r: torch.Tensor, cells_r: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per frame the cosine between the mean features (1 c f h w) of two regions, and whether both exist: (f,)."""
    mean_e, there_e = _region_mean(e[0], cells_e)  # c f
    mean_r, there_r = _region_mean(r[0], cells_r)
    return functional.cosine_similarity(mean_e, mean_r, dim=0, eps=1e-8), there_e & there_r


def _mean_over_frames(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """The mean of values (f,) over the frames that are `there`; 0 where none is."""
    return torch.where(there, values, 0.0).sum() / there.sum().clamp(min=1)


def _inverse(similarity: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """1 / (1 + 4 s), s the mean over frames; 0 where there is no frame."""
    values, there = similarity
    return torch.where(there.any(), 1 / (1 + 4 * _mean_over_frames(values, there)), 0.0)
