"""What a method of motion transfer is to everything outside its folder: `Method`, and the `Run` that it is handed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from animatediff.config import option, part_of
from animatediff.data.video import FITS, RESAMPLES, TAKES

T = TypeVar("T")
OnStep = Callable[[int, int, torch.Tensor], None]  # (step from 0, steps, latents), after each step

MAX_SEED = 2**63 - 1
MAX_SIDE = 4096  # pixels
UNTRAINED = "UNTRAINED"  # the sidecar's field that says that weights are random
INPUT_KINDS = ("images", "video", "masks", "folder")
SCHEDULER_NAMES = ("ddim", "pndm", "euler", "euler_ancestral", "dpmsolver++")


@dataclass
class Run:
    """The keys that every method shares.

    The run of a method has its own defaults, and beside these keys those of its Files, of its inputs, and a section
    with its Settings (see animatediff/inference/run.py).
    """

    method: str = option("", "the method of motion transfer", once=True)
    ref_video_path: str = option("", "the clip that gives the motion: a video file or a folder of frames", pixels=False)
    use_reference: bool = option(True, "false: the clip gives its size alone, to see what the backbone does by itself")
    prompt: str | None = option(None, "what the new video shows")
    negative_prompt: str = option("", "what it should not show")
    ref_prompt: str = option("", "text of the reference pass; the published runs leave it empty")

    num_frames: int = option(16, "frames read and made", least=1, most=1000)
    height: int = option(512, "pixels", least=1, most=MAX_SIDE)
    width: int = option(512, "pixels", least=1, most=MAX_SIDE)
    fit: str = option("stretch", "how frames are brought to height x width; auto keeps the clip's shape", choices=FITS)
    resample: str = option("bilinear", "how frames are resized", choices=RESAMPLES)
    take: str = option("spread", "frames spread over the clip, or the first at its own rate", choices=TAKES)
    start: float | None = option(None, "seconds into the reference", least=0)
    duration: float | None = option(None, "seconds of the reference", least=0)

    seed: int = option(42, "of everything random", least=0, most=MAX_SEED)
    num_inference_steps: int = option(25, "denoising steps", least=1, most=1000)
    guidance_scale: float = option(6.0, "classifier-free guidance; 1 and below is none", least=0, most=100)
    scheduler: str = option("ddim", "the sampler", choices=SCHEDULER_NAMES)
    reference_timestep: int = option(400, "noise level of the reference pass", least=0, most=999)
    reference_seed: int | None = option(
        42, "noise of the reference pass, shared by all jobs on one reference; null: seed", least=0, most=MAX_SEED
    )

    output_dir: str = option("outputs", "where results go", pixels=False)
    fps: float | str = option(
        8.0, "of the video written; source: it moves as fast as the clip", least=0.1, most=240, choices=("source",)
    )
    gif: bool = option(False, "write a GIF, too", pixels=False)
    frames: bool = option(False, "write the frames as PNG, too", pixels=False)
    side_by_side: bool = option(False, "write reference and result beside each other, too", pixels=False)
    overwrite: bool = option(False, "make it again where it is there already", pixels=False)

    device: str = option("auto", "where it runs", choices=("auto", "cuda", "mps", "cpu"), once=True, pixels=False)
    dtype: str = option(
        "auto", "auto: fp16 on CUDA, fp32 elsewhere", choices=("auto", "fp32", "fp16", "bf16"), once=True
    )
    attention: str = option("sdpa", "xformers where it has an operator", choices=("sdpa", "xformers"), once=True)
    offload: str = option(
        "none", "weights stay on the CPU until needed", choices=("none", "model", "sequential"), once=True, pixels=False
    )
    vae_slicing: bool = option(True, "decode frame by frame, for memory", once=True, pixels=False)

    def part(self, kind: type[T]) -> T:
        """The dataclass `kind` filled from this run's keys of the same names: `run.part(Files)`."""
        return part_of(self, kind)

    @property
    def seed_of_reference(self) -> int:
        """The seed of the reference pass."""
        return self.seed if self.reference_seed is None else self.reference_seed


@dataclass(frozen=True)
class Input:
    """What a job brings beside clip and prompt: a key at the top level, read before the method sees it.

    kind: images, a list of image files, read as float (n 3 h w) in [0, 1]; video, a file or folder, as float
    (f 3 h w) in [-1, 1]; masks, a file or folder, as float (f 1 h w), 0 or 1; each at the run's size. raw: a video
    or masks handed over as they are read, uint8 (f h w 3). folder: a path that stands for other keys (see `complete`).
    """

    key: str
    kind: str
    required: bool = False
    help: str = ""
    raw: bool = False


@dataclass(frozen=True)
class WeightFile:
    """A file that loading reads, there or not. In the fingerprint it counts by content, or by place and size."""

    what: str
    path: Path
    by_content: bool = False
    optional: bool = False


@dataclass(frozen=True)
class Made:
    """A new video (f h w 3) in [0, 1], and files beside it: how the name goes on -> what writes the file."""

    frames: np.ndarray
    files: Mapping[str, Callable[[Path], None]]


@dataclass(frozen=True, eq=False)
class View:
    """Something that a preparation found, to look at before it is used.

    frames: uint8 (f h w 3). subject: the key of the clip in which a click on these frames chooses who is meant; ""
    where it chooses nothing.
    """

    title: str
    frames: np.ndarray
    subject: str = ""


class ShownPreparation(Protocol):
    """How a method makes one of its inputs, a folder, from a person's clips, where the person looks at it first."""

    key: str  # of the input, of kind folder
    clips: tuple[Input, ...]  # what it is made from beside ref_video_path
    examples: tuple[Path, ...]  # such folders that come with the project

    def make(
        self,
        run: Run,
        clips: Mapping[str, Path],
        subjects: Mapping[str, tuple[float, float]],
        folder: Path,
        on_progress: Callable[[str, int, int], None],
    ) -> None:
        """Write `folder` from the run's ref_video_path and `clips`, by key.

        subjects: key of a clip -> who is meant in it, a point (x, y) of its first frame, each from 0 to 1.
        on_progress(stage, done, of how many): an exception raised in it ends the preparation. UserError where what is
        needed cannot be found in the clips, or what finds it is not here.
        """

    def views(self, folder: Path) -> list[View]:
        """What there is to look at in a folder that `make` wrote."""


@dataclass(frozen=True)
class Preparing:
    """What a method's `prepare` may do besides its work: whom it tells, and whether it may set up an environment."""

    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None
    say: Callable[[str], None] = lambda line: None
    make_environment: bool = False


@runtime_checkable
class Method(Protocol):
    """One method: its folder under pipelines/ holds everything else that is known of it.

    A method may also have: `limits` {common key: (least, most)}, tighter ranges; `choices` {common key: names}, its own
    ones; `unused`, the common keys that it has no use for, refused where they are set; `aliases` {other programs' key:
    key or section.key}; `renamed` {a key's old name: its new one}, refused with the new one; `notes(pipe, run,
    reference) -> list[str]`, warnings about one run; `phase(run, i) -> str`, what step i is called while it runs;
    `complete(run) -> Run`, a copy whose keys that follow from others are filled in; `names(run) -> (folder, stem)`,
    what outputs are called after, where that is not the reference's name and the prompt; `prepare(run, Preparing) ->
    (Run, facts)`, which makes inputs that a run lacks from those that it has, once, and gives the run with them and
    fields for the sidecar; `preparation(run) -> str | None`, what a dry run says of that; `shown_preparation`, a
    ShownPreparation; `title`, what people call it.
    """

    name: str  # the YAML section and the folder
    Files: type  # dataclass of weight paths, loaded once
    Settings: type  # dataclass of its section; the defaults are the published run
    defaults: Mapping[str, Any]  # of common keys, where they differ from Run's
    inputs: tuple[Input, ...]
    needs_prompt: bool
    reference_keys: frozenset[str]  # common keys and settings that change the reference pass
    objective: str | None  # "module:Objective" for train.py

    def check(self, run: Run, settings: Any) -> None:
        """UserError for what no run can take, before anything is loaded."""

    def weights(self, files: Any) -> list[WeightFile]:
        """Every file that `load` reads."""

    def load(self, files: Any, settings: Any, device: torch.device | str, dtype: torch.dtype) -> Any:
        """The pipeline, on `device` in `dtype`."""

    def extract(
        self,
        pipe: Any,
        video: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: Any,
        rng: torch.Generator,
    ) -> Any:
        """The motion of `video` (f 3 h w) in [-1, 1], once per reference; opaque to all but `generate`."""

    def generate(
        self,
        pipe: Any,
        reference: Any,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: Any,
        rng: torch.Generator,
        on_step: OnStep,
    ) -> np.ndarray | Made:
        """The new video (f h w 3) in [0, 1]. `on_step` follows every step; an exception raised in it ends the run.

        Or a Made, where more is to be written beside it.
        """

    def facts(self, pipe: Any, reference: Any) -> dict[str, Any]:
        """Extra fields of the sidecar; `reference` is None before there is one."""


def attribute(method: Method, name: str, default: Any) -> Any:
    """One of the attributes that a method may have, or `default`."""
    return getattr(method, name, default)
