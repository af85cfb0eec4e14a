"""MotionFollower (Tu et al., arXiv 2405.20325): what a person does in a video changes, everything else is kept."""

from animatediff.pipelines.motionfollower.attention import attend_with_background
from animatediff.pipelines.motionfollower.conditions import Conditions, FrameConditions
from animatediff.pipelines.motionfollower.guidance import TermWeights, guidance, guidance_losses
from animatediff.pipelines.motionfollower.networks import (
    Networks,
    appearance_features,
    build_networks,
    build_pose_controller,
    features,
    load_original_networks,
    pose_features,
    predict,
)
from animatediff.pipelines.motionfollower.sampling import Options, sample, step
from animatediff.pipelines.motionfollower.schedule import build_scheduler
from animatediff.pipelines.motionfollower.skeleton import draw_skeleton

__all__ = [
    "Conditions",
    "FrameConditions",
    "Networks",
    "Options",
    "TermWeights",
    "appearance_features",
    "attend_with_background",
    "build_networks",
    "build_pose_controller",
    "build_scheduler",
    "draw_skeleton",
    "features",
    "guidance",
    "guidance_losses",
    "load_original_networks",
    "pose_features",
    "predict",
    "sample",
    "step",
]
