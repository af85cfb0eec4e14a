"""DiTFlow as diffusers pipelines: text, VAE, offloading and LoRA are diffusers', the loop is `sample`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLWan,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    ModelMixin,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from einops import rearrange
from transformers import PreTrainedTokenizerBase, T5EncoderModel, UMT5EncoderModel

from animatediff.errors import UserError
from animatediff.pipelines.ditflow.dialects import dialect_of
from animatediff.pipelines.ditflow.optimization import ReferenceMotion, Variable, extract_motion
from animatediff.pipelines.ditflow.sampling import sample
from animatediff.pipelines.video import OneAtATime

# The published run's.
NEGATIVE_PROMPT = "bad quality, distortions, unrealistic, distorted image, watermark, signature"
OnStep = Callable[[int, int, torch.Tensor], Any]


@dataclass(frozen=True)
class MotionReference:
    """A reference clip, read once for any number of prompts and seeds. On the CPU.

    motion None: only its latents serve, for injection. latents: clean, in the network's order, float32.
    """

    motion: ReferenceMotion | None
    latents: torch.Tensor
    num_frames: int
    height: int  # pixels
    width: int

    @property
    def is_static(self) -> bool:
        """Whether nothing in the clip moves, so that guidance has nothing to follow."""
        return self.motion is not None and self.motion.is_static


@dataclass
class DiTFlowOutput(BaseOutput):
    """frames: (f h w 3) float32 in [0, 1], or latents. losses: before each update, by guided step.

    positions: {timestep (Wan: step): optimised positions}, on the CPU, where they were the variable.
    """

    frames: np.ndarray | torch.Tensor
    losses: list[list[float]]
    positions: dict[int, torch.Tensor]


class _Transfer(OneAtATime):
    """What DiTFlow's pipelines share, beside one of diffusers: `extract` and a call."""

    text_tokens: int

    def _set_up(self) -> None:
        dialect_of(self.transformer)  # refuses networks that DiTFlow does not run on
        self._lock = threading.RLock()

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of."""
        return self.vae_scale_factor_spatial * dialect_of(self.transformer).patch

    @torch.no_grad()
    def extract(
        self,
        video: torch.Tensor,
        blocks: Sequence[int],
        loss: str = "flow",
        *,
        prompt: str = "",
        temperature: float = 2.0,
        moving_only: bool = True,
        share: float = 0.04,
        hard: bool = True,
        generator: torch.Generator | None = None,
    ) -> MotionReference:
        """The reference of a video (f 3 h w) in [-1, 1]: its latents, drawn with `generator`, and its motion.

        loss: flow, moft, smm or smm_published, or none: latents alone. The rest as in `extract_motion`; prompt is the
        clip's text. UserError for frame counts and sizes that the VAE and the patches do not give back.
        """
        frames, _, height, width = video.shape
        self.check_size(frames, height, width)
        with self.exclusive():
            latents = self.encode_video(video, generator)
            self.maybe_free_model_hooks()
            motion = None
            if loss != "none":
                text = self.encode_text([prompt])
                motion = extract_motion(
                    self.transformer, latents, text, blocks, loss, temperature, moving_only, share, hard
                ).to("cpu")
        return MotionReference(motion, latents.cpu(), frames, height, width)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str,
        reference: MotionReference,
        *,
        negative_prompt: str = NEGATIVE_PROMPT,
        variable: Variable = "latents",
        positions: Mapping[int, torch.Tensor] | None = None,
        injection_blocks: Sequence[int] = (0,),
        num_inference_steps: int = 50,
        guidance_steps: int = 10,
        optimization_steps: int = 5,
        learning_rate: Sequence[float] = (0.002, 0.001),
        guidance_scale: float = 7.0,
        dynamic_cfg: bool = False,
        generator: torch.Generator | None = None,
        published_gradient: bool = False,
        gradient_checkpointing: bool = True,
        batched_cfg: bool = True,
        output_type: str = "np",
        on_step: OnStep | None = None,
    ) -> DiTFlowOutput:
        """A video under `prompt` that moves like `reference`, at its size and length; arguments as in `sample`.

        positions: saved ones, used instead of the reference's motion. generator: draws the start noise, then the
        scheduler's. output_type: np, or latent. on_step(i, n, latents) follows each of n steps; an exception in it
        ends the call and leaves the pipeline as it was. UserError as in `sample`.
        """
        if output_type not in ("np", "latent"):
            raise UserError(f"output_type is '{output_type}', expected np or latent")
        with self.exclusive(), _checkpointing(self.transformer, gradient_checkpointing):
            device = self._execution_device
            text = self.encode_text([negative_prompt, prompt])
            noise = randn_tensor(reference.latents.shape, generator=generator, device=device, dtype=torch.float32)
            motion = reference.motion.to(device) if reference.motion and positions is None else None
            losses: list[list[float]] = []
            moved: dict[int, torch.Tensor] = {}
            dialect = dialect_of(self.transformer)

            def guided(i: int, t: float, _latents: Any, optimised: torch.Tensor | None, before: list[float]) -> None:
                losses.append(before)
                if optimised is not None:
                    moved[dialect.time_key(i, t)] = optimised.cpu()

            with self.progress_bar(total=num_inference_steps) as bar:

                def step(i: int, latents: torch.Tensor) -> None:
                    bar.set_description("guided" if i + 1 < guidance_steps else "plain", refresh=False)
                    bar.update()
                    if on_step:
                        on_step(i, num_inference_steps, latents)

                bar.set_description("guided" if guidance_steps else "plain")
                latents = sample(
                    self.transformer,
                    self.scheduler,
                    noise,
                    text,
                    motion,
                    variable,
                    positions,
                    reference.latents.to(device) if injection_blocks else None,
                    injection_blocks,
                    num_inference_steps,
                    guidance_steps,
                    optimization_steps,
                    learning_rate,
                    guidance_scale,
                    dynamic_cfg,
                    generator,
                    published_gradient,
                    step,
                    guided,
                    batched_cfg,
                )
            frames = latents if output_type == "latent" else self._decoded(latents)
        return DiTFlowOutput(frames=frames, losses=losses, positions=moved)

    def encode_text(self, prompts: Sequence[str]) -> torch.Tensor:
        """(b tokens dim) in the transformer's dtype, on the device that runs."""
        device, dtype = self._execution_device, self.transformer.dtype
        return self._get_t5_prompt_embeds(
            prompt=list(prompts), max_sequence_length=self.text_tokens, device=device, dtype=dtype
        )

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """UserError for sizes that patches do not divide and frame counts that the VAE does not give back."""
        multiple, nearest = self.size_multiple, self.nearest_frames(num_frames)
        if height % multiple or width % multiple or min(height, width) < multiple:
            raise UserError(f"the size is {width}x{height}, expected multiples of {multiple}")
        if num_frames != nearest:
            raise UserError(
                f"num_frames is {num_frames}, which the VAE would turn into others; the nearest is {nearest}"
            )

    def _decoded(self, latents: torch.Tensor) -> np.ndarray:
        video = self.video_processor.postprocess_video(self.decode_video(latents).float(), output_type="np")
        return video[0]  # f h w 3


class DiTFlowPipeline(_Transfer, CogVideoXPipeline):
    """DiTFlow on CogVideoX, 2b and 5b kinds."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: T5EncoderModel,
        vae: AutoencoderKLCogVideoX,
        transformer: CogVideoXTransformer3DModel,
        scheduler: Any,
    ) -> None:
        super().__init__(tokenizer, text_encoder, vae, transformer, scheduler)
        self._set_up()
        self.text_tokens = transformer.config.max_text_seq_length

    @staticmethod
    def nearest_frames(num_frames: int) -> int:
        """The nearest number of frames that the VAE gives back: 8 m or 8 m + 1."""
        latent_frames = (max(num_frames, 1) - 1) // 4 + 1
        return 4 * latent_frames - 3 * (latent_frames % 2)

    def encode_video(self, video: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Scaled latents (1 f/4 c h/8 w/8), float32, of a video (f 3 h w) in [-1, 1], from the VAE's posterior."""
        posterior = self.vae.encode(_as_batch(video, self._execution_device, self.vae.dtype)).latent_dist
        latents = posterior.sample(generator).float() * self.vae_scaling_factor_image
        return rearrange(latents, "1 c f h w -> 1 f c h w")

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """(1 3 f h w) of scaled latents (1 f c h w)."""
        return self.decode_latents(latents.to(self.vae.dtype))


class DiTFlowWanPipeline(_Transfer, WanPipeline):
    """DiTFlow on Wan 2.1 text-to-video."""

    text_tokens = 512

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        text_encoder: UMT5EncoderModel,
        vae: AutoencoderKLWan,
        scheduler: Any,
        transformer: WanTransformer3DModel,
        transformer_2: WanTransformer3DModel | None = None,
        boundary_ratio: float | None = None,
        expand_timesteps: bool = False,
    ) -> None:
        """As WanPipeline; UserError for what belongs to Wan 2.2, the last three."""
        if transformer_2 is not None or boundary_ratio is not None or expand_timesteps:
            raise UserError("this is Wan 2.2; DiTFlow runs on Wan 2.1 text-to-video (1.3B, 14B)")
        super().__init__(tokenizer, text_encoder, vae, scheduler, transformer)
        self._set_up()

    @staticmethod
    def nearest_frames(num_frames: int) -> int:
        """The nearest number of frames that the VAE gives back: 4 k + 1."""
        return 4 * ((max(num_frames, 1) + 1) // 4) + 1

    def encode_video(self, video: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Normalised latents (1 c f h/8 w/8), float32, of a video (f 3 h w) in [-1, 1], from the VAE's posterior."""
        posterior = self.vae.encode(_as_batch(video, self._execution_device, self.vae.dtype)).latent_dist
        latents = posterior.sample(generator).float()
        mean, std = self._latent_statistics(latents)
        return (latents - mean) / std

    def decode_video(self, latents: torch.Tensor) -> torch.Tensor:
        """(1 3 f h w) of normalised latents (1 c f h w)."""
        mean, std = self._latent_statistics(latents)
        return self.vae.decode((latents * std + mean).to(self.vae.dtype), return_dict=False)[0]

    def _latent_statistics(self, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of each latent channel, (1 c 1 1 1)."""
        config = self.vae.config
        mean, std = (torch.tensor(x).view(1, -1, 1, 1, 1).to(like) for x in (config.latents_mean, config.latents_std))
        return mean, std


def _as_batch(video: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    return rearrange(video.to(device, dtype), "f c h w -> 1 c f h w")


@contextmanager
def _checkpointing(transformer: ModelMixin, enabled: bool) -> Iterator[None]:
    """Inside the block the transformer's gradient checkpointing is as told; afterwards as before."""
    names = ("gradient_checkpointing", "_gradient_checkpointing_func")
    before = {name: vars(transformer)[name] for name in names if name in vars(transformer)}
    try:
        if enabled:
            transformer.enable_gradient_checkpointing()
        else:
            transformer.gradient_checkpointing = False
        yield
    finally:
        for name in names:
            if name in before:
                setattr(transformer, name, before[name])
            elif hasattr(transformer, name):
                delattr(transformer, name)
