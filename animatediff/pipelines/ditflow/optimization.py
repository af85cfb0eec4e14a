"""The motion of a reference, the distance to it, and the updates that reduce it (arXiv 2412.07776, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from diffusers import ModelMixin
from einops import reduce

from animatediff.errors import UserError
from animatediff.pipelines.ditflow.dialects import Dialect, Grid, dialect_of
from animatediff.pipelines.ditflow.flow import attention_motion_flow, flow_loss, moft_channels, moft_loss, smm_loss
from animatediff.pipelines.ditflow.transformer import (
    Injected,
    check_blocks,
    in_force,
    read_features,
    read_queries_keys,
)

KINDS = ("flow", "moft", "smm", "smm_published")
VARIABLES = ("latents", "positions")
Variable = Literal["latents", "positions"]


@dataclass(frozen=True)
class ReferenceMotion:
    """The motion of a reference clip, by guided block.

    kind flow: targets (f*f, H*W, 2), int16 where hard; moft: (f n H W) of the n `channels`; smm: spatial means
    (f c 1 1). `is_static`: nothing in it moves, so that with `moving_only` the loss is 0 whatever the video does.
    """

    kind: str
    grid: Grid
    targets: Mapping[int, torch.Tensor]
    channels: Mapping[int, torch.Tensor]
    temperature: float
    moving_only: bool

    @property
    def is_static(self) -> bool:
        return self.kind == "flow" and not any(target.any() for target in self.targets.values())

    @property
    def blocks(self) -> list[int]:
        return sorted(self.targets)

    def to(self, device: torch.device | str) -> ReferenceMotion:
        """The same on another device."""
        moved = ({i: x.to(device) for i, x in part.items()} for part in (self.targets, self.channels))
        targets, channels = moved
        return replace(self, targets=targets, channels=channels)


@torch.no_grad()
def extract_motion(
    transformer: ModelMixin,
    latents: torch.Tensor,
    text: torch.Tensor,
    blocks: Sequence[int],
    kind: str = "flow",
    temperature: float = 2.0,
    moving_only: bool = True,
    share: float = 0.04,
    hard: bool = True,
) -> ReferenceMotion:
    """The motion of clean latents (batch 1), read in one forward at timestep 0 under `text` (1 tokens dim), that of "".

    kind: flow (the default), moft, smm or smm_published. temperature, moving_only, hard: of flow; share: of moft. No
    block after the last of `blocks` runs. UserError for blocks that do not exist, another kind, a share without
    channels.
    """
    if kind not in KINDS:
        raise UserError(f"loss is '{kind}', expected one of {', '.join(KINDS)}")
    if not blocks:
        raise UserError("guidance_blocks is empty; name the blocks whose motion is compared")
    check_blocks(transformer, blocks, ())
    dialect = dialect_of(transformer)
    grid = dialect.grid(latents)
    channels: dict[int, torch.Tensor] = {}
    with in_force(dialect, latents, None, None, tapped=blocks if kind == "flow" else ()) as taps:
        if kind == "flow":
            states = read_queries_keys(dialect, latents, 0, text, None, taps)
            targets = {i: attention_motion_flow(q, k, *grid, temperature, hard) for i, (q, k, _) in states.items()}
            if hard and max(grid) <= torch.iinfo(torch.int16).max:
                targets = {i: target.to(torch.int16) for i, target in targets.items()}
        else:
            targets = read_features(dialect, latents, 0, text, None, blocks)
            if kind == "moft":
                channels = {i: moft_channels(features, share) for i, features in targets.items()}
                targets = {i: features[:, channels[i]] for i, features in targets.items()}
            else:
                targets = {i: reduce(features.float(), "f c h w -> f c 1 1", "mean") for i, features in targets.items()}
    return ReferenceMotion(kind, grid, targets, channels, temperature, moving_only)


def motion_loss(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    motion: ReferenceMotion,
    positions: torch.Tensor | None = None,
    injected: Injected | None = None,
    published_gradient: bool = False,
) -> torch.Tensor:
    """How far latents (batch 1) at `timestep` under text (1 tokens dim) are from `motion`: a scalar, mean over blocks.

    Differentiable in latents and positions. No block after the last guided one runs. positions, injected: as in
    `predict`. published_gradient: of rope positions, see `rotate`. The network's gradient checkpointing is off here,
    as backward is the caller's; `optimize` has it.
    """
    dialect = dialect_of(transformer)
    tapped = _check_motion(dialect, latents, motion, injected, published_gradient)
    with in_force(dialect, latents, positions, injected, tapped, published_gradient) as taps:
        return _loss(dialect, latents, timestep, text, motion, positions, taps)


def optimize(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    motion: ReferenceMotion,
    variable: Variable = "latents",
    positions: torch.Tensor | None = None,
    steps: int = 5,
    lr: float = 0.002,
    injected: Injected | None = None,
    published_gradient: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, list[float]]:
    """`steps` updates by a new Adam of what `variable` names, towards `motion` (algorithm 1 of the paper).

    Arguments as in `motion_loss`; positions None: the network's own. Returns latents and positions, the optimised one
    float32, the other as given, and the losses before each update. With gradient checkpointing enabled in the network
    the numbers are the same. UserError where the loss or its gradient is not finite.
    """
    if variable not in VARIABLES:
        raise UserError(f"variable is '{variable}', expected {' or '.join(VARIABLES)}")
    dialect = dialect_of(transformer)
    tapped = _check_motion(dialect, latents, motion, injected, published_gradient)
    start = latents = latents.detach()
    if variable == "positions":
        own = dialect.default_positions(*dialect.frames_height_width(latents)).to(latents.device)
        start = own if positions is None else positions
    leaf = start.detach().to(torch.promote_types(start.dtype, torch.float32), copy=True).requires_grad_()
    if variable == "latents":
        latents = leaf
    else:
        positions = leaf
    optimizer = torch.optim.Adam([leaf], lr=lr)
    losses: list[float] = []
    scale = _first_loss_scale(transformer.dtype)
    with (
        torch.enable_grad(),
        in_force(
            dialect, latents, positions, injected, tapped, published_gradient, gradient_checkpointing=True
        ) as taps,
    ):
        while len(losses) < steps:
            loss = _loss(dialect, latents, timestep, text, motion, positions, taps)
            (gradient,) = torch.autograd.grad(loss * scale, leaf)
            if not torch.isfinite(gradient).all():
                if scale > 1 and torch.isfinite(loss):
                    scale = max(1.0, scale / 16)
                    continue
                raise UserError(_not_finite(loss, timestep, transformer.dtype))
            losses.append(loss.item())
            leaf.grad = gradient / scale
            optimizer.step()
    leaf = leaf.detach()
    return (leaf, positions, losses) if variable == "latents" else (latents, leaf, losses)


def learning_rates(guidance_steps: int, start: float, end: float) -> list[float]:
    """The learning rate of each guided step: `guidance_steps` of the numbers from `start` to `end`, without `end`."""
    return np.linspace(start, end, guidance_steps + 1)[:guidance_steps].tolist()


def _loss(
    dialect: Dialect,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    motion: ReferenceMotion,
    positions: torch.Tensor | None,
    taps: Mapping[int, Any],
) -> torch.Tensor:
    """The loss of `motion_loss`, with everything it needs in force."""
    if motion.kind == "flow":
        states = read_queries_keys(dialect, latents, timestep, text, positions, taps)
        losses = [
            flow_loss(
                motion.targets[i],
                attention_motion_flow(query, key, *motion.grid, motion.temperature),
                motion.moving_only,
            )
            for i, (query, key, _) in states.items()
        ]
    else:
        features = read_features(dialect, latents, timestep, text, positions, motion.blocks)
        losses = [_feature_loss(motion, i, current) for i, current in features.items()]
    return torch.stack(losses).mean()


def _feature_loss(motion: ReferenceMotion, block: int, current: torch.Tensor) -> torch.Tensor:
    target = motion.targets[block]
    if motion.kind == "moft":
        channels = motion.channels[block]
        return moft_loss(target, current[:, channels], torch.arange(len(channels), device=current.device))
    return smm_loss(target, current, published=motion.kind == "smm_published")


def _check_motion(
    dialect: Dialect,
    latents: torch.Tensor,
    motion: ReferenceMotion,
    injected: Injected | None,
    published_gradient: bool,
) -> list[int]:
    """UserError where the reference does not fit; returns the blocks whose queries and keys are read."""
    check_blocks(dialect.transformer, motion.blocks, injected or ())
    if published_gradient and not dialect.knows_published_gradient:
        raise UserError("published_gradient is true, but this transformer has no published gradient; leave it out")
    grid = dialect.grid(latents)
    if grid != motion.grid:
        raise UserError(
            f"the reference has {'x'.join(map(str, motion.grid))} tokens (frames x rows x columns), the video "
            f"{'x'.join(map(str, grid))}; extract it at the video's size and number of frames"
        )
    return motion.blocks if motion.kind == "flow" else []


def _first_loss_scale(dtype: torch.dtype) -> float:
    """What the loss is multiplied by before backward: float16 gradients of this size underflow otherwise."""
    return 2.0**16 if dtype == torch.float16 else 1.0


def _not_finite(loss: torch.Tensor, timestep: float, dtype: torch.dtype) -> str:
    what = "the gradient of the motion loss" if torch.isfinite(loss) else "the motion loss"
    return f"{what} at timestep {timestep:g} is NaN or infinite in {str(dtype).removeprefix('torch.')}; try dtype=bf16"
