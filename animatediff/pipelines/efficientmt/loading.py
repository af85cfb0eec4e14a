"""From weight files to an EfficientMT pipeline: the adapter, on a loaded base."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from torch import nn

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.files import check_object, read_json
from animatediff.models.adapter import Adapter, EfficientMT, site_paths
from animatediff.models.checkpoints import adapter_sites, load_exactly, load_original_adapter
from animatediff.models.key_names import describe_contents
from animatediff.models.unet import VideoUNet
from animatediff.models.weight_files import StateDict, read_state_dict
from animatediff.pipelines.backbones.lora import load_loras
from animatediff.pipelines.backbones.parts import built
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.backbones.sd15 import DIFFUSERS, SD15Files, load_components, read_component
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.project import located

_ADAPTER_KEYS = {
    "site_channels": dict[str, int],
    "use_scaler": bool,
    "scaler_bias": float,
    "override_shapes": dict[str, list[int]] | None,
    "trained_steps": int | None,
}


@dataclass
class EfficientMTFiles(SD15Files):
    """Where the files of one model lie. Empty paths are left out."""

    ckpt_path: str = option(
        "models/miniature/Integrated_Attention", "the adapter: a published .ckpt, or a saved folder", once=True
    )


def load_pipeline(
    files: EfficientMTFiles | None = None,
    scheduler: str = "ddim",
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> EfficientMTPipeline:
    """The whole pipeline from published files (or files of that layout), on `device` in `dtype`.

    Paths are looked up in the current folder, then in this project's; without `files`, the bundled miniature.
    """
    files = located(files or EfficientMTFiles())
    base = load_components(files, dtype)
    adapter = load_adapter(base.unet, files.ckpt_path)
    sampler = build_scheduler(scheduler, base.prediction_type)
    pipeline = EfficientMTPipeline(base.vae, base.text_encoder, base.tokenizer, base.unet, adapter, sampler)
    pipeline.lora_warnings = load_loras(pipeline, files.lora_paths, files.lora_scale)
    return pipeline.to(device)


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
    path = folder / "config.json"
    options = {key: value for key, value in read_json(path).items() if not key.startswith("_")}
    if "site_channels" not in options:
        raise UserError(f"{path} has no 'site_channels', expected the config of an EfficientMT adapter")
    check_object(options, str(path), _ADAPTER_KEYS, others=False)
    source, state = read_component(folder, *DIFFUSERS)
    with init_empty_weights():
        adapter = built(path, "adapter", lambda: Adapter(**options))
    nn.Module.to(adapter, next(iter(state.values())).dtype)
    load_exactly(adapter, state, source, expected="the adapter that its config.json describes")
    return adapter


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
