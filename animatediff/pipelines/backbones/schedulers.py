"""Samplers by name, on the noise schedule of the published weights, at any number of steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

from animatediff.config import nearest
from animatediff.errors import UserError
from animatediff.pipelines.video import BETAS


class EvenDDIMScheduler(DDIMScheduler):
    """diffusers' DDIMScheduler whose steps are even and land on its own timesteps, whatever their number.

    diffusers strides by 1000 // N whatever `timestep_spacing` says: with "leading", N = 400 starts at t = 799 from pure
    noise; with "trailing" and "linspace" a step lands beside the next timestep. Here "leading" spreads N timesteps over
    the whole range (the same ones where N divides 1000, as the published 25), and every step goes to the next timestep
    of the list. The step itself (Song et al. 2020, equations 12 and 16) is diffusers', on the chosen alphas alone.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """N timesteps, descending, 1 to num_train_timesteps of them; ValueError for more."""
        super().set_timesteps(num_inference_steps, device)
        last = self.config.num_train_timesteps - 1
        if self.config.timestep_spacing == "leading":
            even = np.arange(num_inference_steps) * self.config.num_train_timesteps // num_inference_steps
            even += min(self.config.steps_offset, last - even[-1])
            self.timesteps = torch.from_numpy(even[::-1].copy()).to(device)
        listed = self.timesteps.tolist()
        self._places = {t: place for place, t in enumerate(reversed(listed))}  # timestep -> its place, from the end
        # On the alphas of these timesteps alone every stride is 1, so that a step goes from one to the next.
        strides = {"timestep_spacing": "leading", "steps_offset": 0, "trained_betas": None}
        self._chosen = DDIMScheduler.from_config(self.config, num_train_timesteps=len(listed), **strides)
        self._chosen.alphas_cumprod = self.alphas_cumprod[listed[::-1]]
        self._chosen.final_alpha_cumprod = self.final_alpha_cumprod
        self._chosen.set_timesteps(len(listed))

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | None = None,
        variance_noise: torch.Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """DDIMScheduler's step from `timestep`, one of `timesteps`, to the next; ValueError for another timestep."""
        if self.num_inference_steps is None:
            raise ValueError("call set_timesteps before the first step")
        if int(timestep) not in self._places:
            raise ValueError(f"timestep {int(timestep)} is not among the {len(self._places)} timesteps of this run")
        place = self._places[int(timestep)]
        return self._chosen.step(
            model_output, place, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
        )


class CoveringPNDMScheduler(PNDMScheduler):
    """diffusers' PNDMScheduler, which refuses a number of steps that would leave noise out.

    Its strides are 1000 // N: what they do not cover must be less than one of them, else the first step takes pure
    noise for the less noisy input of a lower timestep.
    """

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """UserError, with the nearest number that works, where N strides leave one or more out."""

        def covers(steps: int) -> bool:  # with room for steps_offset, 1
            return steps < total and total % steps < total // steps

        total = self.config.num_train_timesteps
        _refuse_unless(covers, num_inference_steps, total, "pndm would not start from pure noise")
        super().set_timesteps(num_inference_steps, device)


class DistinctDPMSolverScheduler(DPMSolverMultistepScheduler):
    """diffusers' DPMSolverMultistepScheduler, which refuses a number of steps at which a timestep would come twice."""

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: list[int] | None = None,
    ) -> None:
        """UserError, with the nearest number that works, where N timesteps and the end have no room on the schedule."""
        if num_inference_steps is not None:
            total = self.config.num_train_timesteps
            _refuse_unless(lambda steps: steps < total, num_inference_steps, total, "dpmsolver++ would divide by zero")
        super().set_timesteps(num_inference_steps, device, timesteps)


def _refuse_unless(works: Callable[[int], bool], steps: int, total: int, why: str) -> None:
    """UserError that names the number nearest to `steps`, of 1 to `total`, for which `works`."""
    if not works(steps):
        nearest_steps = min(filter(works, range(1, total + 1)), key=lambda other: abs(other - steps))
        raise UserError(
            f"num_inference_steps is {steps}, at which {why}; the nearest number that works is {nearest_steps}, "
            "or use scheduler=ddim"
        )


SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (EvenDDIMScheduler, {"clip_sample": False}),
    "pndm": (CoveringPNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmsolver++": (DistinctDPMSolverScheduler, {}),
}


def build_scheduler(name: str, prediction_type: str = "epsilon") -> SchedulerMixin:
    """A sampler by name on the published noise schedule: linear betas 0.00085..0.012, steps_offset 1.

    prediction_type: what the backbone predicts, one of PREDICTIONS: the noise, as the published weights do, or v.
    """
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler '{name}'; {nearest(name, list(SCHEDULERS))}")
    kind, options = SCHEDULERS[name]
    return kind(**BETAS, steps_offset=1, prediction_type=prediction_type, **options)
