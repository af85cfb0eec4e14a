"""What one inference run is: its configuration, what no run can take, and what decides the pixels."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch

from animatediff.config import nearest, to_dict
from animatediff.data.video import FITS
from animatediff.errors import UserError, describe_os_error
from animatediff.hub import PUBLISHED
from animatediff.models.sparsectrl import check_image_index
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.backbones.schedulers import SCHEDULERS
from animatediff.pipelines.backbones.sd15 import Weights, weight_files
from animatediff.pipelines.motionclone.pipeline import MotionCloneConfig
from animatediff.pipelines.motionclone.sampling import check_steps
from animatediff.pipelines.video import NUM_TRAIN_TIMESTEPS

REPOSITORY = Path(__file__).resolve().parents[2]
MAX_SIDE = 4096  # pixels
CHOICES = {
    "method": ("efficientmt", "motionclone"),
    "fit": FITS,
    "scheduler": tuple(SCHEDULERS),
    "device": ("auto", "cuda", "mps", "cpu"),
    "dtype": ("auto", "fp32", "fp16", "bf16"),
    "attention": ("sdpa", "xformers"),
    "offload": ("none", "model", "sequential"),
}


@dataclass
class InferenceConfig(Weights):
    """One run. Every key can stand in the YAML, on the command line as key=value, and most in a job line."""

    method: str = "efficientmt"
    ref_video_path: str = ""
    use_reference: bool = True  # false: the clip gives its size alone, to see what the backbone does by itself
    prompt: str | None = None
    negative_prompt: str = ""
    ref_prompt: str = ""  # text of the reference pass; the published run leaves it empty

    num_frames: int = 16
    height: int = 512
    width: int = 512
    fit: str = "stretch"  # stretch | crop | pad | auto
    start: float | None = None  # seconds into the reference
    duration: float | None = None  # seconds of the reference

    seed: int = 42
    num_inference_steps: int = 25
    guidance_scale: float = 6.0
    guidance_below: int = NUM_TRAIN_TIMESTEPS  # method efficientmt: guidance acts at timesteps below; all, as published
    scheduler: str = "ddim"
    reference_timestep: int = 400
    reference_seed: int | None = 42  # noise of the reference pass, shared by all jobs on one reference; null: seed

    motionclone: MotionCloneConfig = field(default_factory=MotionCloneConfig)  # method: motionclone
    condition_image_paths: list[str] = field(default_factory=list)  # with sparsectrl_path: the image modes
    image_index: list[int] = field(default_factory=lambda: [0])  # the frame of each condition image
    controlnet_scale: float = 1.0

    output_dir: str = "outputs"
    fps: float = 8.0
    gif: bool = False
    frames: bool = False
    side_by_side: bool = False
    overwrite: bool = False

    device: str = "auto"
    dtype: str = "auto"  # auto: fp16 on CUDA, fp32 elsewhere
    attention: str = "sdpa"
    offload: str = "none"
    vae_slicing: bool = True


LOADED_ONCE = {f.name for f in fields(Weights)} | {
    "method",
    "motionclone",
    "scheduler",
    "device",
    "dtype",
    "attention",
    "offload",
    "vae_slicing",
}
WEIGHT_PATHS = (
    "pretrained_model_path",
    "motion_module_path",
    "dreambooth_path",
    "ckpt_path",
    "sparsectrl_path",
    "domain_adapter_path",
)
# What changes neither the pixels (a device does by its dtype alone, see `resolved_dtype`) nor, standing for a file,
# says more than the file's content.
NOT_THE_RESULT = {
    "ref_video_path",
    "condition_image_paths",
    "output_dir",
    "gif",
    "frames",
    "side_by_side",
    "overwrite",
    "device",
    "offload",
    "vae_slicing",
}


def locate(path: str) -> str:
    """`path`, or, where nothing lies there, the same path in this project's folder if something lies there."""
    here = REPOSITORY / path
    return str(here) if path and not Path(path).exists() and here.exists() else path


def located(config: InferenceConfig) -> InferenceConfig:
    """A copy of `config` with every path of a file to read found by `locate`."""
    single = {name: locate(getattr(config, name)) for name in (*WEIGHT_PATHS, "ref_video_path")}
    lists = {name: [locate(p) for p in getattr(config, name)] for name in ("lora_paths", "condition_image_paths")}
    return replace(config, **single, **lists)  # type: ignore[arg-type]


def missing_weights(config: InferenceConfig) -> dict[str, str]:
    """What the weight files are that are not there -> one line on where they should lie and how to get them."""
    return {
        name: f"no weights at {path} ({name}); {_where_from(path)}"
        for name, path in weight_files(config).items()
        if not path.exists()
    }


def _where_from(path: Path) -> str:
    place = Path(os.path.normpath(REPOSITORY / path))
    for model in PUBLISHED:
        if any((REPOSITORY / "models" / file).is_relative_to(place) for file, _ in model.files):
            return f"fetch it with python scripts/download_models.py --only {model.name}"
    return "see models/README.md for what goes there"


def check(config: InferenceConfig) -> None:
    """UserError for the first value that no run can take."""
    for name, known in CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            raise UserError(f"{name} is '{value}'; {nearest(value, known)}")
    for name, low, high in (
        ("num_frames", 1, MAX_FRAMES),
        ("num_inference_steps", 1, NUM_TRAIN_TIMESTEPS),
        ("height", 1, MAX_SIDE),
        ("width", 1, MAX_SIDE),
        ("guidance_scale", 0, 100),
        ("guidance_below", 1, NUM_TRAIN_TIMESTEPS),
        ("reference_timestep", 0, NUM_TRAIN_TIMESTEPS - 1),
        ("seed", 0, 2**63 - 1),
        ("reference_seed", 0, 2**63 - 1),
        ("fps", 0.1, 240),
        ("lora_scale", -10, 10),
        ("domain_adapter_scale", -10, 10),
        ("controlnet_scale", 0, 10),
    ):
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} is {value}, expected {low} to {high}")
    if not config.ref_video_path:
        raise UserError("no reference video; give --ref_video_path (a video file or a folder of frames)")
    if not Path(config.ref_video_path).exists():
        raise UserError(f"no reference video at {config.ref_video_path}")
    if config.prompt is None:
        raise UserError('no prompt; give --prompt (an empty one is --prompt "")')
    _check_motionclone(config)


def check_output(folder: Path) -> None:
    """UserError where nothing can be written into `folder`; makes nothing."""
    nearest_folder = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest_folder.is_dir():
        raise UserError(f"nothing can be written to {folder}: {nearest_folder} is a file; choose another output_dir")
    if not os.access(nearest_folder, os.W_OK | os.X_OK):
        raise UserError(
            f"nothing can be written to {folder}: {nearest_folder} cannot be written; choose another output_dir"
        )


def _check_motionclone(config: InferenceConfig) -> None:
    """UserError where settings of the method, or condition images and their mode, do not fit together."""
    if config.method == "motionclone":
        if not config.use_reference:
            raise UserError("use_reference is false, which MotionClone has no use for; choose method=efficientmt")
        settings = config.motionclone
        names = ("motionclone.guidance_steps", "motionclone.guided_share")
        check_steps(config.num_inference_steps, settings.guidance_steps, settings.guided_share, names)
        if config.scheduler != "ddim":
            raise UserError(
                f"scheduler is '{config.scheduler}', but MotionClone has timesteps of its own; give scheduler=ddim"
            )
        if config.guidance_below != NUM_TRAIN_TIMESTEPS:
            raise UserError(
                f"guidance_below is {config.guidance_below}, but MotionClone guides at every step; leave it out"
            )
        if not 1 <= settings.k <= config.num_frames:
            raise UserError(f"motionclone.k is {settings.k}, expected 1 to num_frames, {config.num_frames}")
    elif config.domain_adapter_path:
        raise UserError(
            f"domain_adapter_path is {config.domain_adapter_path}, which only method=motionclone merges, not "
            f"{config.method}; leave it out"
        )
    if not config.sparsectrl_path:
        if config.condition_image_paths:
            raise UserError("condition_image_paths is given without sparsectrl_path, the weights that read the images")
        return
    if config.method != "motionclone":
        raise UserError(f"sparsectrl_path is given, but only method=motionclone takes images, not {config.method}")
    check_image_index(len(config.condition_image_paths), config.image_index, config.num_frames)
    missing = [path for path in config.condition_image_paths if not Path(path).is_file()]
    if missing:
        raise UserError(f"no condition image at {missing[0]}; check condition_image_paths")


def reference_key(config: InferenceConfig) -> str:
    """Jobs with equal keys share one reference pass."""
    keys = ["ref_video_path", "num_frames", "height", "width", "fit", "start", "duration"]
    keys += ["use_reference", "ref_prompt", "reference_timestep", "image_index", "controlnet_scale"]
    return json.dumps([reference_seed(config), *(getattr(config, key) for key in keys)])


def reference_seed(config: InferenceConfig) -> int:
    """The seed of the reference pass."""
    return config.seed if config.reference_seed is None else config.reference_seed


def content_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a folder."""
    digest = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(file.name.encode() if path.is_dir() else b"")
                with open(file, "rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error
    return digest.hexdigest()


def fingerprint(config: InferenceConfig, sha256: Callable[[Path], str] = content_hash) -> str:
    """Of everything that decides the pixels: settings, and the content of what is read.

    Small files count by content (`sha256`), the base model's noise scheduler (which says what it predicts) among them;
    the base model, motion module and DreamBooth by place, name and size.
    """
    settings = {key: value for key, value in to_dict(config).items() if key not in NOT_THE_RESULT}
    settings["dtype"] = resolved_dtype(config)
    settings |= {key: _portable(settings[key]) for key in WEIGHT_PATHS}
    settings["lora_paths"] = [sha256(Path(path)) for path in config.lora_paths]
    sizes = {name: path.stat().st_size for name, path in weight_files(config).items() if path.is_file()}
    adapter = sha256(Path(config.ckpt_path)) if config.ckpt_path and Path(config.ckpt_path).exists() else ""
    scheduler = Path(config.pretrained_model_path, "scheduler", "scheduler_config.json")
    read = [Path(config.ref_video_path), *map(Path, config.condition_image_paths)]
    read += [scheduler] if scheduler.is_file() else []
    everything = [settings, sizes, adapter, [sha256(path) for path in read]]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def resolved_dtype(config: InferenceConfig) -> str:
    """fp32, fp16 or bf16; auto is fp16 on CUDA, fp32 elsewhere."""
    if config.dtype != "auto":
        return config.dtype
    cuda = config.device == "cuda" or (config.device == "auto" and torch.cuda.is_available())
    return "fp16" if cuda else "fp32"


def _portable(path: str) -> str:
    """`path` as seen from this project's folder where it lies inside: the same from any current directory."""
    absolute = Path(path).absolute()
    return absolute.relative_to(REPOSITORY).as_posix() if path and absolute.is_relative_to(REPOSITORY) else path
