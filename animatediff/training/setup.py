"""What accelerate needs to know of a run: precision, trackers, and how long its processes wait for each other."""

from __future__ import annotations

from datetime import timedelta

from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import is_tensorboard_available, is_wandb_available

from animatediff.config import to_dict
from animatediff.errors import UserError, one_line
from animatediff.training.config import TrainingConfig

WAIT = timedelta(days=30)  # for the process that validates, or encodes the last clips; torch's own is ten minutes


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run. UserError where the device cannot take the precision or a tracker is not installed."""
    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in config.log_with:
        if not available[name]():
            raise UserError(f"log_with names {name}, which is not installed; install it or take it out")
    precision = "no" if config.mixed_precision == "fp32" else config.mixed_precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=config.log_with or None,
            project_dir=config.output,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=WAIT)],
        )
    except ValueError as error:  # bf16 on a device without it
        raise UserError(f"mixed_precision is {precision}: {one_line(error)}; use fp32") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision is fp16, which needs a GPU; use mixed_precision=fp32 or bf16 on a CPU")
    return accelerator


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Start the configured trackers with the flattened configuration."""
    if config.log_with:
        accelerator.init_trackers("trackers", config={key: str(value) for key, value in _flat(to_dict(config))})


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
