"""CogVideoX-2b and -5b: from a diffusers folder, as the hub has it, to components."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXTransformer3DModel,
    SchedulerMixin,
)
from diffusers.configuration_utils import ConfigMixin
from transformers import PreTrainedTokenizerBase, T5Config, T5EncoderModel

from animatediff.config import nearest
from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.pipelines.backbones.folders import (
    TRANSFORMERS_WEIGHTS,
    Part,
    build,
    check_fit,
    load_tokenizer,
    load_weights,
    read_config,
)

TRANSFORMER = Part("transformer", CogVideoXTransformer3DModel)
VAE = Part("vae", AutoencoderKLCogVideoX)
TEXT_ENCODER = Part("text_encoder", T5EncoderModel, TRANSFORMERS_WEIGHTS)
PARTS = (TRANSFORMER, VAE, TEXT_ENCODER)
NAME = "CogVideoX"

Scheduler: TypeAlias = CogVideoXDDIMScheduler | CogVideoXDPMScheduler


class _OnItsTimesteps(SchedulerMixin, ConfigMixin):
    """A CogVideoX scheduler whose every step lands on the next of its timesteps, whatever their number.

    diffusers' go from t to t - 1000 // N, which is beside the next one unless N divides 1000, and with some N stop
    short of the clean video. Here a step is diffusers' on the noise levels of the N timesteps alone, of stride 1.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """N timesteps, descending; ValueError for more than there are."""
        super().set_timesteps(num_inference_steps, device)
        listed = self.timesteps.tolist()
        self._places = {t: place for place, t in enumerate(reversed(listed))}
        self._chosen = self._plain.from_config(
            self.config,
            num_train_timesteps=len(listed),
            timestep_spacing="leading",
            steps_offset=0,
        )
        self._chosen.alphas_cumprod = self.alphas_cumprod[listed[::-1]]
        self._chosen.final_alpha_cumprod = self.final_alpha_cumprod
        self._chosen.set_timesteps(len(listed))

    def _place(self, timestep: int | torch.Tensor | None) -> int | None:
        return None if timestep is None else self._places[int(timestep)]


class EvenCogVideoXDDIMScheduler(_OnItsTimesteps, CogVideoXDDIMScheduler):
    """See _OnItsTimesteps."""

    _plain = CogVideoXDDIMScheduler

    def step(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """CogVideoXDDIMScheduler's step to the next timestep."""
        return self._chosen.step(model_output, self._place(timestep), sample, *args, **kwargs)


class EvenCogVideoXDPMScheduler(_OnItsTimesteps, CogVideoXDPMScheduler):
    """See _OnItsTimesteps."""

    _plain = CogVideoXDPMScheduler

    def step(
        self,
        model_output: torch.Tensor,
        old_pred_original_sample: torch.Tensor | None,
        timestep: int,
        timestep_back: int | None,
        sample: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """CogVideoXDPMScheduler's step to the next timestep."""
        return self._chosen.step(
            model_output,
            old_pred_original_sample,
            self._place(timestep),
            self._place(timestep_back),
            sample,
            *args,
            **kwargs,
        )


SCHEDULERS: dict[str, type[Scheduler]] = {"ddim": EvenCogVideoXDDIMScheduler, "dpm": EvenCogVideoXDPMScheduler}


@dataclass
class CogVideoXComponents:
    """A CogVideoX base, loaded and frozen."""

    tokenizer: PreTrainedTokenizerBase
    text_encoder: T5EncoderModel
    vae: AutoencoderKLCogVideoX
    transformer: CogVideoXTransformer3DModel
    scheduler: Scheduler


def load_cogvideox(folder: str | Path, scheduler: str = "", dtype: torch.dtype = torch.float32) -> CogVideoXComponents:
    """The components in a diffusers folder of CogVideoX, on the CPU in `dtype`.

    scheduler: ddim or dpm; "": that of the kind, ddim for a position table (2b), dpm for rope (5b). UserError in one
    line for another model's folder, keys and shapes that do not fit, and parts that do not fit each other.
    """
    folder = Path(folder)
    configs = {part.name: read_config(folder, part, NAME) for part in PARTS}
    transformer = build(
        lambda: CogVideoXTransformer3DModel.from_config(configs["transformer"]), folder / "transformer" / "config.json"
    )
    vae = build(lambda: AutoencoderKLCogVideoX.from_config(configs["vae"]), folder / "vae" / "config.json")
    text_encoder = build(
        lambda: T5EncoderModel(T5Config(**configs["text_encoder"])), folder / "text_encoder" / "config.json"
    )
    check_fit(
        folder,
        [
            (
                "transformer",
                "in_channels",
                transformer.config.in_channels,
                "vae",
                "latent_channels",
                vae.config.latent_channels,
            ),
            (
                "transformer",
                "text_embed_dim",
                transformer.config.text_embed_dim,
                "text_encoder",
                "d_model",
                text_encoder.config.d_model,
            ),
        ],
    )
    tokenizer = load_tokenizer(folder, text_encoder.config.vocab_size)
    sampler = build_scheduler(folder, scheduler or default_scheduler(transformer))
    for network, part in ((transformer, TRANSFORMER), (vae, VAE), (text_encoder, TEXT_ENCODER)):
        load_weights(network, folder, part, dtype)
    return CogVideoXComponents(tokenizer, text_encoder, vae, transformer, sampler)


def default_scheduler(transformer: CogVideoXTransformer3DModel) -> str:
    """The scheduler that the published run of this kind has."""
    return "dpm" if transformer.config.use_rotary_positional_embeddings else "ddim"


def build_scheduler(folder: Path, name: str) -> Scheduler:
    """The scheduler `name` (ddim, dpm) on the noise schedule of the folder's config, at trailing timesteps."""
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler '{name}' for CogVideoX; {nearest(name, list(SCHEDULERS))}")
    path = folder / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        raise UserError(f"no scheduler config at {path}; copy the whole folder of the base model")
    try:
        return SCHEDULERS[name].from_config(read_json(path), timestep_spacing="trailing")
    except Exception as error:  # diffusers raises unrelated classes for configs that make no sense
        raise UserError(f"{path} describes no noise schedule ({one_line(error)[:160]})") from error
