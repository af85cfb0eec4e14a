"""Tiny video transformers of every kind that DiTFlow runs on, and the published numbers of one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    WanTransformer3DModel,
)
from torch import nn

from animatediff.pipelines.ditflow import default_positions
from tests.goldens import GOLDEN, fill, golden, relative_error

DITFLOW = GOLDEN / "ditflow"
PUBLISHED = json.loads((DITFLOW / "manifest.json").read_text())["network"]
KINDS = ("2b", "5b", "wan")

COGVIDEOX = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "time_embed_dim": 16,
    "text_embed_dim": 12,
    "num_layers": 3,
    "sample_width": 12,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 6,
}
WAN = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 64,
    "num_layers": 3,
    "rope_max_seq_len": 32,
}
# Trailing timesteps, zero terminal SNR: what both CogVideoX kinds are run with.
COGVIDEOX_SCHEDULE = {key: value for key, value in PUBLISHED["scheduler"].items() if key != "cls"}
FRAMES, HEIGHT, WIDTH, TOKENS = 3, 8, 12, 6


def number(name: str) -> torch.Tensor:
    """One stored tensor of the published program."""
    return golden(name, DITFLOW)


def error(out: torch.Tensor, name: str) -> float:
    """Its relative error."""
    return relative_error(out, name, DITFLOW)


def change_error(out: torch.Tensor, start: torch.Tensor, name: str) -> float:
    """The relative error of the change from `start`."""
    step = int(name.rpartition("@")[2]) if "@" in name else 1
    want = number(name).flatten().double() - start.flatten()[::step].double()
    have = (out - start).flatten()[::step].double()
    return ((have - want).norm() / want.norm()).item()


def published_network() -> CogVideoXTransformer3DModel:
    """The network of the published numbers, every weight by `fill`, frozen."""
    network = CogVideoXTransformer3DModel(**PUBLISHED["transformer_config"])
    network.load_state_dict({key: fill(key, tuple(value.shape)) for key, value in network.state_dict().items()})
    return network.requires_grad_(False).eval()


def tiny(kind: str, **changes: Any) -> nn.Module:
    """A tiny transformer of a kind (2b, 5b, wan), random and frozen, whose every weight matters."""
    torch.manual_seed(0)
    if kind == "wan":
        network = WanTransformer3DModel(**WAN | changes)
    else:
        network = CogVideoXTransformer3DModel(**COGVIDEOX | changes, use_rotary_positional_embeddings=kind == "5b")
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return network.requires_grad_(False).eval()


def scheduler_of(kind: str) -> CogVideoXDDIMScheduler | CogVideoXDPMScheduler | FlowMatchEulerDiscreteScheduler:
    if kind == "wan":
        return FlowMatchEulerDiscreteScheduler(shift=3.0)
    return (CogVideoXDPMScheduler if kind == "5b" else CogVideoXDDIMScheduler)(**COGVIDEOX_SCHEDULE)


def latents_of(kind: str, seed: int = 1, height: int = HEIGHT, width: int = WIDTH) -> torch.Tensor:
    """Latents of one video in the network's own order."""
    order = (1, 4, FRAMES, height, width) if kind == "wan" else (1, FRAMES, 4, height, width)
    return torch.randn(order, generator=torch.Generator().manual_seed(seed))


def text_of(count: int = 1, seed: int = 2) -> torch.Tensor:
    return torch.randn(count, TOKENS, 12, generator=torch.Generator().manual_seed(seed))


def positions_of(network: nn.Module) -> torch.Tensor:
    """The network's positions, a little off."""
    own = default_positions(network, FRAMES, HEIGHT, WIDTH)
    return own + 0.1 * torch.randn(own.shape, generator=torch.Generator().manual_seed(3))


@contextmanager
def left_as_it_was(network: nn.Module) -> Iterator[None]:
    """AssertionError where the block leaves anything in `network`: a hook, a processor, a flag, another weight."""
    before = _everything(network)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    yield
    assert _everything(network) == before
    after = network.state_dict()
    assert list(after) == list(state)
    assert all(torch.equal(after[key], value) for key, value in state.items())
    assert all(parameter.grad is None for parameter in network.parameters())


def _everything(network: nn.Module) -> list[object]:
    """What is set on each module, by value for numbers and flags, by identity for the rest."""
    found = []
    for name, module in network.named_modules():
        for key, value in vars(module).items():
            plain = isinstance(value, bool | int | float | str)
            contents = list(value) if isinstance(value, dict) and key.endswith(("_hooks", "_modules")) else None
            found.append((name, key, value if plain else id(value), contents))
    return found
