"""What the pipelines of all methods share: diffusers' AnimateDiffPipeline around one VideoUNet."""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AnimateDiffPipeline
from diffusers.video_processor import VideoProcessor
from einops import rearrange

from animatediff.errors import UserError
from animatediff.models.unet import MAX_FRAMES

# The noise schedule of all published weights: betas linear over this many steps, as diffusers' schedulers take them.
NUM_TRAIN_TIMESTEPS = 1000
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}
PREDICTIONS = ("epsilon", "v_prediction")  # what a backbone may predict, in diffusers' words
REFERENCE_TIMESTEP = 400  # the published runs' noise level of the reference pass


class VideoPipeline(AnimateDiffPipeline):
    """diffusers' AnimateDiffPipeline whose motion modules live in `unet` only: encoding, decoding, text, offloading."""

    def _set_up(self, **components: Any) -> None:
        """Stands for AnimateDiffPipeline's __init__, which would ask for a MotionAdapter."""
        super(AnimateDiffPipeline, self).__init__()
        self.register_modules(**components)
        self.vae_scale_factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.video_processor = VideoProcessor(do_resize=False, vae_scale_factor=self.vae_scale_factor)

    @property
    def size_multiple(self) -> int:
        """What height and width in pixels must be multiples of."""
        return size_multiple(self.vae_scale_factor)

    @torch.no_grad()
    def encode_video(
        self, video: torch.Tensor, generator: torch.Generator | None = None, chunk_size: int = 16
    ) -> torch.Tensor:
        """Scaled latents (1 4 f h/8 w/8) of a video (f 3 h w) in [-1, 1], sampled from the VAE's posterior."""
        device, dtype = self._execution_device, self.vae.dtype
        samples = [
            self.vae.encode(frames.to(device, dtype)).latent_dist.sample(generator)
            for frames in video.split(chunk_size)
        ]
        return rearrange(torch.cat(samples), "f c h w -> 1 c f h w") * self.vae.config.scaling_factor


def size_multiple(vae_scale: int) -> int:
    """What height and width in pixels must be multiples of: the VAE's scale, and 8, which diffusers asks for."""
    return math.lcm(8, vae_scale)


def check_frames(num_frames: int) -> None:
    """UserError where the motion modules lack positions for so many frames."""
    if not 1 <= num_frames <= MAX_FRAMES:
        raise UserError(f"num_frames is {num_frames}, expected 1 to {MAX_FRAMES} (the motion modules' positions)")
