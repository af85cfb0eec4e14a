"""EfficientMT's own keys in the training YAML. The defaults are the published settings (section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass, field

from animatediff.config import option
from animatediff.data.sources import SOURCES
from animatediff.errors import UserError, nearest
from animatediff.models.adapter import PARTS, SITES
from animatediff.pipelines.efficientmt.loading import EfficientMTFiles
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS
from animatediff.training.config import ValidationConfig
from animatediff.training.data import DataConfig
from animatediff.training.diffusion import SAMPLINGS, WEIGHTINGS

MEASURES = ("none", "world")
LAST = NUM_TRAIN_TIMESTEPS - 1


@dataclass
class Validation(ValidationConfig):
    """What is looked at while training: the loss on held-out pairs, and clips generated from held-out references."""

    pairs: int = option(8, "pairs of the validation split whose loss is measured", least=0, most=10_000, pixels=False)
    videos: int = option(2, "of these, how many are also generated", least=0, most=10_000, pixels=False)
    num_inference_steps: int = option(25, "denoising steps", least=1, most=NUM_TRAIN_TIMESTEPS, pixels=False)
    guidance_scale: float = option(6.0, "classifier-free guidance", least=0, most=100, pixels=False)
    measures: str = option(
        "none", "world: tracks and contents of the moving-shape world", choices=MEASURES, pixels=False
    )


def _published_weights() -> EfficientMTFiles:
    return EfficientMTFiles(
        pretrained_model_path="models/StableDiffusion/stable-diffusion-v1-5",
        motion_module_path="models/Motion_Module/v3_sd15_mm.ckpt",
        dreambooth_path="models/DreamBooth_LoRA/realisticVisionV60B1_v51VAE.safetensors",
        ckpt_path="",
    )


@dataclass
class EfficientMTKeys:
    """The adapter, what a step draws and minimises, the data."""

    output: str = option("runs/sd15", "folder of checkpoints, the log and the trained adapter", pixels=False)
    weights: EfficientMTFiles = field(default_factory=_published_weights)  # ckpt_path: an adapter to start from, or ""
    data: DataConfig = field(default_factory=DataConfig)
    validation: Validation = field(default_factory=Validation)

    # The adapter
    sites: str = option("up", "which temporal blocks are adapted", choices=SITES)
    use_scaler: bool = option(True, "false: references enter unscaled")
    scaler_bias: float = option(
        0.0, "of a fresh adapter: its map starts at sigmoid(scaler_bias - 5)", least=-20, most=20
    )
    train_parts: list[str] | None = option(None, "parts that learn; null: all that there are", choices=PARTS)
    learning_rates: dict[str, float] = option({}, "part: its own rate", least=0, most=1)

    # What a step draws and minimises
    targets_per_reference: int = option(1, "clips predicted from each reference", least=1, most=64)
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

    # The frozen backbone
    gradient_checkpointing: bool = option(False, "less memory, for time", pixels=False)
    channels_last: bool = option(False, "memory layout of the backbone's convolutions", pixels=False)


def trained_parts(keys: EfficientMTKeys) -> tuple[str, ...]:
    """The parts of the adapter that learn."""
    available = PARTS if keys.use_scaler else tuple(part for part in PARTS if part != "scaler")
    return available if keys.train_parts is None else tuple(keys.train_parts)


def check(keys: EfficientMTKeys) -> None:
    """UserError for keys that contradict each other, and for parts that do not exist."""
    for name in keys.learning_rates:
        if name not in PARTS:
            raise UserError(f"learning_rates is '{name}'; {nearest(name, PARTS)}")
    parts = trained_parts(keys)
    if not parts:
        raise UserError("train_parts is empty, so nothing would learn; list some of " + ", ".join(PARTS))
    if "scaler" in parts and not keys.use_scaler:
        raise UserError("train_parts lists scaler, but use_scaler is false; take one of the two back")
    idle = sorted(keys.learning_rates.keys() - set(parts))
    if idle:
        raise UserError(f"learning_rates names {idle[0]}, which is not trained; trained are {', '.join(parts)}")
    if keys.scaler_bias and not keys.use_scaler:
        raise UserError(f"scaler_bias is {keys.scaler_bias}, but use_scaler is false; take one of the two back")
    if keys.timestep_min > keys.timestep_max:
        raise UserError(f"timestep_min {keys.timestep_min} is above timestep_max {keys.timestep_max}")
    top = keys.reference_timestep_max
    if top is not None and top < keys.reference_timestep:
        raise UserError(
            f"reference_timestep_max is {top}, expected reference_timestep ({keys.reference_timestep}) to {LAST}"
        )
    if keys.weights.lora_paths:
        raise UserError("weights.lora_paths is for inference; the backbone is trained against without LoRA")
    if keys.data.source == "folder" and not keys.data.root:
        raise UserError("data.source is folder, but data.root is empty; say where the groups of clips lie")
    measures = keys.validation.measures
    if measures != "none" and measures not in SOURCES[keys.data.source].measures:
        raise UserError(f"validation.measures '{measures}' needs the ground truth, which no clip of a folder has")
