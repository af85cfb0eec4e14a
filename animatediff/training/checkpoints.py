"""Checkpoints of a training run: <output>/checkpoints/step-00001000/{adapter/, state.pt}, whole or not at all."""

from __future__ import annotations

import re
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from animatediff.errors import UserError, one_line
from animatediff.files import Keys, atomic_folder, check_object, is_file, remove_stale_parts
from animatediff.models.adapter import Adapter
from animatediff.training.optimizer import averaged

_NAME = re.compile(r"step-(\d{8})")
ARCHITECTURE: Keys = {"site_channels": dict[str, int], "use_scaler": bool}  # of the adapter's config
STATE: Keys = {
    "step": int,
    "samples": int,
    "data": str,
    "architecture": ARCHITECTURE,
    "weights": dict,
    "optimizer": dict,
    "average": dict | None,
    "scaler": dict | None,
}


@dataclass
class Progress:
    """Everything that a step changes. `samples` is the next unused sample number: the order of data and all
    randomness follow from it and the seed, the learning rates from `step`.
    """

    adapter: Adapter
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: EMAModel | None
    scaler: torch.amp.GradScaler | None
    step: int = 0
    samples: int = 0
    steps_before: int = 0  # of the adapter that the run started from


def save_checkpoint(output: str | Path, progress: Progress, data: str, keep: int) -> Path:
    """Write the checkpoint of `progress`, then delete all but the newest `keep` (0 keeps all).

    adapter/ is what inference loads: the averaged weights where an average is kept. `data` identifies the clips.
    UserError where it cannot be written (disk full); older checkpoints stay.
    """
    parent = Path(output) / "checkpoints"
    folder = parent / f"step-{progress.step:08d}"
    with atomic_folder(folder) as part:
        _write_adapter(part / "adapter", progress)
        torch.save(_state(progress, data), part / "state.pt")
    if keep:
        for old in list_checkpoints(output)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def save_adapter(folder: str | Path, progress: Progress) -> None:
    """Write the adapter as inference loads it, in place of any that is there."""
    with atomic_folder(folder) as part:
        _write_adapter(part, progress)


def load_checkpoint(folder: str | Path, progress: Progress, data: str) -> list[str]:
    """Take up the run at the checkpoint in `folder`; returns what a person should know, one line each.

    UserError where there is no checkpoint, it is damaged, or belongs to another architecture.
    """
    path = Path(folder) / "state.pt"
    if not is_file(path):
        raise UserError(f"no checkpoint at {folder}; expected a folder with state.pt, such as .../step-00001000")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle raise unrelated classes for a damaged file
        raise UserError(f"{path} is damaged ({one_line(error)[:120]}); resume from an older checkpoint") from error
    _check_architecture(path, state, progress)
    try:
        progress.adapter.load_state_dict(state["weights"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold the weights of its architecture ({one_line(error)[:120]})") from error
    _load_optimizer(progress.optimizer, state["optimizer"], path)
    progress.step, progress.samples = state["step"], state["samples"]
    with warnings.catch_warnings(action="ignore"):  # of a schedule that steps before its optimizer: here it must
        progress.schedule.last_epoch = progress.step - 1
        progress.schedule.step()
    if progress.average is not None and state["average"] is not None:
        progress.average.load_state_dict(state["average"] | {"decay": progress.average.decay})
        progress.average.to(progress.adapter.device)
    if progress.scaler is not None and state["scaler"] is not None:
        progress.scaler.load_state_dict(state["scaler"])
    if state["data"] != data:
        return [f"the clips are not those that {folder} was trained on; it goes on with the present ones"]
    return []


def list_checkpoints(output: str | Path) -> list[Path]:
    """The checkpoint folders of a run, oldest first."""
    folder = Path(output) / "checkpoints"
    return sorted(path for path in folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name))


def find_checkpoint(output: str | Path, resume: str) -> Path | None:
    """The checkpoint to resume from. `resume`: latest (None where there is none), never, or a folder.

    UserError where `never` meets checkpoints of an earlier run, which new ones would displace.
    """
    for folder in (Path(output), Path(output) / "checkpoints"):
        remove_stale_parts(folder)
    existing = list_checkpoints(output)
    if resume == "never" and existing:
        raise UserError(f"{existing[-1]} is there already; choose another output, or resume=latest to go on from it")
    if resume in ("latest", "never"):
        return existing[-1] if existing else None
    return Path(resume)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any], path: Path) -> None:
    """Take the moments from `state`; rates and other settings stay those of the present configuration."""
    settings = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} was trained with other train_parts or optimizer ({one_line(error)})") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _write_adapter(folder: Path, progress: Progress) -> None:
    progress.adapter.register_to_config(trained_steps=progress.steps_before + progress.step)
    with averaged(progress.adapter, progress.average):
        progress.adapter.save_pretrained(folder)


def _state(progress: Progress, data: str) -> dict[str, Any]:
    return {
        "step": progress.step,
        "samples": progress.samples,
        "data": data,
        "architecture": {key: progress.adapter.config[key] for key in ARCHITECTURE},
        "weights": progress.adapter.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "average": progress.average.state_dict() if progress.average is not None else None,
        "scaler": progress.scaler.state_dict() if progress.scaler is not None else None,
    }


def _check_architecture(path: Path, state: Any, progress: Progress) -> None:
    check_object(state, f"{path}, which is no checkpoint of train.py:", STATE, required=list(STATE))
    found, own = state["architecture"], progress.adapter.config
    for key in ARCHITECTURE:
        if found[key] != own[key]:
            raise UserError(f"{path} is of another architecture: {_difference(key, found[key], own[key])}")


def _difference(key: str, found: Any, own: Any) -> str:
    if not isinstance(found, dict):
        return f"{key} {found} there, {own} here; give the same config, or another output"
    site = next(name for name in sorted(found | own) if found.get(name) != own.get(name))
    widths = [f"{sites[site]} channels" if site in sites else "no adapter" for sites in (found, own)]
    return (
        f"at {site} {widths[0]} there, {widths[1]} here ({len(found)} and {len(own)} sites); "
        "give the same config and base model, or another output"
    )
