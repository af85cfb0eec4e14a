"""From MotionFollower's files to its pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.files import read_json
from animatediff.models.checkpoints import load_exactly, load_original_unet
from animatediff.models.key_names import describe_contents
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.models.weight_files import StateDict, read_state_dict, unwrap
from animatediff.pipelines.backbones.sd15 import DIFFUSERS, modern_vae_names, read_component, weights_in
from animatediff.pipelines.method import WeightFile
from animatediff.pipelines.motionfollower.networks import Networks, build_networks, load_original_networks
from animatediff.pipelines.motionfollower.pipeline import MotionFollowerPipeline
from animatediff.pipelines.motionfollower.schedule import build_scheduler
from animatediff.project import located, weights_guide

_TRANSFORMERS = ("model", "pytorch_model")
_FIRST_POSE_WIDTH, _LAST_POSE_WIDTH = "conv_in.weight", "conv_out.weight"


@dataclass
class MotionFollowerFiles:
    """Where MotionFollower's weights lie. Later files win where they overlap; empty paths are left out."""

    pretrained_model_path: str = option(
        "models/sd-image-variations-diffusers", "diffusers folder: unet, image_encoder", once=True
    )
    vae_path: str = option("models/sd-vae-ft-mse", "diffusers folder of the VAE; empty: the base model's", once=True)
    motion_module_path: str = option(
        "models/MotionFollower/motion_module.pth", "motion modules; empty where unet_path has them", once=True
    )
    unet_path: str = option(
        "models/MotionFollower/denoising_unet.pth", "spatial UNet and appearance controller", once=True
    )
    pose_controller_path: str = option("models/MotionFollower/poctr.pth", "pose controller", once=True)


def weight_files(files: MotionFollowerFiles) -> list[WeightFile]:
    """Every file that loading reads, there or not."""
    base = Path(files.pretrained_model_path)
    found = [
        WeightFile("base model: unet", weights_in(base / "unet", *DIFFUSERS)),
        WeightFile("base model: image_encoder", weights_in(base / "image_encoder", *_TRANSFORMERS)),
        WeightFile("VAE", weights_in(_vae_folder(files), *DIFFUSERS)),
    ]
    named = {
        "motion module": files.motion_module_path,
        "denoising UNet": files.unet_path,
        "pose controller": files.pose_controller_path,
    }
    return found + [WeightFile(what, Path(path)) for what, path in named.items() if path or what != "motion module"]


def load_motionfollower(
    files: MotionFollowerFiles,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    estimator: str = "shared",
) -> MotionFollowerPipeline:
    """The pipeline on `device` in `dtype`. UserError in one line for files that are missing or of another model.

    estimator: `base` loads a second UNet, of base model and motion modules alone, whose features are compared.
    """
    files = located(files)
    folder = Path(files.pretrained_model_path)
    if not folder.is_dir():
        raise UserError(f"no base model folder at {folder}; {weights_guide()}")
    config = read_json(folder / "unet" / "config.json")
    source, base = read_component(folder / "unet", *DIFFUSERS)
    states, sources = [base], [source]
    for path in filter(None, (files.motion_module_path, files.unet_path)):
        states.append(read_own(path))
        sources.append(path)
    pose = read_own(files.pose_controller_path)
    with init_empty_weights():
        networks = build_networks(config, pose_widths(pose, files.pose_controller_path))
    models = (networks.unet, networks.pose_controller, networks.appearance_controller)
    for model in models:
        nn.Module.to(model, dtype)
    load_original_networks(networks, states, pose, sources, files.pose_controller_path)
    vae, image_encoder = load_encoders(files, networks, dtype)
    second = _estimator(config, states[: -1 if files.unet_path else None], dtype) if estimator == "base" else None
    for model in models:
        model.requires_grad_(False).eval()
    return MotionFollowerPipeline(
        vae,
        image_encoder,
        networks.unet,
        networks.pose_controller,
        networks.appearance_controller,
        build_scheduler(),
        second,
    ).to(device)


def load_encoders(
    files: MotionFollowerFiles, networks: Networks, dtype: torch.dtype
) -> tuple[AutoencoderKL, CLIPVisionModelWithProjection]:
    """The VAE and the image encoder, frozen. UserError where they do not fit `networks`."""
    vae, image_encoder = empty_encoders(files)
    for model in (vae, image_encoder):
        nn.Module.to(model, dtype)
    source, state = read_component(_vae_folder(files), *DIFFUSERS)
    load_exactly(vae, modern_vae_names(state), source, expected="a VAE (AutoencoderKL)")
    source, state = read_component(Path(files.pretrained_model_path) / "image_encoder", *_TRANSFORMERS)
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    load_exactly(image_encoder, state, source, expected="a CLIP vision encoder with projection")
    _check_fit(networks, vae, image_encoder)
    for model in (vae, image_encoder):
        model.requires_grad_(False).eval()
    return vae, image_encoder


def empty_encoders(files: MotionFollowerFiles) -> tuple[AutoencoderKL, CLIPVisionModelWithProjection]:
    """The VAE and the image encoder by their configurations, without weights."""
    vision = read_json(Path(files.pretrained_model_path) / "image_encoder" / "config.json")
    with init_empty_weights():
        vae = AutoencoderKL.from_config(read_json(_vae_folder(files) / "config.json"))
        return vae, CLIPVisionModelWithProjection(CLIPVisionConfig(**vision))


def read_own(path: str) -> StateDict:
    """One of the authors' files; one line where it is of something else altogether."""
    state = read_state_dict(path)
    looks = describe_contents(state)
    if looks.startswith(("an EfficientMT", "an original", "a LoRA", "a text", "a VAE")):
        raise UserError(f"{path} looks like {looks}, expected a file of MotionFollower")
    return state


def _vae_folder(files: MotionFollowerFiles) -> Path:
    return Path(files.vae_path) if files.vae_path else Path(files.pretrained_model_path) / "vae"


def pose_widths(state: Mapping[str, object], source: str) -> tuple[int, ...]:
    """The pose controller's widths, told by its file."""
    tensors = unwrap(state, source)
    halvings = sum(key.startswith("blocks.") and key.endswith(".weight") for key in tensors) // 2
    keys = [_FIRST_POSE_WIDTH, *(f"blocks.{2 * i + 1}.weight" for i in range(halvings))]
    missing = [key for key in (*keys, _LAST_POSE_WIDTH) if key not in tensors]
    if missing:
        raise UserError(
            f"{source} lacks {missing[0]}, expected a pose controller (poctr.pth) as pose_controller_path; it looks "
            f"like {describe_contents(tensors)}"
        )
    return tuple(tensors[key].shape[0] for key in keys)


def _check_fit(networks: Networks, vae: AutoencoderKL, image_encoder: CLIPVisionModelWithProjection) -> None:
    """UserError where parts of different models were put together."""
    config = networks.unet.config
    scale = 2 ** (len(vae.config.block_out_channels) - 1)
    controllers = networks.pixels_per_latent
    if scale != controllers:
        raise UserError(f"the VAE has {scale} pixels a latent, expected {controllers}, as both controllers have")
    if vae.config.latent_channels != config.in_channels:
        raise UserError(
            f"the VAE has {vae.config.latent_channels} channels, the UNet {config.in_channels}; they do not fit"
        )
    width, expected = image_encoder.config.projection_dim, config.cross_attention_dim
    if width != expected:
        raise UserError(f"the image encoder gives {width} numbers a frame, the UNet takes {expected}; files do not fit")


def _estimator(config: Mapping[str, object], states: list[StateDict], dtype: torch.dtype) -> VideoUNet:
    """A UNet of base model and motion modules alone."""
    with init_empty_weights():
        unet = build_unet(config, motion_in_middle=True)
    nn.Module.to(unet, dtype)
    merged = {key: value for state in states for key, value in state.items()}
    load_original_unet(unet, merged, "base model + motion_module_path")
    return unet.requires_grad_(False).eval()
