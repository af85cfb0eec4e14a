"""What is looked at while an adapter is trained: the loss on held-out pairs, and clips from held-out references."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from animatediff.data.export import safe_name, save_video, side_by_side
from animatediff.data.latents import Inputs
from animatediff.data.pairs import ClipShape, Group, PairOrder, TrainingClip
from animatediff.data.sources import SOURCES, Frames
from animatediff.data.video import to_levels
from animatediff.files import write_json
from animatediff.models import Adapter
from animatediff.pipelines.backbones.schedulers import build_scheduler
from animatediff.pipelines.backbones.sd15 import Components
from animatediff.pipelines.efficientmt.objective_keys import EfficientMTKeys
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.training.data import validation_pairs
from animatediff.training.samples import Batch, SampleRule, Samples

LEVELS = 4  # noise levels at which the loss of a validation pair is taken


def samples(groups: Sequence[Group], rule: SampleRule, seed: int, inputs: Inputs) -> Samples:
    """The validation pairs: the same clips, noise and timesteps every time, and no caption dropped."""
    return Samples(PairOrder(groups, seed), replace(rule, targets=LEVELS, null_text=0.0), inputs.read)


def mean_loss(loss_of: Callable[[Batch], torch.Tensor], drawn: Samples, count: int) -> dict[str, float]:
    """The mean loss of the first `count` samples, as what is logged; nothing where that is 0."""
    losses = [loss_of(drawn[number]).item() for number in range(count)]
    return {"validation/loss": statistics.fmean(losses)} if losses else {}


def write(
    folder: Path,
    keys: EfficientMTKeys,
    seed: int,
    components: Components,
    adapter: Adapter,
    groups: Sequence[Group],
    shape: ClipShape,
) -> dict[str, float]:
    """Generate the target prompts of the first groups from their references; write side-by-sides and measures.json.

    Returns the mean of every measure, over the clips that have it.
    """
    parts = (components.vae, components.text_encoder, components.tokenizer, components.unet)
    pipeline = EfficientMTPipeline(*parts, adapter, build_scheduler("ddim", components.prediction_type))
    pipeline.set_progress_bar_config(disable=True)
    measures = SOURCES[keys.data.source].measures
    measure = None if keys.validation.measures == "none" else measures[keys.validation.measures](shape)
    rows: list[dict[str, object]] = []
    values: dict[str, list[float]] = {}
    for number, (reference, target) in enumerate(validation_pairs(groups, keys.validation.videos)):
        before, after = generate(pipeline, reference, target.caption, shape, keys, seed)
        save_video(folder / f"{number:02d}-{safe_name(target.caption)}.mp4", side_by_side(before, after))
        found = measure(after, reference, target) if measure is not None else {}
        for name, value in found.items():
            values.setdefault(name, []).append(value)
        rows.append({"reference": reference.name, "prompt": target.caption, **found})
    means = {name: statistics.fmean(found) for name, found in values.items()}
    write_json(folder / "measures.json", {"mean": means, "clips": rows})
    return means


def generate(
    pipeline: EfficientMTPipeline,
    reference: TrainingClip,
    prompt: str,
    shape: ClipShape,
    keys: EfficientMTKeys,
    seed: int,
) -> tuple[Frames, Frames]:
    """(reference frames, generated frames), both uint8 [f, h, w, 3]."""
    pixels = reference.pixels(shape)
    generator = torch.Generator().manual_seed(seed)
    motion = pipeline.extract(pixels, timestep=keys.reference_timestep, generator=generator)
    videos, *_ = pipeline(
        prompt,
        reference=motion,
        num_inference_steps=keys.validation.num_inference_steps,
        guidance_scale=keys.validation.guidance_scale,
        generator=generator,
        output_type="pt",
        return_dict=False,
    )
    made = videos[0].float().cpu()  # f 3 h w in [0, 1]
    return to_levels(pixels), to_levels(2 * made - 1)
