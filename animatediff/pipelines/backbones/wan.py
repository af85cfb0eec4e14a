"""Wan 2.1 text-to-video, 1.3B and 14B: from a diffusers folder, as the hub has it, to components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanTransformer3DModel,
)
from transformers import PreTrainedTokenizerBase, UMT5Config, UMT5EncoderModel

from animatediff.config import nearest
from animatediff.errors import UserError
from animatediff.files import read_json
from animatediff.pipelines.backbones.folders import (
    TRANSFORMERS_WEIGHTS,
    Part,
    build,
    check_fit,
    load_tokenizer,
    load_weights,
    read_config,
)

TRANSFORMER = Part("transformer", WanTransformer3DModel)
VAE = Part("vae", AutoencoderKLWan)
TEXT_ENCODER = Part("text_encoder", UMT5EncoderModel, TRANSFORMERS_WEIGHTS)
PARTS = (TRANSFORMER, VAE, TEXT_ENCODER)
NAME = "Wan"

NUM_TRAIN_TIMESTEPS = 1000
Scheduler: TypeAlias = FlowMatchEulerDiscreteScheduler | UniPCMultistepScheduler
SCHEDULERS = ("euler", "unipc")


@dataclass
class WanComponents:
    """A Wan base, loaded and frozen."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: UMT5EncoderModel
    vae: AutoencoderKLWan
    transformer: WanTransformer3DModel
    scheduler: Scheduler


def load_wan(
    folder: str | Path, scheduler: str = "", flow_shift: float = 3.0, dtype: torch.dtype = torch.float32
) -> WanComponents:
    """The components in a diffusers folder of Wan 2.1 text-to-video, on the CPU in `dtype`; the VAE in float32.

    scheduler, flow_shift: as in `build_scheduler`; "": euler. UserError in one line for another model's folder, keys
    and shapes that do not fit, and parts that do not fit each other.
    """
    folder = Path(folder)
    configs = {part.name: read_config(folder, part, NAME) for part in PARTS}
    if (folder / "transformer_2").exists() or _expands_timesteps(folder):
        raise UserError(f"{folder} is Wan 2.2; DiTFlow runs on Wan 2.1 text-to-video (1.3B, 14B)")
    transformer = build(
        lambda: WanTransformer3DModel.from_config(configs["transformer"]), folder / "transformer" / "config.json"
    )
    vae = build(lambda: AutoencoderKLWan.from_config(configs["vae"]), folder / "vae" / "config.json")
    text_encoder = build(
        lambda: UMT5EncoderModel(UMT5Config(**configs["text_encoder"])), folder / "text_encoder" / "config.json"
    )
    check_fit(
        folder,
        [
            ("transformer", "in_channels", transformer.config.in_channels, "vae", "z_dim", vae.config.z_dim),
            (
                "transformer",
                "text_dim",
                transformer.config.text_dim,
                "text_encoder",
                "d_model",
                text_encoder.config.d_model,
            ),
        ],
    )
    tokenizer = load_tokenizer(folder, text_encoder.config.vocab_size)
    sampler = build_scheduler(scheduler or "euler", flow_shift)
    load_weights(transformer, folder, TRANSFORMER, dtype)
    load_weights(text_encoder, folder, TEXT_ENCODER, dtype)
    load_weights(vae, folder, VAE, torch.float32)
    return WanComponents(tokenizer, text_encoder, vae, transformer, sampler)


def build_scheduler(name: str, flow_shift: float = 3.0) -> Scheduler:
    """The scheduler `name` (euler, unipc) of flow matching with a shift: 3 for 480p, 5 for 720p."""
    if name == "euler":
        return FlowMatchEulerDiscreteScheduler(num_train_timesteps=NUM_TRAIN_TIMESTEPS, shift=flow_shift)
    if name == "unipc":
        return UniPCMultistepScheduler(
            num_train_timesteps=NUM_TRAIN_TIMESTEPS,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=flow_shift,
        )
    raise UserError(f"unknown scheduler '{name}' for Wan; {nearest(name, list(SCHEDULERS))}")


def _expands_timesteps(folder: Path) -> bool:
    """Whether its model_index.json says that every token has a timestep, as Wan 2.2 TI2V-5B's does."""
    index = folder / "model_index.json"
    return index.is_file() and bool(read_json(index).get("expand_timesteps"))
