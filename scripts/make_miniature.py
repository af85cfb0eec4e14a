"""Train the miniature's base model from nothing: VAE, text encoder and spatial UNet, motion modules.

    python scripts/make_miniature.py                      all stages; repeating the command goes on where it stopped
    python scripts/make_miniature.py --dry-run            the resolved config and which stages are done
    torchrun --nproc_per_node 2 scripts/make_miniature.py one process per core, gradients averaged: the way it was made
    python scripts/make_miniature.py vae.steps=10         any key of configs/training/miniature_base.yaml
    python scripts/make_miniature.py start=models/miniature work=runs/more   the motion stage alone, from there on
    python scripts/make_miniature.py --dit                models/miniature_dit, by configs/training/miniature_dit.yaml
    python scripts/make_miniature.py --people             models/miniature_people, by miniature_people.yaml beside it

The adapter is trained afterwards, by train.py with configs/training/miniature.yaml.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from animatediff.config import load_config, option, save_config, to_yaml
from animatediff.console import run_command
from animatediff.errors import UserError
from animatediff.files import atomic_path, remove_stale_parts
from animatediff.miniature import dit_stages
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
from animatediff.miniature.people import stages as people_stages
from animatediff.miniature.people.heldout import bundled_jobs as bundled_edits
from animatediff.miniature.people.heldout import write_jobs as write_edits
from animatediff.miniature.stages import StageConfig, camera_chances, once, save_model, wait
from animatediff.miniature.text import build_text_encoder, build_tokenizer, encode_text, tokenize
from animatediff.miniature.world import make_clip, sample_content
from animatediff.models import VideoUNet
from animatediff.pipelines.backbones.sd15 import Components, load_components
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "training"
CONFIG, DIT_CONFIG, PEOPLE_CONFIG = (CONFIGS / f"miniature_{name}.yaml" for name in ("base", "dit", "people"))
STAGES = ("clips.npy", "vae", "latents.pt", "text_encoder", "unet", "video")
STAGES_ON = ("latents.pt", "video")  # of a run that goes on from a model made before


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
    other = parser.add_mutually_exclusive_group()
    other.add_argument("--dit", action="store_true", help="make the video transformer of models/miniature_dit")
    other.add_argument("--people", action="store_true", help="make MotionFollower's models/miniature_people")
    parser.add_argument("--config", help="YAML file; by default the one in configs/training")
    parser.add_argument(
        "--references", action="store_true", help="only render the bundled clips in assets/, or those of --people"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and which stages are done")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config")
    arguments = parser.parse_intermixed_args()
    if arguments.references and arguments.people:
        print(f"the bundled edits are in {write_edits('assets/people', bundled_edits(), 'assets/people_jobs.jsonl')}")
        return 0
    if arguments.references:
        print(f"the bundled jobs are in {write_jobs('assets/references', bundled_jobs(), listing='assets/jobs.jsonl')}")
        return 0
    if arguments.dit:
        return _main_dit(arguments)
    if arguments.people:
        return _main_people(arguments)
    config = load_config(MiniatureConfig, arguments.config or CONFIG, arguments.overrides)
    if config.latents > config.clips:
        raise UserError(f"latents is {config.latents}, expected 1 to clips ({config.clips})")
    if arguments.dry_run:
        _print_plan(config, STAGES_ON if config.start else STAGES)
        return 0
    _run(lambda: make(config))
    return 0


def _main_dit(arguments: argparse.Namespace) -> int:
    config = load_config(dit_stages.DitConfig, arguments.config or DIT_CONFIG, arguments.overrides)
    if arguments.dry_run:
        _print_plan(config, dit_stages.STAGES)
        return 0
    _run(lambda: dit_stages.make_dit(config))
    print(f"the video transformer is in {config.output}")
    return 0


def _main_people(arguments: argparse.Namespace) -> int:
    config = load_config(people_stages.PeopleConfig, arguments.config or PEOPLE_CONFIG, arguments.overrides)
    if arguments.dry_run:
        _print_plan(config, people_stages.STAGES)
        return 0
    _run(lambda: people_stages.make_people(config))
    print(f"MotionFollower's miniature is in {config.output}")
    return 0


def _run(stages: Callable[[], None]) -> None:
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    stages()
    if dist.is_initialized():
        dist.destroy_process_group()


def _print_plan(
    config: MiniatureConfig | dit_stages.DitConfig | people_stages.PeopleConfig, stages: Sequence[str]
) -> None:
    done = (f"{'done' if (Path(config.work) / name).exists() else 'to do':6} {name}" for name in stages)
    print(to_yaml(config) + "\n".join(done))


def make(config: MiniatureConfig) -> None:
    """All stages in turn; each leaves its result in `config.work` and is skipped where that is already there."""
    torch.manual_seed(config.seed)
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
    chances = camera_chances([clip.motion.moves_camera for clip in shown], config.camera_share)
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
        clips = once(
            work / "clips.npy", lambda path: _render(path, config.clips), lambda path: np.load(path, mmap_mode="r")
        )
        centres = np.stack([make_clip(seed).track() for seed in range(len(clips))])
        checkpoint = work / "vae.pt"
        train_vae(vae, clips, centres, stage.steps, stage.batch, stage.learning_rate, checkpoint, config.seed)
        if rank() == 0:
            scale_latents(vae, clips[:60])
            save_model(vae, work / "vae")
        wait()
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
            save_model(encoder, work / "text_encoder")
            save_model(unet, work / "unet")  # last: the stage is done where it is there
        wait()
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
            save_model(video, work / "video")
        wait()
    return VideoUNet.from_pretrained(work / "video")


def _rendered(seeds: Iterable[int]) -> NDArray[np.uint8]:
    """The clips of `seeds` [n, f, h, w, 3]."""
    return np.stack([make_clip(seed).frames() for seed in seeds])


def _render(path: Path, count: int) -> None:
    frames = _rendered(range(count))
    with atomic_path(path) as part:
        np.save(part, frames)


def _latents(config: MiniatureConfig, work: Path, vae: AutoencoderKL) -> Tensor:
    """The first `config.latents` clips as scaled latents [n, f, 4, h, w], float16."""
    return once(
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


if __name__ == "__main__":
    run_command(main)
