"""The engine behind every door (command line, job lists, Python, web page, ComfyUI). It prints nothing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from diffusers.utils.import_utils import is_xformers_available

from animatediff.data.conditions import read_conditions
from animatediff.data.video import fit_frames, read_frames, resolve_size, to_levels
from animatediff.errors import UserError, one_line
from animatediff.inference.run import (
    check,
    completed,
    lay_over,
    missing_weights,
    recipe,
    reference_key,
    resolved_dtype,
    run_of,
    settings_of,
)
from animatediff.memory import peak_memory
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Made, OnStep, Preparing, Run, attribute
from animatediff.pipelines.video import OneAtATime

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WIDER = {"fp32": "", "bf16": "dtype=fp32, or ", "fp16": "dtype=fp32 or dtype=bf16, or "}  # where a dtype gives NaN
LESS_MEMORY = "offload=model (or sequential), dtype=bf16, a smaller height and width, or fewer num_frames"
Job = Run | Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Extracted:
    """The motion of one reference clip, as its method took it, and the clip as the network saw it."""

    motion: Any
    run: Run  # of the job it was extracted for
    pixels: np.ndarray  # uint8 (f h w 3)
    indices: tuple[int, ...]  # of the frames in the clip
    total: int  # frames in the clip
    pace: float  # frames per second at which `pixels` move as fast as the clip
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Result:
    """One generated video, and what it took."""

    frames: np.ndarray  # (f h w 3) in [0, 1]
    reference: Extracted
    seconds: float
    warnings: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    peak_memory: int | None = None
    files: Mapping[str, Callable[[Path], None]] = field(default_factory=dict)  # beside the video, see Made


class Engine:
    """One method's models, loaded once at first use, and the references extracted with them. Any thread may call.

    A job is a mapping of the keys of a job line (ref_video_path, prompt, any key of the run that is not fixed when
    models are loaded), laid over the engine's run, or a whole Run of the same method.
    """

    def __init__(self, config: Job, references: int = 2, device: torch.device | None = None) -> None:
        """config: a Run, or a mapping of its keys. references: how many extracted ones are kept for later jobs.

        device: where the caller moves the networks before each use, whatever the run says; they load on the CPU.
        UserError for keys and values that no run has. Nothing is loaded yet.
        """
        self.run = config if isinstance(config, Run) else run_of([("the configuration", config)])
        self.method = METHODS[self.run.method]
        self.pipeline: Any = None
        self.notes: list[str] = []  # what loading had to say
        self.preparing = Preparing()  # for methods that make inputs of their own; a command may allow more
        self._kept: OrderedDict[str, Extracted] = OrderedDict()
        self._room = references
        self._device = device
        self._lock = threading.RLock()

    @property
    def device(self) -> torch.device:
        """Where the networks run."""
        return self._device or find_device(self.run.device)

    def load(self) -> Any:
        """The pipeline, loaded by the first call. UserError where weights are missing or do not fit."""
        with self._lock:
            if self.pipeline is None:
                self.pipeline = self._load()
            return self.pipeline

    def unload(self) -> None:
        """Let go of the pipeline and the references; the next call loads anew."""
        with self._lock:
            self.pipeline = None
            self.forget()
            free_memory(self.device)

    def forget(self) -> None:
        """Let go of the references; those in a caller's hands stay as they are."""
        with self._lock:
            self._kept.clear()

    def facts(self) -> dict[str, Any]:
        """What a user should know of the loaded weights."""
        return self.method.facts(self.load(), None)

    def resolve(self, job: Job) -> Run:
        """The whole run of a job. UserError for keys that do not exist or that loading has fixed."""
        return completed(job if isinstance(job, Run) else lay_over(self.run, job, "the job"))

    def extract(self, job: Job, frames: np.ndarray | None = None) -> Extracted:
        """The motion of the job's reference; one extracted before is not extracted again.

        frames: uint8 (f h w 3) RGB instead of the job's file; num_frames is then theirs.
        """
        run = self.resolve(job)
        name = None
        if frames is None:
            run, _ = self._prepared(run)
            name = f"{reference_key(run)} {_state_of(Path(run.ref_video_path))}"
        with self._lock, memory_advice(run):
            if name is not None and name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
            extracted = self._extract(run, frames)
            if name is not None and self._room:
                while len(self._kept) >= self._room:
                    self._kept.popitem(last=False)
                self._kept[name] = extracted
            return extracted

    def generate(self, job: Job, reference: Extracted | None = None, on_step: OnStep | None = None) -> np.ndarray:
        """The job's video (f h w 3) in [0, 1]; `reference` from `extract`, which is called where it is not given.

        on_step(i, n, latents) follows step i of n; an exception raised in it ends the run and leaves the engine
        usable. UserError for what no run can take, and where sampling gives NaN.
        """
        return self.make(job, reference, on_step).frames

    def make(self, job: Job, reference: Extracted | None = None, on_step: OnStep | None = None) -> Result:
        """As `generate`, with what it took and what a user should be told."""
        run = self.resolve(job)
        check(run, clip=reference is None)
        with self._lock, memory_advice(run):
            pipe = self.load()
            run, prepared = self._prepared(run)
            extracted = reference or self.extract(run)
            started = time.perf_counter()
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            height, width = extracted.pixels.shape[1:3]
            inputs, warnings = self._inputs(run, height, width)
            sized = {"num_frames": len(extracted.pixels), "height": height, "width": width}
            made = self.method.generate(
                pipe,
                extracted.motion,
                inputs,
                replace(run, **sized),
                settings_of(run),
                torch.Generator().manual_seed(run.seed),
                on_step or _ignore,
            )
            frames, files = (made.frames, made.files) if isinstance(made, Made) else (made, {})
            if not np.isfinite(frames).all():
                dtype = resolved_dtype(run)
                raise UserError(f"sampling gave NaN in {dtype}; use {WIDER[dtype]}a lower guidance_scale")
            notes = attribute(self.method, "notes", lambda *_: [])(pipe, run, extracted.motion)
            return Result(
                frames,
                extracted,
                time.perf_counter() - started,
                tuple(dict.fromkeys([*extracted.warnings, *warnings, *notes])),
                self.method.facts(pipe, extracted.motion) | prepared,
                peak_memory(self.device),
                files,
            )

    def _prepared(self, run: Run) -> tuple[Run, dict[str, Any]]:
        """The run with the inputs that its method makes itself, and what the sidecar says of them."""
        return attribute(self.method, "prepare", lambda same, _: (same, {}))(run, self.preparing)

    def _load(self) -> Any:
        run, device, dtype = self.run, self.device, DTYPES[resolved_dtype(self.run)]
        if device.type == "cpu" and dtype == torch.float16:
            raise UserError("dtype is fp16, which the CPU cannot sample in; use dtype=fp32 or dtype=bf16")
        if device.type == "cpu" and run.offload == "sequential":
            raise UserError(
                "offload is sequential, which feeds a GPU layer by layer, and device is cpu; use offload=none"
            )
        missing = missing_weights(run)
        if missing:
            raise UserError(next(iter(missing.values())))
        place: torch.device | str = "cpu" if run.offload != "none" or self._device else device
        with memory_advice(run):
            pipe = self.method.load(run.part(self.method.Files), settings_of(run), place, dtype)
        if isinstance(pipe, OneAtATime):
            pipe.recipe = recipe(run)
        if run.offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        elif run.offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=device)
        if run.vae_slicing and hasattr(pipe, "vae"):
            pipe.vae.enable_slicing()
        if run.attention == "xformers":
            self.notes += use_xformers(pipe, device)
        if hasattr(pipe, "set_progress_bar_config"):
            pipe.set_progress_bar_config(disable=True)
        return pipe

    def _extract(self, run: Run, frames: np.ndarray | None) -> Extracted:
        started = time.perf_counter()
        pipe = self.load()
        if frames is None:
            clip = read_frames(
                run.ref_video_path, run.num_frames, start=run.start, duration=run.duration, take=run.take
            )
            frames, indices, total = clip.frames, clip.indices, clip.total
            pace, warnings = clip.pace, clip.warnings
        else:
            _check_frames(frames)
            indices, total, pace, warnings = tuple(range(len(frames))), len(frames), 8.0, ()
        rows, columns = frames.shape[1:3]
        multiple = getattr(pipe, "size_multiple", 8)
        height, width = resolve_size(rows, columns, run.height, run.width, run.fit, multiple)
        video = fit_frames(frames, height, width, run.fit, run.resample)
        pixels = to_levels(video)
        inputs, more = self._inputs(run, height, width)
        generator = torch.Generator().manual_seed(run.seed_of_reference)
        motion = self.method.extract(pipe, video, inputs, run, settings_of(run), generator)
        seconds = time.perf_counter() - started
        return Extracted(motion, run, pixels, tuple(indices), total, pace, (*warnings, *more), seconds)

    def _inputs(self, run: Run, height: int, width: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What the job brings beside clip and prompt, read at the video's size."""
        found: dict[str, torch.Tensor] = {}
        warnings: list[str] = []
        for given in self.method.inputs:
            value = getattr(run, given.key)
            if not value:
                continue
            if given.kind == "images":
                found[given.key], said = read_conditions(value, height, width, run.fit)
                warnings += said
                continue
            clip = read_frames(value, run.num_frames)
            warnings += clip.warnings
            if given.raw:
                found[given.key] = torch.from_numpy(clip.frames)
                continue
            frames = fit_frames(clip.frames, height, width, run.fit)
            masks = (frames.mean(1, keepdim=True) > 0).float()  # f 3 h w -> f 1 h w
            found[given.key] = masks if given.kind == "masks" else frames
        return found, warnings


def find_device(name: str) -> torch.device:
    """The torch device that a run's `device` means. UserError for one that this machine does not have."""
    if name == "cpu":
        return torch.device("cpu")
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise UserError(f"device is '{name}', which this machine does not have; use device=auto")
    return PartialState().device if name == "cuda" else torch.device(name)


def use_xformers(pipe: Any, device: torch.device) -> list[str]:
    """xformers where it has an operator for this device, else scaled_dot_product_attention, and one line saying so."""
    why = None
    if device.type != "cuda" or not is_xformers_available():
        why = f"xformers has no operator for {device.type} here"
    else:
        try:
            pipe.enable_xformers_memory_efficient_attention()
        except (NotImplementedError, ValueError, RuntimeError, ImportError) as error:  # diffusers tries it on the spot
            pipe.disable_xformers_memory_efficient_attention()  # in those that took it before one did not
            why = one_line(error)[:160]
    return [f"attention: {why}; using scaled_dot_product_attention"] if why is not None else []


@contextmanager
def memory_advice(run: Run) -> Iterator[None]:
    """Turns running out of memory into one line that names the keys which lower it."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; MPS and the CPU raise it bare
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error).lower():
            raise
        size = f"{run.num_frames} frames of {run.width}x{run.height}"
        error.__traceback__ = None  # its frames hold the tensors
        raise UserError(f"out of memory at {size}; lower it with {LESS_MEMORY}") from None


def free_memory(device: torch.device) -> None:
    """Give back what the allocator of `device` keeps for later; touches no other device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def _check_frames(frames: np.ndarray) -> None:
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
        raise UserError(f"frames are {frames.dtype} {list(frames.shape)}, expected uint8 (f h w 3)")


def _state_of(path: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of the file at `path`, or of each file in that folder: unequal once one was changed."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    try:
        return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
    except OSError:
        return []


def _ignore(_step: int, _steps: int, _latents: torch.Tensor) -> None:
    return None
