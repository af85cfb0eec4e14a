"""From weight files to components: the published layout, which the bundled miniature shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from animatediff.config import option
from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.models.checkpoints import load_exactly, load_original_motion_modules
from animatediff.models.key_names import describe_contents
from animatediff.models.unet import VideoUNet
from animatediff.models.weight_files import StateDict, read_state_dict
from animatediff.pipelines.backbones.lora import lora_scales
from animatediff.pipelines.backbones.parts import build_parts, check_parts, load_tokenizer
from animatediff.pipelines.method import Run, WeightFile
from animatediff.pipelines.video import PREDICTIONS
from animatediff.project import located, weights_guide

_SCHEDULER = Path("scheduler", "scheduler_config.json")
DIFFUSERS = ("diffusion_pytorch_model",)  # how diffusers calls weights; below, how transformers does
_BASE_MODEL = {"unet": DIFFUSERS, "vae": DIFFUSERS, "text_encoder": ("model", "pytorch_model")}


@dataclass
class SD15Files:
    """Where the files of a Stable Diffusion 1.5 base with motion modules lie. Empty paths are left out."""

    pretrained_model_path: str = option(
        "models/miniature/StableDiffusion", "diffusers folder: unet, vae, text_encoder, ...", once=True
    )
    motion_module_path: str = option("models/miniature/Motion_Module/mm.safetensors", "motion modules", once=True)
    dreambooth_path: str = option("", "original Stable Diffusion names: UNet, VAE, text encoder", once=True)
    lora_paths: list[str] = option([], "LoRA, DoRA and MotionLoRA: files, or folders that hold one", once=True)
    lora_scale: list[float] = option([1.0], "of all LoRAs, or one for each", least=-10, most=10, once=True)


@dataclass
class Components:
    """A base model, loaded."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: VideoUNet
    prediction_type: str = "epsilon"  # one of PREDICTIONS


def load_components(files: SD15Files, dtype: torch.dtype = torch.float32) -> Components:
    """Base model, then motion module, then DreamBooth, each over the one before, as the published program does."""
    files = located(files)
    folder = Path(files.pretrained_model_path)
    if not folder.is_dir():
        raise UserError(f"no base model folder at {folder}; {weights_guide()}")
    unet, vae, text_encoder = build_parts(folder)
    tokenizer = load_tokenizer(folder / "tokenizer")
    check_parts(folder, unet, vae, text_encoder, tokenizer)
    for model in (unet, vae, text_encoder):
        nn.Module.to(model, dtype)  # diffusers' own `to` warns of a loss of precision that none of these has

    path, state = read_component(folder / "unet", *_BASE_MODEL["unet"])
    _load_spatial(unet, state, path)
    path, state = read_component(folder / "vae", *_BASE_MODEL["vae"])
    load_exactly(vae, modern_vae_names(state), path, expected="a VAE (AutoencoderKL)")
    path, state = read_component(folder / "text_encoder", *_BASE_MODEL["text_encoder"])
    _load_text_encoder(text_encoder, state, path)
    load_original_motion_modules(unet, read_state_dict(files.motion_module_path), files.motion_module_path)
    if files.dreambooth_path:
        _load_dreambooth(files.dreambooth_path, unet, vae, text_encoder)
    for model in (unet, vae, text_encoder):
        model.requires_grad_(False).eval()
    prediction_type = _prediction_type(folder / _SCHEDULER)
    return Components(vae, text_encoder, tokenizer, unet, prediction_type)


def check_files(files: SD15Files) -> None:
    """UserError for paths and numbers that do not go together, before anything is loaded."""
    lora_scales(files.lora_scale, len(files.lora_paths))


def unread_text(tokenizer: CLIPTokenizer, run: Run) -> list[str]:
    """One line for each of a run's prompts of which CLIP will not read all: it takes 77 tokens."""
    limit = tokenizer.model_max_length
    warnings = []
    for name, text in (("prompt", run.prompt or ""), ("negative_prompt", run.negative_prompt)):
        tokens = tokenizer(text, verbose=False).input_ids
        if len(tokens) > limit:
            cut = one_line(tokenizer.decode(tokens[limit - 1 : -1]))
            warnings.append(f"CLIP reads {limit} tokens of the {name}; not read: {cut[:80]}{'...' * (len(cut) > 80)}")
    return warnings


def weight_files(files: SD15Files) -> list[WeightFile]:
    """Every file of the base that loading reads (of the tokenizer and some LoRAs: its folder), there or not."""
    base = Path(files.pretrained_model_path)
    found = [WeightFile(f"base model: {part}", weights_in(base / part, *stems)) for part, stems in _BASE_MODEL.items()]
    found.append(WeightFile("base model: tokenizer", base / "tokenizer"))
    found.append(WeightFile("base model: scheduler", base / _SCHEDULER, by_content=True, optional=True))
    named = {"motion module": files.motion_module_path, "DreamBooth": files.dreambooth_path}
    found += [WeightFile(what, Path(path)) for what, path in named.items() if path]
    return found + [WeightFile(f"LoRA {i}", Path(path), by_content=True) for i, path in enumerate(files.lora_paths)]


def _prediction_type(path: Path) -> str:
    """What the UNet beside this scheduler's config predicts; noise where the folder does not tell, as SD1.5 does."""
    found = "epsilon"
    if path.is_file():
        found = read_json(path, {"prediction_type": str}).get("prediction_type", found)
    if found not in PREDICTIONS:
        raise UserError(f"{path} has prediction_type '{found}', expected one of {', '.join(PREDICTIONS)}")
    return found


def read_component(folder: Path, *stems: str) -> tuple[str, StateDict]:
    """The weights in a diffusers component folder, and where they were found."""
    path = weights_in(folder, *stems)
    if not path.is_file():
        raise UserError(f"no weights in {folder}; expected {path.name} or {stems[0]}.bin")
    return str(path), read_state_dict(path)


def weights_in(folder: Path, *stems: str) -> Path:
    """The weights in a component folder, safetensors before .bin, full precision before fp16; else the first name."""
    names = [f"{stem}{kind}{end}" for end in (".safetensors", ".bin") for kind in ("", ".fp16") for stem in stems]
    return next((folder / name for name in names if (folder / name).is_file()), folder / names[0])


def _load_spatial(unet: VideoUNet, state: StateDict, source: str) -> None:
    names = [name for name, _ in unet.named_parameters() if ".motion_modules." not in name]
    load_exactly(unet, state, source, expected="a Stable Diffusion 1.5 UNet", only=names)


def modern_vae_names(state: StateDict) -> StateDict:
    """The middle attention of older files: query, key, value, proj_attn -> to_q, to_k, to_v, to_out.0."""
    table = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
    pattern = re.compile(r"(?<=attentions\.0\.)(query|key|value|proj_attn)(?=\.)")
    return {pattern.sub(lambda match: table[match[1]], key): value for key, value in state.items()}


def _load_text_encoder(text_encoder: CLIPTextModel, state: StateDict, source: str) -> None:
    """`state` with or without the "text_model." prefix that older releases of the library wrote."""
    own_prefix = "text_model." if any(key.startswith("text_model.") for key in text_encoder.state_dict()) else ""
    named = {
        own_prefix + key.removeprefix("text_model."): value
        for key, value in state.items()
        if not key.endswith("position_ids")
    }
    load_exactly(text_encoder, named, source, expected="a CLIP text encoder")


def _load_dreambooth(path: str, unet: VideoUNet, vae: AutoencoderKL, text_encoder: CLIPTextModel) -> None:
    state = read_state_dict(path)
    if describe_contents(state) != describe_contents(["model.diffusion_model."]):
        raise UserError(
            f"{path} looks like {describe_contents(state)}, expected a checkpoint with original Stable Diffusion names"
        )
    _load_spatial(unet, convert_ldm_unet_checkpoint(dict(state), dict(unet.config)), path)
    vae_state = convert_ldm_vae_checkpoint(dict(state), vae.config)
    vae_state = {k: _as_linear(v) if ".attentions." in k else v for k, v in vae_state.items()}
    load_exactly(vae, vae_state, path, expected="the VAE of a Stable Diffusion checkpoint")
    _load_text_encoder(text_encoder, convert_ldm_clip_checkpoint(dict(state)), path)


def _as_linear(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1) if weight.ndim == 4 else weight  # a 1x1 convolution in the original
