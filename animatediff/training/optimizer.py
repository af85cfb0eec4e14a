"""What moves the weights: the optimizer, its learning rate, and the weights' moving average."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from animatediff.errors import UserError
from animatediff.training.config import TrainingConfig


def build_optimizer(groups: Sequence[dict[str, Any]], config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over parameter groups, each with its own lr. UserError without bitsandbytes for 8 bits."""
    return _optimizer_class(config.optimizer)(
        list(groups), betas=(config.beta1, config.beta2), weight_decay=config.weight_decay
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


def trained_of(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of `module` that learn."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


@contextmanager
def averaged(module: nn.Module, average: EMAModel | None) -> Iterator[None]:
    """Inside the block the module has its averaged weights, where an average is kept."""
    if average is None:
        yield
        return
    trained = trained_of(module)
    average.store(trained)
    average.copy_to(trained)
    try:
        yield
    finally:
        average.restore(trained)


def all_finite(trained: Sequence[nn.Parameter], average: EMAModel | None) -> bool:
    """Whether no trained weight, and none of their average, is NaN or infinite."""
    values = [parameter.detach() for parameter in trained]
    values += [] if average is None else list(average.shadow_params)
    largest = torch._foreach_norm(values, ord=float("inf"))  # of each its greatest magnitude; NaN stays NaN
    return bool(torch.stack([value.float() for value in largest]).isfinite().all())


def _optimizer_class(name: str) -> Callable[..., torch.optim.Optimizer]:
    if name == "adamw":
        return torch.optim.AdamW
    try:
        import bitsandbytes
    except ImportError as error:
        raise UserError("optimizer is adamw8bit, but bitsandbytes is not installed; use adamw") from error
    return bitsandbytes.optim.AdamW8bit
