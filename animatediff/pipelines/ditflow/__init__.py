"""DiTFlow (Pondaven et al., arXiv 2412.07776): training-free motion transfer on video transformers."""

from animatediff.pipelines.ditflow.flow import (
    attention_motion_flow,
    flow_loss,
    moft_channels,
    moft_loss,
    smm_loss,
)
from animatediff.pipelines.ditflow.optimization import extract_motion, learning_rates, motion_loss, optimize
from animatediff.pipelines.ditflow.sampling import dynamic_scale, sample
from animatediff.pipelines.ditflow.transformer import default_positions, predict, read_blocks

__all__ = [
    "attention_motion_flow",
    "default_positions",
    "dynamic_scale",
    "extract_motion",
    "flow_loss",
    "learning_rates",
    "moft_channels",
    "moft_loss",
    "motion_loss",
    "optimize",
    "predict",
    "read_blocks",
    "sample",
    "smm_loss",
]
