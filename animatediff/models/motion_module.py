"""AnimateDiff's motion module as the published v3 weights were trained: group norm on each frame by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from torch import nn
from torch.utils.checkpoint import checkpoint


MAX_BATCH = 65535  # positions that one attention call takes: CUDA's limit for a grid's second and third axis


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, heads: int) -> torch.Tensor:
    """Attention of q (n f c) over k and v (n g c), c of `heads` heads side by side: (n f c).

    n counts positions, b h w, which a large video makes more than a CUDA kernel takes: MAX_BATCH at a time then.
    """
    q, k, v = (rearrange(x, "n f (heads d) -> n heads f d", heads=heads) for x in (q, k, v))
    if len(q) <= MAX_BATCH:
        out = F.scaled_dot_product_attention(q, k, v)
    else:
        parts = zip(q.split(MAX_BATCH), k.split(MAX_BATCH), v.split(MAX_BATCH), strict=True)
        out = torch.cat([F.scaled_dot_product_attention(*part) for part in parts])
    return rearrange(out, "n heads f d -> n f (heads d)")


class TemporalAttnProcessor:
    """What AttnProcessor2_0 computes in a temporal attention, for any number of positions (see `attend`)."""

    def __call__(
        self,
        attn: Attention,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: None = None,
    ) -> torch.Tensor:
        """hidden_states (n f c) over itself or over encoder_hidden_states (n g c); returns hidden_states' shape.

        ValueError for a mask, which temporal attention does not have.
        """
        if attention_mask is not None:
            raise ValueError("temporal attention takes no mask")
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        out = attend(attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context), attn.heads)
        for layer in attn.to_out:
            out = layer(out)
        return out


def set_temporal_processors(module: nn.Module) -> None:
    """Give every attention in `module`, temporal ones all, the TemporalAttnProcessor."""
    for attention in module.modules():
        if isinstance(attention, Attention):
            attention.set_processor(TemporalAttnProcessor())


def use_xformers(network: nn.Module, valid: bool, attention_op: Callable[..., Any] | None = None) -> None:
    """xformers' attention on (or off) in every attention of `network` but the temporal ones, which keep theirs.

    Those take short sequences in a batch of b h w heads, 65536 at 512x512 pixels: more than xformers' kernels take.
    """
    for name, module in network.named_modules():
        if isinstance(module, Attention) and "motion_modules" not in name.split("."):
            module.set_use_memory_efficient_attention_xformers(valid, attention_op)


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
        set_temporal_processors(module)
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
