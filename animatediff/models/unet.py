"""The backbone: Stable Diffusion 1.5's UNet with AnimateDiff motion modules, as one diffusers model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from diffusers import ModelMixin, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from animatediff.models.motion_module import MotionModule, use_xformers

MAX_FRAMES = 32  # rows of the motion modules' position table


class VideoUNet(UNetMotionModel, ModelMixin):  # diffusers' pipelines look for ModelMixin among this module's names
    """diffusers' UNetMotionModel with motion modules that normalise each frame by itself.

    Same parameter names, same config, same forward: sample (b c f h w), timestep () or (b,), encoder_hidden_states
    ((b f) tokens dim), any float dtype; returns an object whose `sample` is (b c f h w).
    """

    @functools.wraps(UNetMotionModel.__init__)  # type: ignore[misc]  # diffusers reads the config's keys off it
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            if hasattr(block, "motion_modules"):
                block.motion_modules = nn.ModuleList(MotionModule.adopt(stock) for stock in block.motion_modules)

    def set_default_attn_processor(self) -> None:
        """As UNetMotionModel's, for the spatial attentions: the temporal ones have a processor of their own."""
        processors = self.attn_processors.items()
        self.set_attn_processor({n: p if "motion_modules" in n else AttnProcessor() for n, p in processors})

    def set_use_memory_efficient_attention_xformers(
        self, valid: bool, attention_op: Callable[..., Any] | None = None
    ) -> None:
        """As ModelMixin's, for the spatial attentions alone (see `use_xformers`)."""
        use_xformers(self, valid, attention_op)


def build_unet(config: Mapping[str, Any], motion_in_middle: bool = False) -> VideoUNet:
    """A VideoUNet with fresh weights from an SD1.5-style 2D UNet config (the `unet/config.json` of a base model).

    Reads block_out_channels, layers_per_block, cross_attention_dim, attention_head_dim (SD1.5's historical
    spelling of the number of heads) and sample_size, and where given norm_num_groups, norm_eps, in_channels,
    out_channels, down_block_types, up_block_types. Motion modules are those of AnimateDiff v3: one per resnet,
    none in the middle, eight heads, 32 positions. motion_in_middle: one in the middle too, as in AnimateDiff v1.
    """
    options = {
        key: config[key]
        for key in (
            *("sample_size", "in_channels", "out_channels", "block_out_channels", "layers_per_block"),
            *("downsample_padding", "mid_block_scale_factor", "act_fn", "norm_num_groups", "norm_eps"),
            *("cross_attention_dim", "use_linear_projection"),
        )
        if key in config
    }
    for key in ("down_block_types", "up_block_types"):
        if key in config:
            options[key] = tuple("CrossAttn" * ("CrossAttn" in name) + _stage(key) for name in config[key])
    return VideoUNet(
        **options,
        num_attention_heads=config.get("num_attention_heads") or config.get("attention_head_dim", 8),
        motion_num_attention_heads=8,
        motion_max_seq_length=MAX_FRAMES,
        use_motion_mid_block=motion_in_middle,
    )


def _stage(key: str) -> str:
    return "DownBlockMotion" if key.startswith("down") else "UpBlockMotion"
