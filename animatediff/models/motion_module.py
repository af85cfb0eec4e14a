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

        The signature is the stock module's, whose callers pass by position and by name; the arguments between are
        handed to the transformer blocks.
        """
        height, width = hidden_states.shape[-2:]
        conditions = (encoder_hidden_states, timestep, class_labels, cross_attention_kwargs)
        tokens = self.norm(hidden_states)
        tokens = rearrange(tokens, "(b f) c h w -> (b h w) f c", f=num_frames)
        tokens = self.proj_in(input=tokens)
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(_run, block, tokens, *conditions, use_reentrant=False)
            else:
                tokens = _run(block, tokens, *conditions)
        tokens = self.proj_out(input=tokens)
        tokens = rearrange(tokens, "(b h w) f c -> (b f) c h w", h=height, w=width)
        return tokens + hidden_states


def _run(
    block: nn.Module,
    tokens: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None,
    timestep: torch.Tensor | None,
    class_labels: torch.Tensor | None,
    cross_attention_kwargs: dict[str, Any] | None,
) -> torch.Tensor:
    """`block` on tokens ((b h w) f c), called by name, as whatever diffusers wraps around a block expects."""
    return block(
        hidden_states=tokens,
        encoder_hidden_states=encoder_hidden_states,
        timestep=timestep,
        class_labels=class_labels,
        cross_attention_kwargs=cross_attention_kwargs,
    )
