"""What the stages of scripts/make_miniature.py share: results that are made once, by the first process of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from diffusers import ModelMixin
from torch import Tensor
from transformers import PreTrainedModel

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.files import atomic_folder
from animatediff.miniature.loop import rank

Result = TypeVar("Result")


@dataclass
class StageConfig:
    """Steps, batch per process and peak learning rate of one stage."""

    steps: int = option(1000, "of the optimizer", least=1, most=10_000_000)
    batch: int = option(4, "per process", least=1, most=4096)
    learning_rate: float = option(2e-3, "at its peak", least=0, most=1)


def camera_chances(moving: Sequence[bool], share: float) -> Tensor:
    """How often to draw each clip so that those with a moving camera make up `share` of the draws: float32 [n].

    UserError where that leaves nothing to draw.
    """
    moves = torch.tensor(moving)
    chances = torch.where(moves, share / moves.sum().clamp(min=1), (1 - share) / (~moves).sum().clamp(min=1))
    if not chances.any():
        raise UserError(
            f"camera_share is {share}, but {moves.sum()} of {len(moves)} clips move their camera; take more"
        )
    return chances


def once(path: Path, make_it: Callable[[Path], None], read: Callable[[Path], Result]) -> Result:
    """`read(path)`, after `make_it(path)` in the first process where there is no such file yet."""
    if rank() == 0 and not path.exists():
        make_it(path)
    wait()
    return read(path)


def save_model(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """Write `model` into `folder`, which is there when it is whole."""
    with atomic_folder(folder) as part:
        model.save_pretrained(part)


def save_once(model: ModelMixin | PreTrainedModel, folder: Path) -> None:
    """`save_model` in the first process; the others wait for it."""
    if rank() == 0:
        save_model(model, folder)
    wait()


def wait() -> None:
    """Until every process of a distributed run is here."""
    if dist.is_initialized():
        dist.barrier()
