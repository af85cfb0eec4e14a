"""From weight files to components: the published layout, which the bundled miniature shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from animatediff.config import option
from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.models.checkpoints import (
    StateDict,
    describe_contents,
    load_exactly,
    load_original_motion_modules,
    read_state_dict,
)
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.pipelines.method import Run, WeightFile
from animatediff.pipelines.video import PREDICTIONS, VideoPipeline
from animatediff.project import located

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
    lora_paths: list[str] = option([], "LoRA and MotionLoRA, in diffusers' formats", once=True)
    lora_scale: float = option(1.0, "of all LoRAs", least=-10, most=10, once=True)


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
        raise UserError(f"no base model folder at {folder}; see models/README.md for what goes there")
    unet_config = read_json(folder / "unet" / "config.json")
    with init_empty_weights():
        unet = build_unet(unet_config)
        vae = AutoencoderKL.from_config(read_json(folder / "vae" / "config.json"))
        text_encoder = CLIPTextModel(CLIPTextConfig(**read_json(folder / "text_encoder" / "config.json")))
    for model in (unet, vae, text_encoder):
        nn.Module.to(model, dtype)  # diffusers' own `to` warns of a loss of precision that none of these has

    path, state = read_component(folder / "unet", *_BASE_MODEL["unet"])
    _load_spatial(unet, state, path)
    path, state = read_component(folder / "vae", *_BASE_MODEL["vae"])
    load_exactly(vae, _modern_vae_names(state), path, expected="a VAE (AutoencoderKL)")
    path, state = read_component(folder / "text_encoder", *_BASE_MODEL["text_encoder"])
    _load_text_encoder(text_encoder, state, path)
    load_original_motion_modules(unet, read_state_dict(files.motion_module_path), files.motion_module_path)
    if files.dreambooth_path:
        _load_dreambooth(files.dreambooth_path, unet, unet_config, vae, text_encoder)
    for model in (unet, vae, text_encoder):
        model.requires_grad_(False).eval()
    prediction_type = _prediction_type(folder / _SCHEDULER)
    return Components(vae, text_encoder, _load_tokenizer(folder / "tokenizer"), unet, prediction_type)


def load_loras(pipeline: VideoPipeline, files: SD15Files) -> None:
    """Load `files.lora_paths` (LoRA and MotionLoRA) side by side, at one scale."""
    files = located(files)
    names = [f"lora_{i}" for i in range(len(files.lora_paths))]
    for name, path in zip(names, files.lora_paths, strict=True):
        if not Path(path).exists():
            raise UserError(f"no LoRA at {path}")
        try:
            pipeline.load_lora_weights(path, adapter_name=name)
        except Exception as error:  # peft, diffusers and safetensors raise unrelated classes
            raise UserError(f"{path} is not a LoRA for this model ({one_line(error)[:160]})") from error
    if names:
        pipeline.set_adapters(names, [files.lora_scale] * len(names))


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
    found = read_json(path).get("prediction_type", "epsilon") if path.is_file() else "epsilon"
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


def _modern_vae_names(state: StateDict) -> StateDict:
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


def _load_dreambooth(
    path: str, unet: VideoUNet, unet_config: dict[str, Any], vae: AutoencoderKL, text_encoder: CLIPTextModel
) -> None:
    state = read_state_dict(path)
    if describe_contents(state) != describe_contents(["model.diffusion_model."]):
        raise UserError(
            f"{path} looks like {describe_contents(state)}, expected a checkpoint with original Stable Diffusion names"
        )
    _load_spatial(unet, convert_ldm_unet_checkpoint(dict(state), unet_config), path)
    vae_state = convert_ldm_vae_checkpoint(dict(state), vae.config)
    vae_state = {k: _as_linear(v) if ".attentions." in k else v for k, v in vae_state.items()}
    load_exactly(vae, vae_state, path, expected="the VAE of a Stable Diffusion checkpoint")
    _load_text_encoder(text_encoder, convert_ldm_clip_checkpoint(dict(state)), path)


def _as_linear(weight: torch.Tensor) -> torch.Tensor:
    return weight.flatten(1) if weight.ndim == 4 else weight  # a 1x1 convolution in the original


def _load_tokenizer(folder: Path) -> CLIPTokenizer:
    if not folder.is_dir():
        raise UserError(f"no tokenizer folder at {folder}; see models/README.md for what goes there")
    try:
        return CLIPTokenizer.from_pretrained(folder)
    except Exception as error:  # transformers raises unrelated classes for broken folders
        raise UserError(f"{folder} is not a CLIP tokenizer ({one_line(error)[:160]})") from error
