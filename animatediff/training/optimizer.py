"""What moves the adapter's weights: which parts learn, how fast, and their moving average."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from animatediff.errors import UserError
from animatediff.models.adapter import Adapter
from animatediff.training.config import TrainingConfig, trained_parts


def freeze_untrained(adapter: Adapter, parts: Sequence[str]) -> None:
    """Leave gradients to the given parts of the adapter only (the paper's ablations train some of them)."""
    adapter.requires_grad_(False)
    for part in parts:
        for parameter in adapter.part(part):
            parameter.requires_grad_(True)


def build_optimizer(adapter: Adapter, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW, one group per trained part with its own learning rate. UserError without bitsandbytes for 8 bits."""
    groups = [
        {"params": adapter.part(part), "lr": config.learning_rates.get(part, config.learning_rate), "name": part}
        for part in trained_parts(config)
    ]
    return _optimizer_class(config.optimizer)(
        groups, betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
    )


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainingConfig) -> torch.optim.lr_scheduler.LambdaLR:
    """Warm-up from 0 over `warmup_steps`, then the named course over what is left of `max_steps`."""
    name = "constant_with_warmup" if config.schedule == "constant" else config.schedule
    return get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=config.max_steps)


def build_average(trained: Sequence[nn.Parameter], config: TrainingConfig) -> EMAModel | None:
    """The moving average of the trained weights, its memory growing to `ema_decay`; None where that is 0."""
    if not config.ema_decay:
        return None
    return EMAModel(trained, decay=config.ema_decay)


@contextmanager
def averaged(adapter: Adapter, average: EMAModel | None) -> Iterator[None]:
    """Inside the block the adapter has its averaged weights, where an average is kept."""
    trained: list[nn.Parameter] = [p for p in adapter.parameters() if p.requires_grad]
    if average is None:
        yield
        return
    average.store(trained)
    average.copy_to(trained)
    try:
        yield
    finally:
        average.restore(trained)


def _optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    if name == "adamw":
        return torch.optim.AdamW
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("optimizer is adamw8bit, but bitsandbytes is not installed; use adamw") from error
    return bitsandbytes.optim.AdamW8bit
