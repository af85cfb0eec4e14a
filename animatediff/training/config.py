"""The keys of a training run: those that every method shares, its weight files, and its objective's own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from functools import partial
from typing import Any, TypeVar, get_type_hints

from animatediff.config import default_of, fill, last_said, option, part_of, read_layers
from animatediff.errors import UserError
from animatediff.pipelines import METHODS
from animatediff.project import locate
from animatediff.training.objective import objective_of

T = TypeVar("T")

OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "fp16", "bf16")
TRACKERS = ("tensorboard", "wandb")
MAX_STEPS = 100_000_000


@dataclass
class ValidationConfig:
    """What is looked at while training."""

    every: int = option(1000, "steps; 0 never", least=0, most=MAX_STEPS, pixels=False)


@dataclass
class TrainingConfig:
    """The keys of every training run.

    The run of a method has beside these keys a section `weights` with its Files, and the Keys of its objective.
    """

    method: str = option("", "the method that is trained")
    output: str = option("runs/training", "folder of checkpoints, the log and what was trained", pixels=False)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    # The optimisation
    max_steps: int = option(50_000, "steps of the optimizer", least=1, most=MAX_STEPS)
    batch_size: int = option(1, "samples in one forward of one process", least=1, most=4096)
    accumulation: int = option(1, "forwards per step", least=1, most=4096)
    learning_rate: float = option(1e-4, "of all that learns", least=0, most=1)
    schedule: str = option("constant", "of the learning rate", choices=SCHEDULES)
    warmup_steps: int = option(0, "over which the learning rate rises", least=0, most=MAX_STEPS)
    optimizer: str = option("adamw", "adamw8bit needs bitsandbytes", choices=OPTIMIZERS)
    beta1: float = option(0.9, "of the optimizer", least=0, most=0.9999)
    beta2: float = option(0.999, "of the optimizer", least=0, most=0.999999)
    weight_decay: float = option(0.01, "of the optimizer", least=0, most=10)
    max_grad_norm: float = option(1.0, "gradients are clipped to it; 0: never", least=0, most=1e6)
    ema_decay: float = option(
        0.0, "0: no moving average; otherwise the average is what inference gets", least=0, most=0.999999
    )
    mixed_precision: str = option("fp16", "of the forwards; what is frozen is held in it", choices=PRECISIONS)
    seed: int = option(42, "of everything random", least=0, most=2**31 - 1)

    # The run
    checkpoint_every: int = option(1000, "steps", least=1, most=MAX_STEPS, pixels=False)
    keep_checkpoints: int = option(3, "the newest; 0 keeps all", least=0, most=100_000, pixels=False)
    resume: str = option("latest", "latest, never, or the folder of a checkpoint", pixels=False)
    log_with: list[str] = option(["tensorboard"], "trackers", choices=TRACKERS, pixels=False)

    def part(self, kind: type[T]) -> T:
        """The dataclass `kind` filled from this run's keys of the same names: `config.part(Keys)`."""
        return part_of(self, kind)


def training_schema(method: str) -> type[TrainingConfig]:
    """The dataclass of a method's training run: the common keys, `weights`, and its objective's Keys over them."""
    kinds: dict[str, tuple[Any, Any]] = {}
    for schema in (TrainingConfig, objective_of(method).Keys):
        hints = get_type_hints(schema)
        for entry in fields(schema):
            kinds[entry.name] = (
                hints[entry.name],
                field(default_factory=partial(default_of, entry), metadata=entry.metadata),
            )
    kinds["method"] = str, field(default=method, metadata=TrainingConfig.__dataclass_fields__["method"].metadata)
    kinds.setdefault("weights", (METHODS[method].Files, field(default_factory=METHODS[method].Files)))
    own = [(name, kind, default) for name, (kind, default) in kinds.items()]
    return make_dataclass("TrainingRun", own, bases=(TrainingConfig,))


def read_config(paths: Sequence[str], overrides: Sequence[str]) -> TrainingConfig:
    """The run that YAML files (a later one laid over an earlier one) and `key=value` overrides describe, checked.

    Files are looked up in the current folder, then in this project's.

    `method` decides which keys there are; without it, it is the first one of the table.
    """
    layers = [layer for path in paths for layer in read_layers(locate(path))]
    method = last_said("method", layers, overrides) or next(iter(METHODS))
    config = fill(training_schema(method), layers, overrides)
    check(config)
    return config


def check(config: TrainingConfig) -> None:
    """UserError for keys that contradict each other."""
    if config.warmup_steps >= config.max_steps:
        raise UserError(f"warmup_steps {config.warmup_steps} leaves nothing of max_steps {config.max_steps}")
    objective_of(config.method).check(config)
