"""MotionFollower's guided step against the published form of it, on random weights of Stable Diffusion 1.5's shapes.

The published form holds a second network, whose weights ask for gradients, for the compared features; runs it for the
edit and for the reconstruction, in each run of a repeated step; computes the appearance features in every forward;
asks every cross-attention although it has one token; enlarges the features to the grid of the masks; goes back up
after the last run, too; and in camera mode keeps keys and values of thirty steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange
from torch.nn import functional

from animatediff.benchmarks.memory import compare_memory
from animatediff.benchmarks.networks import Setup, randomly_filled
from animatediff.benchmarks.timing import interleave, isolated, memory_now, peak_memory, summarise
from animatediff.models import build_unet
from animatediff.models.hooks import capture, stop_after
from animatediff.pipelines.motionfollower import Conditions, Networks, Options, appearance_features, pose_features, step
from animatediff.pipelines.motionfollower.guidance import LEARNING_RATE, LOSS_SCALE, TermWeights
from animatediff.pipelines.motionfollower.networks import (
    Features,
    build_appearance_controller,
    build_pose_controller,
    captured_features,
    feature_blocks,
    spatial_attentions,
)
from animatediff.pipelines.motionfollower.objective import training_velocity
from animatediff.pipelines.motionfollower.schedule import PUBLISHED_STEPS, StepRules, join, rules_at, split

STEPS = ("published", "ours, checkpointed", "ours", "plain")
SINGLE, REPEATED = 4, 22  # guided steps of one run, and of three
GUIDANCE_SCALE, STRENGTH = 7.0, 4.0
KEPT_STEPS = 30  # whose keys and values the published program holds in camera mode
Latents = tuple[torch.Tensor, torch.Tensor]
Step = Callable[[], Latents]


@dataclass(frozen=True)
class Inputs:
    """What a step is given: latents of both branches, the source's frames (f 3 H W) and the conditions made of them."""

    latents: torch.Tensor
    reference: torch.Tensor
    frames: torch.Tensor
    conditions: Conditions


def measure_motionfollower(setup: Setup) -> dict[str, Any]:
    """Time of each of STEPS, interleaved in one process; peak memory, each in its own; how far results differ."""
    found = isolated(motionfollower_times, setup)
    memory = {name: isolated(motionfollower_memory, setup, name) for name in STEPS}
    return found | {"memory": compare_memory(memory, "published"), "setup": asdict(setup)}


def motionfollower_times(setup: Setup) -> dict[str, Any]:
    """Median seconds with ratios to the published form, and the largest relative difference of a guided result."""
    networks = random_networks(setup)
    results: dict[str, Latents] = {}

    def kept_result(name: str, way: Step) -> None:
        results[name] = way()

    ways = {name: partial(kept_result, name, way) for name, way in build_steps(networks, setup).items()}
    times = summarise(interleave(ways, setup.device, setup.rounds, setup.seconds), "published")
    differences = {
        name: max(_difference(a, b) for a, b in zip(found, results["published"], strict=True))
        for name, found in results.items()
        if name != "plain"
    }
    return {"time": times, "difference": differences, "step": _step_number(setup), "camera": kept(networks, setup)}


def motionfollower_memory(setup: Setup, name: str) -> dict[str, int]:
    """Memory before anything is built, with the weights that this way has, and at the peak of a step."""
    start = memory_now(setup.device)
    networks = random_networks(setup)
    ways = build_steps(networks, setup, second=name == "published")
    weights = memory_now(setup.device)
    ways[name]()
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def kept(networks: Networks, setup: Setup) -> dict[str, int]:
    """Bytes of keys and values that camera mode keeps: of one step, and of all that the published program holds."""
    last = len(networks.unet.up_blocks) - 1
    numbers = 0
    for path, attention in spatial_attentions(networks.unet, "attn1", ("up_blocks",)).items():
        side = 8 * 2 ** (last - int(path.split(".")[1]))
        numbers += 2 * setup.frames * (-(-setup.height // side)) * (-(-setup.width // side)) * attention.inner_dim
    size = torch.finfo(setup.dtype).bits // 8
    return {"ours": size * numbers, "published": KEPT_STEPS * size * numbers}


def random_networks(setup: Setup) -> Networks:
    """The three networks, frozen; every call gives the same weights."""
    config = setup.shapes.unet | {"layers_per_block": 2}  # appearance enters at the second
    widths = config["block_out_channels"]
    networks = (
        randomly_filled(lambda: build_unet(config, motion_in_middle=True), setup),
        randomly_filled(lambda: build_pose_controller(widths[0]), setup),
        randomly_filled(lambda: build_appearance_controller(widths), setup),
    )
    return Networks(*(network.requires_grad_(False) for network in networks))


def random_inputs(networks: Networks, setup: Setup) -> Inputs:
    """Random inputs; a person on the left in the source, further to the right in the edit."""
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random).to(setup.device, setup.dtype)

    frames = normal(setup.frames, 3, setup.height, setup.width).clamp(-1, 1)
    poses = [normal(setup.frames, 3, setup.height, setup.width).clamp(0, 1) for _ in range(2)]
    masks = torch.zeros(setup.frames, 1, setup.height, setup.width, device=setup.device)
    masks[..., setup.width // 8 : setup.width // 2] = 1
    with torch.no_grad():
        source, target = (pose_features(networks.pose_controller, drawn) for drawn in poses)
        conditions = Conditions(
            embeds=normal(1, setup.frames, networks.unet.config.cross_attention_dim),
            source_pose=source,
            target_pose=target,
            appearance=appearance_features(networks.appearance_controller, frames),
            source_masks=masks,
            target_masks=masks.roll(setup.width // 4, dims=-1),
        )
    latents, reference = (normal(*setup.latent_shape).float() for _ in range(2))
    return Inputs(latents, reference, frames, conditions)


def build_steps(
    networks: Networks, setup: Setup, number: int | None = None, second: bool = True, strength: float = STRENGTH
) -> dict[str, Step]:
    """Each of STEPS from the same latents; `second`: build the published form's second network."""
    i = _step_number(setup) if number is None else number
    inputs = random_inputs(networks, setup)

    def ours(strength: float, checkpointing: bool = False) -> Latents:
        return step(
            networks, i, inputs.latents, inputs.reference, inputs.conditions, PUBLISHED_STEPS, GUIDANCE_SCALE, strength,
            options=Options(gradient_checkpointing=checkpointing),
        )  # fmt: skip

    ways: dict[str, Step] = {}
    if second:
        estimator = random_networks(setup)
        for network in (estimator.unet, estimator.appearance_controller):
            network.requires_grad_(True)
        ways["published"] = lambda: published_step(networks, estimator, inputs, i, strength)
    return ways | {
        "ours, checkpointed": lambda: ours(strength, checkpointing=True),
        "ours": lambda: ours(strength),
        "plain": lambda: ours(0.0),
    }


# ------------------------------------------------------------------ the published form


@torch.no_grad()
def published_step(networks: Networks, estimator: Networks, inputs: Inputs, i: int, strength: float) -> Latents:
    """Step `i`, guided and without noise, of both branches in the published form."""
    rules = rules_at(i, PUBLISHED_STEPS, strength)
    conditions, embeds = inputs.conditions, inputs.conditions.embeds
    run = partial(forward, networks, frames=inputs.frames)
    v_reference = run(inputs.reference, rules.timestep, embeds, conditions.source_pose)
    reference = join(*split(inputs.reference, v_reference, rules.timestep), rules.previous)
    latents, pairs = inputs.latents, torch.cat([torch.zeros_like(embeds), embeds])
    for _ in range(rules.runs):
        both = run(torch.cat([latents] * 2), rules.timestep, pairs, conditions.target_pose)
        v_uncond, v_cond = both.chunk(2)
        plain = v_uncond + GUIDANCE_SCALE * (v_cond - v_uncond)
        guided = plain + published_guidance(estimator, inputs, latents, rules, strength)
        edit = join(*split(latents, guided, rules.timestep, plain), rules.previous)
        if rules.runs > 1:
            back = max(rules.previous, 0)
            above = run(edit, back, embeds, conditions.target_pose)
            latents = join(*split(edit, above, back), rules.timestep)
    return edit, reference


def published_guidance(
    estimator: Networks, inputs: Inputs, latents: torch.Tensor, rules: StepRules, strength: float
) -> torch.Tensor:
    """g from two forwards of a network of its own and features enlarged to the masks' grid; float32 (1 4 f h w)."""
    conditions, t = inputs.conditions, rules.timestep
    with torch.no_grad():
        compared = tapped(estimator, inputs.reference, t, conditions.embeds, conditions.source_pose, inputs.frames)
    with torch.enable_grad():
        moving = latents.detach().requires_grad_()
        edit = tapped(estimator, moving, t, conditions.embeds, conditions.target_pose, inputs.frames)
        losses = enlarged_losses(edit, compared, conditions.source_masks, conditions.target_masks)
        loss_fg, loss_bg = (LOSS_SCALE * strength * loss for loss in losses)
        (toward_person,) = torch.autograd.grad(loss_fg, moving, retain_graph=True)
        (toward_background,) = torch.autograd.grad(loss_bg, moving)
    inside = functional.interpolate(conditions.target_masks, latents.shape[-2:], mode="nearest").transpose(0, 1)[None]
    return LEARNING_RATE * (inside * toward_person + (1 - inside) * toward_background).float()


def forward(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    pose: torch.Tensor | None,
    frames: torch.Tensor,
) -> torch.Tensor:
    """The velocity of latents (b 4 f h w); appearance features and cross-attentions are computed anew."""
    appearance = appearance_features(networks.appearance_controller, frames)
    timesteps = torch.full((len(latents),), timestep, device=latents.device)
    return training_velocity(networks.unet, latents, timesteps, embeds, pose, appearance)


def tapped(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    pose: torch.Tensor | None,
    frames: torch.Tensor,
) -> Features:
    """The compared features of a forward that ends with them."""
    blocks = feature_blocks(networks.unet)
    with capture(blocks) as outputs, stop_after(list(blocks.values())[-1]):
        forward(networks, latents, timestep, embeds, pose, frames)
    return captured_features(outputs, latents.shape[2])


def enlarged_losses(edit: Features, reference: Features, source: torch.Tensor, target: torch.Tensor) -> Latents:
    """`guidance_losses` on features enlarged to the masks' grid, frame by frame; no region may be empty."""
    grid = (2 * edit[-1].shape[-2], 2 * edit[-1].shape[-1])
    s, t = (functional.interpolate(masks, grid, mode="nearest")[:, 0] > 0.5 for masks in (source, target))  # f h w
    w = TermWeights()
    loss_fg = loss_bg = torch.zeros((), device=source.device)

    def cosine(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return functional.cosine_similarity(a, b, dim=0, eps=1e-8)

    for e, r in zip(edit, reference, strict=True):
        e, r = (
            functional.interpolate(rearrange(x, "1 c f h w -> f c h w").float(), grid, mode="nearest") for x in (e, r)
        )
        person, left, apart, filled = [], [], [], []
        for own, other, sj, tj in zip(e, r, s, t, strict=True):  # own, other: c h w
            person.append(cosine(own[:, tj].mean(1), other[:, sj].mean(1)))
            left.append(cosine(own, other)[sj & ~tj].mean())
            apart.append(((cosine(own[:, ~sj & ~tj], other[:, ~sj & ~tj]) + 1) / 2).mean())
            filled.append((cosine(own[:, sj & ~tj].mean(1), other[:, ~sj].mean(1)) + 1) / 2)
        mean = [torch.stack(values).mean() for values in (person, left, apart, filled)]
        loss_fg = loss_fg + 0.5 * w.foreground / (1 + 4 * mean[0])
        loss_bg = loss_bg + 0.5 * w.body / (1 + 4 * mean[1]) + 0.5 * w.overlap * mean[2]
        loss_bg = loss_bg + w.complement / (1 + 4 * mean[3])
    return loss_fg, loss_bg


def _step_number(setup: Setup) -> int:
    """The step that is measured: on a GPU one that is repeated."""
    return REPEATED if setup.device.startswith("cuda") else SINGLE


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def motionfollower_setup(setup: Setup, frames: int | None) -> Setup:
    """`setup` with 8 frames where no number is given: two networks of this size still fit on a CPU."""
    return replace(setup, frames=frames or 8)
