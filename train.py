"""Train what a method of motion transfer learns: the whole loop, of any method that has an objective.

    accelerate launch train.py --config configs/training/sd15.yaml
    python train.py --config configs/training/miniature.yaml learning_rate=5e-4
    python train.py --config configs/training/sd15.yaml --config configs/training/ablations/sites_up_1.yaml --dry-run

Repeating a command goes on from its last checkpoint.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from animatediff.config import save_config
from animatediff.console import Parser, run_command
from animatediff.errors import UserError
from animatediff.training.checkpoints import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    save_checkpoint,
    save_result,
)
from animatediff.training.config import TrainingConfig, read_config
from animatediff.training.objective import Batch, objective_of
from animatediff.training.optimizer import (
    all_finite,
    averaged,
    build_average,
    build_optimizer,
    build_schedule,
    trained_of,
)
from animatediff.training.report import Meter, closing_lines, describe_run
from animatediff.training.samples import plan_of
from animatediff.training.setup import build_accelerator, start_trackers


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command, then train, or only say what would be trained."""
    parser = Parser("train", __doc__)
    parser.add_argument("--config", action="append", default=[], help="YAML file; a later one is laid over an earlier")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, parameter counts and data")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, e.g. data.root=clips")
    options = parser.parse_intermixed_args(arguments)
    config = read_config(options.config, options.overrides)
    if options.dry_run:
        print(describe_run(config))
        return 0
    train(config)
    return 0


def train(config: TrainingConfig) -> None:
    """One run, from its start or its last checkpoint to its last step."""
    output = Path(config.output)
    start = find_checkpoint(output, config.resume)
    accelerator = build_accelerator(config)
    objective = objective_of(config.method)(config, accelerator)
    optimizer = build_optimizer(objective.parameter_groups(), config)
    schedule = build_schedule(optimizer, config)
    model, optimizer = accelerator.prepare(objective.network, optimizer)
    trained = trained_of(objective.module)
    average = build_average(trained, config)
    progress = Progress(objective, optimizer, schedule, average, accelerator.scaler)
    if start is not None:
        notes = load_checkpoint(start, progress, config, accelerator.num_processes)
        accelerator.print("\n".join([f"going on from {start}", *notes]))
    if progress.step > config.max_steps:
        accelerator.print(
            f"nothing to do: {start} is at step {progress.step}, and max_steps is {config.max_steps}; "
            f"set max_steps above {progress.step} to go on"
        )
        accelerator.end_training()
        return

    plan = plan_of(config, accelerator)
    stream = objective.batches(plan, progress.samples, config.max_steps - progress.step)
    meter = Meter(accelerator.device, plan.per_step)
    start_trackers(accelerator, config)
    if accelerator.is_main_process:
        save_config(config, output / "config.yaml")
    with tqdm(total=config.max_steps, initial=progress.step, disable=not accelerator.is_main_process) as bar:
        while progress.step < config.max_steps:
            step_loss = 0.0
            for micro in range(config.accumulation):
                batch = next(stream)
                last = micro == config.accumulation - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(model):
                    loss = objective.loss(model, batch)
                    mean_loss = accelerator.reduce(loss.detach(), "mean").item()
                    if not math.isfinite(mean_loss):
                        raise not_finite(f"the loss is {mean_loss}", progress, batch, output, start)
                    accelerator.backward(loss / config.accumulation)
                step_loss += mean_loss / config.accumulation
            norm = float(accelerator.clip_grad_norm_(trained, config.max_grad_norm or math.inf))
            if accelerator.scaler is None and not math.isfinite(norm):  # a scaler leaves out the steps that overflow
                raise not_finite(f"the gradient is {norm}", progress, batch, output, start)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average is not None:
                average.step(trained)
            if not all_finite(trained, average):
                raise not_finite("the weights after the update are not finite", progress, batch, output, start)
            progress.step += 1
            progress.samples += plan.per_step

            values = meter.update(step_loss, float(schedule.get_last_lr()[0]))
            bar.update()
            bar.set_postfix_str(meter.line(values))
            accelerator.log(values | {"gradient": norm}, step=progress.step)
            if due(progress.step, config.checkpoint_every, config.max_steps):
                if accelerator.is_main_process:
                    save_checkpoint(progress, config, accelerator.num_processes)
                accelerator.wait_for_everyone()
            if config.validation.every and due(progress.step, config.validation.every, config.max_steps):
                if accelerator.is_main_process:
                    with torch.no_grad(), averaged(objective.module, average):
                        found = objective.validate(output / "validation" / f"step-{progress.step:08d}")
                    accelerator.log(found, step=progress.step)
                    tqdm.write(f"step {progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
                accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.is_main_process:
        save_result(output / "adapter", progress)
        print(closing_lines(output, objective.problems))


def due(step: int, every: int, last: int) -> bool:
    """Whether what happens `every` so many steps, and at the `last`, happens after `step`."""
    return step % every == 0 or step == last


def not_finite(what: str, progress: Progress, batch: Batch, output: Path, start: Path | None) -> UserError:
    """The error that stops a step before it is counted or saved; it names the checkpoint that is left."""
    saved = list_checkpoints(output)
    last = saved[-1] if saved else start
    left = "there is no checkpoint yet" if last is None else f"the last checkpoint, {last}, is good"
    return UserError(
        f"{what} at step {progress.step + 1}, samples {batch.numbers[0]} to {batch.numbers[-1]} "
        f"({', '.join(batch.names[:4])}); nothing of this step was saved, and {left}: "
        "lower learning_rate, or look at these clips"
    )


if __name__ == "__main__":
    run_command(main)
