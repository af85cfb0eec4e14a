"""MotionFollower's two training stages on the people world (arXiv 2405.20325): pictures first, then clips."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from animatediff.miniature.loop import train
from animatediff.miniature.muon import muon
from animatediff.miniature.people.data import Dataset, importance
from animatediff.miniature.people.encoders import Wardrobe, normalised, vision_loss
from animatediff.miniature.people.motions import CLIP_FRAMES
from animatediff.miniature.stages import StageConfig
from animatediff.pipelines.motionfollower.networks import Networks, appearance_features, pose_features
from animatediff.pipelines.motionfollower.objective import (
    drop_embeds,
    noised,
    offset_noise,
    training_velocity,
    velocity_error,
)
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS

WARDROBE_WEIGHT = 0.1  # of the vision encoder's own loss beside that of the velocity
OWN_POSE = 0.25  # share of samples whose target is the source itself, which the reconstruction needs
IMAGE_STEPS = 0.4  # share of steps of the clip stage that see single frames


@dataclass(frozen=True)
class Batch:
    """What one step sees: b samples of f frames."""

    source: Tensor  # (b f) 3 H W in [0, 1]
    shown: Tensor  # (b f) patches parts, of the source, see `parts_shown`
    colours: Tensor  # (b f) parts
    poses: Tensor  # (b f) 3 H W in [0, 1], of the target
    latents: Tensor  # b c f h w, of the target
    importance: Tensor  # b 1 f h w


def draw(dataset: Dataset, count: int, clips: bool, generator: torch.Generator) -> Batch:
    """`count` random samples: whole clips, or single frames, source and target of the same moment."""

    def below(limit: int) -> list[int]:
        return torch.randint(limit, (count,), generator=generator).tolist()

    scenes, twins, moments = below(len(dataset)), below(2), below(CLIP_FRAMES)
    own = (torch.rand(count, generator=generator) < OWN_POSE).tolist()
    found: dict[str, list[Tensor]] = {
        name: [] for name in ("source", "poses", "latents", "target_cover", "cover", "shown")
    }
    for scene, twin, moment, same in zip(scenes, twins, moments, own, strict=True):
        other = twin if same else 1 - twin
        frames = slice(None) if clips else slice(moment, moment + 1)
        found["source"].append(dataset.get("frames", scene, twin, frames))
        found["cover"].append(dataset.get("covers", scene, twin, frames))
        found["shown"].append(dataset.get("shown", scene, twin, frames))
        found["poses"].append(dataset.get("poses", scene, other, frames))
        found["latents"].append(dataset.get("latents", scene, other, frames))
        found["target_cover"].append(dataset.get("covers", scene, other, frames))
    stacked = {name: torch.stack(parts) for name, parts in found.items()}
    return Batch(
        source=stacked["source"].flatten(0, 1) / 255,
        shown=stacked["shown"].flatten(0, 1),
        colours=dataset.colours[scenes].repeat_interleave(stacked["source"].shape[1], dim=0),
        poses=stacked["poses"].flatten(0, 1) / 255,
        latents=rearrange(stacked["latents"].float(), "b f c h w -> b c f h w"),
        importance=importance(stacked["target_cover"], stacked["cover"])[:, None].float(),  # b f h w -> b 1 f h w
    )


def batch_loss(
    networks: Networks,
    encoder: CLIPVisionModelWithProjection,
    batch: Batch,
    generator: torch.Generator,
    motion: bool,
) -> Tensor:
    """The loss of one batch; scalar. Half of the timesteps are drawn evenly, half in proportion to themselves: what
    the conditions say is learnt where noise hides the picture.
    """
    count, frames = batch.latents.shape[0], batch.latents.shape[2]
    embeds = encoder(normalised(batch.source)).image_embeds.unflatten(0, (count, frames))  # b f dim
    embeds = drop_embeds(embeds, torch.rand(count, generator=generator))
    share = torch.rand(2, count, generator=generator)
    timesteps = (NUM_TRAIN_TIMESTEPS * torch.where(share[0] < 0.5, share[1], share[1].sqrt())).long()
    timesteps = timesteps.clamp(max=NUM_TRAIN_TIMESTEPS - 1)
    noise = torch.randn(batch.latents.shape, generator=generator)
    noise = offset_noise(noise, torch.randn(noise.shape[:2], generator=generator))
    pose = _per_sample(pose_features(networks.pose_controller, batch.poses), count)
    seen = appearance_features(networks.appearance_controller, batch.source * 2 - 1)
    appearance = [_per_sample(feature, count) for feature in seen]
    noisy, target = noised(batch.latents, noise, timesteps)
    noisy.requires_grad_()  # torch 2.13's GroupNorm on channels-last CPU tensors crashes on inputs that ask for none
    predicted = training_velocity(networks.unet, noisy, timesteps, embeds, pose, appearance, motion)
    return velocity_error(predicted, target, timesteps, importance=batch.importance)


def train_images(
    networks: Networks,
    encoder: CLIPVisionModelWithProjection,
    dataset: Dataset,
    stage: StageConfig,
    checkpoint: Path,
    seed: int,
) -> None:
    """Stage 1: spatial UNet, pose and appearance controller learn on single frames; resumes from `checkpoint`.

    The vision encoder goes on learning, from what they make of its embedding and from the colours that it tells: it
    is no CLIP that has seen the world before.
    """
    wardrobe = Wardrobe(encoder)
    learning = {name: part for name, part in all_of(networks).named_parameters() if "motion_modules" not in name}
    learning |= {f"wardrobe.{name}": part for name, part in wardrobe.named_parameters()}

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        batch = draw(dataset, stage.batch, False, generator)
        told = vision_loss(wardrobe, batch.source, batch.shown, batch.colours)
        return batch_loss(networks, encoder, batch, generator, motion=False) + WARDROBE_WEIGHT * told

    _train("images", networks, learning, loss_of, stage, checkpoint, seed)
    encoder.requires_grad_(False)


def train_clips(
    networks: Networks,
    encoder: CLIPVisionModelWithProjection,
    dataset: Dataset,
    stage: StageConfig,
    checkpoint: Path,
    seed: int,
) -> None:
    """Stage 2: the motion modules alone learn, on clips and, in IMAGE_STEPS of the steps, on as many single frames."""
    learning = {name: part for name, part in all_of(networks).named_parameters() if "motion_modules" in name}

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        images = torch.rand((), generator=generator) < IMAGE_STEPS
        count = stage.batch * (CLIP_FRAMES if images else 1)
        return batch_loss(networks, encoder, draw(dataset, count, not images, generator), generator, motion=True)

    _train("clips", networks, learning, loss_of, stage, checkpoint, seed)


def all_of(networks: Networks) -> nn.ModuleDict:
    """The three networks as one module, for the names of their parameters and for files."""
    return nn.ModuleDict(
        {
            "unet": networks.unet,
            "pose_controller": networks.pose_controller,
            "appearance_controller": networks.appearance_controller,
        }
    )


def _train(
    name: str,
    networks: Networks,
    learning: dict[str, nn.Parameter],
    loss_of: Callable[[int, torch.Generator], Tensor],
    stage: StageConfig,
    checkpoint: Path,
    seed: int,
) -> None:
    whole: nn.Module = all_of(networks)
    whole.requires_grad_(False)
    whole.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # a third faster on CPUs
    for parameter in learning.values():
        parameter.requires_grad_(True)
    holder = nn.Module()  # of what learns alone, under names without dots
    for key, parameter in learning.items():
        holder.register_parameter(key.replace(".", "/"), parameter)
    train(
        name,
        [{"params": list(learning.values()), "lr": stage.learning_rate}],
        loss_of,
        stage.steps,
        checkpoint,
        seed,
        save_every=100,
        make_optimizer=lambda _: muon(holder, stage.learning_rate, _at_the_ends),
    )
    whole.requires_grad_(False)


def _at_the_ends(name: str) -> bool:
    return any(part in name for part in ("conv_in", "conv_out", "embeddings", "wardrobe/colours", "wardrobe/shown"))


def _per_sample(feature: Tensor, count: int) -> Tensor:
    return rearrange(feature, "1 c (b f) h w -> b c f h w", b=count)
