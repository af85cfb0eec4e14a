"""The keys of a training run. The defaults are the published settings (EfficientMT, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from animatediff.config import load_config, nearest, option
from animatediff.errors import UserError
from animatediff.models.adapter import PARTS, SITES
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles
from animatediff.pipelines.method import MAX_SIDE
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS
from animatediff.training.objective import SAMPLINGS, WEIGHTINGS

SOURCES = ("folder", "synthetic")
OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "fp16", "bf16")
TRACKERS = ("tensorboard", "wandb")
MEASURES = ("none", "world")
MAX_STEPS = 100_000_000
LAST = NUM_TRAIN_TIMESTEPS - 1
TRAINING_FITS = ("stretch", "crop", "pad")  # one size for all clips of a batch


@dataclass
class DataConfig:
    """Groups of clips that share a motion."""

    source: str = option(
        "folder", "folder: clips in `root`; synthetic: the moving-shape world, rendered from its seed", choices=SOURCES
    )
    root: str | None = option("data/pairs", "<root>/<group>/*.mp4; a manifest.jsonl may say path, group, caption")
    num_frames: int = option(16, "frames of a clip", least=1, most=MAX_FRAMES)
    height: int = option(512, "pixels", least=8, most=MAX_SIDE)
    width: int = option(512, "pixels", least=8, most=MAX_SIDE)
    fit: str = option("stretch", "how frames are brought to height x width", choices=TRAINING_FITS)
    validation_share: float = option(0.1, "of the groups; they are never trained on", least=0, most=0.9)
    cache: str | None = option(
        "data/cache", "folder of precomputed latents and text embeddings; null: encode in the loop"
    )
    workers: int = option(2, "processes that read clips; only without `cache`", least=0, most=256)
    synthetic_groups: int = option(2000, "motions, each with ...", least=1, most=10_000_000)
    synthetic_clips: int = option(3, "... this many contents", least=2, most=64)
    synthetic_camera_share: float | None = option(
        None, "of the motions; null: as they are drawn, a quarter", least=0, most=1
    )
    synthetic_validation_groups: int = option(32, "held-out motions with held-out contents", least=0, most=10_000)
    synthetic_seed: int = option(0, "of all motions and contents", least=0, most=2**31 - 2)


@dataclass
class ValidationConfig:
    """What is looked at while training."""

    every: int = option(1000, "steps; 0 never", least=0, most=MAX_STEPS)
    pairs: int = option(8, "pairs of the validation split whose loss is measured", least=0, most=10_000)
    videos: int = option(2, "of these, how many are also generated", least=0, most=10_000)
    num_inference_steps: int = option(25, "denoising steps", least=1, most=NUM_TRAIN_TIMESTEPS)
    guidance_scale: float = option(6.0, "classifier-free guidance", least=0, most=100)
    measures: str = option("none", "world: tracks and contents of the moving-shape world", choices=MEASURES)


def _published_weights() -> EfficientMTFiles:
    return EfficientMTFiles(
        pretrained_model_path="models/StableDiffusion/stable-diffusion-v1-5",
        motion_module_path="models/Motion_Module/v3_sd15_mm.ckpt",
        dreambooth_path="models/DreamBooth_LoRA/realisticVisionV60B1_v51VAE.safetensors",
        ckpt_path="",
    )


@dataclass
class TrainingConfig:
    """One training run."""

    output: str = option("runs/sd15", "folder of checkpoints, the log and the trained adapter")
    weights: EfficientMTFiles = field(default_factory=_published_weights)  # ckpt_path: an adapter to start from, or ""
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    # The adapter
    sites: str = option("up", "which temporal blocks are adapted", choices=SITES)
    use_scaler: bool = option(True, "false: references enter unscaled")
    scaler_bias: float = option(
        0.0, "of a fresh adapter: its map starts at sigmoid(scaler_bias - 5)", least=-20, most=20
    )
    train_parts: list[str] | None = option(None, "parts that learn; null: all that there are", choices=PARTS)

    # The objective
    reference_timestep: int = option(400, "noise level of the reference pass", least=0, most=LAST)
    reference_timestep_max: int | None = option(
        None, "given: uniform over reference_timestep to this", least=0, most=LAST
    )
    null_text: float = option(0.1, "share of captions dropped to the empty one", least=0, most=1)
    timestep_sampling: str = option("uniform", "cubic: (1 - u^3), leaning to high noise", choices=SAMPLINGS)
    timestep_min: int = option(0, "lowest noise level trained on", least=0, most=LAST)
    timestep_max: int = option(LAST, "highest noise level trained on", least=0, most=LAST)
    loss_weighting: str = option(
        "none", "inverse_alpha_bar: 1 / alpha_bar(t), at most loss_weight_max", choices=WEIGHTINGS
    )
    loss_weight_max: float = option(30.0, "the most that a sample weighs", least=1, most=1e6)

    # The optimisation
    max_steps: int = option(50_000, "steps of the optimizer", least=1, most=MAX_STEPS)
    batch_size: int = option(1, "references in one forward of one process", least=1, most=4096)
    targets_per_reference: int = option(1, "clips predicted from each of them", least=1, most=64)
    accumulation: int = option(1, "forwards per step", least=1, most=4096)
    learning_rate: float = option(1e-4, "of all parts", least=0, most=1)
    learning_rates: dict[str, float] = option({}, "part: its own rate", least=0, most=1)
    schedule: str = option("constant", "of the learning rate", choices=SCHEDULES)
    warmup_steps: int = option(0, "over which the learning rate rises", least=0, most=MAX_STEPS)
    optimizer: str = option("adamw", "adamw8bit needs bitsandbytes", choices=OPTIMIZERS)
    beta1: float = option(0.9, "of the optimizer", least=0, most=0.9999)
    beta2: float = option(0.999, "of the optimizer", least=0, most=0.999999)
    weight_decay: float = option(0.01, "of the optimizer", least=0, most=10)
    max_grad_norm: float = option(1.0, "gradients are clipped to it; 0: never", least=0, most=1e6)
    ema_decay: float = option(
        0.0, "0: no moving average; otherwise the average is what inference gets", least=0, most=0.999999
    )
    mixed_precision: str = option("fp16", "the frozen backbone is held in it", choices=PRECISIONS)
    gradient_checkpointing: bool = option(False, "less memory, for time")
    channels_last: bool = option(False, "memory layout of the backbone's convolutions")
    seed: int = option(42, "of everything random", least=0, most=2**31 - 1)

    # The run
    checkpoint_every: int = option(1000, "steps", least=1, most=MAX_STEPS)
    keep_checkpoints: int = option(3, "the newest; 0 keeps all", least=0, most=100_000)
    resume: str = option("latest", "latest, never, or the folder of a checkpoint")
    log_with: list[str] = option(["tensorboard"], "trackers", choices=TRACKERS)


def read_config(paths: Sequence[str], overrides: Sequence[str]) -> TrainingConfig:
    """The run that YAML files (a later one laid over an earlier one) and `key=value` overrides describe, checked."""
    config = load_config(TrainingConfig, paths, overrides)
    check(config)
    return config


def trained_parts(config: TrainingConfig) -> tuple[str, ...]:
    """The parts of the adapter that learn."""
    available = PARTS if config.use_scaler else tuple(part for part in PARTS if part != "scaler")
    return available if config.train_parts is None else tuple(config.train_parts)


def check(config: TrainingConfig) -> None:
    """UserError for keys that contradict each other, and for parts that do not exist."""
    for name in config.learning_rates:
        if name not in PARTS:
            raise UserError(f"learning_rates is '{name}'; {nearest(name, PARTS)}")
    _check_contradictions(config)


def _check_contradictions(config: TrainingConfig) -> None:
    parts = trained_parts(config)
    if not parts:
        raise UserError("train_parts is empty, so nothing would learn; list some of " + ", ".join(PARTS))
    if "scaler" in parts and not config.use_scaler:
        raise UserError("train_parts lists scaler, but use_scaler is false; take one of the two back")
    idle = sorted(config.learning_rates.keys() - set(parts))
    if idle:
        raise UserError(f"learning_rates names {idle[0]}, which is not trained; trained are {', '.join(parts)}")
    if config.scaler_bias and not config.use_scaler:
        raise UserError(f"scaler_bias is {config.scaler_bias}, but use_scaler is false; take one of the two back")
    if config.timestep_min > config.timestep_max:
        raise UserError(f"timestep_min {config.timestep_min} is above timestep_max {config.timestep_max}")
    top = config.reference_timestep_max
    if top is not None and not config.reference_timestep <= top < NUM_TRAIN_TIMESTEPS:
        raise UserError(
            f"reference_timestep_max is {top}, expected reference_timestep ({config.reference_timestep}) "
            f"to {NUM_TRAIN_TIMESTEPS - 1}"
        )
    if config.warmup_steps >= config.max_steps:
        raise UserError(f"warmup_steps {config.warmup_steps} leaves nothing of max_steps {config.max_steps}")
    if config.weights.lora_paths:
        raise UserError("weights.lora_paths is for inference; the backbone is trained against without LoRA")
    if config.data.source == "folder" and not config.data.root:
        raise UserError("data.source is folder, but data.root is empty; say where the groups of clips lie")
    if config.validation.measures == "world" and config.data.source != "synthetic":
        raise UserError("validation.measures 'world' needs the ground truth of data.source 'synthetic'")
