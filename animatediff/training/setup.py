"""From a configuration to what the loop of train.py runs on: accelerator, model, data."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import torch
from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available
from diffusers import DDPMScheduler
from torch import nn

from animatediff.config import to_dict
from animatediff.data.latents import (
    EncodedInputs,
    Encoder,
    Inputs,
    PrecomputedInputs,
    ShardCache,
    fill_cache,
    find_broken,
    uncached,
)
from animatediff.data.pairs import (
    ClipShape,
    Group,
    all_clips,
    folder_groups,
    keep_readable,
    split_groups,
    synthetic_groups,
)
from animatediff.data.video import resolve_size
from animatediff.errors import UserError, one_line
from animatediff.models.adapter import Adapter, site_paths
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.backbones.sd15 import Components
from animatediff.pipelines.efficientmt.loading import load_adapter
from animatediff.pipelines.video import size_multiple
from animatediff.training.config import DataConfig, TrainingConfig, trained_parts
from animatediff.training.objective import TimestepRule, published_noise_schedule
from animatediff.training.optimizer import freeze_untrained
from animatediff.training.samples import SampleRule

FROZEN_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Data:
    """The readable groups of a run and where their latents and texts come from."""

    train: list[Group]
    validation: list[Group]
    problems: list[str]  # clips and groups left out, one line each
    inputs: Inputs
    workers: int

    @cached_property
    def fingerprint(self) -> str:
        """Equal for the same training clips in the same groups."""
        hashes = [[clip.content_hash for clip in group.clips] for group in self.train]
        return hashlib.sha256(repr(hashes).encode()).hexdigest()


def build_accelerator(config: TrainingConfig) -> Accelerator:
    """The accelerator of a run. UserError where the device cannot take the precision or a tracker is not installed."""
    available = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in config.log_with:
        if not available[name]():
            raise UserError(f"log_with names {name}, which is not installed; install it or take it out")
    precision = "no" if config.mixed_precision == "fp32" else config.mixed_precision
    try:
        accelerator = Accelerator(
            mixed_precision=precision, log_with=config.log_with or None, project_dir=config.output
        )
    except ValueError as error:  # bf16 on a device without it
        raise UserError(f"mixed_precision is {precision}: {one_line(error)}; use fp32") from error
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise UserError("mixed_precision is fp16, which needs a GPU; use mixed_precision=fp32 or bf16 on a CPU")
    return accelerator


def build_noise_schedule(config: TrainingConfig, prediction_type: str) -> DDPMScheduler:
    """The forward process of a run on a backbone that predicts `prediction_type`, one of PREDICTIONS.

    UserError where loss_weighting asks for the error on v, which such a backbone's plain error already is.
    """
    if prediction_type == "v_prediction" and config.loss_weighting != "none":
        raise UserError(
            f"loss_weighting is {config.loss_weighting}, but {config.weights.pretrained_model_path} predicts v, whose "
            "error is weighted so by its nature; set loss_weighting=none"
        )
    return published_noise_schedule(prediction_type)


def start_trackers(accelerator: Accelerator, config: TrainingConfig) -> None:
    """Start the configured trackers with the flattened configuration."""
    if config.log_with:
        accelerator.init_trackers("trackers", config={key: str(value) for key, value in _flat(to_dict(config))})


def fresh_adapter(unet: VideoUNet, config: TrainingConfig) -> Adapter:
    """A new adapter by the configuration's architecture; its scalers' first weights follow from the seed."""
    torch.manual_seed(config.seed)
    return Adapter.for_unet(unet, config.sites, config.use_scaler, config.scaler_bias)


def load_trained_adapter(unet: VideoUNet, config: TrainingConfig) -> Adapter:
    """The adapter that training starts from: a new one, or the one at `weights.ckpt_path`.

    UserError where the configuration contradicts the file.
    """
    path = config.weights.ckpt_path
    adapter = load_adapter(unet, path) if path else fresh_adapter(unet, config)
    found = [site for site, _ in adapter.named_sites()]
    if found != site_paths(unet, config.sites):
        raise UserError(f"sites is {config.sites}, but {path} has {len(found)} sites, the first at {found[0]}")
    if adapter.config.use_scaler != config.use_scaler:
        raise UserError(f"use_scaler is {config.use_scaler}, but {path} was made with the opposite")
    if config.gradient_checkpointing and any(True for _ in adapter.named_overrides()):
        raise UserError(
            f"{path} changes backbone weights beside the adapter's, which gradient_checkpointing cannot recompute; "
            "set gradient_checkpointing=false"
        )
    freeze_untrained(adapter, trained_parts(config))
    return adapter


def freeze_backbone(unet: VideoUNet, config: TrainingConfig) -> None:
    """Hold the backbone frozen, in the precision and layout of the configuration."""
    nn.Module.to(unet.requires_grad_(False).eval(), FROZEN_DTYPES[config.mixed_precision])
    if config.channels_last:
        nn.Module.to(unet, memory_format=torch.channels_last)
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()


def find_groups(config: TrainingConfig) -> tuple[list[Group], list[Group]]:
    """(training, validation) groups of the configured source, none of them read yet."""
    data = config.data
    if data.source == "synthetic":
        made = (data.synthetic_groups, data.synthetic_clips, data.synthetic_seed)
        held_out = (data.synthetic_validation_groups, 2, data.synthetic_seed + 1)
        train = synthetic_groups(*made, camera_share=data.synthetic_camera_share)
        return train, synthetic_groups(*held_out, split="heldout")
    assert data.root is not None  # checked with the configuration
    return split_groups(folder_groups(data.root), data.validation_share, config.seed)


def clip_shape(data: DataConfig, vae_scale: int) -> ClipShape:
    """How clips are read. UserError for sizes that the pipelines, which validation generates with, do not take."""
    multiple = size_multiple(vae_scale)
    height, width = resolve_size(data.height, data.width, data.height, data.width, data.fit, multiple)
    return ClipShape(data.num_frames, height, width, data.fit)


def vae_scale(components: Components) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(components.vae.config.block_out_channels) - 1)


def load_data(config: TrainingConfig, components: Components, accelerator: Accelerator) -> Data:
    """Find the clips, try or encode each once, leave out what is broken. Processes share the encoding."""
    shape = clip_shape(config.data, vae_scale(components))
    train, validation = find_groups(config)
    clips = list(all_clips([*train, *validation]))
    encoder = Encoder(components.vae, components.text_encoder, components.tokenizer)
    show = accelerator.is_main_process
    inputs: Inputs
    if config.data.cache is None:
        broken = find_broken(clips, shape, show)
        inputs = EncodedInputs(encoder, shape, accelerator.device)
    else:
        cache = ShardCache(config.data.cache)
        part, parts = accelerator.process_index, accelerator.num_processes
        why = fill_cache(cache, encoder, clips, shape, part, parts, show)
        accelerator.wait_for_everyone()
        broken = uncached(cache, encoder, clips, shape, why)
        inputs = PrecomputedInputs(cache, encoder, shape, accelerator.device)
    kept, held = keep_readable(train, broken), keep_readable(validation, broken)
    if not kept.groups:
        raise UserError(f"no group is left to train on; {len(broken)} clips cannot be read")
    problems = list(dict.fromkeys([*kept.problems, *held.problems]))
    workers = config.data.workers if config.data.cache is None else 0
    return Data(kept.groups, held.groups, problems, inputs, workers)


def sample_rule(config: TrainingConfig, components: Components) -> SampleRule:
    """How samples are drawn under the configuration."""
    data, scale = config.data, vae_scale(components)
    return SampleRule(
        seed=config.seed,
        latent_shape=(
            components.vae.config.latent_channels,
            data.num_frames,
            data.height // scale,
            data.width // scale,
        ),
        timesteps=TimestepRule(config.timestep_min, config.timestep_max, config.timestep_sampling),
        targets=config.targets_per_reference,
        reference_timestep=config.reference_timestep,
        reference_timestep_max=config.reference_timestep_max,
        null_text=config.null_text,
    )


def _flat(values: dict, prefix: str = "") -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = []
    for key, value in values.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else [(prefix + key, value)]
    return rows
