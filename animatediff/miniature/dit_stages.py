"""How models/miniature_dit is made: VAE, transformer on single frames, transformer on clips, export; each resumes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from numpy.typing import NDArray
from torch import Tensor
from transformers import T5EncoderModel, T5Tokenizer

from animatediff.config import save_config
from animatediff.errors import UserError
from animatediff.files import atomic_folder, atomic_path, read_json, remove_stale_parts, write_json
from animatediff.miniature.dit import FRAMES, build_dit, build_dit_scheduler, train_dit, video_importance
from animatediff.miniature.stages import StageConfig, camera_chances, once, save_model
from animatediff.miniature.t5 import build_t5_encoder, build_t5_tokenizer, encode_captions
from animatediff.miniature.video_autoencoder import build_video_vae, encode_video, even_out, train_video_vae
from animatediff.miniature.world import Clip, make_clip

STAGES = ("clips.npy", "vae", "latents.pt", "frames", "video")
ENCODED_AT_ONCE = 100


@dataclass
class DitConfig:
    """The video transformer of models/miniature_dit."""

    work: str = "runs/miniature_dit"  # checkpoints and intermediate results
    output: str = "models/miniature_dit"
    seed: int = 0
    clips: int = 3000  # rendered for the VAE
    latents: int = 8000  # clips that the transformer is trained on
    vae: StageConfig = field(default_factory=lambda: StageConfig(900, 1, 2e-3))
    frames: StageConfig = field(default_factory=lambda: StageConfig(800, 64, 4e-3))
    video: StageConfig = field(default_factory=lambda: StageConfig(3000, 16, 4e-3))
    camera_share: float = 0.4  # of the clips drawn in the last stage: those with a moving camera
    star_weight: float = 2.0  # how much oftener a star is drawn: its outline is the hardest to keep
    ground_weight: float = 2.0  # of a place on the ground in the last stage, beside 8 where the subject is


def drawn_clip(seed: int) -> Clip:
    """The training clip of `seed`: textures are placed independently of the motion."""
    return make_clip(seed, frames=FRAMES, anchored=False)


def make_dit(config: DitConfig) -> None:
    """All stages in turn; each leaves its result in `config.work` and is skipped where that is already there."""
    if min(config.clips, config.latents) < 1 or config.star_weight <= 0 or not 0 <= config.camera_share <= 1:
        raise UserError(
            f"clips, latents, star_weight, camera_share are {config.clips}, {config.latents}, {config.star_weight}, "
            f"{config.camera_share}: expected at least 1, at least 1, more than 0 and a share from 0 to 1"
        )
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    remove_stale_parts(work)
    torch.manual_seed(config.seed)
    tokenizer = build_t5_tokenizer()
    encoder = build_t5_encoder(tokenizer, config.seed)
    vae = _vae_stage(config, work)
    latents = once(work / "latents.pt", lambda path: _encode(path, vae, config.latents), _read)
    clips = [drawn_clip(seed) for seed in range(config.latents)]
    text = encode_captions(encoder, tokenizer, [clip.caption for clip in clips])
    empty = encode_captions(encoder, tokenizer, [""])[0]
    stars = torch.tensor([clip.content.shape == "star" for clip in clips])
    favoured = torch.where(stars, config.star_weight, 1.0)
    transformer = build_dit()
    if not (work / "frames").exists():
        importance = video_importance(clips, latents.shape[-2:], 1.0)[:, :1]
        sizes = (config.frames.steps, config.frames.batch, config.frames.learning_rate)
        train_dit(
            "frames", transformer, latents[:, :1], text, empty, importance, favoured,
            *sizes, work / "frames.pt", config.seed + 1,
        )  # fmt: skip
        save_model(transformer, work / "frames")
    transformer = CogVideoXTransformer3DModel.from_pretrained(work / "frames")
    if not (work / "video").exists():
        importance = video_importance(clips, latents.shape[-2:], config.ground_weight)
        chances = favoured * camera_chances([clip.motion.moves_camera for clip in clips], config.camera_share)
        sizes = (config.video.steps, config.video.batch, config.video.learning_rate)
        train_dit(
            "video", transformer, latents, text, empty, importance, chances,
            *sizes, work / "video.pt", config.seed + 2,
        )  # fmt: skip
        save_model(transformer, work / "video")
    transformer = CogVideoXTransformer3DModel.from_pretrained(work / "video")
    export_dit(Path(config.output), vae, encoder, tokenizer, transformer)
    save_config(config, Path(config.output) / "config.yaml")


def _vae_stage(config: DitConfig, work: Path) -> AutoencoderKLCogVideoX:
    vae, stage = build_video_vae(), config.vae
    if not (work / "vae").exists():
        clips = once(work / "clips.npy", lambda path: _render(path, config.clips), _map)
        centres = np.stack([drawn_clip(seed).track() for seed in range(len(clips))])
        checkpoint = work / "vae.pt"
        train_video_vae(vae, clips, centres, stage.steps, stage.batch, stage.learning_rate, checkpoint, config.seed)
        even_out(vae, clips[:100])
        save_model(vae, work / "vae")
    return AutoencoderKLCogVideoX.from_pretrained(work / "vae").eval()


def _rendered(start: int, end: int) -> NDArray[np.uint8]:
    """The clips of the seeds from `start` to before `end` [n, f, h, w, 3]."""
    return np.stack([drawn_clip(seed).frames() for seed in range(start, end)])


def _render(path: Path, count: int) -> None:
    frames = _rendered(0, count)
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, frames)


def _map(path: Path) -> NDArray[np.uint8]:
    return np.load(path, mmap_mode="r")


def _encode(path: Path, vae: AutoencoderKLCogVideoX, count: int) -> None:
    starts = range(0, count, ENCODED_AT_ONCE)
    latents = [encode_video(vae, _rendered(start, min(count, start + ENCODED_AT_ONCE))).half() for start in starts]
    with atomic_path(path) as part:
        torch.save(torch.cat(latents), part)


def _read(path: Path) -> Tensor:
    return torch.load(path, weights_only=True)


def export_dit(
    folder: Path,
    vae: AutoencoderKLCogVideoX,
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    transformer: CogVideoXTransformer3DModel,
) -> None:
    """Write a diffusers folder with the layout of CogVideoX-2b, networks in half precision."""
    tokenizer.backend_tokenizer.no_truncation()  # calls before this one have left their padding and length in it
    tokenizer.backend_tokenizer.no_padding()
    parts = {"vae": vae, "text_encoder": encoder, "transformer": transformer}
    for name, network in parts.items():
        with atomic_folder(folder / name) as part:
            network.half().save_pretrained(part)
            written = read_json(part / "config.json")
            written.pop("_name_or_path", None)  # where it lay on this machine
            write_json(part / "config.json", written)
    tokenizer.save_pretrained(folder / "tokenizer")
    build_dit_scheduler().save_pretrained(folder / "scheduler")
    write_json(
        folder / "model_index.json",
        {
            "_class_name": "CogVideoXPipeline",
            "scheduler": ["diffusers", "CogVideoXDDIMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        },
    )
