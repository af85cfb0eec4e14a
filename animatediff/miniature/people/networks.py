"""The networks of models/miniature_people before training: MotionFollower's layout, tiny, four pixels to a latent."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from animatediff.models.motion_module import MotionModule
from animatediff.pipelines.motionfollower.networks import Networks, build_networks

SIZE = 64  # of a frame
LATENT_CHANNELS = 8
EMBEDDING, PATCH = 64, 8  # of the vision encoder
POSE_WIDTHS = (16, 32, 64)
UNET_CONFIG: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "block_out_channels": (48, 64, 64, 32),
    "layers_per_block": 2,
    "cross_attention_dim": EMBEDDING,
    "attention_head_dim": 2,  # SD1.5's spelling of the number of heads
    "norm_num_groups": 8,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}


def build_people_networks() -> Networks:
    """UNet, pose and appearance controller with fresh weights; the motion modules add nothing yet."""
    networks = build_networks(UNET_CONFIG, POSE_WIDTHS)
    for module in networks.unet.modules():
        if isinstance(module, MotionModule):
            nn.init.zeros_(module.proj_out.weight)
            nn.init.zeros_(module.proj_out.bias)
    return networks


def build_people_vae() -> AutoencoderKL:
    """An untrained VAE: [n, 3, h, w] in [-1, 1] to [n, 8, h / 4, w / 4] and back."""
    vae = AutoencoderKL(
        block_out_channels=(16, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )
    torch.nn.init.constant_(vae.quant_conv.bias[LATENT_CHANNELS:], -6.0)  # little noise: the means are learnt sooner
    return vae


def build_vision_encoder() -> CLIPVisionModelWithProjection:
    """An untrained CLIP vision encoder."""
    config = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=EMBEDDING,
    )
    return CLIPVisionModelWithProjection(config)


@torch.no_grad()
def start_from(vae: AutoencoderKL, other: AutoencoderKL) -> None:
    """Give `vae` the weights of `other` wherever both have the same shape: all but those at the latents."""
    own = vae.state_dict()
    fitting = {name: value for name, value in other.state_dict().items() if own[name].shape == value.shape}
    vae.load_state_dict(fitting, strict=False)
