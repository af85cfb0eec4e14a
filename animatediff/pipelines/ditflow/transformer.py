"""Pure functions around a video transformer: its prediction, what its blocks hold, with positions and keys put in.

The transformer is never patched: processors, hooks and flags are in force for the length of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from diffusers import ModelMixin

from animatediff.errors import UserError
from animatediff.models.hooks import capture, stop_after
from animatediff.pipelines.ditflow.attention import KeyValue, Tap
from animatediff.pipelines.ditflow.dialects import Dialect, dialect_of


class BlockState(NamedTuple):
    """What a block holds for the video tokens: query, key, value (heads f*H*W d) after norm and rope; its output."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    features: torch.Tensor  # f c H W


Injected = Mapping[int, KeyValue]


def default_positions(transformer: ModelMixin, frames: int, h: int, w: int) -> torch.Tensor:
    """The transformer's own positions for latents of `frames` frames of h x w, float32, on the CPU or its own device.

    Of a position table (CogVideoX-2b) the video's part (1 f*H*W c); of rope (CogVideoX-5b, Wan) (2 2 f*H*W d) =
    [query, key] x [cos, sin], both alike.
    """
    return dialect_of(transformer).default_positions(frames, h, w)


def predict(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    positions: torch.Tensor | None = None,
    injected: Injected | None = None,
) -> torch.Tensor:
    """The transformer's output for latents (CogVideoX: b f c h w; Wan: b c f h w), in its own dtype.

    text (b tokens dim); timestep an int (Wan: a float); positions as `default_positions` gives them, None: those.
    injected: {block: (key, value)}, each (heads f*H*W d), for every video of the batch.
    """
    dialect = dialect_of(transformer)
    check_blocks(transformer, [], injected or ())
    with in_force(dialect, latents, positions, injected):
        return dialect.run(latents, timestep, text, positions)


def read_blocks(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    blocks: Sequence[int],
    positions: torch.Tensor | None = None,
    injected: Injected | None = None,
) -> dict[int, BlockState]:
    """The states of `blocks` in one forward of latents of batch 1, arguments as in `predict`; no later block runs.

    Gradients flow through what is read, where they are enabled. In an injected block the key and value are those that
    were put in.
    """
    dialect = dialect_of(transformer)
    check_blocks(transformer, blocks, injected or (), both=True)
    grid = dialect.grid(latents)
    modules = {i: dialect.blocks[i] for i in blocks}
    with (
        in_force(dialect, latents, positions, injected, tapped=blocks) as taps,
        capture(taps) as tapped,
        capture(modules) as outputs,
        stop_after(modules[max(blocks)]),
    ):
        dialect.run(latents, timestep, text, positions)
    states = {}
    for i in sorted(blocks):
        query, key, value = (part[0] for part in tapped[i])
        states[i] = BlockState(query, key, value, dialect.features(outputs[i], grid))
    return states


def read_queries_keys(
    dialect: Dialect,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    positions: torch.Tensor | None,
    taps: Mapping[int, Tap],
) -> dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Query, key, value (heads f*H*W d) at each of `taps`; the forward ends inside the last of their blocks.

    What is already in force stays so; of the last block neither attention nor feed-forward are computed.
    """
    with capture(taps) as tapped, stop_after(taps[max(taps)]):
        dialect.run(latents, timestep, text, positions)
    return {i: tuple(part[0] for part in tapped[i]) for i in taps}


def read_features(
    dialect: Dialect,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    positions: torch.Tensor | None,
    blocks: Sequence[int],
) -> dict[int, torch.Tensor]:
    """The outputs (f c H W) of `blocks`; no later block runs. What is already in force stays so."""
    modules = {i: dialect.blocks[i] for i in blocks}
    with capture(modules) as outputs, stop_after(modules[max(blocks)]):
        dialect.run(latents, timestep, text, positions)
    grid = dialect.grid(latents)
    return {i: dialect.features(outputs[i], grid) for i in blocks}


@torch.no_grad()
def read_keys_values(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    blocks: Sequence[int],
    positions: torch.Tensor | None = None,
) -> dict[int, KeyValue]:
    """What `predict` takes as `injected`, of latents of batch 1 under text (1 tokens dim).

    The forward ends where the last of `blocks` has its keys and values.
    """
    dialect = dialect_of(transformer)
    with in_force(dialect, latents, positions, None, tapped=blocks) as taps:
        states = read_queries_keys(dialect, latents, timestep, text, positions, taps)
    return {i: (key, value) for i, (_, key, value) in states.items()}


@contextmanager
def in_force(
    dialect: Dialect,
    latents: torch.Tensor,
    positions: torch.Tensor | None,
    injected: Injected | None,
    tapped: Sequence[int] = (),
    published_gradient: bool = False,
    gradient_checkpointing: bool = False,
) -> Iterator[dict[int, Tap]]:
    """Inside the block own processors stand where something is read or replaced; elsewhere the network's.

    Yields a Tap for each of `tapped` blocks. Rope that is not the network's own needs an own processor in every block.
    gradient_checkpointing: whether the network may; where it does, backward must run inside this block too, which runs
    the blocks again. Everything is as before afterwards, also after an exception.
    """
    check_positions(dialect, latents, positions)
    injected = injected or {}
    everywhere = positions is not None and len(positions) == 2  # rope of queries and of keys
    needed = range(len(dialect.blocks)) if everywhere else {*tapped, *injected}
    taps = {i: Tap() for i in needed}
    network = dialect.transformer
    checkpointing, processors = network.gradient_checkpointing, {}
    try:
        network.gradient_checkpointing = checkpointing and gradient_checkpointing
        for i in needed:
            attention = dialect.blocks[i].attn1
            processors[i] = attention.processor
            attention.set_processor(dialect.Processor(taps[i], injected.get(i), published_gradient))
        yield {i: taps[i] for i in sorted(tapped)}
    finally:
        network.gradient_checkpointing = checkpointing
        for i, processor in processors.items():
            dialect.blocks[i].attn1.set_processor(processor)


def check_blocks(
    transformer: ModelMixin, guided: Sequence[int], injected: Sequence[int] | Mapping[int, object], both: bool = False
) -> None:
    """UserError for a block that does not exist or, without `both`, one that is guided and injected at once."""
    count = len(dialect_of(transformer).blocks)
    for what, blocks in (("guidance_blocks", guided), ("injection_blocks", injected)):
        strangers = [i for i in blocks if not 0 <= i < count]
        if strangers:
            raise UserError(f"{what} holds {strangers[0]}; this transformer has blocks 0 to {count - 1}")
    shared = sorted({*guided} & {*injected})
    if shared and not both:
        raise UserError(
            f"block {shared[0]} is in guidance_blocks and injection_blocks; its keys can be read or replaced, not both"
        )


def check_positions(dialect: Dialect, latents: torch.Tensor, positions: torch.Tensor | None) -> None:
    """UserError where positions are not made for latents of that size, length and network."""
    expected = dialect.positions_shape(dialect.grid(latents))
    if positions is not None and tuple(positions.shape) not in (expected, (1, *expected[1:])):
        raise UserError(
            f"positions have shape {list(positions.shape)}, expected {list(expected)}: they belong to another size, "
            f"number of frames or transformer"
        )
