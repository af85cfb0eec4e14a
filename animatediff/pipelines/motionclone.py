"""MotionClone (arXiv 2406.05338) on the same backbone: training-free motion transfer, guided by attention maps."""

from __future__ import annotations

from animatediff.models.motion_guidance import extract_motion, motion_loss
from animatediff.pipelines.motionclone_sampling import guidance_ramp, sample, uneven_timesteps

__all__ = ["extract_motion", "guidance_ramp", "motion_loss", "sample", "uneven_timesteps"]
