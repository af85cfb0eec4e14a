"""Adapt a frozen video backbone to motion transfer (EfficientMT, arXiv 2503.19369): the whole loop.

    accelerate launch train.py --config configs/training/sd15.yaml
    python train.py --config configs/training/miniature.yaml learning_rate=5e-4
    python train.py --config configs/training/sd15.yaml --config configs/training/ablations/sites_up_1.yaml --dry-run

Repeating a command goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import contextlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler
from torch import nn
from tqdm import tqdm

from animatediff.config import save_config
from animatediff.console import run_command
from animatediff.data.latents import Inputs
from animatediff.data.pairs import PairOrder
from animatediff.errors import UserError
from animatediff.models import EfficientMT
from animatediff.pipelines.backbones.sd15 import load_components
from animatediff.training.checkpoints import Progress, find_checkpoint, load_checkpoint, save_adapter, save_checkpoint
from animatediff.training.config import TrainingConfig, read_config
from animatediff.training.objective import loss_weight, noise_loss, wanted_prediction
from animatediff.training.optimizer import build_average, build_optimizer, build_schedule
from animatediff.training.report import Meter, closing_lines, describe_run
from animatediff.training.samples import Batch, Consumption, Samples, batches
from animatediff.training.setup import (
    build_accelerator,
    build_noise_schedule,
    freeze_backbone,
    load_data,
    load_trained_adapter,
    sample_rule,
    start_trackers,
)
from animatediff.training.validation import validate


def main() -> int:
    """Read the command, then train, or only say what would be trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], help="YAML file; a later one is laid over an earlier")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config, parameter counts and data")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="keys of the config, e.g. data.root=clips")
    arguments = parser.parse_intermixed_args()
    config = read_config(arguments.config, arguments.overrides)
    if arguments.dry_run:
        print(describe_run(config))
        return 0
    train(config)
    return 0


def train(config: TrainingConfig) -> None:
    """One run, from its start or its last checkpoint to its last step."""
    output = Path(config.output)
    start = find_checkpoint(output, config.resume)
    accelerator = build_accelerator(config)
    components = load_components(config.weights)
    noise_schedule = build_noise_schedule(config, components.prediction_type)
    for frozen in (components.vae, components.text_encoder):
        nn.Module.to(frozen, accelerator.device)
    adapter = load_trained_adapter(components.unet, config)
    data = load_data(config, components, accelerator)
    freeze_backbone(components.unet, config)

    optimizer = build_optimizer(adapter, config)
    schedule = build_schedule(optimizer, config)
    model, optimizer = accelerator.prepare(EfficientMT(components.unet, adapter=adapter), optimizer)
    trained = [parameter for parameter in adapter.parameters() if parameter.requires_grad]
    average = build_average(trained, config)
    before = adapter.config.trained_steps or 0
    progress = Progress(adapter, optimizer, schedule, average, accelerator.scaler, steps_before=before)
    if start is not None:
        notes = load_checkpoint(start, progress, data.fingerprint)
        accelerator.print("\n".join([f"going on from {start}", *notes]))

    run = Consumption(config.batch_size, config.accumulation, accelerator.process_index, accelerator.num_processes)
    rule = sample_rule(config, components)
    samples = Samples(PairOrder(data.train, config.seed), rule, data.inputs.read)
    stream = batches(samples, run, progress.samples, config.max_steps - progress.step, data.workers)
    objective = Objective(config, accelerator, data.inputs, noise_schedule)
    meter = Meter(accelerator.device, run.per_step * config.targets_per_reference)
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
                    loss = objective(model, batch)
                    mean_loss = accelerator.reduce(loss.detach(), "mean").item()
                    stop_unless_finite("loss", mean_loss, progress, batch)
                    accelerator.backward(loss / config.accumulation)
                step_loss += mean_loss / config.accumulation
            norm = float(accelerator.clip_grad_norm_(trained, config.max_grad_norm or math.inf))
            if accelerator.scaler is None:  # where there is one, it leaves out the steps that overflow
                stop_unless_finite("gradient", norm, progress, batch)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if average is not None:
                average.step(trained)
            progress.step += 1
            progress.samples += run.per_step

            values = meter.update(step_loss, schedule.get_last_lr()[0])
            bar.update()
            bar.set_postfix_str(meter.line(values))
            accelerator.log(values | {"gradient": norm}, step=progress.step)
            if due(progress.step, config.checkpoint_every, config.max_steps):
                if accelerator.is_main_process:
                    save_checkpoint(output, progress, data.fingerprint, config.keep_checkpoints)
                accelerator.wait_for_everyone()
            if config.validation.every and due(progress.step, config.validation.every, config.max_steps):
                if accelerator.is_main_process:
                    found = validate(config, components, progress, data, rule, accelerator, objective)
                    accelerator.log(found, step=progress.step)
                    tqdm.write(f"step {progress.step}: " + ", ".join(f"{k} {v:.4f}" for k, v in found.items()))
                accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.is_main_process:
        save_adapter(output / "adapter", progress)
        print(closing_lines(output, data.problems))


@dataclass(frozen=True)
class Objective:
    """The method (EfficientMT, section 3): extract the reference's motion, predict the targets' noise or v under it."""

    config: TrainingConfig
    accelerator: Accelerator
    inputs: Inputs
    noise_schedule: DDPMScheduler

    def __call__(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The mean weighted noise loss of a batch, float32 scalar."""
        batch, inputs = batch.to(self.accelerator.device), self.inputs
        unwrapped = self.accelerator.unwrap_model(model)
        add_noise = self.noise_schedule.add_noise

        reference = inputs.latents(batch.reference, batch.reference_posterior)  # b c f h w
        reference = add_noise(reference, batch.reference_noise, batch.reference_timesteps)
        with self.accelerator.autocast():
            motion = unwrapped.extract(reference, batch.reference_timesteps, inputs.text([""] * len(reference)))

        target = inputs.latents(batch.targets, batch.target_posterior)  # (k b) c f h w
        noisy = add_noise(target, batch.target_noise, batch.timesteps)
        prediction = model(noisy, batch.timesteps, inputs.text(batch.captions), motion)
        weight = loss_weight(
            batch.timesteps,
            self.noise_schedule.alphas_cumprod,
            self.config.loss_weighting,
            self.config.loss_weight_max,
        )
        wanted = wanted_prediction(self.noise_schedule, target, batch.target_noise, batch.timesteps)
        return noise_loss(prediction, wanted, weight)


def due(step: int, every: int, last: int) -> bool:
    """Whether what happens `every` so many steps, and at the `last`, happens after `step`."""
    return step % every == 0 or step == last


def stop_unless_finite(what: str, value: float, progress: Progress, batch: Batch) -> None:
    """UserError for NaN or infinity, before it reaches any weight."""
    if not math.isfinite(value):
        raise UserError(
            f"the {what} is {value} at step {progress.step + 1}, samples {batch.numbers[0]} to {batch.numbers[-1]} "
            f"({', '.join(batch.names[:4])}); the weights were not touched and the last checkpoint is good: "
            "lower learning_rate, or look at these clips"
        )


if __name__ == "__main__":
    run_command(main)
