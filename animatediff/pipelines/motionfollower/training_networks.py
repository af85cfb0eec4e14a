"""The networks that a stage of MotionFollower's training has: built, told apart into learned and frozen, saved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from einops import rearrange
from torch import nn

from animatediff.errors import UserError
from animatediff.files import read_json
from animatediff.models.checkpoints import original_unet_state
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.models.weight_files import StateDict, write_checkpoint
from animatediff.pipelines.backbones.sd15 import DIFFUSERS, read_component
from animatediff.pipelines.motionfollower.loading import empty_encoders, pose_widths, read_own
from animatediff.pipelines.motionfollower.networks import (
    Networks,
    appearance_features,
    build_appearance_controller,
    build_networks,
    build_pose_controller,
    load_original_networks,
    original_controller_state,
    pose_features,
)
from animatediff.pipelines.motionfollower.objective import NoMotion, motion_paths, training_velocity
from animatediff.pipelines.motionfollower.training_keys import IMAGES, MotionFollowerKeys
from animatediff.project import located, weights_guide
from animatediff.training.report import count_parameters

# The released model's widths, by which --dry-run counts where the base model is not there.
RELEASED = {
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "sample_size": 64,
}
_MOTION = ".motion_modules."


class TrainingNetwork(nn.Module):
    """All three networks as one module, which accelerate can prepare."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.unet = networks.unet
        self.pose_controller = networks.pose_controller
        self.appearance_controller = networks.appearance_controller

    @property
    def networks(self) -> Networks:
        """The networks as the sampling functions take them."""
        return Networks(self.unet, self.pose_controller, self.appearance_controller)

    def forward(
        self,
        latents: torch.Tensor,
        timesteps: torch.Tensor,
        embeds: torch.Tensor,
        poses: torch.Tensor,
        frames: torch.Tensor,
    ) -> torch.Tensor:
        """The velocity, float32 (b 4 f h w), of noisy latents (b 4 f h w) at timesteps (b,).

        embeds (b f dim) and frames (b f 3 H W) in [-1, 1]: of the source; poses (b f 3 H W) in [0, 1]: skeletons of
        what is denoised.
        """
        batch = len(latents)
        images, drawings = (rearrange(x, "b f c h w -> (b f) c h w") for x in (frames, poses))
        pose, *appearance = (
            rearrange(feature, "1 c (b f) h w -> b c f h w", b=batch)
            for feature in (
                pose_features(self.pose_controller, drawings),
                *appearance_features(self.appearance_controller, images),
            )
        )
        return training_velocity(self.unet, latents, timesteps, embeds, pose, appearance)


def load_stage(keys: MotionFollowerKeys, seed: int) -> Networks:
    """The networks that a stage starts from, in float32, what learns asking for gradients.

    Parts whose path is empty start afresh, by the seed: the pose controller gives zeros and motion modules change
    nothing then. UserError for files that are missing or of another model.
    """
    files = located(keys.weights)
    folder = Path(files.pretrained_model_path)
    if not folder.is_dir():
        raise UserError(f"no base model folder at {folder}; {weights_guide()}")
    config = read_json(folder / "unet" / "config.json")
    source, base = read_component(folder / "unet", *DIFFUSERS)
    torch.manual_seed(seed)
    states, sources = [base], [source]
    if keys.stage != IMAGES:
        path = files.motion_module_path
        states.append(read_own(path) if path else _fresh_motion(config))
        sources.append(path or "fresh motion modules")
    path, widths = files.pose_controller_path, tuple(keys.pose_channels)
    if path:
        pose = read_own(path)
        widths = pose_widths(pose, path)
    else:
        pose = dict(build_pose_controller(config["block_out_channels"][0], widths).state_dict())
    if files.unet_path:
        state = read_own(files.unet_path)
        if keys.stage == IMAGES:
            state = {key: value for key, value in state.items() if _MOTION not in key}
        states.append(state)
    else:
        fresh = build_appearance_controller(config["block_out_channels"], 2 ** (len(widths) - 1))
        states.append(original_controller_state(fresh))
    sources.append(files.unet_path or "a fresh appearance controller")
    networks = empty_networks(keys.stage, config, widths)
    load_original_networks(networks, states, pose, sources, path or "a fresh pose controller")
    return networks


def empty_networks(stage: int, config: Mapping[str, Any], widths: tuple[int, ...]) -> Networks:
    """The networks of a stage without weights, what learns asking for gradients."""
    with init_empty_weights():
        networks = build_networks(config, widths)
    paths = motion_paths(networks.unet)
    if stage == IMAGES:
        for path in paths:
            networks.unet.set_submodule(path, NoMotion())
        for network in (networks.unet, networks.pose_controller, networks.appearance_controller):
            network.requires_grad_(True)
    else:
        for path in paths:
            networks.unet.get_submodule(path).requires_grad_(True)
    return networks


def learned_part(network: nn.Module) -> nn.ModuleDict:
    """The layers of `network` that learn, by path, with `/` for the dots; they stay those of the network."""
    return nn.ModuleDict(
        {
            path.replace(".", "/"): layer
            for path, layer in network.named_modules()
            if any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        }
    )


def save_learned(folder: Path, networks: Networks, stage: int, steps: int) -> None:
    """Write the files that inference takes as unet_path and pose_controller_path, or as motion_module_path."""
    facts = {"global_step": steps}
    if stage == IMAGES:
        state = original_unet_state(networks.unet) | original_controller_state(networks.appearance_controller)
        write_checkpoint(folder / "denoising_unet.safetensors", state, facts)
        write_checkpoint(folder / "poctr.safetensors", dict(networks.pose_controller.state_dict()), facts)
    else:
        motion = {key: value for key, value in original_unet_state(networks.unet).items() if _MOTION in key}
        write_checkpoint(folder / "motion_module.safetensors", motion, facts)


def describe_parameters(keys: MotionFollowerKeys) -> list[str]:
    """Counts of learned and frozen parameters, from configurations alone."""
    files = located(keys.weights)
    path = Path(files.pretrained_model_path) / "unet" / "config.json"
    known = path.is_file()
    config = read_json(path) if known else RELEASED
    own = files.pose_controller_path
    widths = pose_widths(read_own(own), own) if Path(own).is_file() else tuple(keys.pose_channels)
    networks = empty_networks(keys.stage, config, widths)
    parts = {
        "UNet without motion modules": _without_motion(networks.unet),
        "motion modules": nn.ModuleList(networks.unet.get_submodule(p) for p in motion_paths(networks.unet)),
        "pose controller": networks.pose_controller,
        "appearance controller": networks.appearance_controller,
    }
    if known:
        parts["VAE"], parts["image encoder"] = empty_encoders(files)
        for name in ("VAE", "image encoder"):
            parts[name].requires_grad_(False)
    lines = [_counted(word, parts, learned) for word, learned in (("trained", True), ("frozen", False))]
    return lines if known else [*lines, f"  (by the released model's widths, since {path} is not there)"]


def _counted(word: str, parts: Mapping[str, nn.Module], learned: bool) -> str:
    counts = {name: count_parameters(part, learned) for name, part in parts.items()}
    there = {name: count for name, count in counts.items() if count[1]}
    tensors, numbers = (sum(count[k] for count in there.values()) for k in (0, 1))
    listed = ", ".join(f"{name} {count[1]:,}" for name, count in there.items())
    return f"{word}: {numbers:,} parameters in {tensors} tensors" + (f" ({listed})" if listed else "")


def _without_motion(unet: VideoUNet) -> nn.ParameterList:
    return nn.ParameterList(value for name, value in unet.named_parameters() if _MOTION not in name)


def _fresh_motion(config: Mapping[str, Any]) -> StateDict:
    """New motion modules, which change nothing until they are trained (as AnimateDiff's begin)."""
    unet = build_unet(config, motion_in_middle=True)
    for path in motion_paths(unet):
        nn.init.zeros_(unet.get_submodule(path).proj_out.weight)
        nn.init.zeros_(unet.get_submodule(path).proj_out.bias)
    return {key: value for key, value in original_unet_state(unet).items() if _MOTION in key}
