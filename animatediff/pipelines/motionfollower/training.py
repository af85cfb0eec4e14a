"""MotionFollower behind train.py: the stages of its training (arXiv 2405.20325), their networks, data and loss."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from animatediff.data.latents import LatentEncoder
from animatediff.errors import UserError
from animatediff.pipelines.motionfollower import validation
from animatediff.pipelines.motionfollower.loading import load_encoders, weight_files
from animatediff.pipelines.motionfollower.objective import drop_embeds, noised, offset_noise, velocity_error
from animatediff.pipelines.motionfollower.training_data import (
    Batch,
    PreparedVideo,
    SampleRule,
    Samples,
    VideoCache,
    batches,
    find_videos,
    load_data,
)
from animatediff.pipelines.motionfollower.training_keys import MotionFollowerKeys, check
from animatediff.pipelines.motionfollower.training_networks import (
    TrainingNetwork,
    describe_parameters,
    learned_part,
    load_stage,
    save_learned,
)
from animatediff.project import located
from animatediff.training.config import TrainingConfig
from animatediff.training.report import describe_files
from animatediff.training.samples import BatchPlan

HELD_IN = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}  # what is frozen


class Objective:
    """All three networks of a stage, videos of one person each, and the error of the predicted velocity."""

    Keys = MotionFollowerKeys

    def __init__(self, config: TrainingConfig, accelerator: Accelerator) -> None:
        self.config, self.accelerator = config, accelerator
        self.keys = keys_of_run(config)
        networks = load_stage(self.keys, config.seed)
        self.vae, image_encoder = load_encoders(self.keys.weights, networks, torch.float32)
        self.vae.to(accelerator.device)
        image_encoder.to(accelerator.device)
        cache = VideoCache(self.keys.data, LatentEncoder(self.vae), image_encoder)
        self.data = load_data(self.keys.data, config.seed, cache, accelerator)
        image_encoder.to("cpu")  # the cache has all that it gives
        for parameter in TrainingNetwork(networks).parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(HELD_IN[config.mixed_precision])
        if self.keys.gradient_checkpointing:
            networks.unet.enable_gradient_checkpointing()
        self.network: nn.Module = TrainingNetwork(networks)
        self.networks = networks
        self.module = learned_part(self.network)
        self.rule = SampleRule(
            config.seed,
            self.keys.data,
            self.vae.config.latent_channels,
            self.keys.image_share,
            networks.pixels_per_latent,
        )
        self.architecture = {"stage": self.keys.stage, "widths": list(networks.unet.config.block_out_channels)}
        self.fingerprint, self.problems = self.data.fingerprint, self.data.problems

    @classmethod
    def check(cls, config: TrainingConfig) -> None:
        check(config.part(MotionFollowerKeys))

    @classmethod
    def describe(cls, config: TrainingConfig) -> list[str]:
        keys = keys_of_run(config)
        found = [file for file in weight_files(keys.weights) if str(file.path) != "."]  # an empty path starts afresh
        try:
            train, held, data = find_videos(keys.data, config.seed)
            data = [f"training: {len(train)} videos", f"validation: {len(held)} videos", *data]
        except UserError as error:
            data = [f"MISSING  data: {error}"]
        return ["weights:", *describe_files(found), *describe_parameters(keys), *data]

    def parameter_groups(self) -> list[dict[str, Any]]:
        learned = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        return [{"params": learned, "lr": self.config.learning_rate, "name": f"stage {self.keys.stage}"}]

    def batches(self, plan: BatchPlan, first: int, steps: int) -> Iterator[Batch]:
        return batches(Samples(self.data.train, self.rule), plan, first, steps, self.keys.data.workers)

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        return self._loss(model, batch, self.data.train, self.keys.null_image)

    def save(self, folder: Path, steps: int) -> None:
        save_learned(folder, self.networks, self.keys.stage, steps)

    def validate(self, folder: Path) -> dict[str, float]:
        """The mean loss of the first validation samples, the same noise and timesteps every time, and how near the
        first validation videos are when they are denoised under their own skeletons, and under others of theirs.
        """
        videos, settings = self.data.validation, self.keys.validation
        if not videos:
            return {}
        samples = Samples(videos, replace(self.rule, image_share=0.0))
        with self.accelerator.autocast():
            found = validation.mean_loss(
                lambda batch: self._loss(self.network, batch, videos, 0.0), samples, settings.pairs
            )
            if settings.videos:
                drawn = [samples[k, k] for k in range(min(settings.videos, len(videos)))]
                found |= validation.write(
                    folder, self.networks, self.vae, self.data.cache, videos, drawn, settings, self.config.seed
                )
        return found

    def _loss(self, model: nn.Module, batch: Batch, videos: Sequence[PreparedVideo], null_image: float) -> torch.Tensor:
        keys, cache, device = self.keys, self.data.cache, self.accelerator.device
        of_each = [videos[index] for index in batch.videos]

        def read(what: Any, frames: torch.Tensor) -> torch.Tensor:
            rows = zip(of_each, frames.tolist(), strict=True)
            return torch.stack([what(video, indices) for video, indices in rows]).to(device)

        latents = cache.vae.latents(read(cache.moments, batch.targets), batch.posterior.to(device))  # b c f h w
        noise = offset_noise(batch.noise, batch.shift, keys.noise_offset).to(device)
        timesteps = batch.timesteps.to(device)
        noisy, target = noised(latents, noise, timesteps)
        embeds = drop_embeds(read(cache.embeds, batch.sources), batch.dropped.to(device), null_image)  # b f dim
        poses = read(cache.poses, batch.targets)  # b f 3 H W
        predicted = model(noisy, timesteps, embeds, poses, batch.frames.to(device))
        return velocity_error(predicted, target, timesteps, keys.snr_gamma)


def keys_of_run(config: TrainingConfig) -> MotionFollowerKeys:
    """The method's keys of a configuration, weights looked up in the current folder, then in this project's."""
    keys = config.part(MotionFollowerKeys)
    return replace(keys, weights=located(keys.weights))
