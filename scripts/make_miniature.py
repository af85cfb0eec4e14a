"""Train the miniature's base model from nothing: VAE, text encoder and spatial UNet, motion modules.

    python scripts/make_miniature.py                      all stages; repeating the command goes on where it stopped
    python scripts/make_miniature.py --dry-run            the resolved config and which stages are done
    torchrun --nproc_per_node 2 scripts/make_miniature.py one process per core, gradients averaged: the way it was made
    python scripts/make_miniature.py vae.steps=10         any key of configs/training/miniature_base.yaml
    python scripts/make_miniature.py start=models/miniature work=runs/more   the motion stage alone, from there on

The adapter is trained afterwards, by train.py with configs/training/miniature.yaml.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
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

from animatediff.config import load_config, option, save_config, to_yaml
from animatediff.console import run_command
from animatediff.errors import UserError
from animatediff.files import atomic_folder, atomic_path, remove_stale_parts
from animatediff.miniature.autoencoder import build_vae, encode_mean, scale_latents, train_vae
from animatediff.miniature.base import (
    GROUND_WEIGHT,
    PREDICTS,
    build_image_unet,
    subject_centres,
    subject_importance,
    to_video_unet,
    train_clips,
    train_frames,
)
from animatediff.miniature.export import export_base
from animatediff.miniature.heldout import bundled_jobs, write_jobs
from animatediff.miniature.loop import rank
from animatediff.miniature.text import build_text_encoder, build_tokenizer, encode_text, tokenize
from animatediff.miniature.world import make_clip, sample_content
from animatediff.models import VideoUNet
from animatediff.pipelines.backbones.sd15 import Components, load_components
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "training" / "miniature_base.yaml"
Result = TypeVar("Result")
STAGES = ("clips.npy", "vae", "latents.pt", "text_encoder", "unet", "video")
STAGES_ON = ("latents.pt", "video")  # of a run that goes on from a model made before


@dataclass
class StageConfig:
    """Steps, batch per process and peak learning rate of one stage."""

    steps: int = option(1000, "of the optimizer", least=1, most=10_000_000)
    batch: int = option(4, "per process", least=1, most=4096)
    learning_rate: float = option(2e-3, "at its peak", least=0, most=1)


@dataclass
class MiniatureConfig:
    """The base model of models/miniature."""

    work: str = option("runs/miniature_base", "checkpoints and intermediate results")
    output: str = option("models/miniature", "where the model goes")
    start: str = option(
        "", "folder of a base model made before: the motion stage goes on from it, the others are skipped"
    )
    seed: int = option(0, "of everything random", least=0, most=2**31 - 1)
    clips: int = option(
        8000, "rendered for the VAE; the first `latents` of them train the UNet", least=1, most=10_000_000
    )
    latents: int = option(8000, "clips that train the UNet", least=1, most=10_000_000)
    vae: StageConfig = field(default_factory=lambda: StageConfig(900, 4, 2e-3))
    frames: StageConfig = field(default_factory=lambda: StageConfig(5000, 8, 2e-3))
    motion: StageConfig = field(default_factory=lambda: StageConfig(7800, 2, 2e-3))
    camera_share: float = option(
        0.5, "of the clips that the motion modules see: those with a moving camera", least=0, most=1
    )
    star_weight: float = option(
        3.0, "how much oftener the motion modules see a star: its outline is the hardest to keep", least=0.01, most=100
    )
    spatial_learning_rate: float = option(
        5e-4, "of the spatial layers while the motion modules are trained", least=0, most=1
    )


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
    if config.latents > config.clips:
        raise UserError(f"latents is {config.latents}, expected 1 to clips ({config.clips})")
    if arguments.dry_run:
        stages = STAGES_ON if config.start else STAGES
        done = (f"{'done' if (Path(config.work) / name).exists() else 'to do':6} {name}" for name in stages)
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
    captions = [sample_content(seed).caption for seed in range(config.latents)]
    shown = [make_clip(seed) for seed in range(config.latents)]
    tokenizer = build_tokenizer()
    if config.start:
        loaded = _load_start(Path(config.start), work)
        vae, encoder, video = loaded.vae, loaded.text_encoder, loaded.unet
        latents = _latents(config, work, vae)
    else:
        vae = _vae_stage(config, work)
        latents = _latents(config, work, vae)
        importance = subject_importance(shown, latents.shape[-2:])
        centres = subject_centres(shown, latents.shape[-2:])
        image_unet, encoder = _frames_stage(config, work, latents, importance, centres, captions, tokenizer)
        video = to_video_unet(image_unet)
    importance = subject_importance(shown, latents.shape[-2:], GROUND_WEIGHT)
    stars = torch.tensor([clip.content.shape == "star" for clip in shown])
    chances = _camera_chances([clip.motion.moves_camera for clip in shown], config.camera_share)
    chances = torch.where(stars, config.star_weight, 1.0) * chances
    video = _motion_stage(config, work, latents, importance, chances, captions, tokenizer, encoder, video)
    if rank() == 0:
        export_base(Path(config.output), vae, encoder, tokenizer, video)
        save_config(config, Path(config.output) / "base_config.yaml")
        print(f"the base model is in {config.output}; next: train.py --config configs/training/miniature.yaml")


def _load_start(folder: Path, work: Path) -> Components:
    """The base model in `folder`. UserError where it predicts something else, or `work` is of a run from nothing."""
    if (work / "vae").exists():
        raise UserError(f"work is {work}, which holds a run from nothing; give a run with start={folder} its own work")
    motion_modules = folder / "Motion_Module" / "mm.safetensors"
    loaded = load_components(EfficientMTFiles(str(folder / "StableDiffusion"), str(motion_modules)))
    if loaded.prediction_type != PREDICTS:
        raise UserError(f"start is {folder}, whose UNet has {loaded.prediction_type}; this script trains {PREDICTS}")
    return loaded


def _vae_stage(config: MiniatureConfig, work: Path) -> AutoencoderKL:
    vae, stage = build_vae(), config.vae
    if not (work / "vae").exists():
        clips = _once(
            work / "clips.npy", lambda path: _render(path, config.clips), lambda path: np.load(path, mmap_mode="r")
        )
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
    video: VideoUNet,
) -> VideoUNet:
    stage = config.motion
    if not (work / "video").exists():
        video.requires_grad_(True).to(memory_format=torch.channels_last)  # a third faster on these CPUs
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


def _rendered(seeds: Iterable[int]) -> NDArray[np.uint8]:
    """The clips of `seeds` [n, f, h, w, 3]."""
    return np.stack([make_clip(seed).frames() for seed in seeds])


def _render(path: Path, count: int) -> None:
    frames = _rendered(range(count))
    with atomic_path(path) as part:
        np.save(part, frames)


def _latents(config: MiniatureConfig, work: Path, vae: AutoencoderKL) -> Tensor:
    """The first `config.latents` clips as scaled latents [n, f, 4, h, w], float16."""
    return _once(
        work / "latents.pt",
        lambda path: _encode(path, vae, config.latents),
        lambda path: torch.load(path, weights_only=True),
    )


def _encode(path: Path, vae: AutoencoderKL, count: int, at_once: int = 100) -> None:
    starts = range(0, count, at_once)
    means = [encode_mean(vae, _rendered(range(start, min(count, start + at_once)))) for start in starts]
    latents = (torch.cat(means) * vae.config.scaling_factor).half()
    with atomic_path(path) as part:
        torch.save(latents, part)


def _wait() -> None:
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    run_command(main)
