"""MotionFollower (arXiv 2405.20325) as a diffusers pipeline: five image sequences in, the edited video out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, T2IAdapter
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from transformers import CLIPVisionModelWithProjection
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from animatediff.errors import UserError
from animatediff.models.unet import VideoUNet
from animatediff.pipelines.motionfollower.conditions import FrameConditions, check_counts
from animatediff.pipelines.motionfollower.networks import PIXELS_PER_LATENT, Networks, PoseController
from animatediff.pipelines.motionfollower.sampling import Options, Pair, sample
from animatediff.pipelines.motionfollower.windows import free_noise
from animatediff.pipelines.video import VideoPipeline

SIZE_MULTIPLE = 2 * PIXELS_PER_LATENT  # sides in pixels: compared features lie at half the latents' size
StepCallback = Callable[[int, int, torch.Tensor], None]


@dataclass
class MotionFollowerOutput(BaseOutput):
    """frames: the edited video, a batch of one, in the form asked for; reconstruction: likewise, or None."""

    frames: Any
    reconstruction: Any = None


class MotionFollowerPipeline(VideoPipeline):
    """Edits a clip so that its person moves as a sequence of skeletons. No text takes part.

    `scheduler` tells the schedule; the step is the method's own (see `sampling`). `estimator`: a second UNet, whose
    features are compared instead of the first one's.
    """

    _optional_components = ["estimator"]  # noqa: RUF012
    model_cpu_offload_seq = "image_encoder->unet->estimator->vae"
    _exclude_from_cpu_offload = ["pose_controller", "appearance_controller"]  # noqa: RUF012  # small, in use throughout

    def __init__(
        self,
        vae: AutoencoderKL,
        image_encoder: CLIPVisionModelWithProjection,
        unet: VideoUNet,
        pose_controller: PoseController,
        appearance_controller: T2IAdapter,
        scheduler: DDIMScheduler,
        estimator: VideoUNet | None = None,
    ) -> None:
        self._set_up(
            vae=vae,
            image_encoder=image_encoder,
            unet=unet,
            pose_controller=pose_controller,
            appearance_controller=appearance_controller,
            scheduler=scheduler,
            estimator=estimator,
        )
        for network in (unet, pose_controller, appearance_controller, estimator):
            if network is not None:
                network.requires_grad_(False)  # the guidance is a gradient in the latents alone

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of."""
        return 2 * self.vae_scale_factor

    @property
    def networks(self) -> Networks:
        """The networks that the sampling functions take."""
        return Networks(self.unet, self.pose_controller, self.appearance_controller)

    @torch.no_grad()
    def embed_images(self, frames: np.ndarray, chunk_size: int = 16) -> torch.Tensor:
        """The vision encoder's embeddings (1 f dim) of frames uint8 (f h w 3), squashed to its own size."""
        return embedded(self.image_encoder, frames, self._execution_device, chunk_size)[None]

    @torch.no_grad()
    def __call__(
        self,
        source_frames: np.ndarray,
        source_poses: np.ndarray,
        target_poses: np.ndarray,
        source_masks: np.ndarray,
        target_masks: np.ndarray,
        *,
        height: int = 512,
        width: int = 512,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.0,
        guidance_strength: float = 4.0,
        camera: bool = False,
        generator: torch.Generator | None = None,
        latents: torch.Tensor | None = None,
        noise: str = "independent",
        options: Options | None = None,
        save_reconstruction: bool = False,
        on_step: StepCallback | None = None,
        output_type: str = "np",
        decode_chunk_size: int = 8,
    ) -> MotionFollowerOutput:
        """The source's person moving as the target poses do.

        All sequences are uint8 (f h w 3) RGB of f frames at any size and are squashed to height x width: frames,
        skeletons drawn on black (the target's aligned to the source's person), masks of the person in the source and
        as predicted for the edit (above 127: person). latents: initial noise (1 4 f h/8 w/8), else from `generator`,
        which also gives the noise of the noisy steps. noise: `independent`, or `freenoise` for clips of several
        windows (see `free_noise`). on_step(i, n, latents) follows each step. output_type: "np", "pt", "pil" or
        "latent". Other arguments as for `sample`. UserError for counts that differ and sizes that are no multiple
        of 16.
        """
        sequences = {
            **{"source frames": source_frames, "source poses": source_poses, "target poses": target_poses},
            **{"source masks": source_masks, "target masks": target_masks},
        }
        check_counts({name: len(value) for name, value in sequences.items()})
        check_size(height, width)
        options, device, dtype = options or Options(), self._execution_device, self.unet.dtype
        conditions = FrameConditions(
            networks=self.networks,
            embeds=self.embed_images(source_frames).to(dtype),
            frames=resized(source_frames, height, width) / 127.5 - 1,
            source_poses=resized(source_poses, height, width) / 255,
            target_poses=resized(target_poses, height, width) / 255,
            source_masks=binary(source_masks, height, width),
            target_masks=binary(target_masks, height, width),
            appearance_scale=options.appearance_scale,
        )
        if latents is None:
            scale, channels = self.vae_scale_factor, self.unet.config.in_channels
            shape = (1, channels, len(source_frames), height // scale, width // scale)
            latents = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
            if noise == "freenoise":
                latents = free_noise(latents, options.window, options.overlap, generator)
        last: dict[str, torch.Tensor] = {}
        with self.progress_bar(total=num_inference_steps) as bar:

            def stepped(i: int, edit: torch.Tensor, reference: torch.Tensor) -> Pair | None:
                bar.update()
                if save_reconstruction:
                    last["reconstruction"] = reference
                if on_step is not None:
                    on_step(i, num_inference_steps, edit)
                return None

            edited = sample(
                self.networks,
                latents.to(device),
                conditions,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                guidance_strength=guidance_strength,
                camera=camera,
                generator=generator,
                callback=stepped,
                options=options,
                whole_reconstruction=save_reconstruction,
            )
        frames = self._decoded(edited, output_type, decode_chunk_size)
        reference = self._decoded(last["reconstruction"], output_type, decode_chunk_size) if last else None
        self.maybe_free_model_hooks()
        return MotionFollowerOutput(frames=frames, reconstruction=reference)

    def _decoded(self, latents: torch.Tensor, output_type: str, chunk_size: int) -> Any:
        if output_type == "latent":
            return latents
        decoded = self.decode_latents(latents.to(self.vae.dtype), chunk_size)
        return self.video_processor.postprocess_video(video=decoded, output_type=output_type)


def check_size(height: int, width: int) -> None:
    """UserError where a side in pixels is no multiple of 16."""
    if height % SIZE_MULTIPLE or width % SIZE_MULTIPLE or not (height and width):
        raise UserError(f"height x width is {height}x{width}, expected multiples of {SIZE_MULTIPLE}; give such a size")


@torch.no_grad()
def embedded(
    image_encoder: CLIPVisionModelWithProjection, frames: np.ndarray, device: torch.device, chunk_size: int = 16
) -> torch.Tensor:
    """The encoder's embeddings (f dim) of frames uint8 (f h w 3), squashed to its own size."""
    side = image_encoder.config.image_size
    pixels = resized(frames, side, side, Image.Resampling.BICUBIC) / 255  # f 3 s s
    mean, std = (torch.tensor(values)[:, None, None] for values in (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD))
    parts = ((pixels - mean) / std).to(device, image_encoder.dtype).split(chunk_size)
    return torch.cat([image_encoder(part).image_embeds for part in parts])


def resized(
    frames: np.ndarray, height: int, width: int, filter: Image.Resampling = Image.Resampling.LANCZOS
) -> torch.Tensor:
    """Frames uint8 (f h w 3) squashed to a size, with whole levels: float32 (f 3 height width) in 0 to 255."""
    images = [np.asarray(Image.fromarray(frame).resize((width, height), filter)) for frame in np.asarray(frames)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float()  # f h w 3 -> f 3 h w


def binary(masks: np.ndarray, height: int, width: int) -> torch.Tensor:
    """Masks uint8 (f h w 3), above 127 the person, at a size by nearest: float32 (f 1 height width), 0 or 1."""
    grey = resized(masks, height, width, Image.Resampling.NEAREST)[:, :1]
    return (grey > 127).float()
