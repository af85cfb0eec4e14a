"""The training loop shared by the miniature's stages: AdamW, one-cycle rate, EMA, checkpoints that resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeAlias

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm import tqdm

from animatediff.errors import UserError
from animatediff.files import atomic_path

LossFunction = Callable[[int, torch.Generator], Tensor]


def one_cycle(step: int, steps: int, warmup: float = 0.08, floor: float = 0.01) -> float:
    """The learning rate at `step` of `steps` as a share of its peak: linear warm-up, then half a cosine to `floor`."""
    start = max(1, round(warmup * steps))
    if step < start:
        return (step + 1) / start
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (step - start) / max(1, steps - start)))


class Together:
    """Several optimizers of disjoint parameters as one, as far as `train` needs it."""

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        self.optimizers = optimizers

    @property
    def param_groups(self) -> list[dict]:
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()

    def state_dict(self) -> dict:
        return {str(number): optimizer.state_dict() for number, optimizer in enumerate(self.optimizers)}

    def load_state_dict(self, state: dict) -> None:
        for number, optimizer in enumerate(self.optimizers):
            optimizer.load_state_dict(state[str(number)])


Optimizer: TypeAlias = torch.optim.Optimizer | Together


def adamw(groups: Sequence[dict]) -> torch.optim.AdamW:
    """AdamW with the short second moment that short runs want."""
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=0.01)


def train(
    name: str,
    groups: Sequence[dict],
    loss_of: LossFunction,
    steps: int,
    checkpoint: Path,
    seed: int,
    decay: float = 0.998,
    save_every: int = 200,
    clip: float = 1.0,
    report_every: int = 50,
    make_optimizer: Callable[[Sequence[dict]], Optimizer] = adamw,
) -> EMAModel:
    """Minimise `loss_of(step, generator)` over the parameters of `groups` (each with its own lr).

    `make_optimizer` takes `groups`; the rates of its own groups are the peaks of one cycle.
    Repeating the call resumes from `checkpoint`. The generator is seeded by (seed, step), so an interrupted run
    sees the data of an unbroken one. UserError where the loss stops being finite; the last checkpoint stays. On
    return the moving average has taken the parameters' place.
    """
    parameters = [p for group in groups for p in group["params"]]
    optimizer = make_optimizer(groups)
    peaks = [group["lr"] for group in optimizer.param_groups]
    average = EMAModel(parameters, decay=decay, foreach=True)  # short memory first: the random start is forgotten
    first = _resume(checkpoint, parameters, optimizer, average)
    generator = torch.Generator()
    recent, began = 0.0, time.time()
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5, disable=rank() > 0)
    for step in bar:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * one_cycle(step, steps)
        generator.manual_seed((seed * 1_000_003 + step) * 64 + rank())
        loss = loss_of(step, generator)
        if not torch.isfinite(loss):
            raise UserError(f"{name}: the loss is {loss.item()} at step {step}; {checkpoint} holds the last good state")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(parameters)
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        average.step(parameters)
        recent += loss.item() / report_every
        if (step + 1) % report_every == 0 and rank() == 0:
            tqdm.write(f"{name} step {step + 1}/{steps} loss {recent:.5f} {time.time() - began:.0f} s")
            recent = 0.0
        if ((step + 1) % save_every == 0 or step + 1 == steps) and rank() == 0:
            _save(checkpoint, step + 1, parameters, optimizer, average)
    average.copy_to(parameters)
    return average


def processes() -> PartialState:
    """The processes of this run (torchrun, accelerate launch), joined over gloo; one where none launched it."""
    return PartialState(cpu=True)


def rank() -> int:
    """This process's number among those of a distributed run; 0 when there is one."""
    return processes().process_index


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes of a distributed run."""
    if processes().num_processes == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    # One message for all, after backward: DistributedDataParallel would have to wrap what the losses call.
    flat = reduce(torch.cat([gradient.flatten() for gradient in gradients]), "mean")
    for parameter, mean in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = mean.view_as(parameter)


def _save(path: Path, step: int, parameters: list, optimizer: Optimizer, average: EMAModel) -> None:
    state = {
        "step": step,
        "parameters": [p.detach() for p in parameters],
        "average": average.shadow_params,
        "optimizer": optimizer.state_dict(),
    }
    with atomic_path(path) as part:
        torch.save(state, part)


@torch.no_grad()
def _resume(path: Path, parameters: list, optimizer: Optimizer, average: EMAModel) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, weights_only=True)
    shapes = [tuple(value.shape) for value in state["parameters"]]
    if shapes != [tuple(p.shape) for p in parameters]:
        raise UserError(f"{path} belongs to a model of other shapes; delete it to start this stage again")
    for parameter, value in zip(parameters, state["parameters"], strict=True):
        parameter.copy_(value)
    average.shadow_params, average.optimization_step = state["average"], int(state["step"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"])
