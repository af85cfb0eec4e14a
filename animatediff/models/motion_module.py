"""AnimateDiff's motion module as the published v3 weights were trained: group norm on each frame by itself."""

from __future__ import annotations

from typing import Any, Self

import torch
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint


class MotionModule(AnimateDiffTransformer3D):
    """Group norm, linear in, temporal transformer blocks, linear out, residual.

    diffusers' stock module takes the group statistics over all frames at once; the published weights come from
    a network that takes them per frame. Everything else is the stock module, whose children this one adopts.
    """

    gradient_checkpointing = False

    @classmethod
    def adopt(cls, stock: AnimateDiffTransformer3D) -> Self:
        """A module that owns the children (and so the weights) of `stock`."""
        module = cls.__new__(cls)
        nn.Module.__init__(module)
        for name, child in stock.named_children():
            module.add_module(name, child)
        return module

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        timestep: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        num_frames: int = 1,
        cross_attention_kwargs: dict[str, Any] | None = None,
    ) -> torch.Tensor:
        """hidden_states ((b f) c h w), f = `num_frames`; returns the same shape and dtype.

        The signature is the stock module's, whose middle block passes num_frames by position; the rest is unused.
        """
        height, width = hidden_states.shape[-2:]
        tokens = self.norm(hidden_states)
        tokens = rearrange(tokens, "(b f) c h w -> (b h w) f c", f=num_frames)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, use_reentrant=False)
            else:
                tokens = block(tokens)
        tokens = self.proj_out(tokens)
        tokens = rearrange(tokens, "(b h w) f c -> (b f) c h w", h=height, w=width)
        return tokens + hidden_states
