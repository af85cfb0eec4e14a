"""Checkpoints of a training run: <output>/checkpoints/step-00001000/{adapter/, state.pt}, whole or not at all."""

from __future__ import annotations

import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import EMAModel

from animatediff.config import to_dict
from animatediff.errors import UserError, one_line
from animatediff.files import Keys, atomic_folder, check_object, is_file, remove_stale_parts
from animatediff.training.config import TrainingConfig
from animatediff.training.objective import Fingerprint, Objective
from animatediff.training.optimizer import averaged

_NAME = re.compile(r"step-(\d{8})")
STATE: Keys = {
    "step": int,
    "samples": int,
    "data": str,
    "architecture": dict,
    "weights": dict,
    "optimizer": dict,
    "average": dict | None,
    "scaler": dict | None,
}
LATER: Keys = {"clips": str, "settings": dict}  # what the first checkpoints lack


@dataclass
class Progress:
    """Everything that a step changes. `samples` is the next unused sample number: the order of data and all
    randomness follow from it and the seed, the learning rates from `step`.
    """

    objective: Objective
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    average: EMAModel | None
    scaler: torch.amp.GradScaler | None
    step: int = 0
    samples: int = 0


def save_checkpoint(progress: Progress, config: TrainingConfig, processes: int = 1) -> Path:
    """Write the checkpoint of `progress` into the run's output, then delete all but its newest `keep_checkpoints`.

    adapter/ is what inference loads: the averaged weights where an average is kept. UserError where it cannot be
    written (disk full); older checkpoints stay.
    """
    folder = Path(config.output) / "checkpoints" / f"step-{progress.step:08d}"
    with atomic_folder(folder) as part:
        (part / "adapter").mkdir()
        _write(part / "adapter", progress)
        torch.save(_state(progress, config, processes), part / "state.pt")
    if config.keep_checkpoints:
        for old in list_checkpoints(config.output)[: -config.keep_checkpoints]:
            shutil.rmtree(old, ignore_errors=True)
    return folder


def save_result(folder: str | Path, progress: Progress) -> None:
    """Write what inference loads, in place of any that is there."""
    with atomic_folder(folder) as part:
        _write(part, progress)


def load_checkpoint(folder: str | Path, progress: Progress, config: TrainingConfig, processes: int = 1) -> list[str]:
    """Take up the run at the checkpoint in `folder`; returns what a person should know, one line each.

    That is every key of `config` that decides the result, and the number of processes, where it was another then, and
    whether the clips or their order are other ones. UserError where there is no checkpoint, it is damaged, or belongs
    to another architecture.
    """
    path = Path(folder) / "state.pt"
    if not is_file(path):
        raise UserError(f"no checkpoint at {folder}; expected a folder with state.pt, such as .../step-00001000")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, zip and pickle raise unrelated classes for a damaged file
        raise UserError(f"{path} is damaged ({one_line(error)[:120]}); resume from an older checkpoint") from error
    _check_architecture(path, state, progress.objective.architecture)
    try:
        progress.objective.module.load_state_dict(state["weights"])
    except (RuntimeError, TypeError, AttributeError) as error:
        raise UserError(f"{path} does not hold the weights of its architecture ({one_line(error)[:120]})") from error
    _load_optimizer(progress.optimizer, state["optimizer"], path)
    progress.step, progress.samples = state["step"], state["samples"]
    with warnings.catch_warnings(action="ignore"):  # of a schedule that steps before its optimizer: here it must
        progress.schedule.last_epoch = progress.step - 1
        progress.schedule.step()
    if progress.average is not None and state["average"] is not None:
        progress.average.load_state_dict(state["average"] | {"decay": progress.average.decay})
        progress.average.to(next(progress.objective.module.parameters()).device)
    if progress.scaler is not None and state["scaler"] is not None:
        progress.scaler.load_state_dict(state["scaler"])
    notes = _changes(state.get("settings", {}), _settings(config, processes), progress.step)
    return [*notes, *_other_data(state, progress.objective.fingerprint, folder)]


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
        raise UserError(f"{path} was trained with other parts or another optimizer ({one_line(error)})") from error
    for group, own in zip(optimizer.param_groups, settings, strict=True):
        group.update(own)


def _write(folder: Path, progress: Progress) -> None:
    with averaged(progress.objective.module, progress.average):
        progress.objective.save(folder, progress.step)


def _state(progress: Progress, config: TrainingConfig, processes: int) -> dict[str, Any]:
    return {
        "step": progress.step,
        "samples": progress.samples,
        "data": progress.objective.fingerprint.order,
        "clips": progress.objective.fingerprint.clips,
        "settings": _settings(config, processes),
        "architecture": dict(progress.objective.architecture),
        "weights": progress.objective.module.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "average": progress.average.state_dict() if progress.average is not None else None,
        "scaler": progress.scaler.state_dict() if progress.scaler is not None else None,
    }


def _settings(config: TrainingConfig, processes: int) -> dict[str, Any]:
    """What decides the result: every such key, by its path, and the number of processes."""
    return _deciding(config, to_dict(config), "") | {"processes": processes}


def _deciding(config: Any, values: dict[str, Any], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in fields(config):
        value = getattr(config, entry.name)
        if is_dataclass(value):
            found |= _deciding(value, values[entry.name], f"{prefix}{entry.name}.")
        elif entry.metadata.get("pixels", True):
            found[prefix + entry.name] = values[entry.name]
    return found


def _changes(before: dict[str, Any], now: dict[str, Any], step: int) -> list[str]:
    """A line for each setting that both know and that differs."""
    return [
        f"{key} was {before[key]} up to step {step} and is {value} from here on"
        + ("; the samples come in another order" if key == "seed" else "")
        for key, value in now.items()
        if key in before and before[key] != value
    ]


def _other_data(state: dict[str, Any], found: Fingerprint, folder: str | Path) -> list[str]:
    if state["data"] == found.order:
        return []
    if state.get("clips") == found.clips:
        return [f"the data order is not that of {folder}: the same clips come in other groups or another order"]
    return [f"the clips are not those that {folder} was trained on; it goes on with the present ones"]


def _check_architecture(path: Path, state: Any, own: Mapping[str, Any]) -> None:
    check_object(state, f"{path}, which is no checkpoint of train.py:", {**STATE, **LATER}, required=list(STATE))
    found = state["architecture"]
    for key, value in own.items():
        if found.get(key) != value:
            raise UserError(f"{path} is of another architecture: {_difference(key, found.get(key), value)}")


def _difference(key: str, found: Any, own: Any) -> str:
    if not (isinstance(found, dict) and isinstance(own, dict)):
        return f"{key} {found} there, {own} here; give the same config, or another output"
    part = next(name for name in sorted(found | own) if found.get(name) != own.get(name))
    sizes = [f"{parts[part]} channels" if part in parts else "nothing" for parts in (found, own)]
    return (
        f"at {part} {sizes[0]} there, {sizes[1]} here ({len(found)} and {len(own)} places); "
        "give the same config and base model, or another output"
    )
