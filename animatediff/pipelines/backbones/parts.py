"""Whether the parts of an SD1.5-style base model fit each other: told from their configs, before weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import AutoencoderKL
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from animatediff.errors import UserError, one_line
from animatediff.models.unet import VideoUNet

LATENT_CHANNELS, PIXEL_CHANNELS = 4, 3
_TOKENIZER_FILES = ("vocab.json", "merges.txt")

# What a UNet's config may ask for that the backbone does not have -> the one value that it has (SD1.5's).
_FIXED = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "resnet_time_scale_shift": "default",
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "time_cond_proj_dim": None,
    "num_class_embeds": None,
    "transformer_layers_per_block": 1,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
}
_OTHER_BASES = {9: "an inpainting base", 8: "a base that edits images (InstructPix2Pix)", 5: "a depth-to-image base"}


def check_unet_config(config: Mapping[str, Any], source: str | Path) -> None:
    """UserError where a 2D UNet's config asks for something that the backbone does not have."""
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{source} has {key} {config[key]}, expected {value}, as Stable Diffusion 1.5 has it")


def check_parts(
    folder: Path, unet: VideoUNet, vae: AutoencoderKL, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer
) -> None:
    """UserError, naming both values, for the first two parts of the base in `folder` that do not fit each other.

    The networks may be on meta tensors: their configs are read alone.
    """
    text = text_encoder.config
    inputs, outputs, latents = unet.config.in_channels, unet.config.out_channels, vae.config.latent_channels
    if inputs != LATENT_CHANNELS:
        what = f"{_OTHER_BASES[inputs]}; " if inputs in _OTHER_BASES else ""
        raise UserError(
            f"{folder / 'unet'} has in_channels {inputs}: {what}expected {LATENT_CHANNELS}, a base that makes images "
            "from text alone"
        )
    for found, part, key in ((outputs, "unet", "out_channels"), (latents, "vae", "latent_channels")):
        if found != inputs:
            raise UserError(
                f"{folder / part} has {key} {found}, the UNet in_channels {inputs}; take both from one base"
            )
    for key in ("in_channels", "out_channels"):
        if vae.config[key] != PIXEL_CHANNELS:
            raise UserError(f"{folder / 'vae'} has {key} {vae.config[key]}, expected {PIXEL_CHANNELS} (RGB)")
    width = unet.config.cross_attention_dim
    if width != text.hidden_size:
        raise UserError(
            f"{folder / 'unet'} reads text of width {width} (cross_attention_dim), the text encoder gives "
            f"{text.hidden_size} (hidden_size); take both from one base"
        )
    _check_tokenizer(folder, tokenizer, text.vocab_size, text.max_position_embeddings)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIP tokenizer in `folder`; UserError where a file is missing that it would be made up without."""
    if not folder.is_dir():
        raise UserError(f"no tokenizer folder at {folder}; see models/README.md for what goes there")
    has_words = (folder / "tokenizer.json").is_file() or all((folder / name).is_file() for name in _TOKENIZER_FILES)
    missing = [] if has_words else [name for name in _TOKENIZER_FILES if not (folder / name).is_file()]
    missing += [name for name in ("tokenizer_config.json",) if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder} lacks {' and '.join(missing)}; copy the whole tokenizer folder of the base model")
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokenizer("a")  # another model's words are found out by use alone
    except Exception as error:  # transformers raises unrelated classes for broken folders
        raise UserError(f"{folder} is not a CLIP tokenizer ({one_line(error)[:160]})") from error
    return tokenizer


def _check_tokenizer(folder: Path, tokenizer: CLIPTokenizer, vocabulary: int, positions: int) -> None:
    place, words = folder / "tokenizer", max(tokenizer.get_vocab().values()) + 1
    if words != vocabulary:
        raise UserError(
            f"{place} has {words} words, the text encoder's embedding {vocabulary} (vocab_size); it is another model's "
            "tokenizer, take both from one base"
        )
    length = tokenizer.model_max_length
    if length != positions:
        given = "names no model_max_length" if length == VERY_LARGE_INTEGER else f"has model_max_length {length}"
        raise UserError(f"{place} {given}, expected {positions} as the text encoder's max_position_embeddings")
