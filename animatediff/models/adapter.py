"""The trainable whole: where the reference enters, what is trained there; EfficientMT = frozen backbone + adapter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import torch
from diffusers import ModelMixin, UNetMotionModel
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.attention import BasicTransformerBlock
from torch import nn

from animatediff.config import nearest
from animatediff.errors import UserError
from animatediff.models.free_noise import shallow_copy, unwrapped, unwrapped_path, whole_clip_blocks
from animatediff.models.hooks import capture, inject, injected_paths
from animatediff.models.integration import IntegratedBlock, Site, SiteFeatures

SITES = ("up", "up_1", "up_2", "midup", "full")
PARTS = ("to_q", "to_k", "to_v", "scaler")


@dataclass(frozen=True)
class Reference:
    """The motion of one reference clip: features per site (path of its temporal block), extracted once."""

    sites: Mapping[str, SiteFeatures]
    num_frames: int
    latent_size: tuple[int, int]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Reference:
        """This reference on another device, in another dtype, or both."""
        return replace(self, sites={path: site.to(device, dtype) for path, site in self.sites.items()})


class Adapter(ModelMixin, ConfigMixin):
    """All trained weights, keyed by the path of the temporal block that each site stands at.

    `overrides` are weights of a published checkpoint that differ from the backbone's outside the sites'
    projections. They act in generation only, never in the reference pass, and are not trained.
    """

    _supports_gradient_checkpointing = False
    _skip_layerwise_casting_patterns = ("scaler",)  # whose first convolution is used in two parts

    @register_to_config
    def __init__(
        self,
        site_channels: dict[str, int],
        use_scaler: bool = True,
        scaler_bias: float = 0.0,
        override_shapes: dict[str, list[int]] | None = None,
        trained_steps: int | None = 0,
    ) -> None:
        """site_channels: path -> channels. scaler_bias: start of the last bias. override_shapes: path -> shape.

        trained_steps: optimizer steps behind these weights, 0 for a fresh adapter, None where a file does not tell.
        """
        super().__init__()
        self.sites = nn.ModuleDict(
            {_to_key(path): Site(dim, use_scaler, scaler_bias) for path, dim in site_channels.items()}
        )
        self.overrides = nn.ParameterDict()
        self.set_overrides({path: torch.empty(shape) for path, shape in (override_shapes or {}).items()})

    @classmethod
    def for_unet(
        cls, unet: UNetMotionModel, sites: str = "up", use_scaler: bool = True, scaler_bias: float = 0.0
    ) -> Self:
        """A fresh adapter: projections start as copies of the backbone's, the scale map at sigmoid(scaler_bias - 5)."""
        paths = site_paths(unet, sites)
        dims = {path: _temporal_block(unet, path).attn1.to_q.in_features for path in paths}
        adapter = cls(dims, use_scaler, scaler_bias)
        for path, site in adapter.named_sites():
            block = _temporal_block(unet, path)
            for own, attention in zip(site.attentions, (block.attn1, block.attn2), strict=True):
                for name in ("to_q", "to_k", "to_v"):
                    getattr(own, name).load_state_dict(getattr(attention, name).state_dict())
        return nn.Module.to(adapter, unet.device, unet.dtype)

    def named_sites(self) -> Iterator[tuple[str, Site]]:
        """(path of the backbone's temporal block, Site), in the order of the backbone."""
        for key, site in self.sites.items():
            yield _to_path(key), cast("Site", site)

    def named_overrides(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(path of the backbone's parameter, value that replaces it in generation)."""
        for key, value in self.overrides.items():
            yield _to_path(key), value

    def set_overrides(self, values: Mapping[str, torch.Tensor]) -> None:
        """Replace all overrides: path of a backbone parameter -> the value it has in generation."""
        self.overrides = nn.ParameterDict(
            {_to_key(path): nn.Parameter(value.clone(), requires_grad=False) for path, value in values.items()}
        )
        self.register_to_config(override_shapes={path: list(value.shape) for path, value in values.items()})

    def part(self, name: str) -> list[nn.Parameter]:
        """The parameters of one of PARTS over all sites (the paper's ablations train some of them)."""
        return [parameter for key, parameter in self.sites.named_parameters() if f".{name}." in key]


def site_paths(unet: UNetMotionModel, sites: str) -> list[str]:
    """Paths of the temporal transformer blocks that `sites` (one of SITES) names. UserError otherwise.

    up: all upsampling blocks; up_1: the second one; up_2: the second and third; midup: middle and up; full: all.
    """
    ups = [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    downs = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    mid = [("mid_block", unet.mid_block)]
    stages = {"up": ups, "up_1": ups[1:2], "up_2": ups[1:3], "midup": mid + ups, "full": downs + mid + ups}
    if sites not in stages:
        raise UserError(f"sites '{sites}' does not exist; {nearest(sites, SITES)}")
    return [
        f"{name}.motion_modules.{i}.transformer_blocks.{j}"
        for name, stage in stages[sites]
        for i, module in enumerate(getattr(stage, "motion_modules", ()))
        for j in range(len(module.transformer_blocks))
    ]


def _temporal_block(unet: UNetMotionModel, path: str) -> BasicTransformerBlock:
    """The backbone's temporal transformer block at `path`, out of the wrapper of split inference."""
    return cast("BasicTransformerBlock", unwrapped(unet.get_submodule(path)))


@torch.no_grad()
def extract(
    unet: UNetMotionModel, adapter: Adapter, latents: torch.Tensor, timestep: torch.Tensor | int, text: torch.Tensor
) -> Reference:
    """One forward of the untouched backbone on the noised reference; keeps r_1 and r_2 at every site (section 3.1).

    latents (b c f h w), noised to `timestep`; text (b tokens dim), of the empty prompt. The whole clip is seen at once,
    also where FreeNoise has generation see windows. RuntimeError where the backbone is generating under a reference.
    """
    if injected_paths(unet):
        raise RuntimeError("the backbone is generating, and the reference pass needs it untouched: extract before or after")
    num_frames = latents.shape[2]
    paths = [path for path, _ in adapter.named_sites()]
    replaced = whole_clip_blocks(unet, num_frames)
    conditions: dict[str, Any] = {}
    if unet.encoder_hid_proj is not None:  # an IP-Adapter, whose image prompt is for generation
        replaced["encoder_hid_proj"], conditions = _NoImage(), {"added_cond_kwargs": {"image_embeds": []}}
    with inject(unet, replaced):
        blocks = {path: unet.get_submodule(path) for path in paths}
        norms = {f"{path}.{i}": norm for path, b in blocks.items() for i, norm in enumerate((b.norm1, b.norm2))}
        frame_norms = {path: unet.get_submodule(path.rsplit(".transformer_blocks", 1)[0]).norm for path in paths}
        with capture(norms) as features, capture(frame_norms, keep=lambda maps: tuple(maps.shape[-2:])) as sizes:
            unet(latents, timestep, text.repeat_interleave(num_frames, dim=0), **conditions)
    sites = {path: SiteFeatures((features[f"{path}.0"], features[f"{path}.1"]), sizes[path]) for path in paths}
    return Reference(sites, num_frames, (latents.shape[3], latents.shape[4]))


class _NoImage(nn.Module):
    """Stands for an IP-Adapter's projection: no image, so that its attentions add nothing."""

    def forward(self, images: list[torch.Tensor]) -> list[torch.Tensor]:
        return images


@contextmanager
def integrated(unet: UNetMotionModel, adapter: Adapter, reference: Reference) -> Iterator[None]:
    """Inside the block, `unet` generates under `reference`. What is constant over steps is computed here, once.

    UserError where the reference was extracted for other sites.
    """
    missing = [path for path, _ in adapter.named_sites() if path not in reference.sites]
    if missing:
        raise UserError(f"the reference has no features for {missing[0]}; extract it with this adapter")
    blocks = {
        path: IntegratedBlock(_temporal_block(unet, path), site, reference.sites[path])
        for path, site in adapter.named_sites()
    }
    with inject(unet, _overridden(unet, adapter)), inject(unet, blocks):
        yield


class EfficientMT(nn.Module):
    """The frozen backbone `.unet` and the trainable `.adapter` (EfficientMT, arXiv 2503.19369)."""

    def __init__(self, unet: UNetMotionModel, sites: str = "up", adapter: Adapter | None = None) -> None:
        """sites: one of SITES, for a fresh adapter; or give the `adapter` itself."""
        super().__init__()
        self.unet = unet.requires_grad_(False).eval()
        self.adapter = Adapter.for_unet(unet, sites) if adapter is None else adapter

    def extract(self, latents: torch.Tensor, timestep: torch.Tensor | int, text: torch.Tensor) -> Reference:
        """The Reference of noised latents (b c f h w) at `timestep`, text (b tokens dim): see `extract`."""
        return extract(self.unet, self.adapter, latents, timestep, text)

    def forward(
        self, latents: torch.Tensor, timestep: torch.Tensor | int, text: torch.Tensor, reference: Reference
    ) -> torch.Tensor:
        """The noise predicted for latents (b c f h w) at `timestep` () or (b,), text (b tokens dim): (b c f h w).

        The reference's batch divides b: a reference of batch 1 serves any batch.
        """
        with integrated(self.unet, self.adapter, reference):
            return self.unet(latents, timestep, text.repeat_interleave(latents.shape[2], dim=0)).sample


def _overridden(unet: UNetMotionModel, adapter: Adapter) -> dict[str, nn.Module]:
    """Copies of the backbone's modules that an override concerns, sharing every parameter that none replaces.

    A module that LoRA wraps keeps its LoRA: the copy takes the place of the wrapped base layer.
    """
    copies: dict[str, nn.Module] = {}
    for path, value in adapter.named_overrides():
        owner, _, name = path.rpartition(".")
        owner = unwrapped_path(unet, owner)
        if hasattr(unet.get_submodule(owner), "base_layer"):
            owner += ".base_layer"
        if owner not in copies:
            copies[owner] = shallow_copy(unet.get_submodule(owner))
        copies[owner]._parameters[name] = value
    for module in copies.values():  # layerwise casting keeps the others in the precision of storage
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype != unet.dtype:
                module._parameters[name] = nn.Parameter(parameter.to(unet.dtype), requires_grad=False)
    return copies


def _to_key(path: str) -> str:
    return path.replace(".", "-")


def _to_path(key: str) -> str:
    return key.replace("-", ".")
