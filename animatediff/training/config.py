"""The keys of a training run. The defaults are the published settings (EfficientMT, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from animatediff.config import load_config, nearest
from animatediff.errors import UserError
from animatediff.models.adapter import PARTS, SITES
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS
from animatediff.training.objective import SAMPLINGS, WEIGHTINGS

SOURCES = ("folder", "synthetic")
OPTIMIZERS = ("adamw", "adamw8bit")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("fp32", "fp16", "bf16")
TRACKERS = ("tensorboard", "wandb")
MEASURES = ("none", "world")
TRAINING_FITS = ("stretch", "crop", "pad")  # one size for all clips of a batch


@dataclass
class DataConfig:
    """Groups of clips that share a motion."""

    source: str = "folder"  # folder: clips in `root`; synthetic: the moving-shape world, rendered from `seed`
    root: str | None = "data/pairs"  # <root>/<group>/*.mp4, with an optional manifest.jsonl (path, group, caption)
    num_frames: int = 16
    height: int = 512
    width: int = 512
    fit: str = "stretch"  # how frames are brought to height x width: stretch (published), crop, pad
    validation_share: float = 0.1  # of the groups; they are never trained on
    cache: str | None = "data/cache"  # folder of precomputed latents and text embeddings; null: encode in the loop
    workers: int = 2  # processes that read clips; only without `cache`, which leaves nothing to read
    synthetic_groups: int = 2000  # motions, each with ...
    synthetic_clips: int = 3  # ... this many contents
    synthetic_camera_share: float | None = None  # of the motions; null: as they are drawn, a quarter
    synthetic_validation_groups: int = 32  # held-out motions with held-out contents
    synthetic_seed: int = 0


@dataclass
class ValidationConfig:
    """What is looked at while training."""

    every: int = 1000  # steps; 0 never
    pairs: int = 8  # pairs of the validation split whose loss is measured
    videos: int = 2  # of these, how many are also generated and written beside their reference
    num_inference_steps: int = 25
    guidance_scale: float = 6.0
    measures: str = "none"  # world: tracks and contents of the moving-shape world, against its ground truth


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

    output: str = "runs/sd15"
    weights: EfficientMTFiles = field(default_factory=_published_weights)  # ckpt_path: an adapter to start from, or ""
    data: DataConfig = field(default_factory=DataConfig)
    validation: ValidationConfig = field(default_factory=ValidationConfig)

    # The adapter
    sites: str = "up"  # up, up_1, up_2, midup, full
    use_scaler: bool = True
    scaler_bias: float = 0.0  # of a fresh adapter, no weights.ckpt_path: its map starts at sigmoid(scaler_bias - 5)
    train_parts: list[str] | None = None  # of to_q, to_k, to_v, scaler; null: all that there are

    # The objective
    reference_timestep: int = 400
    reference_timestep_max: int | None = None  # given: uniform over reference_timestep..this
    null_text: float = 0.1  # share of captions dropped to the empty one
    timestep_sampling: str = "uniform"  # uniform, or cubic: (1 - u^3), leaning to high noise
    timestep_min: int = 0
    timestep_max: int = 999
    loss_weighting: str = "none"  # none, or inverse_alpha_bar: 1 / alpha_bar(t), at most loss_weight_max
    loss_weight_max: float = 30.0

    # The optimisation
    max_steps: int = 50_000
    batch_size: int = 1  # references in one forward of one process
    targets_per_reference: int = 1  # clips predicted from each of them
    accumulation: int = 1  # forwards per step
    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)  # part -> its own rate
    schedule: str = "constant"  # constant, linear, cosine
    warmup_steps: int = 0
    optimizer: str = "adamw"  # adamw, adamw8bit (needs bitsandbytes)
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0  # 0: no moving average; otherwise the average is what inference gets
    mixed_precision: str = "fp16"  # fp32, fp16, bf16; the frozen backbone is held in it
    gradient_checkpointing: bool = False
    channels_last: bool = False
    seed: int = 42

    # The run
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3  # the newest; 0 keeps all
    resume: str = "latest"  # latest, never, or the folder of a checkpoint
    log_with: list[str] = field(default_factory=lambda: ["tensorboard"])  # tensorboard, wandb


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
    """UserError for values out of range, unknown names and keys that contradict each other."""
    for key, value, known in (
        ("sites", config.sites, SITES),
        ("timestep_sampling", config.timestep_sampling, SAMPLINGS),
        ("loss_weighting", config.loss_weighting, WEIGHTINGS),
        ("optimizer", config.optimizer, OPTIMIZERS),
        ("schedule", config.schedule, SCHEDULES),
        ("mixed_precision", config.mixed_precision, PRECISIONS),
        ("data.source", config.data.source, SOURCES),
        ("data.fit", config.data.fit, TRAINING_FITS),
        ("validation.measures", config.validation.measures, MEASURES),
        *(("log_with", name, TRACKERS) for name in config.log_with),
        *(("train_parts", name, PARTS) for name in config.train_parts or ()),
        *(("learning_rates", name, PARTS) for name in config.learning_rates),
    ):
        if value not in known:
            raise UserError(f"{key} is '{value}'; {nearest(value, known)}")
    _check_ranges(config)
    _check_contradictions(config)


def _check_ranges(config: TrainingConfig) -> None:
    last = NUM_TRAIN_TIMESTEPS - 1
    for key, value, low, high in (
        ("reference_timestep", config.reference_timestep, 0, last),
        ("timestep_min", config.timestep_min, 0, last),
        ("timestep_max", config.timestep_max, 0, last),
        ("null_text", config.null_text, 0, 1),
        ("loss_weight_max", config.loss_weight_max, 1, None),
        ("max_steps", config.max_steps, 1, None),
        ("batch_size", config.batch_size, 1, None),
        ("targets_per_reference", config.targets_per_reference, 1, None),
        ("accumulation", config.accumulation, 1, None),
        ("learning_rate", config.learning_rate, 0, None),
        ("warmup_steps", config.warmup_steps, 0, None),
        ("weight_decay", config.weight_decay, 0, None),
        ("max_grad_norm", config.max_grad_norm, 0, None),
        ("ema_decay", config.ema_decay, 0, 1),
        ("checkpoint_every", config.checkpoint_every, 1, None),
        ("keep_checkpoints", config.keep_checkpoints, 0, None),
        ("data.num_frames", config.data.num_frames, 1, MAX_FRAMES),
        ("data.height", config.data.height, 8, None),
        ("data.width", config.data.width, 8, None),
        ("data.validation_share", config.data.validation_share, 0, 0.9),
        ("data.workers", config.data.workers, 0, None),
        ("data.synthetic_groups", config.data.synthetic_groups, 1, None),
        ("data.synthetic_clips", config.data.synthetic_clips, 2, None),
        ("data.synthetic_validation_groups", config.data.synthetic_validation_groups, 0, None),
        ("data.synthetic_camera_share", config.data.synthetic_camera_share or 0, 0, 1),
        ("validation.every", config.validation.every, 0, None),
        ("validation.pairs", config.validation.pairs, 0, None),
        ("validation.videos", config.validation.videos, 0, None),
        ("validation.num_inference_steps", config.validation.num_inference_steps, 1, NUM_TRAIN_TIMESTEPS),
        ("validation.guidance_scale", config.validation.guidance_scale, 0, 100),
        *((f"learning_rates.{part}", rate, 0, None) for part, rate in config.learning_rates.items()),
    ):
        if not (low <= value and (high is None or value <= high)):
            raise UserError(
                f"{key} is {value}, expected {low} to {high}"
                if high is not None
                else f"{key} is {value}, expected {low} or more"
            )


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
