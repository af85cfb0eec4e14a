"""MotionFollower's own keys in the training YAML. The defaults are the published settings, as far as they are told."""

from __future__ import annotations

from dataclasses import dataclass, field

from animatediff.config import option
from animatediff.errors import UserError
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.method import MAX_SIDE
from animatediff.pipelines.motionfollower.loading import MotionFollowerFiles
from animatediff.pipelines.motionfollower.objective import DROPPED, NOISE_OFFSET, SNR_GAMMA
from animatediff.pipelines.motionfollower.pipeline import check_size
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS
from animatediff.training.config import MAX_STEPS, ValidationConfig

IMAGES, CLIPS = 1, 2  # the stages
POSE_WIDTHS = 4


@dataclass
class VideoData:
    """Videos of one person each, as prepared folders."""

    root: str = option("data/people", "<root>/<video>/source_images, with keypoints.npz or source_poses beside it")
    num_frames: int = option(1, "frames of a clip; stage 1 takes single ones", least=1, most=MAX_FRAMES)
    frame_stride: int = option(4, "every so many frames of a video; fewer where it is short", least=1, most=1000)
    apart: int = option(
        30, "frames from the source to what is denoised, or as far as a video allows", least=0, most=100_000
    )
    height: int = option(512, "pixels", least=16, most=MAX_SIDE)
    width: int = option(512, "pixels", least=16, most=MAX_SIDE)
    validation_share: float = option(0.02, "of the videos; they are never trained on", least=0, most=0.9)
    cache: str = option("data/cache/people", "folder of latents, embeddings and skeletons, made once", pixels=False)
    workers: int = option(2, "processes that read source frames", least=0, most=256, pixels=False)


@dataclass
class Validation(ValidationConfig):
    """What is looked at while training: the loss on held-out videos, and some of them generated."""

    pairs: int = option(8, "samples of the held-out videos whose loss is measured", least=0, most=10_000, pixels=False)
    videos: int = option(
        2, "held-out videos denoised under their own skeletons, and under others of theirs",
        least=0, most=10_000, pixels=False,
    )  # fmt: skip
    num_inference_steps: int = option(25, "denoising steps", least=1, most=NUM_TRAIN_TIMESTEPS, pixels=False)
    guidance_scale: float = option(3.5, "classifier-free guidance", least=0, most=100, pixels=False)


def _started_from() -> MotionFollowerFiles:
    return MotionFollowerFiles(motion_module_path="", unet_path="", pose_controller_path="")


@dataclass
class MotionFollowerKeys:
    """What learns, what a step draws and minimises, the data."""

    output: str = option("runs/motionfollower", "folder of checkpoints, the log and what was trained", pixels=False)
    max_steps: int = option(100_000, "steps of the optimizer", least=1, most=MAX_STEPS)
    learning_rate: float = option(1e-5, "of all that learns", least=0, most=1)
    weights: MotionFollowerFiles = field(default_factory=_started_from)  # an empty path: that part starts afresh
    data: VideoData = field(default_factory=VideoData)
    validation: Validation = field(default_factory=Validation)

    stage: int = option(
        IMAGES, "1: UNet without motion modules and both controllers, on images; 2: motion modules, on clips",
        least=IMAGES, most=CLIPS,
    )  # fmt: skip
    pose_channels: list[int] = option([16, 32, 96, 256], "widths of a fresh pose controller", least=1, most=4096)

    # What a step draws and minimises
    image_share: float = option(0.4, "of the steps that take a single frame of each clip", least=0, most=1)
    null_image: float = option(DROPPED, "share of samples whose embeddings are zeros", least=0, most=1)
    noise_offset: float = option(NOISE_OFFSET, "noise that is the same all over a clip", least=0, most=1)
    snr_gamma: float = option(SNR_GAMMA, "samples weigh min(s, snr_gamma) / s, s = SNR + 1", least=1, most=1e9)

    gradient_checkpointing: bool = option(False, "less memory, for time", pixels=False)


def check(keys: MotionFollowerKeys) -> None:
    """UserError for keys that contradict each other."""
    data, weights = keys.data, keys.weights
    check_size(data.height, data.width)
    if len(keys.pose_channels) != POSE_WIDTHS:
        raise UserError(f"pose_channels is {keys.pose_channels}, expected {POSE_WIDTHS} widths")
    if not data.root or not data.cache:
        raise UserError(f"data.{'cache' if data.root else 'root'} is empty; name a folder")
    if keys.stage == IMAGES:
        if data.num_frames != 1:
            raise UserError(f"data.num_frames is {data.num_frames}, but stage 1 learns from single frames; set it to 1")
        if weights.motion_module_path:
            raise UserError(
                f"weights.motion_module_path is {weights.motion_module_path}, but stage 1 has no motion modules; "
                "leave it empty"
            )
        return
    if data.num_frames < 2:
        raise UserError(f"data.num_frames is {data.num_frames}, but stage 2 learns from clips; published is 24")
    for name in ("unet_path", "pose_controller_path"):
        if not getattr(weights, name):
            raise UserError(f"weights.{name} is empty, but stage 2 keeps what stage 1 learned; give its file")
