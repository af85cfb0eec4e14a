"""How models/miniature_people is made: VAE, vision encoder, latents, pictures, clips, export; each stage resumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKL, ModelMixin
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import CLIPVisionModelWithProjection, PreTrainedModel

from animatediff.config import option, save_config
from animatediff.files import atomic_folder, atomic_path, read_json, remove_stale_parts, write_json
from animatediff.miniature.autoencoder import scale_latents
from animatediff.miniature.loop import rank
from animatediff.miniature.people.data import cache, frames_of
from animatediff.miniature.people.encoders import train_people_decoder, train_people_vae, train_vision_encoder
from animatediff.miniature.people.networks import (
    UNET_CONFIG,
    build_people_networks,
    build_people_vae,
    build_vision_encoder,
    start_from,
)
from animatediff.miniature.people.training import all_of, train_clips, train_images
from animatediff.miniature.stages import StageConfig, save_once, wait
from animatediff.models.checkpoints import original_unet_state
from animatediff.pipelines.motionfollower.networks import Networks, original_controller_state

STAGES = ("vae", "vision", "decoder", "latents", "images.safetensors", "clips.safetensors")
SCALED_BY = 400  # frames that tell the latents' deviation


@dataclass
class PeopleConfig:
    """The model of models/miniature_people."""

    work: str = option("runs/miniature_people", "checkpoints and intermediate results")
    output: str = option("models/miniature_people", "where the model goes")
    start: str = option("models/miniature/StableDiffusion/vae", "a VAE to start from; empty: from nothing")
    seed: int = option(0, "of everything random", least=0, most=2**31 - 1)
    scenes: int = option(1500, "people whose clips train the networks, each in two motions", least=1, most=10_000_000)
    vae: StageConfig = field(default_factory=lambda: StageConfig(500, 2, 1.5e-3))
    vision: StageConfig = field(default_factory=lambda: StageConfig(350, 64, 8e-3))
    decoder: StageConfig = field(default_factory=lambda: StageConfig(400, 2, 1.5e-3))
    images: StageConfig = field(default_factory=lambda: StageConfig(2200, 12, 3e-3))
    clips: StageConfig = field(default_factory=lambda: StageConfig(320, 1, 3e-3))


def make_people(config: PeopleConfig) -> None:
    """All stages in turn; each leaves its result in `config.work` and is skipped where that is already there."""
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        remove_stale_parts(work)
    torch.manual_seed(config.seed)
    vae, encoder = _vae_stage(config, work), _vision_stage(config, work)
    decoder = _decoder_stage(config, work)
    dataset = cache(work / "latents", vae, config.scenes)
    networks = build_people_networks()
    learnt = nn.ModuleDict({"networks": all_of(networks), "encoder": encoder})
    for name, stage, train in (("images", config.images, train_images), ("clips", config.clips, train_clips)):
        done = work / f"{name}.safetensors"
        if not done.exists():
            train(networks, encoder, dataset, stage, work / f"{name}.pt", config.seed + len(name))
            if rank() == 0:
                with atomic_path(done) as part:
                    save_file({key: value.contiguous() for key, value in learnt.state_dict().items()}, part)
            wait()
        learnt.load_state_dict(load_file(done))
    if rank() == 0:
        export_people(Path(config.output), decoder, encoder, networks)
        save_config(config, Path(config.output) / "config.yaml")


def _vae_stage(config: PeopleConfig, work: Path) -> AutoencoderKL:
    if not (work / "vae").exists():
        vae = build_people_vae()
        if config.start:
            start_from(vae, AutoencoderKL.from_pretrained(config.start))
        train_people_vae(vae, config.vae, work / "vae.pt", config.seed)
        seen = frames_of(torch.arange(SCALED_BY).numpy())[0]
        scale_latents(vae, seen[:, None])
        vae.register_to_config(scaling_factor=1.0)
        save_once(vae, work / "vae")
    return AutoencoderKL.from_pretrained(work / "vae").eval().requires_grad_(False)


def _decoder_stage(config: PeopleConfig, work: Path) -> AutoencoderKL:
    """The VAE with its decoder trained on; its latents are the same."""
    if not (work / "decoder").exists():
        better = AutoencoderKL.from_pretrained(work / "vae")
        train_people_decoder(better, config.decoder, work / "decoder.pt", config.seed + 2)
        save_once(better, work / "decoder")
    return AutoencoderKL.from_pretrained(work / "decoder").eval().requires_grad_(False)


def _vision_stage(config: PeopleConfig, work: Path) -> CLIPVisionModelWithProjection:
    if not (work / "vision").exists():
        encoder = build_vision_encoder()
        train_vision_encoder(encoder, config.vision, work / "vision.pt", config.seed + 1)
        save_once(encoder, work / "vision")
    return CLIPVisionModelWithProjection.from_pretrained(work / "vision").eval().requires_grad_(False)


def export_people(folder: Path, vae: AutoencoderKL, encoder: CLIPVisionModelWithProjection, networks: Networks) -> None:
    """Write MotionFollower's files in half precision: base/{unet,image_encoder}, vae, and the authors' three.

    The spatial UNet lies in the base model, so that denoising_unet holds the appearance controller alone.
    """
    state = original_unet_state(networks.unet)
    motion = {key: value for key, value in state.items() if ".motion_modules." in key}
    spatial = {key: value for key, value in state.items() if key not in motion}
    with atomic_folder(folder / "base" / "unet") as part:
        write_json(part / "config.json", {"_class_name": "UNet2DConditionModel", **UNET_CONFIG})
        _save(spatial, part / "diffusion_pytorch_model.safetensors")
    _save_half(encoder, folder / "base" / "image_encoder")
    _save_half(vae, folder / "vae")
    _save(motion, folder / "motion_module.safetensors")
    _save(original_controller_state(networks.appearance_controller), folder / "denoising_unet.safetensors")
    _save(networks.pose_controller.state_dict(), folder / "pose_controller.safetensors")


def _save(state: dict[str, torch.Tensor], path: Path) -> None:
    with atomic_path(path) as part:
        save_file({key: value.detach().half().contiguous() for key, value in state.items()}, part)


def _save_half(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    with atomic_folder(folder) as part:
        model.half().save_pretrained(part)
        written = read_json(part / "config.json")
        written.pop("_name_or_path", None)  # where it lay on this machine
        write_json(part / "config.json", written)
