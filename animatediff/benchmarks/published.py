"""The published scheme, for comparison: two UNets in memory, features through a file, nothing computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNetMotionModel
from diffusers.models.attention import BasicTransformerBlock
from einops import rearrange
from safetensors.torch import load_file, save_file
from torch import nn

from animatediff.models.adapter import Adapter, Reference
from animatediff.models.hooks import inject
from animatediff.models.integration import Site, SiteFeatures


class DirectBlock(nn.Module):
    """The same temporal block as IntegratedBlock, by the equations as they are written (EfficientMT, section 3).

    In every step: the scale map from [y, r], then k and v of all 2f tokens [y + p, a r + p].
    """

    def __init__(self, block: BasicTransformerBlock, site: Site, reference: SiteFeatures) -> None:
        super().__init__()
        assert site.scaler is not None  # the published scheme always has one
        self.block, self.site, self.scaler, self.reference = block, site, site.scaler, reference

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """hidden_states ((n b h w) f c), b the reference's batch; returns the same shape."""
        block, x = self.block, hidden_states
        stages = ((block.norm1, block.attn1), (block.norm2, block.attn2))
        for (norm, attention), own, r in zip(stages, self.site.projections, self.reference.features, strict=True):
            y = norm(x)
            r = r.repeat(len(y) // len(r), 1, 1)  # ((n b h w) f c)
            a = self.scaler(y, r, self.reference.size)
            query = block.pos_embed(y)
            context = torch.cat([query, block.pos_embed(a * r)], dim=1)  # ((n b h w) 2f c)
            q, k, v = (
                rearrange(tokens, "n f (heads d) -> n heads f d", heads=attention.heads)
                for tokens in (own.to_q(query), own.to_k(context), own.to_v(context))
            )
            out = rearrange(F.scaled_dot_product_attention(q, k, v), "n heads f d -> n f (heads d)")
            x = x + attention.to_out[0](out)
        return x + block.ff(block.norm3(x))


@contextmanager
def directly(unet: UNetMotionModel, adapter: Adapter, reference: Reference) -> Iterator[None]:
    """As `integrated`, with DirectBlocks: inside the block `unet` generates under `reference`."""
    blocks = {
        path: DirectBlock(unet.get_submodule(path), site, reference.sites[path]) for path, site in adapter.named_sites()
    }
    with inject(unet, blocks):
        yield


def move_into(unet: UNetMotionModel, adapter: Adapter) -> None:
    """Give `unet` the adapter's projections in place of its own: a second network that holds the trained ones."""
    for path, site in adapter.named_sites():
        block = unet.get_submodule(path)
        for own, attention in zip(site.attentions, (block.attn1, block.attn2), strict=True):
            attention.to_q, attention.to_k, attention.to_v = own.to_q, own.to_k, own.to_v


def save_features(reference: Reference, path: Path) -> None:
    """Write the features of a reference to a file."""
    features = {
        f"{name}.{i}": r.contiguous() for name, site in reference.sites.items() for i, r in enumerate(site.features)
    }
    save_file(features, path)


def load_features(path: Path, like: Reference, device: str) -> Reference:
    """The reference whose features lie in the file; sizes are those of `like`."""
    features = load_file(path, device=device)
    sites = {
        name: SiteFeatures((features[f"{name}.0"], features[f"{name}.1"]), site.size)
        for name, site in like.sites.items()
    }
    return Reference(sites, like.num_frames, like.latent_size)
