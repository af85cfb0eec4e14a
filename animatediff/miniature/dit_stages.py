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

from animatediff.config import option, save_config
from animatediff.files import atomic_folder, atomic_path, read_json, remove_stale_parts, write_json
from animatediff.miniature.dit import CONFIG, Examples, build_dit, build_dit_scheduler, train_dit, video_importance
from animatediff.miniature.loop import processes, rank
from animatediff.miniature.matching import points_followed
from animatediff.miniature.stages import StageConfig, camera_chances, once, save_once, wait
from animatediff.miniature.t5 import build_t5_encoder, build_t5_tokenizer, encode_captions
from animatediff.miniature.video_autoencoder import FRAMES, build_video_vae, encode_video, even_out, train_video_vae
from animatediff.miniature.world import Clip, make_clip

STAGES = ("clips.npy", "vae", "first", "frames", "latents", "video", "decoder")
ENCODED_AT_ONCE = 50


@dataclass
class DitConfig:
    """The video transformer of models/miniature_dit."""

    work: str = option("runs/miniature_dit", "checkpoints and intermediate results")
    output: str = option("models/miniature_dit", "where the model goes")
    seed: int = option(0, "of everything random", least=0, most=2**31 - 1)
    clips: int = option(3000, "rendered for the VAE", least=1, most=10_000_000)
    first: int = option(8000, "clips whose first frames train the transformer", least=1, most=10_000_000)
    latents: int = option(12000, "clips that train it", least=1, most=10_000_000)
    vae: StageConfig = field(default_factory=lambda: StageConfig(1400, 16, 3e-3))
    decoder: StageConfig = field(default_factory=lambda: StageConfig(120, 16, 2e-3))
    frames: StageConfig = field(default_factory=lambda: StageConfig(1400, 32, 4e-3))
    video: StageConfig = field(default_factory=lambda: StageConfig(8400, 12, 4e-3))
    frame_pieces: int = option(96, "of single frames around the subject, beside a step's frames", least=0, most=4096)
    video_pieces: int = option(96, "the same beside a step's clips", least=0, most=4096)
    camera_share: float = option(0.4, "of the clips drawn: those with a moving camera", least=0, most=1)
    star_weight: float = option(
        2.0, "how much oftener a star is drawn: its outline is the hardest to keep", least=0.01, most=100
    )
    background_weight: float = option(
        2.0, "of places on the background in clips, beside the subject's 8", least=0.01, most=100
    )


def drawn_clip(seed: int) -> Clip:
    """The training clip of `seed`: textures are placed independently of the motion."""
    return make_clip(seed, frames=FRAMES, anchored=False)


def make_dit(config: DitConfig) -> None:
    """All stages in turn; each leaves its result in `config.work` and is skipped where that is already there."""
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    if rank() == 0:
        remove_stale_parts(work)
    torch.manual_seed(config.seed)
    tokenizer = build_t5_tokenizer()
    encoder = build_t5_encoder(tokenizer, config.seed)
    vae = _vae_stage(config, work)
    empty = encode_captions(encoder, tokenizer, [""])[0]
    transformer = build_dit()
    frames: Examples | None = None
    for name, stage, count, length, pieces in (
        ("frames", config.frames, config.first, 1, config.frame_pieces),
        ("video", config.video, config.latents, FRAMES, config.video_pieces),
    ):
        if not (work / name).exists():
            frames = frames or _examples(config, work, vae, encoder, tokenizer, config.first, 1)
            whole = frames if length == 1 else _examples(config, work, vae, encoder, tokenizer, count, length)
            sizes = (stage.steps, stage.batch, pieces, stage.learning_rate, work / f"{name}.pt", config.seed + length)
            train_dit(name, transformer, whole, frames, empty, *sizes)
            save_once(transformer, work / name)
        transformer = CogVideoXTransformer3DModel.from_pretrained(work / name)
    vae = _vae_stage(config, work, vae)
    if rank() == 0:
        export_dit(Path(config.output), vae, encoder, tokenizer, transformer)
        save_config(config, Path(config.output) / "config.yaml")


def _examples(
    config: DitConfig,
    work: Path,
    vae: AutoencoderKLCogVideoX,
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    count: int,
    length: int,
) -> Examples:
    """The first `count` clips, or (length 1) their first frames, as the transformer is trained on them."""
    clips = [drawn_clip(seed) for seed in range(count)]
    latents = _latents(work / ("first" if length == 1 else "latents"), vae, count, length)
    text = encode_captions(encoder, tokenizer, [clip.caption for clip in clips])
    background = 1.0 if length == 1 else config.background_weight
    importance = video_importance(clips, latents.shape[-2:], background)[:, : latents.shape[1]]
    chances = torch.tensor([config.star_weight if clip.content.shape == "star" else 1.0 for clip in clips])
    if length == 1:
        return Examples(latents, text, importance, chances)
    chances *= camera_chances([clip.motion.moves_camera for clip in clips], config.camera_share)
    tokens = (side // CONFIG["patch_size"] for side in latents.shape[-2:])
    return Examples(latents, text, importance, chances, points_followed(clips, *tokens))


def _vae_stage(config: DitConfig, work: Path, made: AutoencoderKLCogVideoX | None = None) -> AutoencoderKLCogVideoX:
    """The VAE; where it is `made`, its decoder trained on, with the latents as they are."""
    name, stage = ("vae", config.vae) if made is None else ("decoder", config.decoder)
    if not (work / name).exists():
        vae = made or build_video_vae()
        clips = once(work / "clips.npy", lambda path: _render(path, config.clips), _map)
        centres = np.stack([drawn_clip(seed).track() for seed in range(len(clips))])
        sizes = (stage.steps, stage.batch, stage.learning_rate, work / f"{name}.pt", config.seed)
        train_video_vae(vae, clips, centres, *sizes, decoder_only=made is not None)
        if made is None:
            even_out(vae, clips[:100])
        save_once(vae, work / name)
    return AutoencoderKLCogVideoX.from_pretrained(work / name).eval()


def _rendered(start: int, end: int, frames: int = FRAMES) -> NDArray[np.uint8]:
    """The first `frames` frames of the clips of the seeds from `start` to before `end` [n, f, h, w, 3]."""
    return np.stack([drawn_clip(seed).frames()[:frames] for seed in range(start, end)])


def _render(path: Path, count: int) -> None:
    frames = _rendered(0, count)
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, frames)


def _map(path: Path) -> NDArray[np.uint8]:
    return np.load(path, mmap_mode="r")


def _latents(folder: Path, vae: AutoencoderKLCogVideoX, count: int, frames: int) -> Tensor:
    """Latents of the first `frames` frames of `count` clips [n, F, c, h, w], float16.

    They are written in parts of ENCODED_AT_ONCE clips, which the processes share out; parts that are there stay.
    """
    starts = range(0, count, ENCODED_AT_ONCE)
    parts = [folder / f"{start:06d}-{min(count, start + ENCODED_AT_ONCE):06d}.pt" for start in starts]
    for start, path in list(zip(starts, parts, strict=True))[rank() :: processes().num_processes]:
        if not path.exists():
            clips = _rendered(start, min(count, start + ENCODED_AT_ONCE), frames)
            with atomic_path(path) as part:
                torch.save(encode_video(vae, clips).half(), part)
    wait()
    return torch.cat([torch.load(path, weights_only=True) for path in parts])


def export_dit(
    folder: Path,
    vae: AutoencoderKLCogVideoX,
    encoder: T5EncoderModel,
    tokenizer: T5Tokenizer,
    transformer: CogVideoXTransformer3DModel,
) -> None:
    """Write a diffusers folder with the layout of CogVideoX-2b, VAE and transformer in half precision."""
    tokenizer.backend_tokenizer.no_truncation()  # calls before this one have left their padding and length in it
    tokenizer.backend_tokenizer.no_padding()
    parts = {"vae": vae.half(), "text_encoder": encoder, "transformer": transformer.half()}
    for name, network in parts.items():
        with atomic_folder(folder / name) as part:
            network.save_pretrained(part)
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
