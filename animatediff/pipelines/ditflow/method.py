"""DiTFlow behind the commands: its files, and one run of it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from animatediff.errors import UserError, one_line
from animatediff.files import read_json
from animatediff.pipelines.backbones import cogvideox, wan
from animatediff.pipelines.backbones.folders import VideoTransformerFiles, expected_files
from animatediff.pipelines.backbones.lora import load_loras, lora_scales
from animatediff.pipelines.ditflow.optimization import Variable
from animatediff.pipelines.ditflow.pipeline import (
    NEGATIVE_PROMPT,
    DiTFlowPipeline,
    DiTFlowWanPipeline,
    MotionReference,
)
from animatediff.pipelines.ditflow.positions import (
    PositionFacts,
    check_positions_file,
    describe_transformer,
    load_positions,
    save_positions,
)
from animatediff.pipelines.ditflow.sampling import Solver, check_schedule
from animatediff.pipelines.ditflow.settings import ALIASES, RENAMED, DiTFlowSettings
from animatediff.pipelines.method import Input, Made, OnStep, Run, WeightFile
from animatediff.project import locate, located

Pipeline = DiTFlowPipeline | DiTFlowWanPipeline
POSITIONS = ".positions.safetensors"  # beside the output
STATIC = "nothing_moves"  # the sidecar's field


class DiTFlowMethod:
    """One reference pass, then sampling whose early steps are optimised towards the reference's motion."""

    name = "ditflow"
    Files = VideoTransformerFiles
    Settings = DiTFlowSettings
    defaults: Mapping[str, Any] = {
        "num_frames": 24,
        "height": 480,
        "width": 720,
        "resample": "bicubic",
        "take": "first",
        "negative_prompt": NEGATIVE_PROMPT,
        "seed": 1,
        "num_inference_steps": 50,
        "guidance_scale": 7.0,
        "scheduler": "auto",
    }
    choices: Mapping[str, tuple[str, ...]] = {"scheduler": ("auto", "ddim", "dpm", "euler", "unipc")}
    unused = frozenset({"reference_timestep", "attention"})
    inputs: tuple[Input, ...] = ()
    needs_prompt = True
    reference_keys = frozenset(
        {
            "use_reference",
            "ref_prompt",
            "loss",
            "guidance_blocks",
            "temperature",
            "moving_only",
            "hard_reference",
            "moft_share",
            "positions_path",
        }
    )
    aliases = ALIASES
    renamed = RENAMED
    objective = None

    def check(self, run: Run, settings: DiTFlowSettings) -> None:
        check_schedule(
            run.num_inference_steps, settings.guidance_steps, settings.optimization_steps, settings.learning_rate
        )
        guided = settings.guidance_blocks if _guides(run, settings) else []
        if _guides(run, settings) and not guided:
            raise UserError("ditflow.guidance_blocks is empty; name a block, or choose ditflow.loss=none")
        shared = sorted({*guided} & {*settings.injection_blocks})
        if shared:
            raise UserError(
                f"block {shared[0]} is in ditflow.guidance_blocks and ditflow.injection_blocks; leave it out of one"
            )
        if settings.save_positions and not (_guides(run, settings) and settings.variable == "positions"):
            raise UserError(
                "ditflow.save_positions is true, but none are optimised; choose ditflow.variable=positions and a loss"
            )
        kind = _kind(run.part(VideoTransformerFiles), settings)
        if kind is not None:
            self._check_kind(run, settings, kind, guided)
        if settings.positions_path:
            size = {} if run.fit == "auto" else {"height": run.height, "width": run.width}
            steps = {"num_inference_steps": run.num_inference_steps, "guidance_steps": settings.guidance_steps}
            config = _transformer_config(run.part(VideoTransformerFiles))
            whose = {"transformer": describe_transformer(config["_class_name"], config)} if config and kind else {}
            expected = {**whose, "num_frames": run.num_frames, **size, **steps}
            check_positions_file(locate(settings.positions_path), expected)

    def _check_kind(self, run: Run, settings: DiTFlowSettings, kind: str, guided: list[int]) -> None:
        """What depends on the transformer, told from its config.json."""
        nearest = _pipeline_class(kind).nearest_frames(run.num_frames)
        if nearest != run.num_frames:
            raise UserError(f"num_frames is {run.num_frames}, which the VAE cannot give back; the nearest is {nearest}")
        names = wan.SCHEDULERS if kind == "wan" else tuple(cogvideox.SCHEDULERS)
        if run.scheduler not in ("auto", *names):
            raise UserError(f"scheduler is '{run.scheduler}', expected auto, {' or '.join(names)} for {kind}")
        if settings.published_gradient and (kind != "cogvideox_5b" or settings.variable != "positions"):
            raise UserError(
                "ditflow.published_gradient is true, which acts on the positions of CogVideoX-5b alone; leave it out"
            )
        count = (_transformer_config(run.part(VideoTransformerFiles)) or {}).get("num_layers")
        for what, blocks in (("guidance_blocks", guided), ("injection_blocks", settings.injection_blocks)):
            strangers = [i for i in blocks if isinstance(count, int) and i >= count]
            if strangers and isinstance(count, int):
                raise UserError(f"ditflow.{what} holds {strangers[0]}; this transformer has blocks 0 to {count - 1}")

    def weights(self, files: VideoTransformerFiles) -> list[WeightFile]:
        base = Path(files.pretrained_model_path)
        found = [WeightFile(what, path) for what, path in expected_files(base, cogvideox.PARTS).items()]
        scheduler = base / "scheduler" / "scheduler_config.json"
        found.append(WeightFile("base model: scheduler", scheduler, by_content=True, optional=True))
        return found + [WeightFile(f"LoRA {i}", Path(path), by_content=True) for i, path in enumerate(files.lora_paths)]

    def load(
        self,
        files: VideoTransformerFiles,
        settings: DiTFlowSettings,
        device: torch.device | str,
        dtype: torch.dtype,
    ) -> Pipeline:
        return load_ditflow(files, settings, device, dtype)

    def extract(
        self,
        pipe: Pipeline,
        video: torch.Tensor,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: DiTFlowSettings,
        rng: torch.Generator,
    ) -> MotionReference:
        loss = settings.loss if _guides(run, settings) else "none"
        return pipe.extract(
            video,
            settings.guidance_blocks,
            loss,
            prompt=run.ref_prompt,
            temperature=settings.temperature,
            moving_only=settings.moving_only,
            share=settings.moft_share,
            hard=settings.hard_reference,
            generator=rng,
        )

    def generate(
        self,
        pipe: Pipeline,
        reference: MotionReference,
        inputs: Mapping[str, torch.Tensor],
        run: Run,
        settings: DiTFlowSettings,
        rng: torch.Generator,
        on_step: OnStep,
    ) -> np.ndarray | Made:
        pipe.scheduler = _scheduler(pipe, run.scheduler, settings.flow_shift)
        facts = _position_facts(pipe, reference, run, settings)
        saved = None
        if settings.positions_path and run.use_reference:
            saved = load_positions(locate(settings.positions_path), facts)
        output = pipe(
            run.prompt or "",
            reference,
            negative_prompt=run.negative_prompt,
            variable=cast("Variable", settings.variable),
            positions=saved,
            injection_blocks=settings.injection_blocks if run.use_reference else (),
            num_inference_steps=run.num_inference_steps,
            guidance_steps=settings.guidance_steps,
            optimization_steps=settings.optimization_steps,
            learning_rate=settings.learning_rate,
            guidance_scale=run.guidance_scale,
            dynamic_cfg=settings.dynamic_cfg,
            generator=rng,
            published_gradient=settings.published_gradient,
            gradient_checkpointing=settings.gradient_checkpointing,
            batched_cfg=settings.batched_cfg,
            on_step=on_step,
        )
        frames = cast("np.ndarray", output.frames)  # they are latents where that is asked for
        if not settings.save_positions:
            return frames
        writer = functools.partial(save_positions, positions=output.positions, facts=facts)
        return Made(frames, {POSITIONS: writer})

    def facts(self, pipe: Pipeline, reference: MotionReference | None) -> dict[str, Any]:
        return {STATIC: True} if reference is not None and reference.is_static else {}

    def notes(self, pipe: Pipeline, run: Run, reference: MotionReference) -> list[str]:
        lines = [*pipe.lora_warnings, *_unread_text(pipe, run)]
        if reference.is_static:
            lines.append(
                "nothing moves in the reference, so its motion guides nothing (loss 0); ditflow.moving_only=false "
                "holds the whole picture still"
            )
        return lines

    def phase(self, run: Run, i: int) -> str:
        settings = getattr(run, self.name)
        return "guided" if i < settings.guidance_steps and run.use_reference else "plain"


def load_ditflow(
    files: VideoTransformerFiles | None = None,
    settings: DiTFlowSettings | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Pipeline:
    """DiTFlow from a diffusers folder of CogVideoX or Wan, on `device` in `dtype` (Wan's VAE in float32)."""
    files, settings = located(files or VideoTransformerFiles()), settings or DiTFlowSettings()
    lora_scales(files.lora_scale, len(files.lora_paths))  # refused before the long loading
    kind = _kind(files, settings)
    if dtype == torch.float16 and kind in ("cogvideox_5b", "wan"):
        raise UserError(f"dtype is fp16, in which {kind} gives NaN; use dtype=bf16")
    pipeline: Pipeline
    if kind == "wan":
        pipeline = DiTFlowWanPipeline(
            **vars(wan.load_wan(files.pretrained_model_path, flow_shift=settings.flow_shift, dtype=dtype))
        )
    else:
        pipeline = DiTFlowPipeline(**vars(cogvideox.load_cogvideox(files.pretrained_model_path, dtype=dtype)))
    if settings.vae_tiling:
        pipeline.vae.enable_tiling()
    pipeline.lora_warnings = load_loras(pipeline, files.lora_paths, files.lora_scale)
    return pipeline.to(device)


def _guides(run: Run, settings: DiTFlowSettings) -> bool:
    """Whether anything is optimised towards the reference's motion."""
    return run.use_reference and settings.loss != "none" and not settings.positions_path


def _transformer_config(files: VideoTransformerFiles) -> dict[str, Any] | None:
    """The config.json of the transformer; None where there is none, which loading tells in its words."""
    path = Path(files.pretrained_model_path) / "transformer" / "config.json"
    return read_json(path) if path.is_file() else None


def _kind(files: VideoTransformerFiles, settings: DiTFlowSettings) -> str | None:
    """The kind of transformer in the folder; None where its config does not tell. UserError where it is another than
    the settings are for."""
    config = _transformer_config(files) or {}
    rope = config.get("use_rotary_positional_embeddings", False)
    known = {
        "CogVideoXTransformer3DModel": "cogvideox_5b" if rope else "cogvideox_2b",
        "WanTransformer3DModel": "wan",
    }
    found = known.get(str(config.get("_class_name")))
    if found is not None and settings.backbone not in ("auto", found):
        raise UserError(
            f"{files.pretrained_model_path} is {found}, but these settings are for {settings.backbone} "
            f"(ditflow.backbone); take its own file in configs/inference/ditflow/"
        )
    return found


def _pipeline_class(kind: str) -> type[Pipeline]:
    return DiTFlowWanPipeline if kind == "wan" else DiTFlowPipeline


def _scheduler(pipe: Pipeline, name: str, flow_shift: float) -> Any:
    """The scheduler of a run, on the noise schedule of the one that was loaded."""
    if isinstance(pipe, DiTFlowWanPipeline):
        return wan.build_scheduler("euler" if name == "auto" else name, flow_shift)
    chosen = cogvideox.default_scheduler(pipe.transformer) if name == "auto" else name
    return cogvideox.SCHEDULERS[chosen].from_config(pipe.scheduler.config)


def _position_facts(pipe: Pipeline, reference: MotionReference, run: Run, settings: DiTFlowSettings) -> PositionFacts:
    timesteps = Solver(pipe.scheduler, run.num_inference_steps).timesteps[: settings.guidance_steps]
    return PositionFacts(
        describe_transformer(type(pipe.transformer).__name__, pipe.transformer.config),
        reference.num_frames,
        reference.height,
        reference.width,
        run.num_inference_steps,
        settings.guidance_steps,
        tuple(timesteps),
    )


def _unread_text(pipe: Pipeline, run: Run) -> list[str]:
    """One line for each of a run's prompts of which the text encoder will not read all."""
    lines = []
    for name, text in (("prompt", run.prompt or ""), ("negative_prompt", run.negative_prompt)):
        tokens = pipe.tokenizer(text, verbose=False).input_ids
        if len(tokens) > pipe.text_tokens:
            cut = one_line(pipe.tokenizer.decode(tokens[pipe.text_tokens - 1 : -1]))
            lines.append(f"{pipe.text_tokens} tokens of the {name} are read; not read: {cut[:80]}")
    return lines


METHOD = DiTFlowMethod()
