"""The parts of an SD1.5-style base model, built from their configs, and whether they fit each other.

All of it happens before weights are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.project import weights_guide

T = TypeVar("T")

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
# The types of the keys that are read of each config; others are the libraries' own and not looked at.
_CHANNELS = {"in_channels": int, "out_channels": int, "block_out_channels": list[int], "layers_per_block": int}
_BLOCKS = {"down_block_types": list[str], "up_block_types": list[str], "norm_num_groups": int, "act_fn": str}
_UNET_KEYS: Mapping[str, Any] = {
    **{**_CHANNELS, **_BLOCKS},
    "down_block_types": list[Literal["CrossAttnDownBlock2D", "DownBlock2D"]],
    "up_block_types": list[Literal["CrossAttnUpBlock2D", "UpBlock2D"]],
    "sample_size": int | list[int] | None,
    "cross_attention_dim": int,
    "attention_head_dim": int | list[int],
    "num_attention_heads": int | list[int] | None,
    "norm_eps": float,
    "downsample_padding": int,
    "mid_block_scale_factor": float,
    "use_linear_projection": bool,
}
_VAE_KEYS: Mapping[str, Any] = {
    **{**_CHANNELS, **_BLOCKS},
    "latent_channels": int,
    "sample_size": int | list[int] | None,
    "scaling_factor": float,
    "shift_factor": float | None,
    **dict.fromkeys(("force_upcast", "use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"), bool),
}
_TEXT_KEYS: Mapping[str, Any] = {
    **dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), int),
    **{"vocab_size": int, "max_position_embeddings": int, "projection_dim": int},
    **{"hidden_act": str, "layer_norm_eps": float, "attention_dropout": float},
}
_OTHER_BASES = {9: "an inpainting base", 8: "a base that edits images (InstructPix2Pix)", 5: "a depth-to-image base"}


def build_parts(folder: Path) -> tuple[VideoUNet, AutoencoderKL, CLIPTextModel]:
    """UNet, VAE and text encoder of the base in `folder`, on meta tensors; UserError for a config that says none."""
    paths = {part: folder / part / "config.json" for part in ("unet", "vae", "text_encoder")}
    unet_config = read_json(paths["unet"], _UNET_KEYS)
    for key, value in _FIXED.items():
        if unet_config.get(key, value) != value:
            raise UserError(
                f"{paths['unet']} has {key} {unet_config[key]}, expected {value}, as Stable Diffusion 1.5 has it"
            )
    vae_config = read_json(paths["vae"], _VAE_KEYS)
    text_config = read_json(paths["text_encoder"], _TEXT_KEYS)
    with init_empty_weights():
        return (
            built(paths["unet"], "UNet", lambda: build_unet(unet_config)),
            built(paths["vae"], "VAE", lambda: AutoencoderKL.from_config(vae_config)),
            built(paths["text_encoder"], "text encoder", lambda: CLIPTextModel(CLIPTextConfig(**text_config))),
        )


def built(path: Path, what: str, build: Callable[[], T]) -> T:
    """What `build` makes of the config at `path`; UserError where nothing can be made of it."""
    try:
        return build()
    except Exception as error:  # of sizes that do not go together the libraries raise unrelated classes
        raise UserError(f"{path} describes no {what} that can be built ({one_line(error)[:160]})") from error


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
        raise UserError(f"no tokenizer folder at {folder}; {weights_guide()}")
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
