"""Integrated temporal attention (EfficientMT, section 3.3): the reference's features join the keys and values.

At a site, y is the LayerNorm output for the video being generated, r the one kept from the reference, a the
scale map, p the frame positions: q comes from y + p; k and v from [y + p, a r + p] along frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn

from animatediff.models.free_noise import blend, frame_windows
from animatediff.models.motion_module import attend
from animatediff.models.scaler import Scaler, sinusoidal_positions


@dataclass(frozen=True)
class SiteFeatures:
    """What the reference pass keeps at one site: r_1 and r_2, each ((b h w) f c), and size = (h, w)."""

    features: tuple[torch.Tensor, torch.Tensor]
    size: tuple[int, int]

    @property
    def num_frames(self) -> int:
        return self.features[0].shape[1]

    def frames(self, start: int, stop: int) -> SiteFeatures:
        """The features of the frames from `start` to before `stop`."""
        first, second = (r[:, start:stop] for r in self.features)
        return SiteFeatures((first, second), self.size)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SiteFeatures:
        """These features on another device, in another dtype, or both."""
        first, second = (r.to(device=device, dtype=dtype) for r in self.features)
        return SiteFeatures((first, second), self.size)


class KeyValueCache(NamedTuple):
    """The reference's keys and values for one attention; constant over sampling steps and guidance halves."""

    key: torch.Tensor  # K(r), ((b h w) f c)
    value: torch.Tensor  # V(r), ((b h w) f c)
    position_key: torch.Tensor  # K(p), (1 f c)
    position_value: torch.Tensor  # V(p), (1 f c)
    scaler_half: torch.Tensor | None  # ((b f) c/4 h w); None without a scaler


class Projections(nn.Module):
    """The adapter's own to_q, to_k, to_v of one temporal attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(dim, dim, bias=False)
        self.to_k = nn.Linear(dim, dim, bias=False)
        self.to_v = nn.Linear(dim, dim, bias=False)


class Site(nn.Module):
    """The trained weights at one temporal transformer block: two attentions' projections and the scaler they share."""

    def __init__(self, dim: int, use_scaler: bool = True, scaler_bias: float = 0.0) -> None:
        super().__init__()
        self.attentions = nn.ModuleList(Projections(dim) for _ in range(2))
        self.scaler = Scaler(dim, scaler_bias) if use_scaler else None

    @property
    def projections(self) -> Sequence[Projections]:
        """Those of both attentions."""
        return cast("Sequence[Projections]", self.attentions)

    def cache(self, reference: SiteFeatures) -> tuple[KeyValueCache, ...]:
        """The KeyValueCache of both attentions. K(a r + p) = a K(r) + K(p): k and v have no bias, a is a number."""
        caches = []
        for projections, r in zip(self.projections, reference.features, strict=True):
            p = sinusoidal_positions(r.shape[1], r.shape[2], r)
            half = self.scaler.reference_half(r, reference.size) if self.scaler is not None else None
            k, v = projections.to_k, projections.to_v
            caches.append(KeyValueCache(k(r), v(r), k(p), v(p), half))
        return tuple(caches)

    def scale_map(self, y: torch.Tensor, cache: KeyValueCache, size: tuple[int, int]) -> torch.Tensor:
        """a ((b h w) f 1) for y ((b h w) f c); without a scaler the reference enters whole, a = 1."""
        if self.scaler is None:
            return torch.ones_like(y[..., :1])
        assert cache.scaler_half is not None  # `cache` made it: there is a scaler
        return self.scaler.scale_map(y, cache.scaler_half, size)


class IntegratedBlock(nn.Module):
    """A temporal transformer block whose attentions see the reference.

    Norms, positions, output projections and feed-forward are the backbone block's; q, k, v and the scale map are
    the site's. Built for one reference and put in the block's place for the length of a sampling run.
    """

    def __init__(self, block: BasicTransformerBlock, site: Site, reference: SiteFeatures) -> None:
        super().__init__()
        self.block = block
        self.site = site
        self.size = reference.size
        self.windows = frame_windows(block, reference.num_frames)  # one, the whole clip, without FreeNoise
        self.caches = [site.cache(reference.frames(w.start, w.stop)) for w in self.windows]

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """hidden_states ((n b h w) f c), b the reference's batch; returns the same shape."""
        if len(self.windows) == 1:
            x = self._attend(hidden_states, self.caches[0])
        else:
            pairs = zip(self.windows, self.caches, strict=True)
            parts = (self._attend(hidden_states[:, w.start : w.stop], caches) for w, caches in pairs)
            x = blend(parts, self.windows)
        return x + self.block.ff(self.block.norm3(x))

    def _attend(self, x: torch.Tensor, caches: tuple[KeyValueCache, ...]) -> torch.Tensor:
        block = self.block
        stages = ((block.norm1, block.attn1), (block.norm2, block.attn2))
        for (norm, attention), projections, cache in zip(stages, self.site.projections, caches, strict=True):
            y = norm(x)
            a = self.site.scale_map(y, cache, self.size)
            x = x + integrated_attention(block.pos_embed(y), a, attention, projections, cache)
        return x


def integrated_attention(
    y: torch.Tensor, a: torch.Tensor, attention: Attention, projections: Projections, cache: KeyValueCache
) -> torch.Tensor:
    """Attention from y + p over [y + p, a r + p] (EfficientMT, section 3.3).

    y: ((n b h w) f c), positions already added. a: ((n b h w) f 1). attention: the backbone's, for its heads and
    output projection. Returns ((n b h w) f c).
    """
    q = projections.to_q(y)
    k = torch.cat([projections.to_k(y), _scaled(a, cache.key, cache.position_key)], dim=1)  # (n b h w) 2f c
    v = torch.cat([projections.to_v(y), _scaled(a, cache.value, cache.position_value)], dim=1)
    out = attend(q, k, v, attention.heads)
    for layer in attention.to_out:
        out = layer(out)
    return out


def _scaled(a: torch.Tensor, projected: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
    """a W(r) + W(p), with the reference's batch repeated to a's: ((n b h w) f c)."""
    return torch.addcmul(position, a.unflatten(0, (-1, len(projected))), projected).flatten(0, 1)
