"""A pipeline of the smallest real networks: pixels twice the latents, two levels of 16 channels, random weights."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from animatediff.models import Adapter, VideoUNet
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.efficientmt import EfficientMTPipeline
from tests.goldens import EFFICIENTMT

CHANNELS = (16, 16)


def small_components() -> dict[str, Any]:
    """The arguments of EfficientMTPipeline, the same at every call. The adapter acts strongly."""
    torch.manual_seed(0)
    unet = VideoUNet(
        sample_size=4,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
        cross_attention_dim=16,
        num_attention_heads=2,
        norm_num_groups=8,
        motion_num_attention_heads=2,
        use_motion_mid_block=False,
    )
    vae = AutoencoderKL(
        block_out_channels=CHANNELS,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=8,
    )
    text = CLIPTextConfig(
        vocab_size=706, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    adapter = Adapter.for_unet(unet, "full", scaler_bias=8.0)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    models = {"vae": vae, "text_encoder": CLIPTextModel(text), "unet": unet, "adapter": adapter}
    for model in models.values():
        model.eval().requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(EFFICIENTMT / "tiny_sd15" / "tokenizer")
    return {**models, "tokenizer": tokenizer, "scheduler": build_scheduler("ddim")}


def small_pipeline() -> EfficientMTPipeline:
    pipe = EfficientMTPipeline(**small_components())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def clip(seed: int, frames: int = 4, size: int = 8) -> torch.Tensor:
    """A video (f 3 h w) in [-1, 1]."""
    return torch.rand(frames, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def extract(pipe: EfficientMTPipeline, seed: int = 0, **shape: int) -> Any:
    return pipe.extract(clip(seed, **shape), generator=torch.Generator().manual_seed(seed))


def sample(pipe: EfficientMTPipeline, reference: Any, prompt: Any = "a cat", seed: int = 42, **options: Any) -> Any:
    """Frames of two steps, as latents; without a reference of four frames."""
    options = {"num_inference_steps": 2, "output_type": "latent"} | options
    if reference is None:
        options = {"num_frames": 4, "height": 8, "width": 8} | options
    return pipe(prompt, reference=reference, generator=torch.Generator().manual_seed(seed), **options).frames
