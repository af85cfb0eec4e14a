"""Motion transfer: the motion of a reference clip, the content of a sentence.

python inference.py --ref_video_path clip.mp4 --prompt "a red star"        on the bundled miniature
python inference.py --config configs/inference/sd15.yaml --ref_video_path clip.mp4 --prompt "..." seed=7
python inference.py --jobs jobs.jsonl                                      a list; rerun it to finish it
python inference.py --config outputs/clip/a-red-star-42.json overwrite=true   the same video again

Any key of the YAML can follow as key=value. Paths are looked up here first, then in this project's folder.
"""

from __future__ import annotations

import itertools
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from diffusers.utils.import_utils import is_xformers_available

from animatediff.config import to_dict
from animatediff.console import run_command
from animatediff.data.conditions import read_conditions
from animatediff.data.export import save_frames, save_gif, save_video, side_by_side
from animatediff.data.video import Clip, fit_frames, read_frames, resolve_size
from animatediff.errors import UserError, one_line
from animatediff.files import remove_stale_parts, write_json
from animatediff.inference.cli import dry_run, parse, read_config
from animatediff.inference.jobs import ALREADY_DONE, DONE, FAILED, TO_DO, Job, plan, read_jobs, share, table
from animatediff.inference.run import (
    InferenceConfig,
    locate,
    missing_weights,
    reference_key,
    reference_seed,
    resolved_dtype,
)
from animatediff.memory import peak_memory
from animatediff.models.adapter import Reference
from animatediff.pipelines.backbones.sd15 import load_motionclone, load_pipeline, weight_files
from animatediff.pipelines.efficientmt.pipeline import EfficientMTPipeline
from animatediff.pipelines.motionclone.pipeline import MotionClonePipeline, MotionReference

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LESS_MEMORY = "offload=model (or sequential), dtype=bf16, a smaller height and width, or fewer num_frames"
UNTRAINED = "UNTRAINED: the adapter has random weights, so no motion is transferred"
WAIT = timedelta(days=30)  # how long a process whose jobs are done waits for the others

Pipeline = EfficientMTPipeline | MotionClonePipeline


@dataclass
class Extracted:
    """A reference clip, read and run through the backbone once."""

    clip: Clip
    pixels: np.ndarray  # uint8 (f h w 3), as the network saw them
    reference: Reference | MotionReference | None  # None: use_reference=false, the backbone alone
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 all done, 1 some jobs failed or files are missing."""
    options = parse(arguments, __doc__)
    config = read_config(options)
    jobs = read_jobs(locate(options.jobs), config) if options.jobs else [Job(config, "the command line")]
    if options.dry_run:
        return dry_run(config, jobs)
    state = join_processes(config.device)
    if state.is_main_process:
        plan(jobs)
    jobs = broadcast_object_list([jobs])[0]
    if not options.jobs and jobs[0].status == FAILED:
        raise UserError(jobs[0].note)
    settled = [job for job in jobs if job.status != TO_DO]
    todo = share([job for job in jobs if job.status == TO_DO], state.process_index, state.num_processes)
    ended = settled + gather_object(run(config, todo, keep_going=bool(options.jobs)))
    if state.is_main_process:
        if options.jobs:
            print(table(ended))
        elif ended[0].status == ALREADY_DONE:
            print(f"already done: {ended[0].output}; overwrite=true makes it again")
    return 1 if any(job.status == FAILED for job in ended) else 0


def run(config: InferenceConfig, jobs: Sequence[Job], keep_going: bool) -> list[Job]:
    """Make every job's video, models loaded once, each reference extracted once; returns the jobs, ended.

    With `keep_going` one job's failure does not stop the others; without, it is raised.
    """
    if not jobs:
        return []
    quiet = not PartialState().is_main_process
    pipeline, trained = load(config, quiet)
    done = 0
    for _, group in itertools.groupby(jobs, key=lambda job: reference_key(job.config)):
        extracted = None
        for job in group:
            start = time.perf_counter()
            try:
                with memory_advice(job.config):
                    extracted = extracted or extract(pipeline, job.config)
                    make(pipeline, job, extracted, trained)
                job.ended(DONE, seconds=time.perf_counter() - start)
            except Exception as error:
                if not keep_going:
                    raise
                job.ended(FAILED, _describe(error), time.perf_counter() - start)
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
            done += 1
            if not quiet:
                print(f"[{done}/{len(jobs)}] {job.status} in {job.seconds:.1f} s: {job.note or job.output}", flush=True)
    return list(jobs)


def join_processes(device: str) -> PartialState:
    """The processes that share the jobs: one, or those that a launcher started, on CPUs where there is no CUDA."""
    return PartialState(cpu=device == "cpu" or not torch.cuda.is_available(), timeout=WAIT)


def load(config: InferenceConfig, quiet: bool = False) -> tuple[Pipeline, bool]:
    """The pipeline of `config`, placed on its device; and whether its adapter is trained."""
    device = _device(config.device)
    dtype = DTYPES[resolved_dtype(config)]
    if device.type == "cpu" and dtype == torch.float16:
        raise UserError("dtype is fp16, which the CPU cannot sample in; use dtype=fp32 or dtype=bf16")
    missing = missing_weights(config)
    if missing:
        raise UserError(next(iter(missing.values())))
    started = time.perf_counter()
    place: torch.device | str = "cpu" if config.offload != "none" else device
    with memory_advice(config):
        if config.method == "motionclone":
            pipeline: Pipeline = load_motionclone(config, config.motionclone, place, dtype)
        else:
            pipeline = load_pipeline(config, config.scheduler, place, dtype)
    if config.offload == "model":
        pipeline.enable_model_cpu_offload(device=device)
    elif config.offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=device)
    if config.vae_slicing:
        pipeline.vae.enable_slicing()
    if config.attention == "xformers":
        _use_xformers(pipeline, device)
    pipeline.set_progress_bar_config(disable=quiet, desc="sampling", leave=False)
    trained = config.method == "motionclone" or pipeline.adapter.config.trained_steps != 0
    if not quiet:
        print(f"loaded {config.pretrained_model_path} on {device} in {time.perf_counter() - started:.1f} s ({dtype})")
        if not trained:
            print(UNTRAINED)
    return pipeline, trained


def extract(pipeline: Pipeline, config: InferenceConfig) -> Extracted:
    """Read the reference of `config` and run the reference pass, or not where `use_reference` is false."""
    started = time.perf_counter()
    clip = read_frames(config.ref_video_path, config.num_frames, start=config.start, duration=config.duration)
    for warning in clip.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    rows, columns = clip.frames.shape[1:3]
    height, width = resolve_size(rows, columns, config.height, config.width, config.fit, pipeline.size_multiple)
    video = fit_frames(clip.frames, height, width, config.fit)
    pixels = ((video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # f 3 h w -> f h w 3
    if not config.use_reference:
        return Extracted(clip, pixels, None, time.perf_counter() - started)
    generator = torch.Generator().manual_seed(reference_seed(config))
    images = {"image_index": config.image_index, "controlnet_scale": config.controlnet_scale}
    reference = pipeline.extract(
        video,
        timestep=config.reference_timestep,
        generator=generator,
        prompt=config.ref_prompt,
        **(images if config.sparsectrl_path else {}),
    )
    return Extracted(clip, pixels, reference, time.perf_counter() - started)


def make(pipeline: Pipeline, job: Job, extracted: Extracted, trained: bool) -> None:
    """Generate one video and write it, what was asked for beside it, and last its sidecar."""
    config, started = job.config, time.perf_counter()
    warnings = [*extracted.clip.warnings, *cut_warnings(pipeline, config)]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    frames = pipeline(
        config.prompt,
        reference=extracted.reference,
        negative_prompt=config.negative_prompt,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        **({"guidance_interval": (0, config.guidance_below)} if config.method == "efficientmt" else {}),
        generator=torch.Generator().manual_seed(config.seed),
        output_type="np",
        **_size(extracted),
        **_conditions(config, *extracted.pixels.shape[1:3]),
    ).frames[0]  # f h w 3, in [0, 1]
    if not np.isfinite(frames).all():
        raise UserError(f"sampling gave NaN in {config.dtype}; use dtype=fp32 or dtype=bf16, or a lower guidance_scale")
    pixels = (frames * 255).astype(np.uint8)  # truncated, as the published program writes it
    remove_stale_parts(job.output.parent)
    if job.sidecar.exists():
        job.sidecar.unlink()  # until the new one is there, this name counts as unfinished
    save_video(job.output, pixels, config.fps)
    if config.gif:
        save_gif(job.gif, pixels, config.fps)
    if config.frames:
        save_frames(job.frames, pixels)
    if config.side_by_side:
        save_video(job.beside, side_by_side(extracted.pixels, pixels), config.fps)
    seconds = time.perf_counter() - started
    write_json(job.sidecar, sidecar(job, extracted, trained, seconds, pixels.shape, warnings))


def _size(extracted: Extracted) -> dict[str, int]:
    """The size of a video without a reference to take it from: that of the clip."""
    if extracted.reference is not None:
        return {}
    return dict(zip(("num_frames", "height", "width"), extracted.pixels.shape[:3], strict=True))


def _conditions(config: InferenceConfig, height: int, width: int) -> dict[str, torch.Tensor]:
    """The condition images of a job in the image modes, as the pipeline's argument."""
    if not config.sparsectrl_path:
        return {}
    images, warnings = read_conditions(config.condition_image_paths, height, width, config.fit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return {"condition_images": images}


def sidecar(
    job: Job, extracted: Extracted, trained: bool, seconds: float, shape: tuple[int, ...], warnings: list[str]
) -> dict[str, Any]:
    """Everything needed to make the output again (`--config` takes this JSON), and what it took."""
    config = job.config
    return {
        "output": job.output.name,
        "method": config.method,
        "reference": config.ref_video_path,
        "reference_sha256": job.reference_sha256,
        "reference_frames": {"indices": list(extracted.clip.indices), "of": extracted.clip.total},
        "prompt": config.prompt,
        "seed": config.seed,
        **({} if trained else {"UNTRAINED": UNTRAINED}),
        "num_frames": shape[0],
        "height": shape[1],
        "width": shape[2],
        "fps": config.fps,
        "fit": config.fit,
        "seconds": round(seconds, 3),
        "extract_seconds": round(extracted.seconds, 3),
        "peak_memory_bytes": peak_memory(_device(config.device)),
        "warnings": warnings,
        "weights": {name: str(path) for name, path in weight_files(config).items()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "fingerprint": job.fingerprint,
        "config": to_dict(config),
    }


@contextmanager
def memory_advice(config: InferenceConfig) -> Iterator[None]:
    """Turns running out of memory into one line that names the keys which lower it."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; MPS and the CPU raise it bare
        if not isinstance(error, torch.OutOfMemoryError) and "out of memory" not in str(error).lower():
            raise
        size = f"{config.num_frames} frames of {config.width}x{config.height}"
        raise UserError(f"out of memory at {size}; lower it with {LESS_MEMORY}") from error


def _describe(error: Exception) -> str:
    """What the summary says of a failure; a defect of ours shows its traceback, too."""
    if isinstance(error, UserError):
        return one_line(error)
    traceback.print_exception(error)
    return f"{type(error).__name__}: {one_line(error)}"


def _device(name: str) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise UserError(f"device is '{name}', which this machine does not have; use device=auto")
    return PartialState().device if name == "cuda" else torch.device(name)


def _use_xformers(pipeline: Pipeline, device: torch.device) -> None:
    """xformers where it has an operator for this device, else scaled_dot_product_attention and one line."""
    why = None
    if device.type != "cuda" or not is_xformers_available():
        why = f"xformers has no operator for {device.type} here"
    else:
        try:
            pipeline.enable_xformers_memory_efficient_attention()
        except (NotImplementedError, ValueError, RuntimeError, ImportError) as error:  # diffusers tries it on the spot
            why = one_line(error)[:160]
    if why is not None:
        print(f"attention: {why}; using scaled_dot_product_attention")


def cut_warnings(pipeline: Pipeline, config: InferenceConfig) -> list[str]:
    """Says, and returns, what CLIP will not read of the prompts: it takes 77 tokens."""
    limit = pipeline.tokenizer.model_max_length
    warnings = []
    for name, text in (("prompt", config.prompt or ""), ("negative_prompt", config.negative_prompt)):
        tokens = pipeline.tokenizer(text, verbose=False).input_ids
        if len(tokens) > limit:
            cut = one_line(pipeline.tokenizer.decode(tokens[limit - 1 : -1]))
            warnings.append(f"CLIP reads {limit} tokens of the {name}; not read: {cut[:80]}{'...' * (len(cut) > 80)}")
            print(f"warning: {warnings[-1]}", file=sys.stderr)
    return warnings


if __name__ == "__main__":
    run_command(main)
