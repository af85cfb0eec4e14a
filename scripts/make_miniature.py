"""Train the miniature's base model from nothing: VAE, text encoder and spatial UNet, motion modules.

    python scripts/make_miniature.py                      all stages; repeating the command goes on where it stopped
    python scripts/make_miniature.py --dry-run            the resolved config and which stages are done
    torchrun --nproc_per_node 2 scripts/make_miniature.py one process per core, gradients averaged: the way it was made
    python scripts/make_miniature.py vae.steps=10         any key of configs/training/miniature_base.yaml

The adapter is trained afterwards, by train.py with configs/training/miniature.yaml.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, ModelMixin, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer, PreTrainedModel

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from animatediff.config import load_config, save_config, to_yaml
from animatediff.console import run_command
from animatediff.data.synthetic import make_clip, sample_content
from animatediff.errors import UserError
from animatediff.evaluation.miniature import bundled_jobs, write_jobs
from animatediff.files import atomic_folder, atomic_path, remove_stale_parts
from animatediff.miniature.autoencoder import build_vae, encode_mean, scale_latents, train_vae
from animatediff.miniature.base import (
    GROUND_WEIGHT,
    build_image_unet,
    subject_centres,
    subject_importance,
    to_video_unet,
    train_clips,
    train_frames,
)
from animatediff.miniature.export import export_base
from animatediff.miniature.loop import rank
from animatediff.miniature.text import build_text_encoder, build_tokenizer, encode_text, tokenize
from animatediff.models import VideoUNet

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "training" / "miniature_base.yaml"
Result = TypeVar("Result")
STAGES = ("clips.npy", "vae", "latents.pt", "text_encoder", "unet", "video")


@dataclass
class StageConfig:
    """Steps, batch per process and peak learning rate of one stage."""

    steps: int
    batch: int
    learning_rate: float


@dataclass
class MiniatureConfig:
    """The base model of models/miniature."""

    work: str = "runs/miniature_base"  # checkpoints and intermediate results
    output: str = "models/miniature"
    seed: int = 0
    clips: int = 6000  # rendered for the VAE; the first `latents` of them train the UNet
    latents: int = 2000
    vae: StageConfig = field(default_factory=lambda: StageConfig(900, 4, 2e-3))
    frames: StageConfig = field(default_factory=lambda: StageConfig(5000, 8, 2e-3))
    motion: StageConfig = field(default_factory=lambda: StageConfig(6300, 2, 2e-3))
    camera_share: float = 0.5  # of the clips that the motion modules see: those with a moving camera
    star_weight: float = 2.0  # how much oftener the motion modules see a star: its outline is the hardest to keep
    spatial_learning_rate: float = 5e-4  # of the spatial layers while the motion modules are trained


def main() -> int:
    """Read the command and run every stage that is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=CONFIG, help="YAML file")
    parser.add_argument("--references", action="store_true", help="only render the bundled clips in assets/")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and which stages are done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config")
    arguments = parser.parse_intermixed_args()
    if arguments.references:
        print(f"the bundled jobs are in {write_jobs('assets/references', bundled_jobs(), listing='assets/jobs.jsonl')}")
        return 0
    config = load_config(MiniatureConfig, arguments.config, arguments.overrides)
    if min(config.clips, config.latents) < 1 or config.latents > config.clips:
        raise UserError(f"latents is {config.latents}, expected 1 to clips ({config.clips})")
    if config.star_weight <= 0:
        raise UserError(f"star_weight is {config.star_weight}, expected more than 0")
    if not 0 <= config.camera_share <= 1:
        raise UserError(f"camera_share is {config.camera_share}, expected a share from 0 to 1")
    if arguments.dry_run:
        done = (f"{'done' if (Path(config.work) / name).exists() else 'to do':6} {name}" for name in STAGES)
        print(to_yaml(config) + "\n".join(done))
        return 0
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    torch.manual_seed(config.seed)
    make(config)
    if dist.is_initialized():
        dist.destroy_process_group()
    return 0


def make(config: MiniatureConfig) -> None:
    """All stages in turn; each leaves its result in `config.work` and is skipped where that is already there."""
    work = Path(config.work)
    if rank() == 0:
        remove_stale_parts(work)
    clips = _once(
        work / "clips.npy", lambda path: _render(path, config.clips), lambda path: np.load(path, mmap_mode="r")
    )
    vae = _vae_stage(config, work, clips)
    tokenizer = build_tokenizer()
    latents = _once(
        work / "latents.pt",
        lambda path: _encode(path, vae, clips[: config.latents]),
        lambda path: torch.load(path, weights_only=True),
    )
    captions = [sample_content(seed).caption for seed in range(config.latents)]
    shown = [make_clip(seed) for seed in range(config.latents)]
    importance = subject_importance(shown, latents.shape[-2:])
    centres = subject_centres(shown, latents.shape[-2:])
    image_unet, encoder = _frames_stage(config, work, latents, importance, centres, captions, tokenizer)
    importance = subject_importance(shown, latents.shape[-2:], GROUND_WEIGHT)
    stars = torch.tensor([clip.content.shape == "star" for clip in shown])
    chances = _camera_chances([clip.motion.moves_camera for clip in shown], config.camera_share)
    chances = torch.where(stars, config.star_weight, 1.0) * chances
    video = _motion_stage(config, work, latents, importance, chances, captions, tokenizer, encoder, image_unet)
    if rank() == 0:
        export_base(Path(config.output), vae, encoder, tokenizer, video)
        save_config(config, Path(config.output) / "base_config.yaml")
        print(f"the base model is in {config.output}; next: train.py --config configs/training/miniature.yaml")


def _vae_stage(config: MiniatureConfig, work: Path, clips: NDArray[np.uint8]) -> AutoencoderKL:
    vae, stage = build_vae(), config.vae
    if not (work / "vae").exists():
        centres = np.stack([make_clip(seed).track() for seed in range(len(clips))])
        checkpoint = work / "vae.pt"
        train_vae(vae, clips, centres, stage.steps, stage.batch, stage.learning_rate, checkpoint, config.seed)
        if rank() == 0:
            scale_latents(vae, clips[:60])
            _save(vae, work / "vae")
        _wait()
    return AutoencoderKL.from_pretrained(work / "vae").eval()


def _frames_stage(
    config: MiniatureConfig,
    work: Path,
    latents: Tensor,
    importance: Tensor,
    centres: Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    encoder, unet, stage = build_text_encoder(tokenizer), build_image_unet(), config.frames
    if not (work / "unet").exists():
        tokens, empty = tokenize(tokenizer, captions), tokenize(tokenizer, [""])[0]
        sizes = (stage.steps, stage.batch, stage.learning_rate)
        train_frames(
            unet, encoder, latents, tokens, empty, importance, centres, *sizes, work / "frames.pt", config.seed + 1
        )
        if rank() == 0:
            _save(encoder, work / "text_encoder")
            _save(unet, work / "unet")  # last: the stage is done where it is there
        _wait()
    unet = UNet2DConditionModel.from_pretrained(work / "unet")
    return unet, CLIPTextModel.from_pretrained(work / "text_encoder").eval()


def _motion_stage(
    config: MiniatureConfig,
    work: Path,
    latents: Tensor,
    importance: Tensor,
    chances: Tensor,
    captions: list[str],
    tokenizer: CLIPTokenizer,
    encoder: CLIPTextModel,
    image_unet: UNet2DConditionModel,
) -> VideoUNet:
    video, stage = to_video_unet(image_unet), config.motion
    if not (work / "video").exists():
        text, empty = encode_text(encoder, tokenizer, captions), encode_text(encoder, tokenizer, [""])[0]
        sizes = (stage.steps, stage.batch, stage.learning_rate, config.spatial_learning_rate)
        train_clips(video, latents, text, empty, importance, chances, *sizes, work / "clips.pt", config.seed + 2)
        if rank() == 0:
            _save(video, work / "video")
        _wait()
    return VideoUNet.from_pretrained(work / "video")


def _camera_chances(moving: Sequence[bool], share: float) -> Tensor:
    """How often to draw each clip so that those with a moving camera make up `share` of the draws: float32 [n].

    UserError where that leaves nothing to draw.
    """
    moves = torch.tensor(moving)
    chances = torch.where(moves, share / moves.sum().clamp(min=1), (1 - share) / (~moves).sum().clamp(min=1))
    if not chances.any():
        raise UserError(
            f"camera_share is {share}, but {moves.sum()} of {len(moves)} clips move their camera; take more"
        )
    return chances


def _once(path: Path, make_it: Callable[[Path], None], read: Callable[[Path], Result]) -> Result:
    """`read(path)`, after `make_it(path)` in the first process where there is no such file yet."""
    if rank() == 0 and not path.exists():
        make_it(path)
    _wait()
    return read(path)


def _save(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    with atomic_folder(folder) as part:
        model.save_pretrained(part)


def _render(path: Path, count: int) -> None:
    frames = np.stack([make_clip(seed).frames() for seed in range(count)])
    with atomic_path(path) as part:
        np.save(part, frames)


def _encode(path: Path, vae: AutoencoderKL, clips: NDArray[np.uint8]) -> None:
    latents = (encode_mean(vae, clips) * vae.config.scaling_factor).half()
    with atomic_path(path) as part:
        torch.save(latents, part)


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    run_command(main)
