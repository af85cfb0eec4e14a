"""What a method is to train.py: `Objective`, which stands behind `Method.objective`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from accelerate import Accelerator
from torch import nn

from animatediff.errors import UserError
from animatediff.pipelines import METHODS, method_named
from animatediff.tables import load

if TYPE_CHECKING:
    from animatediff.training.config import TrainingConfig
    from animatediff.training.samples import BatchPlan


@dataclass(frozen=True)
class Fingerprint:
    """Of what is learned from. clips: the same for the same clips in any order; order: changes with their order."""

    clips: str
    order: str


class Batch(Protocol):
    """What one forward of one process takes; the loop reads of it what its messages say."""

    numbers: list[int]  # of its samples
    names: list[str]  # of its clips


class Objective(Protocol):
    """What one method learns. Built from a configuration: frozen parts and data are loaded then."""

    Keys: type  # dataclass: its keys in the training YAML, at the top level beside TrainingConfig's, or in their place
    network: nn.Module  # what runs; accelerate prepares it
    module: nn.Module  # the part of it that a checkpoint holds; its parameters with gradients learn
    architecture: Mapping[str, Any]  # plain values that a checkpoint must share with `module`
    fingerprint: Fingerprint
    problems: Sequence[str]  # what was left out of the data, one line each

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        """UserError for what the configuration contradicts in the files."""

    @classmethod
    def check(cls, config: TrainingConfig) -> None:
        """UserError for keys that contradict each other, before anything is loaded."""

    @classmethod
    def describe(cls, config: TrainingConfig) -> list[str]:
        """For --dry-run: the files that it would read, counts of trained and frozen parameters, the data found."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """What an optimizer takes: params, lr and name of each group."""

    def batches(self, plan: BatchPlan, first: int, steps: int) -> Iterator[Batch]:
        """A batch for each list of sample numbers in `plan.numbers(first, steps)`: this process's forwards.

        A sample follows from the seed and its number alone, so that a resumed run sees what an unbroken one sees.
        """

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """The loss of a batch, a float32 scalar, with gradients to `module`. `model` is the prepared `network`."""

    def save(self, folder: Path, steps: int) -> None:
        """Write into the existing `folder` what inference loads, after `steps` steps of this run."""

    def validate(self, folder: Path) -> dict[str, float]:
        """What is logged of the held-out data; clips and measures go to `folder`. Called in the first process alone."""


def objective_of(method: str) -> type[Objective]:
    """The objective of a method. UserError where there is no such method, or it has nothing to train."""
    entry = method_named(method).objective
    if entry is None:
        trained = [name for name in METHODS if METHODS[name].objective]
        raise UserError(f"method is {method}, which has nothing to train; {', '.join(trained)} can be trained")
    return load(entry)
