"""MotionFollower behind the commands: its files, its settings, and one run of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from animatediff.config import option
from animatediff.data.decode import open_source
from animatediff.data.export import safe_name, save_video
from animatediff.errors import UserError
from animatediff.files import content_hash, is_file, read_json
from animatediff.pipelines.method import Input, Made, OnStep, Preparing, Run, WeightFile
from animatediff.pipelines.motionfollower.conditions import check_counts
from animatediff.pipelines.motionfollower.guidance import REGIONS, TermWeights
from animatediff.pipelines.motionfollower.loading import MotionFollowerFiles, load_motionfollower, weight_files
from animatediff.pipelines.motionfollower.networks import Networks
from animatediff.pipelines.motionfollower.pipeline import MotionFollowerPipeline, check_size
from animatediff.pipelines.motionfollower.poses import ROOTS
from animatediff.pipelines.motionfollower.preparation import MotionFollowerPreparation
from animatediff.pipelines.motionfollower.prepare import PrepareOptions, check_options, prepare
from animatediff.pipelines.motionfollower.prepare.detectors import MASKERS, POSERS
from animatediff.pipelines.motionfollower.prepare.folder import digest
from animatediff.pipelines.motionfollower.prepare.writer import LOG, SHEET
from animatediff.pipelines.motionfollower.sampling import Options
from animatediff.pipelines.motionfollower.schedule import STEP_SCALINGS, timesteps
from animatediff.pipelines.motionfollower.selfcheck import check_masks, check_skeletons
from animatediff.pipelines.motionfollower.windows import window_starts

PREPARED = {  # key -> folder inside a prepared one
    "ref_video_path": "target_images",
    "source_path": "source_images",
    "source_pose_path": "source_poses",
    "target_pose_path": "target_aligned_poses",
    "source_mask_path": "source_masks",
    "target_mask_path": "predicted_masks",
}
SEQUENCES = tuple(key for key in PREPARED if key != "ref_video_path")
FOUND = ("source_pose_path", "target_pose_path", "target_mask_path")  # made by `prepare` where none of them is given
PREPARE_KEYS = ("root", "proportions", "poses", "masks", "source_subject", "driving_subject")
KEYPOINT_SUFFIXES = (".npz", ".npy", ".json", ".pkl")


@dataclass
class MotionFollowerSettings:
    """The method's own settings; the defaults are the published run of a still camera."""

    guidance_strength: float = option(4.0, "of the score guidance; 0 is none", least=0, most=100)
    camera: bool = option(False, "for moving cameras: late steps look at the source's background")
    pose_scale: float = option(1.0, "weight of the skeletons", least=0, most=10)
    appearance_scale: float = option(1.0, "weight of the source's frames; 0 leaves them out", least=0, most=10)
    regions: str = option("published", "which background regions body and overlap act in", choices=REGIONS)
    foreground: float = option(4.0, "weight of the person's term", least=0, most=1000)
    body: float = option(6.0, "weight of the body term", least=0, most=1000)
    overlap: float = option(1.2, "weight of the overlap term", least=0, most=1000)
    complement: float = option(1.2, "weight of the complement term", least=0, most=1000)
    step_scaling: str = option(
        "absolute", "rules change at steps 10, 20, 30, or at those shares of 50 steps", choices=STEP_SCALINGS
    )
    mask_attention: bool = option(False, "camera mode takes masked keys out of the softmax")
    estimator: str = option(
        "shared", "whose features are compared: the UNet's, or those of a second one, base model and motion modules",
        choices=("shared", "base"), once=True,
    )  # fmt: skip
    window: int = option(24, "frames of a window; longer clips are made of several", least=1, most=32)
    window_overlap: int = option(8, "frames that windows share", least=0, most=31)
    noise: str = option("independent", "initial noise of long clips", choices=("independent", "freenoise"))
    gradient_checkpointing: bool = option(False, "less memory in guided steps, for time", pixels=False)
    root: str = option("driving", "two plain videos: whose way through the picture the body takes", choices=ROOTS)
    proportions: bool = option(True, "two plain videos: bones take the source's lengths; false: one similarity")
    poses: str = option("auto", "two plain videos: what finds joints", choices=("auto", *POSERS))
    masks: str = option("auto", "two plain videos: what finds the person's outline", choices=("auto", *MASKERS))
    source_subject: str = option("", "two plain videos: who, as x,y or x0,y0,x1,y1 in the source's first frame")
    driving_subject: str = option("", "two plain videos: likewise, in the driving clip's first frame")
    save_reconstruction: bool = option(False, "write the reconstruction of the source, too")
    decode_chunk: int = option(8, "frames decoded at once", least=1, most=1000, pixels=False)


class MotionFollowerMethod:
    """Denoises a source clip under its own and under a target's skeletons, the second guided by the first."""

    name = "motionfollower"
    Files = MotionFollowerFiles
    Settings = MotionFollowerSettings
    defaults: Mapping[str, Any] = {"num_frames": 24, "num_inference_steps": 50, "guidance_scale": 7.0}
    inputs = (
        Input("prepared", "folder", help="a prepared folder, which holds all of the following"),
        Input("source_path", "video", True, "the video to edit", raw=True),
        Input("source_pose_path", "video", False, "skeletons of its person, drawn on black", raw=True),
        Input("target_pose_path", "video", False, "skeletons to follow, aligned to its person", raw=True),
        Input("source_mask_path", "masks", False, "masks of its person", raw=True),
        Input("target_mask_path", "masks", False, "masks of that person in the target's poses", raw=True),
    )
    needs_prompt = False
    unused = frozenset(
        {"use_reference", "prompt", "negative_prompt", "ref_prompt", "fit", "start", "duration", "scheduler"}
        | {"reference_timestep", "reference_seed"}
    )
    reference_keys: frozenset[str] = frozenset()
    aliases: Mapping[str, str] = {
        "driving_path": "ref_video_path",
        "video_root": "source_path",
        "ref_pose_root": "source_pose_path",
        "pose_root": "target_pose_path",
        "source_mask_root": "source_mask_path",
        "target_mask_root": "target_mask_path",
        "W": "width",
        "H": "height",
        "L": "num_frames",
        "steps": "num_inference_steps",
        "cfg": "guidance_scale",
        "camera": "motionfollower.camera",
        "weight_dtype": "dtype",
    }
    objective = "animatediff.pipelines.motionfollower.training:Objective"
    shown_preparation = MotionFollowerPreparation()

    def complete(self, run: Run) -> Run:
        """The run with the sequences of a prepared folder; those that the run names itself stay."""
        changes: dict[str, Any] = {}
        prepared = getattr(run, "prepared", "")
        if prepared:
            missing = [name for name in PREPARED.values() if not (Path(prepared) / name).is_dir()]
            if missing:
                raise UserError(f"prepared is {prepared}, which has no folder {missing[0]}; give a prepared folder")
            found = {key: str(Path(prepared) / name) for key, name in PREPARED.items()}
            changes = {key: path for key, path in found.items() if not getattr(run, key)} | {"prepared": ""}
        target = changes.get("target_pose_path") or getattr(run, "target_pose_path", "")
        if not run.ref_video_path and "ref_video_path" not in changes and target:
            changes["ref_video_path"] = target  # the motion is given as skeletons alone
        return replace(run, **changes) if changes else run

    def names(self, run: Run) -> tuple[str, str]:
        """Outputs are called after the driving clip and the source; prepared folders by their own name."""
        return _title(run.ref_video_path), _title(getattr(run, "source_path", ""))

    def prepare(self, run: Run, preparing: Preparing) -> tuple[Run, dict[str, Any]]:
        """The run with the sequences that two plain videos lack, made in a folder beside the outputs and kept there."""
        if not _is_plain(run):
            return run, {}
        folder = _cache(run)
        prepare(
            str(getattr(run, "source_path", "")),
            run.ref_video_path,
            folder,
            _options(run),
            on_progress=preparing.on_progress,
            say=preparing.say,
            make_environment=preparing.make_environment,
        )
        log = read_json(folder / LOG)
        made_by = {name: entry["made_by"] for name, entry in log["stages"].items()}
        found = {key: str(folder / name) for key, name in PREPARED.items()}
        facts = {"prepared": {"folder": str(folder), "made_by": made_by}}
        return replace(run, **found, num_frames=log["frames"]), facts  # type: ignore[arg-type]

    def preparation(self, run: Run) -> str | None:
        """What a dry run says of `prepare`."""
        if not _is_plain(run):
            return None
        folder = _cache(run)
        return f"{'prepared' if is_file(folder / SHEET) else 'would prepare'} {folder}"

    def check(self, run: Run, settings: MotionFollowerSettings) -> None:
        check_size(run.height, run.width)
        if _is_plain(run):
            check_options(_options(run))
        else:
            self._check_sequences(run, settings)
        timesteps(run.num_inference_steps)
        window_starts(run.num_frames, 0, settings.window, settings.window_overlap)
        counts = {}
        for key in SEQUENCES:
            path = Path(getattr(run, key))
            if path.suffix.lower() in KEYPOINT_SUFFIXES:
                raise UserError(f"{key} is {path}, a file of keypoints; expected images or a video drawn from them")
            if getattr(run, key) and path.exists():
                with open_source(path) as source:
                    counts[key] = len(source.times)
        check_counts(counts)
        if 1 in counts.values():
            raise UserError("source_path has 1 frame, so there is no motion to change; give clips of 2 frames or more")

    def weights(self, files: MotionFollowerFiles) -> list[WeightFile]:
        return weight_files(files)

    def load(
        self,
        files: MotionFollowerFiles,
        settings: MotionFollowerSettings,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> MotionFollowerPipeline:
        return load_motionfollower(files, device, dtype, settings.estimator)

    def extract(
        self,
        pipe: MotionFollowerPipeline,
        video: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: MotionFollowerSettings,
        rng: torch.Generator,
    ) -> None:
        return None  # the motion comes as skeletons, with the job

    def generate(
        self,
        pipe: MotionFollowerPipeline,
        reference: None,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: MotionFollowerSettings,
        rng: torch.Generator,
        on_step: OnStep,
    ) -> np.ndarray | Made:
        sequences = {key: inputs[key].numpy() for key in SEQUENCES}
        for key in ("source_pose_path", "target_pose_path"):
            check_skeletons(sequences[key], key)
        check_masks(sequences["source_mask_path"], sequences["source_pose_path"], "source_mask_path")
        check_masks(sequences["target_mask_path"], sequences["target_pose_path"], "target_mask_path")
        made = pipe(
            *sequences.values(),
            height=run.height,
            width=run.width,
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            guidance_strength=settings.guidance_strength,
            camera=settings.camera,
            generator=rng,
            noise=settings.noise,
            options=options_of(pipe, settings),
            save_reconstruction=settings.save_reconstruction,
            on_step=on_step,
            decode_chunk_size=settings.decode_chunk,
        )
        if made.reconstruction is None:
            return made.frames[0]
        pixels = (made.reconstruction[0] * 255).astype(np.uint8)
        fps = 8.0 if isinstance(run.fps, str) else run.fps
        return Made(made.frames[0], {"-reconstruction.mp4": lambda path: save_video(path, pixels, fps)})

    def facts(self, pipe: MotionFollowerPipeline, reference: None) -> dict[str, Any]:
        return {}

    def _check_sequences(self, run: Run, settings: MotionFollowerSettings) -> None:
        """UserError where sequences are missing, or keys are set that only count where they are made."""
        for given in self.inputs:
            if given.key in SEQUENCES and getattr(run, "source_path", None) and not getattr(run, given.key):
                raise UserError(
                    f"{given.key} is empty, and method={self.name} needs it: {given.help}; or give source_path and "
                    "driving_path alone, and the rest is prepared"
                )
        for key in PREPARE_KEYS:
            if getattr(settings, key) != getattr(MotionFollowerSettings, key):
                raise UserError(
                    f"{self.name}.{key} is {getattr(settings, key)!r}, which counts where two plain videos are given, "
                    "and this run brings sequences of its own; leave it out"
                )


def _is_plain(run: Run) -> bool:
    """Whether a run gives two videos, and leaves skeletons, alignment and the target's masks to `prepare`."""
    return bool(run.ref_video_path and getattr(run, "source_path", "")) and not any(
        getattr(run, key, "") for key in FOUND
    )


def _options(run: Run) -> PrepareOptions:
    """How a run's videos are prepared."""
    settings = getattr(run, METHOD.name)
    return PrepareOptions(
        height=run.height,
        width=run.width,
        num_frames=run.num_frames,
        fps=8.0 if isinstance(run.fps, str) else run.fps,
        source_masks=getattr(run, "source_mask_path", ""),
        **{key: getattr(settings, key) for key in PREPARE_KEYS},
    )


def _cache(run: Run) -> Path:
    """Where a run's two videos are prepared: beside the outputs, by content and settings."""
    options, source = asdict(_options(run)), getattr(run, "source_path", "")
    paths = [source, run.ref_video_path, *filter(None, [options.pop("source_masks")])]
    key = digest([options, *(content_hash(Path(path)) for path in paths)])[:12]
    names = "-".join(safe_name(_title(path), spaced=False) for path in (source, run.ref_video_path))
    return Path(run.output_dir) / "prepared" / f"{names}-{key}"


def options_of(pipe: MotionFollowerPipeline, settings: MotionFollowerSettings) -> Options:
    """The settings as the sampling functions take them."""
    estimator = None
    if pipe.estimator is not None:
        estimator = Networks(pipe.estimator, pipe.pose_controller, pipe.appearance_controller)
    return Options(
        pose_scale=settings.pose_scale,
        appearance_scale=settings.appearance_scale,
        regions=settings.regions,
        weights=TermWeights(settings.foreground, settings.body, settings.overlap, settings.complement),
        step_scaling=settings.step_scaling,
        mask_attention=settings.mask_attention,
        gradient_checkpointing=settings.gradient_checkpointing,
        window=settings.window,
        overlap=settings.window_overlap,
        estimator=estimator,
    )


def _title(path: str) -> str:
    """What a clip is called: its file or folder, or the prepared folder that it lies in."""
    clip = Path(path)
    if clip.name in PREPARED.values():
        clip = clip.resolve().parent
    return clip.stem or clip.resolve().name


METHOD = MotionFollowerMethod()
