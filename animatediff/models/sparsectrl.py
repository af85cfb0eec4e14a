"""SparseCtrl: a few frames given as images or sketches condition the backbone (arXiv 2311.16933).

The encoder is diffusers' SparseControlNetModel with the motion modules that its published weights were trained with.
Also here: the domain adapter, a LoRA that the image modes merge into the backbone.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import SparseControlNetModel, UNetMotionModel
from torch import nn

from animatediff.errors import UserError
from animatediff.models.checkpoints import diffusers_state, load_exactly
from animatediff.models.key_names import describe_contents
from animatediff.models.motion_module import MotionModule
from animatediff.models.unet import MAX_FRAMES
from animatediff.models.weight_files import StateDict, unwrap

LATENT_CHANNELS, PIXEL_CHANNELS = 4, 3


class SparseControlNet(SparseControlNetModel):
    """diffusers' SparseControlNetModel with motion modules that normalise each frame by itself."""

    @functools.wraps(SparseControlNetModel.__init__)  # type: ignore[misc]  # diffusers reads the config's keys off it
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for block in self.down_blocks:
            block.motion_modules = nn.ModuleList(MotionModule.adopt(stock) for stock in block.motion_modules)

    @property
    def takes_latents(self) -> bool:
        """True of the rgb encoder, whose condition is VAE latents; False of the sketch encoder, which takes pixels."""
        return self.config.use_simplified_condition_embedding


@dataclass(frozen=True)
class SparseControl:
    """An encoder with its condition: gives the backbone's residuals for any batch of prompts at any timestep."""

    encoder: SparseControlNet
    condition: torch.Tensor  # (1 c f h w): latents, or pixels in [0, 1]; zero where there is no condition
    mask: torch.Tensor  # (1 1 f h w): one at the conditioned frames
    scale: float = 1.0

    @torch.no_grad()
    def __call__(
        self, latents: torch.Tensor, timestep: torch.Tensor | int, text: torch.Tensor
    ) -> dict[str, torch.Tensor | tuple[torch.Tensor, ...]]:
        """The backbone's keyword arguments. Of latents (b c f h w) only the shape counts; text ((b f) tokens dim)."""
        batch = len(latents)
        condition, mask = (x.to(latents).expand(batch, *x.shape[1:]) for x in (self.condition, self.mask))
        down, middle = self.encoder(
            latents, timestep, text, condition, self.scale, conditioning_mask=mask, return_dict=False
        )
        return {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}


def place_condition(
    encoder: SparseControlNet, images: torch.Tensor, image_index: Sequence[int], num_frames: int, scale: float = 1.0
) -> SparseControl:
    """The SparseControl of images (n c h w) standing at the frames `image_index` of `num_frames`.

    The images are scaled VAE latents for the rgb encoder, pixels in [0, 1] for the sketch encoder. UserError where
    images and indices do not pair up, or an index is repeated or outside the video.
    """
    check_image_index(len(images), image_index, num_frames)
    _, channels, height, width = images.shape
    condition = images.new_zeros(1, channels, num_frames, height, width)
    mask = images.new_zeros(1, 1, num_frames, height, width)
    condition[0, :, list(image_index)] = images.transpose(0, 1)  # n c h w -> c n h w
    mask[:, :, list(image_index)] = 1
    return SparseControl(encoder, condition, mask, scale)


def check_image_index(images: int, image_index: Sequence[int], num_frames: int) -> None:
    """UserError unless `image_index` gives each of the images a frame of its own in a video of `num_frames`."""
    if not images:
        raise UserError("no condition image is given; name one or more in condition_image_paths")
    if images != len(image_index):
        raise UserError(
            f"image_index is {list(image_index)} for {images} condition image{'s' * (images != 1)}; "
            "expected one frame number per image"
        )
    outside = [i for i in image_index if not 0 <= i < num_frames]
    if outside:
        raise UserError(f"image_index has {outside[0]}, expected frame numbers 0 to {num_frames - 1}")
    if len(set(image_index)) < len(image_index):
        raise UserError(f"image_index {list(image_index)} repeats a frame; expected one image per frame")


def build_sparsectrl(unet: UNetMotionModel, takes_latents: bool) -> SparseControlNet:
    """A SparseControlNet to go with `unet`, on meta tensors: the rgb encoder (takes latents) or the sketch encoder."""
    config = unet.config
    shared = ("block_out_channels", "layers_per_block", "cross_attention_dim", "norm_num_groups", "norm_eps")
    with init_empty_weights():
        return SparseControlNet(
            **{key: config[key] for key in (*shared, "down_block_types", "use_linear_projection")},
            conditioning_channels=LATENT_CHANNELS if takes_latents else PIXEL_CHANNELS,
            num_attention_heads=config.num_attention_heads or config.attention_head_dim,
            motion_max_seq_length=MAX_FRAMES,
            use_simplified_condition_embedding=takes_latents,
        )


def load_original_sparsectrl(
    unet: UNetMotionModel, state_dict: Mapping[str, object], source: str = "state_dict"
) -> SparseControlNet:
    """The encoder that a published SparseCtrl file describes (rgb or scribble, told by its keys), for `unet`.

    In the dtype and on the device of `unet`, without gradient. UserError for any other file.
    """
    state = diffusers_state(state_dict, source)
    embedding = [key for key in state if key.startswith("controlnet_cond_embedding.")]
    if not embedding:
        raise UserError(f"{source} is no SparseCtrl encoder (no controlnet_cond_embedding); {_looks(state)}")
    encoder = build_sparsectrl(unet, takes_latents="controlnet_cond_embedding.weight" in embedding)
    load_exactly(nn.Module.to(encoder, unet.dtype), state, source, expected="a SparseCtrl encoder for this backbone")
    return nn.Module.to(encoder, unet.device).requires_grad_(False).eval()


def merge_domain_adapter(
    unet: UNetMotionModel, state_dict: Mapping[str, object], scale: float = 1.0, source: str = "state_dict"
) -> None:
    """Add a published domain adapter to `unet` for good: W += scale up @ down on spatial attn1 and attn2.

    Keys are `<attention>.processor.to_q_lora.down.weight` (and to_k, to_v, to_out; up). UserError for any other
    file; then nothing is changed.
    """
    state = unwrap(state_dict, source)
    weights = dict(unet.named_parameters())
    updates = {}
    for key in state:
        if not key.endswith(".down.weight"):
            continue
        down, up = state[key], state.get(key.replace(".down.", ".up."))
        path = key.replace(".processor.", ".").removesuffix("_lora.down.weight")
        path = f"{path}.0.weight" if path.endswith(".to_out") else f"{path}.weight"
        if up is None or path not in weights:
            raise UserError(f"{source} has no place for {key} in this backbone; expected a domain adapter (LoRA)")
        if (up.shape[0], down.shape[1]) != weights[path].shape or up.shape[1] != down.shape[0]:
            raise UserError(
                f"{source} has shapes {list(up.shape)} @ {list(down.shape)} for {key}, "
                f"expected the product to be {list(weights[path].shape)}"
            )
        updates[path] = scale * up.float() @ down.float()
    if not updates or 2 * len(updates) != len(state):
        raise UserError(f"{source} is no domain adapter (LoRA with up and down weights); {_looks(state)}")
    with torch.no_grad():
        for path, update in updates.items():
            weights[path].copy_(weights[path].float() + update.to(weights[path].device))


def _looks(state: StateDict) -> str:
    return f"it looks like {describe_contents(state)}"
