"""Key names: AnimateDiff's <-> diffusers', and what a file's keys say it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# AnimateDiff's names inside a motion module -> diffusers' names; one table, read in both directions.
_MOTION_NAMES = (
    ("attention_blocks.0.", "attn1."),
    ("attention_blocks.1.", "attn2."),
    ("norms.0.", "norm1."),
    ("norms.1.", "norm2."),
    ("ff_norm.", "norm3."),
)
_MOTION_KEY = re.compile(r"^(?P<module>.+\.motion_modules\.\d+\.)(?P<rest>.+)$", re.DOTALL)
_BLOCK_REST = re.compile(r"^(?P<block>transformer_blocks\.\d+\.)(?P<rest>.+)$", re.DOTALL)
_POSITION_TABLES = ("pos_encoder.pe", "interleaved_pe", "pos_embed.pe")

# What a file is -> patterns, one of which occurs in its keys; the first entry that fits is the answer.
_CONTENTS = {
    "an original Stable Diffusion checkpoint (DreamBooth)": (r"model\.diffusion_model\.", r"^first_stage_model\."),
    "a LoHa (LyCORIS)": (r"\.hada_",),
    "a LoKr (LyCORIS)": (r"\.lokr_",),
    "a LyCORIS other than LoRA": (r"\.(oft_|boft|on_input$|diff$|diff_b$|a1\.weight$)", r"\.lora_mid\."),
    "a DoRA": (r"\.dora_scale$", r"\.lora_magnitude_vector"),
    "a MotionLoRA": (r"motion_modules\..*lora",),
    "a LoRA of a Wan video transformer": (r"^(diffusion_model\.|transformer\.)?blocks\.\d+\..*(self|cross)_attn.*lora",),
    "a LoRA of a Flux transformer": (r"(double_blocks|single_blocks|single_transformer_blocks).*lora",),
    "a LoRA of a video transformer": (r"^transformer\..*lora",),
    "a LoRA of SDXL": (r"^lora_te2_", r"^text_encoder_2\..*lora"),
    "a LoRA": (r"lora",),
    "a textual inversion": (r"^emb_params$", r"^string_to_(param|token)", r"^clip_[lg]$", r"^<.*>$"),
    "an EfficientMT adapter": (r"\.scaler\.",),
    "a SparseCtrl encoder": (r"^controlnet_cond_embedding\.",),
    "a ControlNet": (r"^control_model\.",),
    "an IP-Adapter": (r"^image_proj\.", r"^ip_adapter\."),
    "motion modules": (r"motion_modules\.",),
    "a text encoder": (r"text_model\.",),
    "a VAE": (r"decoder\.conv_in",),
    "a 2D UNet": (r"down_blocks\.0\.attentions",),
    "an original Stable Diffusion UNet": (r"^input_blocks\.",),
    "a Wan video transformer": (r"^blocks\.\d+\.(self|cross)_attn\.",),
}


def original_name(name: str) -> str:
    """AnimateDiff's key for diffusers' parameter name (the inverse of `diffusers_name`)."""
    match = _MOTION_KEY.match(name)
    if match is None:
        return name
    rest = match["rest"]
    block = _BLOCK_REST.match(rest)
    if block is not None:
        rest = block["block"] + _renamed(block["rest"], {new: old for old, new in _MOTION_NAMES})
    return f"{match['module']}temporal_transformer.{rest}"


def diffusers_name(key: str) -> str:
    """diffusers' parameter name for AnimateDiff's key: only names inside motion modules differ."""
    match = _MOTION_KEY.match(key)
    if match is None:
        return key
    rest = match["rest"].removeprefix("temporal_transformer.")
    block = _BLOCK_REST.match(rest)
    if block is not None:
        rest = block["block"] + _renamed(block["rest"], dict(_MOTION_NAMES))
    return match["module"] + rest


def is_position_table(key: str) -> bool:
    """Whether `key` holds frame positions: constants, which are computed rather than loaded."""
    return key.endswith(_POSITION_TABLES)


def describe_contents(keys: Iterable[str]) -> str:
    """What a state dictionary looks like, for error messages about swapped files."""
    keys = list(keys)
    for description, patterns in _CONTENTS.items():
        if any(re.search(pattern, key) for pattern in patterns for key in keys):
            return description
    return "something else"


def shown(keys: Iterable[str], most: int = 3) -> str:
    """The first of `keys` for a message of one line, and how many more there are; odd characters are escaped."""
    keys = list(keys)
    first = [key if key.isprintable() else ascii(key)[1:-1] for key in keys[:most]]
    short = [key if len(key) <= 120 else f"{key[:117]}..." for key in first]
    return ", ".join(short) + (f" and {len(keys) - most} more" if len(keys) > most else "")


def _renamed(rest: str, table: Mapping[str, str]) -> str:
    for start, replacement in table.items():
        if rest.startswith(start):
            return replacement + rest[len(start) :]
    return rest
