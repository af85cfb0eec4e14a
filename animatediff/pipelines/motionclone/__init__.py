"""MotionClone (Ling et al., arXiv 2406.05338): training-free motion transfer, guided by attention maps."""

from animatediff.pipelines.motionclone.guidance import extract_motion, motion_loss
from animatediff.pipelines.motionclone.pipeline import MotionClonePipeline
from animatediff.pipelines.motionclone.sampling import guidance_ramp, sample, uneven_timesteps

__all__ = ["MotionClonePipeline", "extract_motion", "guidance_ramp", "motion_loss", "sample", "uneven_timesteps"]
