"""Motion transfer: the motion of a reference clip, the content of a sentence.

python inference.py --ref_video_path clip.mp4 --prompt "a red star"        on the bundled miniature
python inference.py --config configs/inference/sd15.yaml --ref_video_path clip.mp4 --prompt "..." seed=7
python inference.py --jobs jobs.jsonl                                      a list; rerun it to finish it
"""

from __future__ import annotations

import argparse
import itertools
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from diffusers.utils.import_utils import is_xformers_available

from animatediff.config import load_config, to_dict, to_yaml, update_config
from animatediff.console import run_command
from animatediff.data.conditions import read_conditions
from animatediff.data.export import save_frames, save_gif, save_video, side_by_side
from animatediff.data.video import Clip, fit_frames, read_frames, resolve_size
from animatediff.errors import UserError, one_line
from animatediff.files import remove_stale_parts, write_json
from animatediff.models.adapter import Reference
from animatediff.pipelines.efficientmt import EfficientMTPipeline
from animatediff.pipelines.loading import load_motionclone, load_pipeline, weight_files
from animatediff.pipelines.motionclone import MotionClonePipeline, MotionReference
from animatediff.runs import (
    InferenceConfig,
    Job,
    by_reference,
    check,
    content_hash,
    plan,
    read_jobs,
    reference_key,
    reference_seed,
)

DEFAULT_CONFIG = "configs/inference/miniature.yaml"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LESS_MEMORY = (
    "offload=model (or sequential), vae_slicing=true, dtype=fp16, a smaller height and width, or fewer num_frames"
)
UNTRAINED = "UNTRAINED: the adapter has random weights, so no motion is transferred"


Pipeline = EfficientMTPipeline | MotionClonePipeline


@dataclass
class Extracted:
    """A reference clip, read and run through the backbone once."""

    clip: Clip
    pixels: np.ndarray  # uint8 (f h w 3), as the network saw them
    reference: Reference | MotionReference
    seconds: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0 all done, 1 some jobs failed or files are missing."""
    options = _parse(arguments)
    config = load_config(InferenceConfig, options.config, options.overrides)
    config = update_config(config, _flags(options), "the command line")
    jobs = read_jobs(options.jobs, config) if options.jobs else [Job(config, config.ref_video_path)]
    if options.dry_run:
        return dry_run(config, jobs)
    if not options.jobs:
        check(config)
    plan(jobs)
    state = PartialState()
    share = _share(by_reference([job for job in jobs if job.error is None]), state.process_index, state.num_processes)
    rows = [_row(job, "failed", note=job.error) for job in jobs if job.error is not None and state.is_main_process]
    rows += run(config, share, quiet=not state.is_main_process)
    if state.num_processes > 1:
        rows = gather_object(rows)
    failed = [row for row in rows if row["status"] == "failed"]
    if state.is_main_process:
        report(rows)
    if failed and not options.jobs:
        raise UserError(failed[0]["note"])
    return 1 if failed else 0


def run(config: InferenceConfig, jobs: Sequence[Job], quiet: bool = False) -> list[dict[str, Any]]:
    """Make every unfinished job's video, each reference extracted once. One job's failure does not stop the others."""
    todo = [job for job in jobs if job.config.overwrite or not job.is_finished()]
    rows = [_row(job, "already done") for job in jobs if job not in todo]
    if not todo:
        return rows
    pipeline, trained = load(config, quiet)
    for _, group in itertools.groupby(todo, key=lambda job: reference_key(job.config)):
        extracted: Extracted | UserError | None = None
        for job in group:
            start = time.perf_counter()
            try:
                if extracted is None:
                    extracted = extract(pipeline, job.config)
                if isinstance(extracted, UserError):
                    raise extracted
                make(pipeline, job, extracted, trained)
                rows.append(_row(job, "done", time.perf_counter() - start))
            except UserError as error:
                if extracted is None:
                    extracted = error  # the next jobs on this reference fail alike
                rows.append(_row(job, "failed", time.perf_counter() - start, str(error)))
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                note = f"out of GPU memory at {job.config.width}x{job.config.height}; lower it with {LESS_MEMORY}"
                rows.append(_row(job, "failed", time.perf_counter() - start, note))
            if not quiet:
                _say(rows[-1])
    return rows


def load(config: InferenceConfig, quiet: bool = False) -> tuple[Pipeline, bool]:
    """The pipeline of `config`, placed on its device; and whether its adapter is trained."""
    device = _device(config.device)
    dtype = DTYPES["fp16" if device.type == "cuda" else "fp32"] if config.dtype == "auto" else DTYPES[config.dtype]
    if device.type == "cpu" and dtype == torch.float16:
        raise UserError("dtype is fp16, which the CPU cannot sample in; use dtype=fp32 or dtype=bf16")
    started = time.perf_counter()
    place: torch.device | str = "cpu" if config.offload != "none" else device
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
    """Read the reference of `config` and run the reference pass."""
    started = time.perf_counter()
    clip = read_frames(config.ref_video_path, config.num_frames, start=config.start, duration=config.duration)
    for warning in clip.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    multiple = pipeline.vae_scale_factor
    rows, columns = clip.frames.shape[1:3]
    height, width = resolve_size(rows, columns, config.height, config.width, config.fit, multiple)
    video = fit_frames(clip.frames, height, width, config.fit)
    generator = torch.Generator().manual_seed(reference_seed(config))
    images = {"image_index": config.image_index, "controlnet_scale": config.controlnet_scale}
    reference = pipeline.extract(
        video,
        timestep=config.reference_timestep,
        generator=generator,
        prompt=config.ref_prompt,
        **(images if config.sparsectrl_path else {}),
    )
    pixels = ((video + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()  # f 3 h w -> f h w 3
    return Extracted(clip, pixels, reference, time.perf_counter() - started)


def make(pipeline: Pipeline, job: Job, extracted: Extracted, trained: bool) -> None:
    """Generate one video and write it, what was asked for beside it, and last its sidecar."""
    config, started = job.config, time.perf_counter()
    _announce_cut(pipeline, config.prompt)
    frames = pipeline(
        config.prompt,
        reference=extracted.reference,
        negative_prompt=config.negative_prompt,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        generator=torch.Generator().manual_seed(config.seed),
        output_type="np",
        **_conditions(config, *extracted.pixels.shape[1:3]),
    ).frames[0]  # f h w 3, in [0, 1]
    if not np.isfinite(frames).all():
        raise UserError(f"sampling gave NaN in {config.dtype}; use dtype=fp32 or dtype=bf16, or a lower guidance_scale")
    pixels = (frames * 255).astype(np.uint8)  # truncated, as the published program writes it
    remove_stale_parts(job.output.parent)
    save_video(job.output, pixels, config.fps)
    if config.gif:
        save_gif(job.output.with_suffix(".gif"), pixels, config.fps)
    if config.frames:
        save_frames(job.output.with_suffix(""), pixels)
    if config.side_by_side:
        save_video(
            job.output.with_stem(f"{job.output.stem}-beside"), side_by_side(extracted.pixels, pixels), config.fps
        )
    write_json(job.sidecar, sidecar(job, extracted, trained, time.perf_counter() - started, pixels.shape))


def _conditions(config: InferenceConfig, height: int, width: int) -> dict[str, torch.Tensor]:
    """The condition images of a job in the image modes, as the pipeline's argument."""
    if not config.sparsectrl_path:
        return {}
    images, warnings = read_conditions(config.condition_image_paths, height, width, config.fit)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return {"condition_images": images}


def sidecar(job: Job, extracted: Extracted, trained: bool, seconds: float, shape: tuple[int, ...]) -> dict[str, Any]:
    """Everything needed to make the output again, and what it took."""
    config = job.config
    return {
        "output": job.output.name,
        "method": config.method,
        "reference": config.ref_video_path,
        "reference_sha256": content_hash(Path(config.ref_video_path)),
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
        "peak_memory_bytes": _peak_memory(),
        "warnings": list(extracted.clip.warnings),
        "weights": {name: str(path) for name, path in weight_files(config).items()},
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers")},
        "fingerprint": job.fingerprint,
        "config": to_dict(config),
    }


def dry_run(config: InferenceConfig, jobs: Sequence[Job]) -> int:
    """Print the resolved configuration and every file it would read, present or missing."""
    print(to_yaml(config))
    references = {job.config.ref_video_path: None for job in jobs if job.error is None and job.config.ref_video_path}
    files = {**weight_files(config), **{f"reference {i}": Path(path) for i, path in enumerate(references, start=1)}}
    for name, path in files.items():
        print(f"{'present' if path.exists() else 'MISSING':8} {name}: {path}")
    for job in jobs:
        if job.error is not None:
            print(f"BAD      {job.label}: {job.error}")
    return 0 if all(path.exists() for path in files.values()) and not any(job.error for job in jobs) else 1


def report(rows: Sequence[dict[str, Any]]) -> None:
    """One line a job, and the totals."""
    if len(rows) == 1:
        row = rows[0]
        if row["status"] != "failed":
            print(f"{row['status']}: {row['output']}")
        return
    width = max(len(row["status"]) for row in rows)
    print()
    for row in rows:
        print(f"{row['status']:{width}}  {row['seconds']:6.1f} s  {row['note'] or row['output']}")
    counts = {status: sum(row["status"] == status for row in rows) for status in ("done", "already done", "failed")}
    print(", ".join(f"{count} {status}" for status, count in counts.items()) + f", of {len(rows)} jobs")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=f"YAML of the run (default {DEFAULT_CONFIG})")
    parser.add_argument("--ckpt_path", help="the adapter: a published .ckpt or a saved folder")
    parser.add_argument("--ref_video_path", help="the reference: a video file or a folder of frames")
    parser.add_argument("--prompt", help="what the new video shows")
    parser.add_argument("--jobs", help="JSON Lines, one job a line: ref_video_path, prompt and any key of the YAML")
    parser.add_argument("--dry-run", action="store_true", help="print the configuration and files, and stop")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any key of the YAML")
    return parser.parse_intermixed_args(arguments)


def _flags(options: argparse.Namespace) -> dict[str, str]:
    flags = {key: getattr(options, key) for key in ("ckpt_path", "ref_video_path", "prompt")}
    return {key: value for key, value in flags.items() if value is not None}


def _share(jobs: list[Job], index: int, count: int) -> list[Job]:
    """This process's contiguous part of the jobs, so that as few references as possible are extracted twice."""
    return jobs[len(jobs) * index // count : len(jobs) * (index + 1) // count]


def _device(name: str) -> torch.device:
    present = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, there in present.items() if there)
    if not present[name]:
        raise UserError(f"device is '{name}', which this machine does not have; use device=auto")
    return PartialState().device if name == "cuda" else torch.device(name)


def _use_xformers(pipeline: Pipeline, device: torch.device) -> None:
    if device.type == "cuda" and is_xformers_available():
        pipeline.enable_xformers_memory_efficient_attention()
    else:
        print(f"attention: xformers has no operator for {device.type} here, using scaled_dot_product_attention")


def _announce_cut(pipeline: Pipeline, prompt: str) -> None:
    limit = pipeline.tokenizer.model_max_length
    tokens = pipeline.tokenizer(prompt, verbose=False).input_ids
    if len(tokens) > limit:
        cut = one_line(pipeline.tokenizer.decode(tokens[limit - 1 : -1]))
        print(f"warning: CLIP reads {limit} tokens; not read: {cut[:80]}{'...' * (len(cut) > 80)}", file=sys.stderr)


def _peak_memory() -> int:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _row(job: Job, status: str, seconds: float = 0.0, note: str | None = None) -> dict[str, Any]:
    return {"label": job.label, "status": status, "seconds": seconds, "output": str(job.output), "note": note}


def _say(row: dict[str, Any]) -> None:
    print(f"{row['status']} in {row['seconds']:.1f} s: {row['note'] or row['output']}")


if __name__ == "__main__":
    run_command(main)
