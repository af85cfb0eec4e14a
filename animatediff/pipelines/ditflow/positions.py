"""Optimised positions in one safetensors file, with what they were made for: zero-shot use under other prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from animatediff.errors import UserError, one_line
from animatediff.files import atomic_path

FORMAT = "DiTFlow positions, 1"


@dataclass(frozen=True)
class PositionFacts:
    """What saved positions belong to."""

    transformer: str  # see `describe_transformer`
    num_frames: int
    height: int  # pixels
    width: int
    num_inference_steps: int
    guidance_steps: int
    timesteps: tuple[float, ...]  # of the guided steps


def describe_transformer(name: str, config: Mapping[str, Any]) -> str:
    """Class and widths of a transformer, from its config, by which saved positions are known to be another's."""
    blocks, heads, width = (config.get(key) for key in ("num_layers", "num_attention_heads", "attention_head_dim"))
    kind = "rope" if config.get("use_rotary_positional_embeddings", True) else "a position table"
    return f"{name}, {blocks} blocks, {heads} heads of {width}, {kind}"


def save_positions(path: str | Path, positions: Mapping[int, torch.Tensor], facts: PositionFacts) -> None:
    """Write positions by timestep (Wan: by step) and their facts, the whole file or nothing."""
    metadata = {"format": FORMAT} | {name: json.dumps(value) for name, value in asdict(facts).items()}
    tensors = {str(key): value.detach().float().cpu().contiguous() for key, value in positions.items()}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata)


def load_positions(path: str | Path, expected: PositionFacts) -> dict[int, torch.Tensor]:
    """The positions in a file that `save_positions` wrote; UserError where they were made for something else."""
    check_positions_file(path, asdict(expected))
    with safe_open(path, "pt") as file:
        return {int(key): file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def check_positions_file(path: str | Path, expected: Mapping[str, Any]) -> None:
    """UserError where the file's facts are not those in `expected`, any of PositionFacts; reads no tensor."""
    found = _read_facts(Path(path))
    for field in fields(PositionFacts):
        if field.name not in expected:
            continue
        have, want = found[field.name], json.loads(json.dumps(expected[field.name]))
        if have != want:
            raise UserError(
                f"the positions in {path} were saved with {field.name} {_shown(have)}, this run has {_shown(want)}; "
                f"they serve only what they were made for"
            )


def _read_facts(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"no saved positions at {path} (positions_path)")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            keys = list(file.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no file of saved positions ({one_line(error)[:120]})") from error
    names = [field.name for field in fields(PositionFacts)]
    if metadata.get("format") != FORMAT or any(name not in metadata for name in names):
        raise UserError(f"{path} is no file of saved positions, expected one that ditflow.save_positions wrote")
    if not all(key.isdecimal() for key in keys):
        raise UserError(f"{path} holds {keys[0]}, expected positions named by timestep")
    try:
        return {name: json.loads(metadata[name]) for name in names}
    except ValueError as error:
        raise UserError(f"{path} has broken facts ({one_line(error)[:120]}); save the positions again") from error


def _shown(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"{value[0]:g} to {value[-1]:g}" if value else "none"
    return str(value)
