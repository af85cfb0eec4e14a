"""DiTFlow's sampling: early steps optimised towards the reference's motion, later ones plain (arXiv 2412.07776)."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import CogVideoXDPMScheduler, ModelMixin, UniPCMultistepScheduler

from animatediff.errors import UserError
from animatediff.pipelines.ditflow.dialects import Dialect, dialect_of
from animatediff.pipelines.ditflow.optimization import VARIABLES, ReferenceMotion, Variable, learning_rates, optimize
from animatediff.pipelines.ditflow.transformer import (
    Injected,
    check_blocks,
    check_positions,
    predict,
    read_keys_values,
)

Callback = Callable[[int, torch.Tensor], Any]
Guided = Callable[[int, float, torch.Tensor, torch.Tensor | None, list[float]], Any]


def dynamic_scale(guidance_scale: float, timestep: float, num_inference_steps: int) -> float:
    """CogVideoX-5b's guidance scale at `timestep`: 1 + guidance_scale (1 - cos(pi ((N - t) / N)^5)) / 2.

    t is the timestep (999 down), not the step's index, so the scale hops between 1 and 1 + guidance_scale.
    """
    angle = math.pi * ((num_inference_steps - timestep) / num_inference_steps) ** 5
    return 1 + guidance_scale * (1 - math.cos(angle)) / 2


@torch.no_grad()
def sample(
    transformer: ModelMixin,
    scheduler: Any,
    latents: torch.Tensor,
    text: torch.Tensor,
    motion: ReferenceMotion | None = None,
    variable: Variable = "latents",
    positions: Mapping[int, torch.Tensor] | None = None,
    motion_latents: torch.Tensor | None = None,
    injection_blocks: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_steps: int = 10,
    optimization_steps: int = 5,
    learning_rate: Sequence[float] = (0.002, 0.001),
    guidance_scale: float = 7.0,
    dynamic_cfg: bool = False,
    generator: torch.Generator | None = None,
    published_gradient: bool = False,
    callback: Callback | None = None,
    guided: Guided | None = None,
    batched_cfg: bool = True,
) -> torch.Tensor:
    """Latents of a video from start noise `latents` (batch 1, in the network's order), float32.

    text (2 tokens dim): [negative, positive]. motion: what the first `guidance_steps` steps are optimised towards;
    None: nothing is. variable: what is optimised, "latents" or "positions". positions: {timestep (Wan: step): saved
    positions}, used in the guided steps instead of an optimisation. motion_latents: the reference's clean latents,
    whose keys and values stand for the video's in `injection_blocks` in the guided steps; None: no injection.
    generator: for the scheduler's noise, the one that drew the start noise. batched_cfg: both passes of the guidance in
    one batch, or one after the other in less memory.

    callback(i, latents) follows each step; guided(i, timestep, latents, positions or None, losses) each optimisation.
    `scheduler` is left as it is. UserError at the step where NaN or infinite values arise, and for what does not fit.
    """
    dialect = dialect_of(transformer)
    check_schedule(num_inference_steps, guidance_steps, optimization_steps, learning_rate)
    if variable not in VARIABLES:
        raise UserError(f"variable is '{variable}', expected {' or '.join(VARIABLES)}")
    if motion is not None and positions is not None:
        raise UserError("a motion to optimise towards and saved positions are both given; give one of them")
    blocks = injection_blocks if motion_latents is not None else ()
    check_blocks(transformer, motion.blocks if motion else (), blocks)
    noise, latents = latents.float(), latents.float()
    edited = guidance_steps if motion is not None and variable == "latents" else 0
    solver = Solver(scheduler, num_inference_steps, latents.device, generator, edited)
    if positions is not None:
        _check_saved(dialect, solver, latents, positions, guidance_steps)
    own = dialect.shared_positions(*dialect.frames_height_width(latents), latents.device)
    rates = learning_rates(guidance_steps, *learning_rate)
    held: torch.Tensor | None = None  # positions that are not the network's own

    for i, t in enumerate(solver.timesteps):
        injected: Injected = {}
        if i >= guidance_steps:
            held = None
        else:
            if blocks and motion_latents is not None:
                noised = solver.add_noise(motion_latents.to(noise), noise, i)
                injected = read_keys_values(transformer, noised, t, text[1:], blocks, own)
            if positions is not None:
                held = positions[dialect.time_key(i, t)].to(latents.device)
            if motion is not None:
                latents, moved, losses = optimize(
                    transformer,
                    latents,
                    t,
                    text[1:],
                    motion,
                    variable,
                    own if variable == "latents" else held,
                    optimization_steps,
                    rates[i],
                    injected,
                    published_gradient,
                )
                held = moved if variable == "positions" else None
                if guided:
                    guided(i, t, latents, held, losses)
        scale = dynamic_scale(guidance_scale, t, num_inference_steps) if dynamic_cfg else guidance_scale
        acting = own if held is None else held
        prediction = _guided_prediction(transformer, latents, t, text, scale, acting, injected, batched_cfg)
        latents = solver.step(i, prediction, latents)
        if not torch.isfinite(latents).all():
            dtype = str(transformer.dtype).removeprefix("torch.")
            raise UserError(
                f"step {i + 1} of {num_inference_steps} gave NaN or infinite latents in {dtype}; try dtype=bf16"
            )
        if callback:
            callback(i, latents)
    return latents


class Solver:
    """A diffusers scheduler's steps from given noise to a video, on a copy of it.

    Knows the two things in which schedulers differ for DiTFlow: CogVideoX's DPM solver wants its previous estimate of
    x0, and UniPC's corrector would rebuild an edited x_t from the step before, so it is off in the first `edited`.
    """

    def __init__(
        self,
        scheduler: Any,
        num_inference_steps: int,
        device: torch.device | str = "cpu",
        generator: torch.Generator | None = None,
        edited: int = 0,
    ) -> None:
        self.scheduler = copy.deepcopy(scheduler)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        if isinstance(self.scheduler, UniPCMultistepScheduler):
            # Step i + 1 corrects step i unless i is listed.
            self.scheduler.disable_corrector = [*self.scheduler.disable_corrector, *range(edited - 1)]
        self.timesteps: list[float] = self.scheduler.timesteps.tolist()
        self.generator = generator
        self._x0: torch.Tensor | None = None

    def add_noise(self, latents: torch.Tensor, noise: torch.Tensor, i: int) -> torch.Tensor:
        """Clean latents noised to the level of step `i`."""
        timestep = self.scheduler.timesteps[i : i + 1]
        if hasattr(self.scheduler, "scale_noise"):  # flow matching
            return self.scheduler.scale_noise(latents, timestep, noise)
        return self.scheduler.add_noise(latents, noise, timestep)

    def step(self, i: int, prediction: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
        """Latents after step `i`; prediction and latents float32, of one shape."""
        t = self.scheduler.timesteps[i]
        if not isinstance(self.scheduler, CogVideoXDPMScheduler):
            return self.scheduler.step(prediction, t, latents, return_dict=False)[0]
        before = self.scheduler.timesteps[i - 1] if i else None
        latents, self._x0 = self.scheduler.step(
            prediction, self._x0, t, before, latents, generator=self.generator, return_dict=False
        )
        return latents


def check_schedule(
    num_inference_steps: int, guidance_steps: int, optimization_steps: int, learning_rate: Sequence[float]
) -> None:
    """UserError where the guided steps do not fit into the steps, or an update cannot be made."""
    if num_inference_steps < 1:
        raise UserError(f"num_inference_steps is {num_inference_steps}, expected at least 1")
    if not 0 <= guidance_steps <= num_inference_steps:
        raise UserError(f"guidance_steps is {guidance_steps}, expected 0 to num_inference_steps, {num_inference_steps}")
    if optimization_steps < 0:
        raise UserError(f"optimization_steps is {optimization_steps}, expected 0 or more")
    rates = list(learning_rate)
    if len(rates) != 2 or not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise UserError(
            f"learning_rate is {rates}, expected two numbers of 0 or more: of the first guided step, the end"
        )


def _check_saved(
    dialect: Dialect,
    solver: Solver,
    latents: torch.Tensor,
    positions: Mapping[int, torch.Tensor],
    guidance_steps: int,
) -> None:
    """UserError where saved positions lack a guided step or belong to another size, length or network."""
    for i, t in enumerate(solver.timesteps[:guidance_steps]):
        key = dialect.time_key(i, t)
        if key not in positions:
            saved = ", ".join(map(str, sorted(positions)))
            raise UserError(
                f"the saved positions have none for guided step {i + 1} ({key}), only {saved}; they were made with "
                f"other numbers of steps"
            )
        check_positions(dialect, latents, positions[key])


def _guided_prediction(
    transformer: ModelMixin,
    latents: torch.Tensor,
    timestep: float,
    text: torch.Tensor,
    scale: float,
    positions: torch.Tensor | None,
    injected: Injected,
    batched: bool,
) -> torch.Tensor:
    """Classifier-free guidance in float32: v_u + scale (v_c - v_u); at scale 1 v_c, by one pass."""
    if scale == 1:
        return predict(transformer, latents, timestep, text[1:], positions, injected).float()
    if batched:
        both = predict(transformer, latents.expand(2, *latents.shape[1:]), timestep, text, positions, injected)
        negative, positive = both.float().chunk(2)
    else:
        negative, positive = (
            predict(transformer, latents, timestep, one, positions, injected).float() for one in text.split(1)
        )
    return negative + scale * (positive - negative)
