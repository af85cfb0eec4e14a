"""What differs between the video transformers that DiTFlow runs on: one small object for each, found by `dialect_of`.

Everything else in this package asks a dialect and has no branch on the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from diffusers import CogVideoXTransformer3DModel, ModelMixin, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock
from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid
from einops import rearrange
from torch import nn

from animatediff.errors import UserError
from animatediff.pipelines.ditflow.attention import CogVideoXProcessor, VideoProcessor, WanProcessor

# Frames, rows and columns of the token grid.
Grid = tuple[int, int, int]


class Dialect(ABC):
    """How one kind of video transformer lays out its tensors and takes its positions.

    Latents are in the network's own order. Positions: for a table (1 f*H*W c), for rope (2 2 f*H*W d) =
    [query, key] x [cos, sin].
    """

    Processor: ClassVar[type[VideoProcessor]]
    blocks: Sequence[CogVideoXBlock | WanTransformerBlock]
    patch: int
    knows_published_gradient: ClassVar[bool] = False

    def __init__(self, transformer: ModelMixin) -> None:
        self.transformer = transformer

    @abstractmethod
    def frames_height_width(self, latents: torch.Tensor) -> Grid:
        """Frames, height and width of latents."""

    @abstractmethod
    def default_positions(self, frames: int, height: int, width: int) -> torch.Tensor:
        """The network's own positions for latents of that size, float32."""

    @abstractmethod
    def shared_positions(self, frames: int, height: int, width: int, device: torch.device | str) -> torch.Tensor | None:
        """The same, made once for many forwards: rope as (1 2 f*H*W d), for queries and keys alike.

        None where the network's forward has them at hand anyway.
        """

    @abstractmethod
    def positions_shape(self, grid: Grid) -> tuple[int, ...]:
        """The shape of `default_positions` on a token grid."""

    @abstractmethod
    def run(self, latents: torch.Tensor, timestep: float, text: torch.Tensor, positions: torch.Tensor | None) -> Any:
        """One forward under `text` (b tokens dim), with what is in force; positions None: the network's own."""

    @abstractmethod
    def time_key(self, i: int, timestep: float) -> int:
        """Under which number saved positions of step `i` are kept."""

    def grid(self, latents: torch.Tensor) -> Grid:
        """The token grid of latents; UserError where patches do not divide it."""
        frames, height, width = self.frames_height_width(latents)
        if height % self.patch or width % self.patch:
            raise UserError(
                f"latents are {height}x{width}, expected multiples of {self.patch}, the transformer's patch size"
            )
        return frames, height // self.patch, width // self.patch

    def features(self, output: Any, grid: Grid) -> torch.Tensor:
        """A block's output for the video tokens of the one video of a batch, as (f c H W)."""
        video = output[0] if isinstance(output, tuple) else output
        frames, height, width = grid
        return rearrange(video[0], "(f h w) c -> f c h w", f=frames, h=height, w=width)

    def _batch(self, latents: torch.Tensor, text: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = self.transformer.dtype
        return latents.to(dtype), text.to(latents.device, dtype)


class CogVideoX(Dialect):
    """CogVideoX: latents (b f c h w); 2b with a position table, 5b with rope."""

    Processor = CogVideoXProcessor
    knows_published_gradient = True

    def __init__(self, transformer: CogVideoXTransformer3DModel) -> None:
        super().__init__(transformer)
        self.config = transformer.config
        self.blocks = transformer.transformer_blocks
        self.patch = self.config.patch_size
        self.has_rope = self.config.use_rotary_positional_embeddings
        if self.config.patch_size_t is not None:
            raise UserError("this is CogVideoX 1.5 (patch_size_t is set); DiTFlow runs on CogVideoX-2b and -5b")
        if self.config.in_channels != self.config.out_channels or self.config.use_learned_positional_embeddings:
            raise UserError("this is an image-to-video CogVideoX; DiTFlow runs on text-to-video: CogVideoX-2b and -5b")

    def frames_height_width(self, latents: torch.Tensor) -> Grid:
        return latents.shape[1], latents.shape[3], latents.shape[4]

    def positions_shape(self, grid: Grid) -> tuple[int, ...]:
        tokens = grid[0] * grid[1] * grid[2]
        config = self.config
        if self.has_rope:
            return 2, 2, tokens, config.attention_head_dim
        return 1, tokens, config.num_attention_heads * config.attention_head_dim

    def default_positions(self, frames: int, height: int, width: int) -> torch.Tensor:
        if not self.has_rope:
            embed = self.transformer.patch_embed
            video = self.config.temporal_compression_ratio * (frames - 1) + 1
            table = embed._get_positional_embeddings(height, width, video)  # 1 text+f*H*W c
            return table[:, embed.max_text_seq_length :].float()
        grid = height // self.patch, width // self.patch
        crop = get_resize_crop_region_for_grid(
            grid, self.config.sample_width // self.patch, self.config.sample_height // self.patch
        )
        rope = get_3d_rotary_pos_embed(self.config.attention_head_dim, crop, grid, frames)
        return torch.stack([torch.stack(rope)] * 2).float()

    def shared_positions(self, frames: int, height: int, width: int, device: torch.device | str) -> torch.Tensor:
        return self.default_positions(frames, height, width)[:1].to(device)

    def run(self, latents: torch.Tensor, timestep: float, text: torch.Tensor, positions: torch.Tensor | None) -> Any:
        if positions is None:
            positions = self.shared_positions(*self.frames_height_width(latents), latents.device)
        batch, text = self._batch(latents, text)
        time = torch.full((len(batch),), int(timestep), device=batch.device)
        if self.has_rope:
            pairs = tuple(tuple(pair) for pair in positions)  # [query, key] x [cos, sin], each (f*H*W d)
            rope = pairs[0] if len(pairs) == 1 else pairs
            return self.transformer(batch, text, time, image_rotary_emb=rope, return_dict=False)[0]
        with self.table_in_force(positions, text.shape[1]):
            return self.transformer(batch, text, time, return_dict=False)[0]

    def time_key(self, i: int, timestep: float) -> int:
        return int(timestep)

    @contextmanager
    def table_in_force(self, table: torch.Tensor, text_tokens: int) -> Iterator[None]:
        """Inside the block, `table` (1 f*H*W c) is added to the video's patches in the place of the network's own.

        (b f*H*W c): to each video of a batch its own.
        """
        embed = self.transformer.patch_embed

        def add(_embed: nn.Module, _inputs: Any, patches: torch.Tensor) -> torch.Tensor:
            text, video = patches[:, :text_tokens], patches[:, text_tokens:]
            return torch.cat([text, video + table.to(video)], dim=1)

        before, embed.use_positional_embeddings = embed.use_positional_embeddings, False
        handle = embed.register_forward_hook(add)
        try:
            yield
        finally:
            handle.remove()
            embed.use_positional_embeddings = before


class Wan(Dialect):
    """Wan 2.1 text-to-video: latents (b c f h w), rope made inside the network."""

    Processor = WanProcessor

    def __init__(self, transformer: WanTransformer3DModel) -> None:
        super().__init__(transformer)
        self.config = transformer.config
        self.blocks = transformer.blocks
        self.patch = self.config.patch_size[1]
        if tuple(self.config.patch_size) != (1, self.patch, self.patch):
            raise UserError(
                f"the transformer's patch_size is {list(self.config.patch_size)}, expected one frame a token"
            )
        if self.config.image_dim is not None or self.config.in_channels != self.config.out_channels:
            raise UserError("this is an image-to-video Wan; DiTFlow runs on text-to-video: Wan2.1-T2V-1.3B and -14B")

    def frames_height_width(self, latents: torch.Tensor) -> Grid:
        return latents.shape[2], latents.shape[3], latents.shape[4]

    def positions_shape(self, grid: Grid) -> tuple[int, ...]:
        return 2, 2, grid[0] * grid[1] * grid[2], self.config.attention_head_dim

    def default_positions(self, frames: int, height: int, width: int) -> torch.Tensor:
        cos, sin = self.transformer.rope(torch.empty(1, 1, frames, height, width, device="meta"))  # 1 f*H*W 1 d
        return torch.stack([torch.stack([cos[0, :, 0], sin[0, :, 0]])] * 2).float()

    def shared_positions(self, frames: int, height: int, width: int, device: torch.device | str) -> None:
        return None

    def run(self, latents: torch.Tensor, timestep: float, text: torch.Tensor, positions: torch.Tensor | None) -> Any:
        batch, text = self._batch(latents, text)
        time = torch.full((len(batch),), float(timestep), device=batch.device)
        with self._rope(positions):
            return self.transformer(batch, time, text, return_dict=False)[0]

    def time_key(self, i: int, timestep: float) -> int:
        return i

    @contextmanager
    def _rope(self, positions: torch.Tensor | None) -> Iterator[None]:
        """Inside the block, `positions` stand for the network's own rope."""
        if positions is None:
            yield
            return
        pairs = tuple(tuple(part[None, :, None] for part in pair) for pair in positions)  # each (1 tokens 1 d)
        handle = self.transformer.rope.register_forward_hook(lambda *_: pairs)
        try:
            yield
        finally:
            handle.remove()


DIALECTS = {CogVideoXTransformer3DModel: CogVideoX, WanTransformer3DModel: Wan}


def dialect_of(transformer: ModelMixin) -> Dialect:
    """The dialect of a CogVideoXTransformer3DModel or a WanTransformer3DModel; UserError for another network."""
    for network, dialect in DIALECTS.items():
        if isinstance(transformer, network):
            return dialect(transformer)
    known = " or ".join(network.__name__ for network in DIALECTS)
    raise UserError(f"the transformer is a {type(transformer).__name__}, expected a {known}")
