"""What one inference run is: its configuration, its list of jobs, and where each result goes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from animatediff.config import nearest, to_dict, update_config
from animatediff.data.export import safe_name
from animatediff.data.video import FITS
from animatediff.errors import UserError, describe_os_error
from animatediff.files import read_json, read_jsonl
from animatediff.models.sparsectrl import check_image_index
from animatediff.models.unet import MAX_FRAMES
from animatediff.pipelines.loading import SCHEDULERS, Weights, weight_files
from animatediff.pipelines.motionclone import MotionCloneConfig
from animatediff.pipelines.motionclone_sampling import check_steps

MAX_STEPS = 1000  # the noise schedule's length
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
JOB_ALIASES = {"video_path": "ref_video_path", "new_prompt": "prompt"}  # names of other programs' job lists


@dataclass
class InferenceConfig(Weights):
    """One run. Every key can stand in the YAML, on the command line as key=value, and most in a job line."""

    method: str = "efficientmt"
    ref_video_path: str = ""
    prompt: str = ""
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


LOADED_ONCE = (
    {f.name for f in fields(Weights)}
    | {"method", "motionclone", "scheduler", "device", "dtype", "attention", "offload"}
    | {"vae_slicing"}
)
NOT_THE_RESULT = {
    "prompt",
    "seed",
    "ref_video_path",
    "output_dir",
    "gif",
    "frames",
    "side_by_side",
    "overwrite",
    "device",
} | {
    "offload",
    "vae_slicing",
}


@dataclass
class Job:
    """One video to make: its resolved configuration, where it came from, and where it goes."""

    config: InferenceConfig
    label: str
    error: str | None = None
    fingerprint: str = ""
    output: Path = field(default_factory=Path)

    @property
    def sidecar(self) -> Path:
        return self.output.with_suffix(".json")

    def is_finished(self) -> bool:
        """Whether the output and its sidecar are there, made with this very configuration."""
        return self.output.is_file() and _fingerprint_in(self.sidecar) == self.fingerprint


def read_jobs(path: str | Path, config: InferenceConfig) -> list[Job]:
    """Jobs from a JSON Lines file; each line is laid over `config`. A bad line becomes a Job with an error.

    UserError where the file cannot be read or holds no job.
    """
    jobs = []
    for number, row in read_jsonl(path):
        label = f"{path} line {number}"
        try:
            jobs.append(Job(_lay_over(config, row, label), label))
        except UserError as error:
            jobs.append(Job(config, label, error=str(error)))
    if not jobs:
        raise UserError(f"{path} holds no jobs; expected one JSON object a line with ref_video_path and prompt")
    return jobs


def plan(jobs: Sequence[Job]) -> None:
    """Check every job and give it its fingerprint and output path, or its error. Touches no model.

    A result goes to <output_dir>/<reference name>/<prompt>-<seed>.mp4. Where another configuration already has that
    name, in this list or on disk, eight digits of the fingerprint follow.
    """
    taken: dict[Path, str] = {}
    adapters: dict[str, str] = {}
    for job in jobs:
        if job.error is not None:
            continue
        try:
            check(job.config)
            reference = Path(job.config.ref_video_path)
            if job.config.ckpt_path not in adapters:
                adapters[job.config.ckpt_path] = (
                    content_hash(Path(job.config.ckpt_path)) if job.config.ckpt_path else ""
                )
            job.fingerprint = _fingerprint(job.config, content_hash(reference), adapters[job.config.ckpt_path])
        except UserError as error:
            job.error = str(error)
            continue
        folder = Path(job.config.output_dir) / safe_name(reference.stem or reference.resolve().name)
        plain = folder / f"{safe_name(job.config.prompt)}-{job.config.seed}.mp4"
        marked = plain.with_stem(f"{plain.stem}-{job.fingerprint[:8]}")
        for job.output in (plain, marked):
            owner = taken.get(job.output) or _fingerprint_in(job.sidecar)
            if owner in (None, job.fingerprint) or (job.config.overwrite and job.output not in taken):
                break
        taken[job.output] = job.fingerprint


def check(config: InferenceConfig) -> None:
    """UserError for the first value that no run can take."""
    for name, known in CHOICES.items():
        value = getattr(config, name)
        if value not in known:
            raise UserError(f"{name} is '{value}'; {nearest(value, known)}")
    for name, low, high in (
        ("num_frames", 1, MAX_FRAMES),
        ("num_inference_steps", 1, MAX_STEPS),
        ("height", 1, MAX_SIDE),
        ("width", 1, MAX_SIDE),
        ("guidance_scale", 0, 100),
        ("reference_timestep", 0, MAX_STEPS - 1),
        ("seed", 0, 2**63 - 1),
        ("reference_seed", 0, 2**63 - 1),
        ("fps", 0.1, 240),
    ):
        value = getattr(config, name)
        if value is not None and not low <= value <= high:
            raise UserError(f"{name} is {value}, expected {low} to {high}")
    if not config.ref_video_path:
        raise UserError("no reference video; give --ref_video_path (a video file or a folder of frames)")
    if not Path(config.ref_video_path).exists():
        raise UserError(f"no reference video at {config.ref_video_path}")
    _check_motionclone(config)


def _check_motionclone(config: InferenceConfig) -> None:
    """UserError where settings of the method, or condition images and their mode, do not fit together."""
    if config.method == "motionclone":
        settings = config.motionclone
        check_steps(config.num_inference_steps, settings.guidance_steps, settings.guided_share)
        if config.scheduler != "ddim":
            raise UserError(
                f"scheduler is '{config.scheduler}', but MotionClone has timesteps of its own; leave it ddim"
            )
        if not 1 <= settings.k <= config.num_frames:
            raise UserError(f"motionclone.k is {settings.k}, expected 1 to num_frames, {config.num_frames}")
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


def by_reference(jobs: Sequence[Job]) -> list[Job]:
    """The jobs with those of one reference next to each other, references in order of first appearance."""
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(reference_key(job.config), []).append(job)
    return [job for group in groups.values() for job in group]


def reference_key(config: InferenceConfig) -> str:
    """Jobs with equal keys share one reference pass."""
    keys = ["ref_video_path", "num_frames", "height", "width", "fit", "start", "duration"]
    keys += ["ref_prompt", "reference_timestep", "image_index", "controlnet_scale"]
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


def _lay_over(config: InferenceConfig, row: dict[str, Any], label: str) -> InferenceConfig:
    row = {JOB_ALIASES.get(key, key): value for key, value in row.items()}
    fixed = sorted(LOADED_ONCE & row.keys())
    if fixed:
        raise UserError(
            f"{label} sets '{fixed[0]}', which is loaded once for all jobs; set it in the YAML or on the command line"
        )
    return update_config(config, row, label)


def _fingerprint(config: InferenceConfig, reference_hash: str, adapter_hash: str) -> str:
    """Everything that decides the pixels: settings, prompt, seed, the reference's and the adapter's content."""
    sizes = {name: path.stat().st_size for name, path in weight_files(config).items() if path.is_file()}
    settings = {key: value for key, value in to_dict(config).items() if key not in NOT_THE_RESULT}
    conditions = [content_hash(Path(path)) for path in config.condition_image_paths]
    everything = [settings, config.prompt, config.seed, reference_hash, adapter_hash, sizes, conditions]
    return hashlib.sha256(json.dumps(everything, sort_keys=True).encode()).hexdigest()


def _fingerprint_in(sidecar: Path) -> str | None:
    if not sidecar.is_file():
        return None
    try:
        return read_json(sidecar).get("fingerprint", "")
    except (UserError, AttributeError):
        return ""
