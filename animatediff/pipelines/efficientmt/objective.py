"""What train.py minimises for EfficientMT (section 3.4): extract a reference's motion, predict the noise of another
clip with that motion under it. The backbone is frozen; the adapter learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, init_empty_weights
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import nn

from animatediff.data.latents import Encoder
from animatediff.data.pairs import PairOrder
from animatediff.errors import UserError
from animatediff.files import keys_of, read_json
from animatediff.models.adapter import Adapter, EfficientMT, site_paths
from animatediff.models.unet import VideoUNet, build_unet
from animatediff.pipelines.backbones.sd15 import Components, load_components, weight_files
from animatediff.pipelines.efficientmt import validation
from animatediff.pipelines.efficientmt.loading import load_adapter
from animatediff.pipelines.efficientmt.objective_keys import EfficientMTKeys, check, trained_parts
from animatediff.project import located
from animatediff.training.config import TrainingConfig
from animatediff.training.data import clip_shape, describe_data, load_data
from animatediff.training.diffusion import TimestepRule, loss_weight, noise_loss, published_noise_schedule, target_of
from animatediff.training.report import count_parameters, describe_files
from animatediff.training.samples import Batch, BatchPlan, SampleRule, Samples, batches

FROZEN_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
ARCHITECTURE = ("site_channels", "use_scaler")  # of the adapter's config


class Objective:
    """An adapter on its frozen backbone, pairs of clips that share a motion, and the loss between them."""

    Keys = EfficientMTKeys

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config, self.keys, self.accelerator = config, keys_of_run(config), accelerator
        self.components = load_components(self.keys.weights)
        self.noise_schedule = build_noise_schedule(self.keys, self.components.prediction_type)
        for frozen in (self.components.vae, self.components.text_encoder):
            nn.Module.to(frozen, accelerator.device)
        self.module: Adapter = load_trained_adapter(self.components.unet, self.keys, config.seed)
        self.steps_before = self.module.config.trained_steps or 0
        self.shape = clip_shape(self.keys.data, vae_scale(self.components))
        encoder = Encoder(self.components.vae, self.components.text_encoder, self.components.tokenizer)
        self.data = load_data(self.keys.data, config.seed, encoder, self.shape, accelerator)
        freeze_backbone(self.components.unet, self.keys, config.mixed_precision)
        self.network: nn.Module = EfficientMT(self.components.unet, adapter=self.module)
        self.rule = sample_rule(self.keys, config.seed, self.components)
        self.architecture = {key: self.module.config[key] for key in ARCHITECTURE}
        self.fingerprint, self.problems = self.data.fingerprint, self.data.problems

    @classmethod
    def check(cls, config: TrainingConfig) -> None:
        check(config.part(EfficientMTKeys))

    @classmethod
    def describe(cls, config: TrainingConfig) -> list[str]:
        keys = keys_of_run(config)
        files = ["weights:", *describe_files(weight_files(keys.weights))]
        return [*files, *describe_parameters(keys, config.seed), *describe_data(keys.data, config.seed)]

    def parameter_groups(self) -> list[dict[str, Any]]:
        rates, rate = self.keys.learning_rates, self.config.learning_rate
        return [
            {"params": self.module.part(part), "lr": rates.get(part, rate), "name": part}
            for part in trained_parts(self.keys)
        ]

    def batches(self, plan: BatchPlan, first: int, steps: int) -> Iterator[Batch]:
        samples = Samples(PairOrder(self.data.train, self.config.seed), self.rule, self.data.inputs.read)
        return batches(samples, plan, first, steps, self.data.workers)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        batch, inputs, keys = batch.to(self.accelerator.device), self.data.inputs, self.keys
        unwrapped = self.accelerator.unwrap_model(model)
        add_noise = self.noise_schedule.add_noise

        reference = inputs.latents(batch.reference, batch.reference_posterior)  # b c f h w
        reference = add_noise(reference, batch.reference_noise, batch.reference_timesteps)
        with self.accelerator.autocast():
            motion = unwrapped.extract(reference, batch.reference_timesteps, inputs.text([""] * len(reference)))

        clean = inputs.latents(batch.targets, batch.target_posterior)  # (k b) c f h w
        noisy = add_noise(clean, batch.target_noise, batch.timesteps)
        prediction = model(noisy, batch.timesteps, inputs.text(batch.captions), motion)
        target = target_of(self.noise_schedule, clean, batch.target_noise, batch.timesteps)
        alphas_cumprod = self.noise_schedule.alphas_cumprod
        weight = loss_weight(batch.timesteps, alphas_cumprod, keys.loss_weighting, keys.loss_weight_max)
        return noise_loss(prediction, target, weight)

    def save(self, folder: Path, steps: int) -> None:
        self.module.register_to_config(trained_steps=self.steps_before + steps)
        self.module.save_pretrained(folder)

    def validate(self, folder: Path) -> dict[str, float]:
        """The mean loss of the first validation pairs, the same noise and timesteps every time, and the measures of
        clips generated from the first references.
        """
        groups, settings = self.data.validation, self.keys.validation
        if not groups:
            return {}
        with self.accelerator.autocast():
            samples = validation.samples(groups, self.rule, self.config.seed, self.data.inputs)
            model = EfficientMT(self.components.unet, adapter=self.module)
            found = validation.mean_loss(lambda batch: self.loss(model, batch), samples, settings.pairs)
            if settings.videos:
                means = validation.write(
                    folder, self.keys, self.config.seed, self.components, self.module, groups, self.shape
                )
                found |= {f"validation/{name}": value for name, value in means.items()}
        return found


def build_noise_schedule(keys: EfficientMTKeys, prediction_type: str) -> DDPMScheduler:
    """The forward process of a run on a backbone that predicts `prediction_type`, one of PREDICTIONS.

    UserError where loss_weighting asks for the error on v, which such a backbone's plain error already is.
    """
    if prediction_type == "v_prediction" and keys.loss_weighting != "none":
        raise UserError(
            f"loss_weighting is {keys.loss_weighting}, but {keys.weights.pretrained_model_path} predicts v, whose "
            "error is weighted so by its nature; set loss_weighting=none"
        )
    return published_noise_schedule(prediction_type)


def fresh_adapter(unet: VideoUNet, keys: EfficientMTKeys, seed: int) -> Adapter:
    """A new adapter by the configuration's architecture; its scalers' first weights follow from the seed."""
    torch.manual_seed(seed)
    return Adapter.for_unet(unet, keys.sites, keys.use_scaler, keys.scaler_bias)


def keys_of_run(config: TrainingConfig) -> EfficientMTKeys:
    """The method's keys of a configuration, weights looked up in the current folder, then in this project's."""
    keys = config.part(EfficientMTKeys)
    return replace(keys, weights=located(keys.weights))


def load_trained_adapter(unet: VideoUNet, keys: EfficientMTKeys, seed: int) -> Adapter:
    """The adapter that training starts from: a new one, or the one at `weights.ckpt_path`.

    UserError where the configuration contradicts the file.
    """
    path = keys.weights.ckpt_path
    adapter = load_adapter(unet, path) if path else fresh_adapter(unet, keys, seed)
    found = [site for site, _ in adapter.named_sites()]
    if found != site_paths(unet, keys.sites):
        raise UserError(f"sites is {keys.sites}, but {path} has {len(found)} sites, the first at {found[0]}")
    if adapter.config.use_scaler != keys.use_scaler:
        raise UserError(f"use_scaler is {keys.use_scaler}, but {path} was made with the opposite")
    if keys.gradient_checkpointing and any(True for _ in adapter.named_overrides()):
        raise UserError(
            f"{path} changes backbone weights beside the adapter's, which gradient_checkpointing cannot recompute; "
            "set gradient_checkpointing=false"
        )
    freeze_untrained(adapter, trained_parts(keys))
    return adapter


def freeze_untrained(adapter: Adapter, parts: tuple[str, ...]) -> None:
    """Leave gradients to the given parts of the adapter only (the paper's ablations train some of them)."""
    adapter.requires_grad_(False)
    for part in parts:
        for parameter in adapter.part(part):
            parameter.requires_grad_(True)


def freeze_backbone(unet: VideoUNet, keys: EfficientMTKeys, precision: str) -> None:
    """Hold the backbone frozen, in the precision and layout of the configuration."""
    nn.Module.to(unet.requires_grad_(False).eval(), FROZEN_DTYPES[precision])
    if keys.channels_last:
        unet.to(memory_format=torch.channels_last)
    if keys.gradient_checkpointing:
        unet.enable_gradient_checkpointing()


def vae_scale(components: Components) -> int:
    """Pixels per latent along one side."""
    return 2 ** (len(components.vae.config.block_out_channels) - 1)


def sample_rule(keys: EfficientMTKeys, seed: int, components: Components) -> SampleRule:
    """How samples are drawn under the configuration."""
    data, scale = keys.data, vae_scale(components)
    channels = components.vae.config.latent_channels
    return SampleRule(
        seed=seed,
        latent_shape=(channels, data.num_frames, data.height // scale, data.width // scale),
        timesteps=TimestepRule(keys.timestep_min, keys.timestep_max, keys.timestep_sampling),
        targets=keys.targets_per_reference,
        reference_timestep=keys.reference_timestep,
        reference_timestep_max=keys.reference_timestep_max,
        null_text=keys.null_text,
    )


def describe_parameters(keys: EfficientMTKeys, seed: int) -> list[str]:
    """Counts of trained and frozen parameters, from the base model's config alone."""
    path = Path(keys.weights.pretrained_model_path) / "unet" / "config.json"
    if not path.is_file():
        return [f"parameters: unknown until {path} is there"]
    with init_empty_weights():
        unet = build_unet(read_json(path, keys_of(UNet2DConditionModel.__init__)))
        adapter = nn.Module.to(fresh_adapter(unet, keys, seed), "meta")
    parts = trained_parts(keys)
    freeze_untrained(adapter, parts)
    tensors, numbers = count_parameters(adapter, trained=True)
    still = count_parameters(adapter, trained=False)[1]
    backbone = sum(p.numel() for p in unet.parameters())
    return [
        f"trained: {numbers:,} parameters in {tensors} tensors ({', '.join(parts)} at {keys.sites})",
        f"frozen: {backbone + still:,} parameters (backbone {backbone:,}, adapter {still:,})",
    ]
