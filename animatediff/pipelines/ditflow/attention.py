"""Attention processors in force for the length of a call: they show queries, keys, values, and replace the latter two.

They compute what diffusers' own do, out of place, and take separate positions for queries and keys.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from torch import nn
from torch.nn import functional

KeyValue = tuple[torch.Tensor, torch.Tensor]


class Tap(nn.Module):
    """A place in an attention where hooks read: called with its queries, keys and values of the video tokens.

    (b heads f*H*W d) each, after norm and rope, as the attention uses them.
    """

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return query, key, value


@dataclass
class VideoProcessor:
    """What the processors of all backbones share.

    tap: where queries, keys and values of the video tokens can be read. injected: a key and value (heads f*H*W d) that
    stand for the video tokens' own. published_gradient: see `rotate`.
    """

    tap: Tap
    injected: KeyValue | None = None
    published_gradient: bool = False

    def rotated(self, states: torch.Tensor, rope: KeyValue) -> torch.Tensor:
        """States (b heads tokens d) with rope (cos, sin), each (tokens d), applied."""
        return rotate(states, *rope, published_gradient=self.published_gradient)

    def replacements(self, like: torch.Tensor, injected: KeyValue) -> KeyValue:
        """The injected key and value for a batch like `like` (b heads f*H*W d), in its dtype."""
        key, value = (x.to(like).expand(len(like), *x.shape) for x in injected)
        return key, value


class CogVideoXProcessor(VideoProcessor):
    """Attention of a CogVideoX block: text and video tokens together, text first, positions on the video's alone."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Video (b f*H*W c), text (b tokens c) -> the same; image_rotary_emb (cos, sin), or one each for query, key."""
        text_tokens = encoder_hidden_states.shape[1]
        tokens = torch.cat([encoder_hidden_states, hidden_states], dim=1)
        query = _heads(attn.to_q(tokens), attn.heads)  # b heads text+f*H*W d
        own = encoder_hidden_states if self.injected is not None else tokens
        key, value = (_heads(project(own), attn.heads) for project in (attn.to_k, attn.to_v))
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)

        query_rope, key_rope = split_rope(image_rotary_emb)
        query, video_query = query[:, :, :text_tokens], query[:, :, text_tokens:]
        key, video_key = key[:, :, :text_tokens], key[:, :, text_tokens:]
        value, video_value = value[:, :, :text_tokens], value[:, :, text_tokens:]
        if query_rope is not None:
            video_query = self.rotated(video_query, query_rope)
        if self.injected is not None:
            video_key, video_value = self.replacements(video_query, self.injected)
        elif key_rope is not None:
            video_key = self.rotated(video_key, key_rope)
        video_query, video_key, video_value = self.tap(video_query, video_key, video_value)

        out = functional.scaled_dot_product_attention(
            torch.cat([query, video_query], dim=2),
            torch.cat([key, video_key], dim=2),
            torch.cat([value, video_value], dim=2),
            attn_mask=attention_mask,
        )
        out = attn.to_out[1](attn.to_out[0](_joined(out)))
        return out[:, text_tokens:], out[:, :text_tokens]


class WanProcessor(VideoProcessor):
    """Self-attention of a Wan block: video tokens alone; queries and keys are normed over all heads at once."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Any = None,
    ) -> torch.Tensor:
        """Video (b f*H*W c) -> the same; rotary_emb (cos, sin), each (1 f*H*W 1 d), or a pair each for query, key."""
        query_rope, key_rope = (wan_rope(*rope) for rope in split_rope(rotary_emb))
        query = self.rotated(_heads(attn.norm_q(attn.to_q(hidden_states)), attn.heads), query_rope)
        if self.injected is not None:
            key, value = self.replacements(query, self.injected)
        else:
            key = self.rotated(_heads(attn.norm_k(attn.to_k(hidden_states)), attn.heads), key_rope)
            value = _heads(attn.to_v(hidden_states), attn.heads)
        query, key, value = self.tap(query, key, value)
        out = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        return attn.to_out[1](attn.to_out[0](_joined(out)))


def rotate(
    states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, published_gradient: bool = False
) -> torch.Tensor:
    """Rotary positions: neighbouring channels of states (b heads tokens d) turned by cos and sin (tokens d).

    Float32 within, or float64 where states or positions are. `published_gradient`: the gradient towards cos that the
    published program has, whose in-place rotation puts the result where the unrotated states were saved for backward.
    """
    working = torch.promote_types(torch.promote_types(states.dtype, cos.dtype), torch.float32)
    even, odd = states.to(working).unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    if published_gradient:
        rotated = states.to(working) * cos.detach() + turned * sin
        rotated = rotated + rotated.detach() * (cos - cos.detach())
    else:
        rotated = states.to(working) * cos + turned * sin
    return rotated.to(states.dtype)


def split_rope(rope: Any) -> tuple[Any, Any]:
    """The (cos, sin) of queries and of keys: two pairs, one for both, or None twice."""
    if rope is None:
        return None, None
    first, second = rope
    return (rope, rope) if isinstance(first, torch.Tensor) else (first, second)


def wan_rope(cos: torch.Tensor, sin: torch.Tensor) -> KeyValue:
    """Wan's (cos, sin), each (1 tokens 1 d), as `rotate` takes them; even columns of cos, odd ones of sin are read."""
    cos, sin = cos[0, :, 0], sin[0, :, 0]  # tokens d
    return cos[:, 0::2].repeat_interleave(2, dim=1), sin[:, 1::2].repeat_interleave(2, dim=1)


def _heads(states: torch.Tensor, heads: int) -> torch.Tensor:
    return rearrange(states, "b tokens (heads d) -> b heads tokens d", heads=heads)


def _joined(states: torch.Tensor) -> torch.Tensor:
    return rearrange(states, "b heads tokens d -> b tokens (heads d)")
