"""From weight files to components: the published layout, which the bundled miniature shares."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from animatediff.config import nearest
from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.models.adapter import Adapter, EfficientMT, site_paths
from animatediff.models.checkpoints import (
    adapter_sites,
    load_exactly,
    load_original_adapter,
    load_original_motion_modules,
)
from animatediff.models.key_names import describe_contents
from animatediff.models.sparsectrl import load_original_sparsectrl, merge_domain_adapter
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.models.weight_files import StateDict, read_state_dict
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.pipelines.motionclone.pipeline import MotionCloneConfig, MotionClonePipeline
from animatediff.pipelines.video import BETAS, PREDICTIONS, VideoPipeline

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
}

_DIFFUSERS = ("diffusion_pytorch_model",)  # how diffusers calls weights; below, how transformers does
_BASE_MODEL = {"unet": _DIFFUSERS, "vae": _DIFFUSERS, "text_encoder": ("model", "pytorch_model")}


@dataclass
class Weights:
    """Where the files of one model lie. Empty paths are left out."""

    pretrained_model_path: str = "models/miniature/StableDiffusion"  # diffusers folder: unet, vae, text_encoder, ...
    motion_module_path: str = "models/miniature/Motion_Module/mm.safetensors"
    dreambooth_path: str = ""  # original Stable Diffusion names: UNet, VAE, text encoder
    ckpt_path: str = "models/miniature/Integrated_Attention"  # the adapter: a published .ckpt, or a saved folder
    lora_paths: list[str] = field(default_factory=list)  # LoRA and MotionLoRA, in diffusers' formats
    lora_scale: float = 1.0
    sparsectrl_path: str = ""  # MotionClone's image modes: a published SparseCtrl file, rgb or scribble
    domain_adapter_path: str = ""  # v3_sd15_adapter.ckpt, merged into the backbone for good
    domain_adapter_scale: float = 1.0


@dataclass
class Components:
    """A base model, loaded: everything but the adapter."""

    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    unet: VideoUNet
    prediction_type: str = "epsilon"  # one of PREDICTIONS


def load_pipeline(
    weights: Weights,
    scheduler: str = "ddim",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EfficientMTPipeline:
    """The whole pipeline from published files (or files of that layout), on `device` in `dtype`."""
    base = load_components(weights, dtype)
    adapter = load_adapter(base.unet, weights.ckpt_path)
    sampler = build_scheduler(scheduler, base.prediction_type)
    pipeline = EfficientMTPipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, adapter, sampler)
    load_loras(pipeline, weights)
    return pipeline.to(device)


def load_motionclone(
    weights: Weights,
    settings: MotionCloneConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> MotionClonePipeline:
    """MotionClone on the same files, without the trained adapter; SparseCtrl and domain adapter where named."""
    base = load_components(weights, dtype)
    if weights.domain_adapter_path:
        state = read_state_dict(weights.domain_adapter_path)
        merge_domain_adapter(base.unet, state, weights.domain_adapter_scale, weights.domain_adapter_path)
    controlnet = None
    if weights.sparsectrl_path:
        state = read_state_dict(weights.sparsectrl_path)
        controlnet = load_original_sparsectrl(base.unet, state, weights.sparsectrl_path)
    sampler = build_scheduler("ddim", base.prediction_type)
    pipeline = MotionClonePipeline(
        base.vae, base.text_encoder, base.tokenizer, base.unet, sampler, controlnet, settings
    )
    load_loras(pipeline, weights)
    return pipeline.to(device)


def load_components(weights: Weights, dtype: torch.dtype = torch.float32) -> Components:
    """Base model, then motion module, then DreamBooth, each over the one before, as the published program does."""
    folder = Path(weights.pretrained_model_path)
    if not folder.is_dir():
        raise UserError(f"no base model folder at {folder}; see models/README.md for what goes there")
    unet_config = read_json(folder / "unet" / "config.json")
    with init_empty_weights():
        unet = build_unet(unet_config)
        vae = AutoencoderKL.from_config(read_json(folder / "vae" / "config.json"))
        text_encoder = CLIPTextModel(CLIPTextConfig(**read_json(folder / "text_encoder" / "config.json")))
    for model in (unet, vae, text_encoder):
        nn.Module.to(model, dtype)  # diffusers' own `to` warns of a loss of precision that none of these has

    path, state = _read_component(folder / "unet", *_BASE_MODEL["unet"])
    _load_spatial(unet, state, path)
    path, state = _read_component(folder / "vae", *_BASE_MODEL["vae"])
    load_exactly(vae, _modern_vae_names(state), path, expected="a VAE (AutoencoderKL)")
    path, state = _read_component(folder / "text_encoder", *_BASE_MODEL["text_encoder"])
    _load_text_encoder(text_encoder, state, path)
    load_original_motion_modules(unet, read_state_dict(weights.motion_module_path), weights.motion_module_path)
    if weights.dreambooth_path:
        _load_dreambooth(weights.dreambooth_path, unet, unet_config, vae, text_encoder)
    for model in (unet, vae, text_encoder):
        model.requires_grad_(False).eval()
    prediction_type = _prediction_type(folder / "scheduler" / "scheduler_config.json")
    return Components(vae, text_encoder, _load_tokenizer(folder / "tokenizer"), unet, prediction_type)


def load_adapter(unet: VideoUNet, ckpt_path: str) -> Adapter:
    """The adapter for `unet`: a folder written by `save_pretrained`, or a published checkpoint; "" gives a fresh one.

    The sites are told by the file itself.
    """
    if not ckpt_path:
        return Adapter.for_unet(unet)
    path = Path(ckpt_path)
    if path.is_dir():
        return _saved_adapter_for(unet, path)
    state = read_state_dict(path)
    channels = published_sites(state, path)
    known = site_paths(unet, "full")
    unknown = sorted(channels.keys() - set(known))
    if unknown:
        raise UserError(
            f"{path} is an adapter for {unknown[0]}, which this backbone does not have; expected {known[-1]} or others"
        )
    ordered = {site: channels[site] for site in known if site in channels}
    model = EfficientMT(unet, adapter=Adapter(ordered, trained_steps=None))
    load_original_adapter(model, state, str(path))
    return nn.Module.to(model.adapter, unet.dtype).requires_grad_(False)


def published_sites(state: StateDict, source: str | Path) -> dict[str, int]:
    """The sites of a published adapter, path -> channels; UserError where `state` is none."""
    channels = adapter_sites(state)
    if not channels:
        looks = describe_contents(state)
        raise UserError(f"{source} holds no scaler weights, expected an EfficientMT adapter; it looks like {looks}")
    return channels


def load_saved_adapter(folder: Path) -> Adapter:
    """The adapter in a folder written by `save_pretrained`, in the dtype of its file. No backbone is needed."""
    config = read_json(folder / "config.json")
    options = {k: v for k, v in config.items() if not k.startswith("_")}
    if "site_channels" not in options:
        raise UserError(
            f"{folder / 'config.json'} has no 'site_channels', expected the config of an EfficientMT adapter"
        )
    source, state = _read_component(folder, *_DIFFUSERS)
    adapter = nn.Module.to(Adapter(**options), next(iter(state.values())).dtype)
    load_exactly(adapter, state, source, expected="the adapter that its config.json describes")
    return adapter


def load_loras(pipeline: VideoPipeline, weights: Weights) -> None:
    """Load `weights.lora_paths` (LoRA and MotionLoRA) side by side, at one scale."""
    names = [f"lora_{i}" for i in range(len(weights.lora_paths))]
    for name, path in zip(names, weights.lora_paths, strict=True):
        if not Path(path).exists():
            raise UserError(f"no LoRA at {path}")
        try:
            pipeline.load_lora_weights(path, adapter_name=name)
        except Exception as error:  # peft, diffusers and safetensors raise unrelated classes
            raise UserError(f"{path} is not a LoRA for this model ({one_line(error)[:160]})") from error
    if names:
        pipeline.set_adapters(names, [weights.lora_scale] * len(names))


def build_scheduler(name: str, prediction_type: str = "epsilon") -> SchedulerMixin:
    """A sampler by name on the published noise schedule: linear betas 0.00085..0.012, steps_offset 1.

    prediction_type: what the backbone predicts, one of PREDICTIONS: the noise, as the published weights do, or v.
    """
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler '{name}'; {nearest(name, list(SCHEDULERS))}")
    kind, options = SCHEDULERS[name]
    return kind(**BETAS, steps_offset=1, prediction_type=prediction_type, **options)


def weight_files(weights: Weights) -> dict[str, Path]:
    """Every file that loading reads (of the tokenizer and some LoRAs: its folder), there or not, by what it is."""
    base = Path(weights.pretrained_model_path)
    files = {f"base model: {part}": _weights_in(base / part, *stems) for part, stems in _BASE_MODEL.items()}
    files["base model: tokenizer"] = base / "tokenizer"
    named = {
        "motion module": weights.motion_module_path,
        "DreamBooth": weights.dreambooth_path,
        "adapter": weights.ckpt_path,
        **{f"LoRA {i}": path for i, path in enumerate(weights.lora_paths)},
        "SparseCtrl": weights.sparsectrl_path,
        "domain adapter": weights.domain_adapter_path,
    }
    files |= {name: Path(path) for name, path in named.items() if path}
    if weights.ckpt_path and files["adapter"].is_dir():
        files["adapter"] = _weights_in(files["adapter"], *_DIFFUSERS)
    return files


def _prediction_type(path: Path) -> str:
    """What the UNet beside this scheduler's config predicts; noise where the folder does not tell, as SD1.5 does."""
    found = read_json(path).get("prediction_type", "epsilon") if path.is_file() else "epsilon"
    if found not in PREDICTIONS:
        raise UserError(f"{path} has prediction_type '{found}', expected one of {', '.join(PREDICTIONS)}")
    return found


def _read_component(folder: Path, *stems: str) -> tuple[str, StateDict]:
    """The weights in a diffusers component folder, and where they were found."""
    path = _weights_in(folder, *stems)
    if not path.is_file():
        raise UserError(f"no weights in {folder}; expected {path.name} or {stems[0]}.bin")
    return str(path), read_state_dict(path)


def _weights_in(folder: Path, *stems: str) -> Path:
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


def _saved_adapter_for(unet: VideoUNet, folder: Path) -> Adapter:
    adapter = load_saved_adapter(folder)
    known = site_paths(unet, "full")
    for path, channels in adapter.config.site_channels.items():
        own = unet.get_submodule(path).attn1.to_q.in_features if path in known else None
        if own != channels:
            raise UserError(
                f"{folder} is an adapter for {path} with {channels} channels; the backbone has {own or 'no such block'}"
            )
    return nn.Module.to(adapter, unet.dtype).requires_grad_(False)
