"""MotionFollower's networks (Tu et al., arXiv 2405.20325), their published files, and their forwards.

A video UNet denoises; a pose controller adds the skeletons after its first convolution; an appearance controller adds
the source frames to its down blocks. Cross-attention sees one token per frame, the CLIP embedding of the source frame.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin, T2IAdapter, UNetMotionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.controlnets.controlnet import ControlNetConditioningEmbedding
from einops import rearrange
from torch import nn

from animatediff.errors import UserError
from animatediff.models.checkpoints import diffusers_state, load_exactly
from animatediff.models.hooks import capture, inject, stop_after
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.models.weight_files import StateDict

Features = list[torch.Tensor]
PIXELS_PER_LATENT = 8  # of both published controllers and of their VAE
_ADAPTER_PREFIX = "appearance_adapter."


class PoseController(ControlNetConditioningEmbedding, ModelMixin, ConfigMixin):
    """diffusers' condition embedding as a model of its own: skeletons (f 3 H W) in [0, 1] -> (f c h w).

    Each width after the first halves the size: the published four give 1/8.
    """

    @register_to_config
    def __init__(self, out_channels: int = 320, channels: Sequence[int] = (16, 32, 96, 256)) -> None:
        super().__init__(out_channels, 3, tuple(channels))


@dataclass(frozen=True)
class Networks:
    """The three networks of one model; all frozen, all of one dtype."""

    unet: VideoUNet
    pose_controller: PoseController
    appearance_controller: T2IAdapter

    @property
    def pixels_per_latent(self) -> int:
        """Of both controllers."""
        return self.appearance_controller.config.downscale_factor


def build_networks(config: Mapping[str, Any], pose_channels: Sequence[int] = (16, 32, 96, 256)) -> Networks:
    """Fresh networks from an SD1.5-style 2D UNet config (see `build_unet`) and the pose controller's widths.

    The UNet has motion modules in the middle too (the layout of AnimateDiff's mm_sd_v15_v2). Both controllers give as
    many pixels to a latent as the number of widths says. Weights do not ask for gradients.
    """
    unet = build_unet(config, motion_in_middle=True)
    widths = list(unet.config.block_out_channels)
    networks = Networks(
        unet,
        build_pose_controller(widths[0], pose_channels),
        build_appearance_controller(widths, 2 ** (len(pose_channels) - 1)),
    )
    for network in (networks.unet, networks.pose_controller, networks.appearance_controller):
        network.requires_grad_(False).eval()
    return networks


def build_pose_controller(out_channels: int, channels: Sequence[int] = (16, 32, 96, 256)) -> PoseController:
    """A fresh pose controller, which gives zeros until it is trained.

    `load_state_dict` takes the published poctr.pth's keys where out_channels is 320. UserError as for the class.
    """
    return PoseController(out_channels, tuple(channels))


def build_appearance_controller(channels: Sequence[int], pixels_per_latent: int = PIXELS_PER_LATENT) -> T2IAdapter:
    """A fresh appearance controller: frames (f 3 H W) in [-1, 1] -> features of the given widths at 1/8, 1/16, ..."""
    return T2IAdapter(3, list(channels), num_res_blocks=2, downscale_factor=pixels_per_latent)


def load_original_networks(
    networks: Networks,
    states: Sequence[Mapping[str, object]],
    pose_state: Mapping[str, object],
    sources: Sequence[str] | None = None,
    pose_source: str = "pose_state",
) -> None:
    """Fill all three networks from published key names; where files overlap, later ones win.

    states: any split of the spatial UNet, the motion modules (AnimateDiff's names, middle block too) and the
    appearance controller (`appearance_adapter.*`). UserError names a key that has no place, a shape that is not the
    network's, and the parameters that no file gives. sources: what to call the files in such lines.
    """
    sources = sources or [f"state {i + 1}" for i in range(len(states))]
    unet, adapter = networks.unet, networks.appearance_controller
    known = {name: value.shape for name, value in unet.state_dict().items()}
    known |= {_ADAPTER_PREFIX + name: value.shape for name, value in adapter.state_dict().items()}
    merged: StateDict = {}
    for state, source in zip(states, sources, strict=True):
        ours = {_controller_name(key): value for key, value in diffusers_state(state, source).items()}
        _refuse_strangers(ours, known, source)
        merged |= ours
    spatial = {name: value for name, value in merged.items() if not name.startswith(_ADAPTER_PREFIX)}
    appearance = {name.removeprefix(_ADAPTER_PREFIX): merged[name] for name in merged.keys() - spatial.keys()}
    together = " + ".join(sources)
    if not appearance:
        raise UserError(
            f"{together} hold no {_ADAPTER_PREFIX}* keys, the appearance controller; give MotionFollower's own "
            "denoising_unet.pth as unet_path"
        )
    load_exactly(unet, spatial, together, expected="a spatial UNet and motion modules, the middle one too")
    load_exactly(adapter, appearance, together, expected="an appearance controller (T2I adapter)")
    load_exactly(
        networks.pose_controller,
        diffusers_state(pose_state, pose_source),
        pose_source,
        expected="a pose controller (poctr)",
    )


def pose_features(controller: PoseController, poses: torch.Tensor) -> torch.Tensor:
    """Skeletons (f 3 H W) in [0, 1] -> (1 c f h w) in the controller's dtype, frame by frame."""
    weight = controller.conv_in.weight
    return rearrange(controller(poses.to(weight)), "f c h w -> 1 c f h w")


def appearance_features(controller: T2IAdapter, frames: torch.Tensor) -> Features:
    """Source frames (f 3 H W) in [-1, 1] -> one (1 c f h w) per down block, in the controller's dtype."""
    weight = controller.adapter.conv_in.weight
    return [rearrange(feature, "f c h w -> 1 c f h w") for feature in controller(frames.to(weight))]


def predict(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    pose: torch.Tensor | None = None,
    appearance: Sequence[torch.Tensor] | None = None,
    pose_scale: float = 1.0,
) -> torch.Tensor:
    """The velocity (b 4 f h w) predicted for latents (b 4 f h w), in their dtype.

    embeds (b f dim): the source frames' embeddings, or zeros for the unconditional half. pose (1 c f h w) and
    appearance (four of them) serve the whole batch; None leaves them out.
    """
    unet = networks.unet
    with conditioned(unet, image_vectors(unet, embeds), pose, appearance, pose_scale):
        return velocity(unet, latents, timestep)


def features(
    networks: Networks,
    latents: torch.Tensor,
    timestep: int,
    embeds: torch.Tensor,
    pose: torch.Tensor | None = None,
    appearance: Sequence[torch.Tensor] | None = None,
    pose_scale: float = 1.0,
) -> Features:
    """What the guidance compares: the outputs of the two inner up blocks, [(b c f h/2 w/2), (b c f h w)].

    Arguments as for `predict`. Differentiable in `latents`; the forward goes no further than the second of them.
    """
    unet = networks.unet
    with conditioned(unet, image_vectors(unet, embeds), pose, appearance, pose_scale):
        return forward_features(unet, latents, timestep)


# ------------------------------------------------------------------ one forward, piece by piece


def velocity(unet: UNetMotionModel, latents: torch.Tensor, timestep: int) -> torch.Tensor:
    """The UNet on latents (b c f h w) inside `conditioned`; computed in the UNet's dtype, returned in the latents'."""
    unused = latents.new_zeros(latents.shape[0] * latents.shape[2], 1, 1, dtype=unet.dtype)  # see `conditioned`
    return unet(latents.to(unet.dtype), timestep, unused).sample.to(latents.dtype)


def forward_features(unet: UNetMotionModel, latents: torch.Tensor, timestep: int) -> Features:
    """`features` of a UNet inside `conditioned`."""
    frames, blocks = latents.shape[2], feature_blocks(unet)
    with capture(blocks) as outputs, stop_after(list(blocks.values())[-1]):
        velocity(unet, latents, timestep)
    return captured_features(outputs, frames)


def feature_blocks(unet: UNetMotionModel) -> dict[str, nn.Module]:
    """The up blocks whose outputs, at 1/2 and 1/1 of the latents' size, the guidance compares (SD1.5: 1 and 2)."""
    last = len(unet.up_blocks) - 1
    return {f"up_blocks.{i}": unet.up_blocks[i] for i in (last - 2, last - 1)}


def captured_features(outputs: Mapping[str, torch.Tensor], frames: int) -> Features:
    """What `capture(feature_blocks(unet))` read, as videos, the smaller first."""
    return [rearrange(outputs[name], "(b f) c h w -> b c f h w", f=frames) for name in sorted(outputs)]


@contextmanager
def conditioned(
    unet: UNetMotionModel,
    vectors: Mapping[str, torch.Tensor],
    pose: torch.Tensor | None,
    appearance: Sequence[torch.Tensor] | None,
    pose_scale: float = 1.0,
    attentions: Mapping[str, nn.Module] | None = None,
) -> Iterator[None]:
    """Inside the block `unet` runs under the given conditions; a backward pass of what it gave belongs inside, too.

    vectors: see `image_vectors`; they stand for every cross-attention, whose own argument is then unused. pose x
    pose_scale is added to the output of conv_in. Appearance feature i is added in down block i between the second
    layer's spatial part and its motion module, whose residual carries it. Both are (1 c f h w), for the whole batch, or
    (b c f h w). attentions: replacements by path.
    """
    with ExitStack() as stack:
        crossed = {path: FrameVector(vector) for path, vector in vectors.items()}
        unnormed = {path.removesuffix("attn2") + "norm2": nn.Identity() for path in vectors}  # nobody reads it
        stack.enter_context(inject(unet, {**crossed, **unnormed, **(attentions or {})}))
        if pose is not None:
            addition = pose_scale * pose
            handle = unet.conv_in.register_forward_hook(lambda _module, _inputs, output: _plus(output, addition))
            stack.callback(handle.remove)
        for block, feature in zip(unet.down_blocks, appearance or (), strict=appearance is not None):
            handle = block.motion_modules[1].register_forward_pre_hook(_adder(feature))
            stack.callback(handle.remove)
        yield


class FrameVector(nn.Module):
    """Stands for a cross-attention whose context is one token per frame: adds that token's vector, whatever is asked.

    The softmax over a single key is 1, so attention gives to_out(to_v(token)) to every query, exactly.
    """

    def __init__(self, vector: torch.Tensor) -> None:
        super().__init__()
        self.vector = vector  # ((b f) 1 c)

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        """hidden_states ((b f) tokens c) -> ((b f) 1 c)."""
        return self.vector


@torch.no_grad()
def image_vectors(unet: UNetMotionModel, embeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """What each cross-attention of `unet` adds under embeds (b f dim), by the attention's path: ((b f) 1 c)."""
    return {path: _vector(attention, embeds) for path, attention in spatial_attentions(unet, "attn2").items()}


def spatial_attentions(unet: UNetMotionModel, name: str, parts: Sequence[str] = ()) -> dict[str, Attention]:
    """The spatial attentions called `name` (attn1: self, attn2: cross) by path, in the order in which they run.

    parts: only those under these names ("up_blocks"); all where empty.
    """
    stages = {
        **{f"down_blocks.{i}": block for i, block in enumerate(unet.down_blocks)},
        "mid_block": unet.mid_block,
        **{f"up_blocks.{i}": block for i, block in enumerate(unet.up_blocks)},
    }
    return {
        f"{stage}.attentions.{i}.transformer_blocks.{j}.{name}": getattr(block, name)
        for stage, part in stages.items()
        if not parts or stage.startswith(tuple(parts))
        for i, transformer in enumerate(getattr(part, "attentions", ()))
        for j, block in enumerate(transformer.transformer_blocks)
    }


def _vector(attention: Attention, embeds: torch.Tensor) -> torch.Tensor:
    weight = attention.to_v.weight
    device = embeds.device if weight.is_meta else weight.device  # an offloaded network may lie elsewhere
    tokens = rearrange(embeds, "b f dim -> (b f) 1 dim").to(device, weight.dtype)
    return attention.to_out[0](attention.to_v(tokens)).to(embeds.device)


def _plus(hidden: torch.Tensor, addition: torch.Tensor) -> torch.Tensor:
    """hidden ((b f) c h w) + addition (b c f h w), or (1 c f h w), the same for the whole batch."""
    frames = addition.shape[2]
    per_frame = rearrange(addition, "b c f h w -> b f c h w").to(hidden)
    return (hidden.unflatten(0, (-1, frames)) + per_frame).flatten(0, 1)  # (b f) c h w -> b f c h w -> (b f) c h w


def _adder(feature: torch.Tensor) -> Any:
    def add(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_plus(inputs[0], feature), *inputs[1:])

    return add


def _controller_name(key: str) -> str:
    """The published name of an appearance controller's key -> diffusers'; other keys as they are."""
    if not key.startswith(_ADAPTER_PREFIX):
        return key
    part, _, rest = key.removeprefix(_ADAPTER_PREFIX).partition(".")
    if part == "body" and rest.split(".")[0].isdecimal():
        number, _, rest = rest.partition(".")
        block, layer = divmod(int(number), 2)
        part = f"body.{block}" if rest.startswith("in_conv.") else f"body.{block}.resnets.{layer}"
    return f"{_ADAPTER_PREFIX}adapter.{part}.{rest}"


def original_controller_state(controller: T2IAdapter) -> StateDict:
    """The appearance controller under the names that `load_original_networks` takes."""
    return {_published_name(name): value for name, value in controller.state_dict().items()}


def _published_name(name: str) -> str:
    """The inverse of `_controller_name`, of a name inside the appearance controller."""
    part, _, rest = name.removeprefix("adapter.").partition(".")
    if part == "body":
        block, kind, inner = rest.split(".", 2)
        layer = "0"
        if kind == "resnets":
            layer, _, inner = inner.partition(".")
        else:
            inner = f"{kind}.{inner}"
        rest = f"{2 * int(block) + int(layer)}.{inner}"
    return f"{_ADAPTER_PREFIX}{part}.{rest}"


def _refuse_strangers(state: StateDict, known: Mapping[str, torch.Size], source: str) -> None:
    """UserError for the first key of one file that has no place in the networks, or not that shape."""
    for name, value in state.items():
        if name not in known:
            raise UserError(
                f"{source} has unknown key {name}; expected a spatial UNet, motion modules or {_ADAPTER_PREFIX}* of "
                "MotionFollower; is it the file of another model?"
            )
        if value.shape != known[name]:
            raise UserError(f"{source} has {name} of shape {list(value.shape)}, expected {list(known[name])}")
