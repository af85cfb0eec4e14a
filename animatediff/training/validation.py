"""What is looked at while training: the loss on held-out pairs, and clips generated from held-out references."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray

from animatediff.data.export import safe_name, save_video, side_by_side
from animatediff.data.pairs import ClipShape, Group, PairOrder, SyntheticClip, TrainingClip
from animatediff.files import write_json
from animatediff.miniature.heldout import Job, score
from animatediff.models import Adapter, EfficientMT
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.backbones.sd15 import Components
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.training.checkpoints import Progress
from animatediff.training.config import TrainingConfig
from animatediff.training.optimizer import averaged
from animatediff.training.samples import Batch, SampleRule, Samples
from animatediff.training.setup import Data, clip_shape, vae_scale

Frames = NDArray[np.uint8]
Measure = Callable[[Frames, TrainingClip, TrainingClip], dict[str, float]]  # (generated, reference, target)
LEVELS = 4  # noise levels at which the loss of a validation pair is taken


@torch.no_grad()
def validate(
    config: TrainingConfig,
    components: Components,
    progress: Progress,
    data: Data,
    rule: SampleRule,
    accelerator: Accelerator,
    loss_of: Callable[[torch.nn.Module, Batch], torch.Tensor],
) -> dict[str, float]:
    """Loss and measures on the validation split with the weights that inference would get, the same pairs, noise and
    timesteps every time. Clips and measures go to <output>/validation/step-.../.
    """
    if not data.validation:
        return {}
    with averaged(progress.adapter, progress.average), accelerator.autocast():
        model = EfficientMT(components.unet, adapter=progress.adapter)
        samples = Samples(
            PairOrder(data.validation, config.seed), replace(rule, targets=LEVELS, null_text=0.0), data.inputs.read
        )
        losses = [loss_of(model, samples[number]).item() for number in range(config.validation.pairs)]
        found = {"validation/loss": statistics.fmean(losses)} if losses else {}
        if config.validation.videos:
            folder = Path(config.output) / "validation" / f"step-{progress.step:08d}"
            shape = clip_shape(config.data, vae_scale(components))
            measure = world_measure(shape) if config.validation.measures == "world" else None
            means = write_validation(folder, config, components, progress.adapter, data.validation, shape, measure)
            found |= {f"validation/{name}": value for name, value in means.items()}
    return found


def write_validation(
    folder: Path,
    config: TrainingConfig,
    components: Components,
    adapter: Adapter,
    groups: Sequence[Group],
    shape: ClipShape,
    measure: Measure | None = None,
) -> dict[str, float]:
    """Generate the target prompts of the first groups from their references; write side-by-sides and measures.json.

    Returns the mean of every measure, over the clips that have it.
    """
    parts = (components.vae, components.text_encoder, components.tokenizer, components.unet)
    pipeline = EfficientMTPipeline(*parts, adapter, build_scheduler("ddim", components.prediction_type))
    pipeline.set_progress_bar_config(disable=True)
    rows: list[dict[str, object]] = []
    values: dict[str, list[float]] = {}
    for number, (reference, target) in enumerate(validation_pairs(groups, config.validation.videos)):
        before, after = generate(pipeline, reference, target.caption, shape, config)
        save_video(folder / f"{number:02d}-{safe_name(target.caption)}.mp4", side_by_side(before, after))
        measures = measure(after, reference, target) if measure is not None else {}
        for name, value in measures.items():
            values.setdefault(name, []).append(value)
        rows.append({"reference": reference.name, "prompt": target.caption, **measures})
    means = {name: statistics.fmean(found) for name, found in values.items()}
    write_json(folder / "measures.json", {"mean": means, "clips": rows})
    return means


def world_measure(shape: ClipShape) -> Measure:
    """The measures of the moving-shape world: the generated track and content against their ground truth."""

    def measure(frames: Frames, reference: TrainingClip, target: TrainingClip) -> dict[str, float]:
        assert isinstance(reference, SyntheticClip)  # checked with the configuration
        assert isinstance(target, SyntheticClip)
        job = Job(reference.name, reference.clip(shape), target.content, seed=0)
        values = {name: float(value) for name, value in score(frames, job).items() if name != "job"}
        if reference.content.colour == target.content.colour:
            del values["leak"]  # the reference's colour is the one asked for
        return {name: value for name, value in values.items() if not math.isnan(value)}

    return measure


def validation_pairs(groups: Sequence[Group], count: int) -> list[tuple[TrainingClip, TrainingClip]]:
    """(reference, target) of at most `count` groups: the first clip and the first that differs from it."""
    pairs = []
    for group in groups[:count]:
        first = group.clips[0]
        pairs.append((first, next(clip for clip in group.clips if clip.content_hash != first.content_hash)))
    return pairs


def generate(
    pipeline: EfficientMTPipeline, reference: TrainingClip, prompt: str, shape: ClipShape, config: TrainingConfig
) -> tuple[Frames, Frames]:
    """(reference frames, generated frames), both uint8 [f, h, w, 3]."""
    pixels = reference.pixels(shape)
    generator = torch.Generator().manual_seed(config.seed)
    motion = pipeline.extract(pixels, timestep=config.reference_timestep, generator=generator)
    output = pipeline(
        prompt,
        reference=motion,
        num_inference_steps=config.validation.num_inference_steps,
        guidance_scale=config.validation.guidance_scale,
        generator=generator,
        output_type="np",
    ).frames[0]
    return _levels(pixels.permute(0, 2, 3, 1).numpy() / 2 + 0.5), _levels(output)


def _levels(frames: np.ndarray) -> Frames:
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)
