"""MotionClone (arXiv 2406.05338) on the same backbone: training-free motion transfer, guided by attention maps.

Extraction, loss and sampling as functions come from `models.motion_guidance` and `pipelines.motionclone_sampling`;
MotionClonePipeline puts them behind the interface of the other methods.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, SchedulerMixin
from diffusers.pipelines.animatediff import AnimateDiffPipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from transformers import CLIPTextModel, CLIPTokenizer

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.models.sparsectrl import SparseControl, SparseControlNet, check_image_index, place_condition
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.motionclone.guidance import (
    GUIDED_BLOCKS,
    AttentionMotion,
    extract_motion,
    temporal_attentions,
)
from animatediff.pipelines.motionclone.sampling import add_noise, sample, uneven_timesteps
from animatediff.pipelines.video import REFERENCE_TIMESTEP, VideoPipeline, check_frames


@dataclass
class MotionCloneSettings:
    """The method's own settings; defaults are those of the published camera-motion run."""

    guidance_steps: int = option(50, "of num_inference_steps, the first ones: guided by the motion", least=0, most=1000)
    guidance_range: float = option(
        0.3, "share of the noise range that the guided steps cover (published: guidance_scale)", least=0, most=1
    )
    motion_guidance_weight: float = option(2000.0, "strength of the motion guidance", least=0, most=1e6)
    motion_guidance_blocks: list[str] = option(list(GUIDED_BLOCKS), "blocks whose temporal attention guides")
    warm_up_steps: int = option(10, "guidance rises over these", least=0, most=1000)
    cool_down_steps: int = option(10, "and falls over these (published: cool_up_steps)", least=0, most=1000)
    k: int = option(1, "largest attention entries kept per row", least=1, most=32)
    gradient_checkpointing: bool = option(False, "less memory in guided steps, for time", once=True, pixels=False)
    image_index: list[int] = option([0], "the frame that each condition image stands at", least=0, most=31)
    controlnet_scale: float = option(1.0, "weight of the condition images", least=0, most=10)


@dataclass(frozen=True)
class MotionReference:
    """The motion of one reference clip, and the frames whose content a condition image will give."""

    motion: AttentionMotion
    num_frames: int
    latent_size: tuple[int, int]
    image_index: tuple[int, ...] = ()
    controlnet_scale: float = 1.0


class MotionClonePipeline(VideoPipeline):
    """MotionClone behind EfficientMT's interface: `extract` a clip once, then call with any prompts and seeds.

    With a `controlnet` (SparseCtrl, rgb or sketch) every call needs condition images. The method has its own
    timesteps and its own DDIM step; `scheduler` is there for diffusers' sake only.
    """

    _optional_components = ["controlnet"]  # noqa: RUF012

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: VideoUNet,
        scheduler: SchedulerMixin,
        controlnet: SparseControlNet | None = None,
        settings: MotionCloneSettings | dict[str, Any] | None = None,
    ) -> None:
        """UserError for settings that no run can take: they are checked before any long work."""
        self._set_up(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=scheduler,
            controlnet=controlnet,
        )
        self.settings = (
            MotionCloneSettings(**settings) if isinstance(settings, dict) else settings or MotionCloneSettings()
        )
        self.register_to_config(settings=asdict(self.settings))
        unet.requires_grad_(False)  # the score is a gradient in the latents; weights that want one would cost memory
        temporal_attentions(unet, self.settings.motion_guidance_blocks)
        if self.settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()

    @torch.no_grad()
    def extract(
        self,
        video: torch.Tensor | None = None,
        *,
        timestep: int = REFERENCE_TIMESTEP,
        prompt: str = "",
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        image_index: Sequence[int] = (0,),
        controlnet_scale: float = 1.0,
        settings: MotionCloneSettings | None = None,
    ) -> MotionReference:
        """The motion of a reference clip: one forward, no inversion (MotionClone, section 4.1).

        video: (f 3 h w) in [-1, 1]. timestep and prompt: noise level and text of the reference pass. latents:
        (1 4 f h w) clean and scaled, instead of `video` (the sketch mode needs the video). noise: as latents; drawn
        from `generator` if not given, before the VAE's sample, so that it equals the initial latents of a call with
        the same seed. image_index, controlnet_scale: in the image modes, the frames that condition images will
        stand at, here and in every call on this reference, and the weight of their residuals. settings: the
        pipeline's own, unless others are given.
        """
        with self.exclusive():
            settings = settings or self.settings
            latents, noise = self._clean_and_noise(video, generator, latents, noise)
            check_frames(latents.shape[2])
            text, _ = self.encode_prompt(prompt, self._execution_device, 1, do_classifier_free_guidance=False)
            motion = extract_motion(
                self.unet,
                add_noise(latents, noise, timestep),
                timestep,
                text,
                settings.motion_guidance_blocks,
                settings.k,
                self._reference_control(video, latents, image_index, controlnet_scale),
            )
            places = tuple(image_index) if self.controlnet else ()
            frames, height, width = latents.shape[2:]
            return MotionReference(motion, frames, (height, width), places, controlnet_scale)

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str],
        *,
        reference: MotionReference,
        negative_prompt: str | list[str] | None = None,
        num_inference_steps: int = 100,
        guidance_scale: float = 8.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        latents: torch.Tensor | None = None,
        condition_images: torch.Tensor | None = None,
        callback_on_step_end: Callable[[Any, int, int, dict[str, Any]], dict[str, Any]] | None = None,
        output_type: str | None = "pil",
        decode_chunk_size: int = 16,
        return_dict: bool = True,
        settings: MotionCloneSettings | None = None,
    ) -> AnimateDiffPipelineOutput | tuple[Any]:
        """Videos of `prompt` that move like `reference`, one after the other, in diffusers' output.

        Size and number of frames are the reference's. guidance_scale: diffusers' e_u + scale (e_c - e_u), one more
        than the published cfg_scale. latents: initial noise (b 4 f h w), else from `generator`. condition_images:
        (n 3 h w) in [0, 1], one per `image_index` of the reference, in the image modes. The callback and output_type
        ("pil", "np", "pt", "latent") are AnimateDiffPipeline's. UserError at the step where NaN arises.
        settings: the pipeline's own, unless others are given.
        """
        with self.exclusive():
            settings, device = settings or self.settings, self._execution_device
            timesteps = uneven_timesteps(num_inference_steps, settings.guidance_steps, settings.guidance_range)
            control = self._condition(condition_images, reference)
            positive, negative = self.encode_prompt(
                prompt, device, 1, do_classifier_free_guidance=True, negative_prompt=negative_prompt
            )
            if latents is None:
                shape = (len(positive), 4, reference.num_frames, *reference.latent_size)
                latents = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
            motion = {name: (values.to(device), at.to(device)) for name, (values, at) in reference.motion.items()}
            results = []
            for texts, start in zip(torch.stack([negative, positive], dim=1), latents.to(device).split(1), strict=True):
                with self.progress_bar(total=num_inference_steps) as bar:
                    result = sample(
                        self.unet,
                        start,
                        texts,
                        motion,
                        num_inference_steps=num_inference_steps,
                        guidance_steps=settings.guidance_steps,
                        guidance_scale=settings.guidance_range,
                        cfg_scale=guidance_scale - 1,
                        weight=settings.motion_guidance_weight,
                        warm_up=settings.warm_up_steps,
                        cool_down=settings.cool_down_steps,
                        control=control,
                        callback=self._step_callback(callback_on_step_end, timesteps, bar),
                        prediction_type=self.scheduler.config.prediction_type,
                    )
                results.append(result)
            videos = torch.cat(results)
            if output_type != "latent":
                decoded = self.decode_latents(videos.to(self.vae.dtype), decode_chunk_size)
                videos = self.video_processor.postprocess_video(video=decoded, output_type=output_type)
            return AnimateDiffPipelineOutput(frames=videos) if return_dict else (videos,)

    def enable_free_noise(self, *_: Any, **__: Any) -> None:
        """UserError: motion is read from attention over whole clips, which FreeNoise cuts into windows."""
        raise UserError("MotionClone has no FreeNoise: it reads motion from attention over whole clips")

    def enable_free_noise_split_inference(self, *_: Any, **__: Any) -> None:
        """UserError, as enable_free_noise."""
        self.enable_free_noise()

    def enable_free_init(self, *_: Any, **__: Any) -> None:
        """UserError: the method's own sampling makes one pass."""
        raise UserError("MotionClone has no FreeInit: its sampling makes one pass over timesteps of its own")

    def _clean_and_noise(
        self,
        video: torch.Tensor | None,
        generator: torch.Generator | None,
        latents: torch.Tensor | None,
        noise: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents and noise of the reference, both (1 4 f h w) float32 on the device."""
        device = self._execution_device
        if latents is not None:
            shape = tuple(latents.shape)
        elif video is not None:
            shape = (1, 4, len(video), *self._latent_size(video))
        else:
            raise UserError("extract needs a video or its latents")
        if noise is None:
            noise = randn_tensor(shape, generator=generator, device=device, dtype=torch.float32)
        if latents is None:
            assert video is not None  # one of the two is given
            latents = self.encode_video(video, generator)
        return latents.to(device, torch.float32), noise.to(device, torch.float32)

    def _reference_control(
        self, video: torch.Tensor | None, latents: torch.Tensor, image_index: Sequence[int], scale: float
    ) -> SparseControl | None:
        """The control of the reference pass: the clip's own frames (sketch) or clean latents (rgb) as condition."""
        if not self.controlnet:
            return None
        check_image_index(len(image_index), image_index, latents.shape[2])
        if self.controlnet.takes_latents:
            clean = latents[0].transpose(0, 1)  # c f h w -> f c h w
        elif video is not None:
            clean = (video + 1) / 2  # f 3 h w
        else:
            raise UserError("extract needs the video itself in the sketch mode, not only its latents")
        return self._control(clean[list(image_index)], image_index, latents.shape[2], scale)

    def _condition(self, images: torch.Tensor | None, reference: MotionReference) -> SparseControl | None:
        """The control of a call: condition images (n 3 h w) in [0, 1] at the reference's `image_index`."""
        if not self.controlnet:
            if images is not None:
                raise UserError("condition images are given, but no SparseCtrl weights; set sparsectrl_path")
            return None
        if images is None:
            raise UserError("this run needs condition images (SparseCtrl); set condition_image_paths")
        check_image_index(len(images), reference.image_index, reference.num_frames)
        if self._latent_size(images) != reference.latent_size:
            height, width = (self.vae_scale_factor * side for side in reference.latent_size)
            raise UserError(
                f"condition images are {images.shape[-1]}x{images.shape[-2]}, the reference was extracted at "
                f"{width}x{height}; bring them to one size"
            )
        if self.controlnet.takes_latents:
            images = self.encode_video(2 * images - 1, torch.Generator().manual_seed(0))[0].transpose(0, 1)  # n c h w
        return self._control(images, reference.image_index, reference.num_frames, reference.controlnet_scale)

    def _control(self, images: torch.Tensor, image_index: Sequence[int], frames: int, scale: float) -> SparseControl:
        return place_condition(self.controlnet, images.to(self._execution_device), image_index, frames, scale)

    def _latent_size(self, pixels: torch.Tensor) -> tuple[int, int]:
        return pixels.shape[-2] // self.vae_scale_factor, pixels.shape[-1] // self.vae_scale_factor

    def _step_callback(
        self, on_step_end: Callable[..., dict[str, Any]] | None, timesteps: Sequence[int], bar: Any
    ) -> Callable[[int, torch.Tensor], torch.Tensor | None]:
        def step(i: int, latents: torch.Tensor) -> torch.Tensor | None:
            bar.update()
            return on_step_end(self, i, timesteps[i], {"latents": latents}).get("latents") if on_step_end else None

        return step
