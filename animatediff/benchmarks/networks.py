"""Networks of real shapes with random weights, made in seconds: speed and memory do not depend on the values."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from accelerate import init_empty_weights
from diffusers import AutoencoderKL, UNetMotionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from animatediff.errors import UserError
from animatediff.miniature.text import build_tokenizer
from animatediff.models import Adapter, VideoUNet, build_unet
from animatediff.models.adapter import site_paths
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline

M = TypeVar("M", bound=nn.Module)

RANDOM_NUMBERS = 1 << 20  # drawn once, repeated over all weights


@dataclass(frozen=True)
class Scale:
    """The shapes of a base model: configs as its folder holds them."""

    unet: dict[str, Any]
    vae: dict[str, Any]
    text_encoder: dict[str, Any]


SCALES = {
    "sd15": Scale(
        unet={
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
            "sample_size": 64,
        },
        vae={
            "block_out_channels": [128, 256, 512, 512],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 2,
            "latent_channels": 4,
            "sample_size": 512,
        },
        text_encoder={
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
    ),
    "tiny": Scale(
        unet={
            "block_out_channels": [32, 64, 64, 64],
            "layers_per_block": 1,
            "cross_attention_dim": 32,
            "attention_head_dim": 8,
            "sample_size": 8,
        },
        vae={
            "block_out_channels": [32] * 4,
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
            "layers_per_block": 1,
            "latent_channels": 4,
            "sample_size": 64,
        },
        text_encoder={"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4},
    ),
}


@dataclass(frozen=True)
class Setup:
    """What is measured, where and for how long. All sizes are those of one clip."""

    scale: str = "sd15"
    device: str = "cpu"
    frames: int = 16
    height: int = 128
    width: int = 128
    rounds: int = 3
    seconds: float = 120.0  # no further round starts after this

    @property
    def shapes(self) -> Scale:
        """The Scale of that name; UserError where there is none."""
        if self.scale not in SCALES:
            raise UserError(f"scale is '{self.scale}', expected one of {', '.join(SCALES)}")
        return SCALES[self.scale]

    @property
    def dtype(self) -> torch.dtype:
        """Half precision on CUDA, as the commands default to."""
        return torch.float16 if self.device.startswith("cuda") else torch.float32

    @property
    def latent_shape(self) -> tuple[int, int, int, int, int]:
        return 1, 4, self.frames, self.height // 8, self.width // 8


def random_unet(setup: Setup) -> VideoUNet:
    """A frozen VideoUNet of random weights."""
    return randomly_filled(lambda: build_unet(setup.shapes.unet), setup).requires_grad_(False)


def random_adapter(unet: VideoUNet, setup: Setup) -> Adapter:
    """An adapter whose projections and scalers are random and differ from the backbone's."""
    return randomly_filled(lambda: Adapter(site_channels(unet)), setup)


def site_channels(unet: VideoUNet) -> dict[str, int]:
    """Path -> channels of the sites of a default adapter for `unet`, which may be on the meta device."""
    return {path: unet.get_submodule(path).attn1.to_q.in_features for path in site_paths(unet, "up")}


def random_pipeline(setup: Setup, unet: VideoUNet | None = None, adapter: Adapter | None = None) -> EfficientMTPipeline:
    """The whole pipeline; only the tokenizer, which costs nothing, is the miniature's."""
    unet = unet or random_unet(setup)
    pipeline = EfficientMTPipeline(
        vae=randomly_filled(lambda: AutoencoderKL.from_config(setup.shapes.vae), setup),
        text_encoder=randomly_filled(lambda: CLIPTextModel(text_config(setup)), setup),
        tokenizer=build_tokenizer(),
        unet=unet,
        adapter=adapter or random_adapter(unet, setup),
        scheduler=build_scheduler("ddim"),
    )
    pipeline.vae.enable_slicing()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def text_config(setup: Setup) -> CLIPTextConfig:
    return CLIPTextConfig(**setup.shapes.text_encoder)


def stock_unet(unet: VideoUNet) -> UNetMotionModel:
    """diffusers' own UNetMotionModel on the very tensors of `unet`."""
    with init_empty_weights():
        stock = UNetMotionModel.from_config(dict(unet.config))
    stock.load_state_dict(unet.state_dict(), assign=True)
    return stock.requires_grad_(False).eval()


def randomly_filled(build: Callable[[], M], setup: Setup) -> M:
    """What `build` makes, never initialised, filled with small random weights on the setup's device, in its dtype."""
    with init_empty_weights():
        model = build()
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=setup.dtype, device=setup.device)
            setattr(module, name, nn.Parameter(empty, parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(setup.device)
    fill_randomly(model)
    return model.eval()


@torch.no_grad()
def fill_randomly(model: nn.Module) -> None:
    """Weights around 0 with variance 1 / fan-in, scales at 1, biases near 0, so that activations keep their size."""
    numbers = torch.randn(RANDOM_NUMBERS, generator=torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        flat = parameter.view(-1)
        repeats = math.ceil(len(flat) / len(numbers))
        values = numbers.to(flat.device, flat.dtype)
        for chunk in flat.split(len(numbers)) if repeats else ():
            chunk.copy_(values[: len(chunk)])
        if parameter.ndim > 1:
            flat.mul_(math.prod(parameter.shape[1:]) ** -0.5)
        else:
            flat.mul_(0.02).add_(1.0 if name.endswith("weight") else 0.0)
