"""Samplers by name on the published noise schedule."""

from __future__ import annotations

from typing import Any

from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    SchedulerMixin,
)

from animatediff.config import nearest
from animatediff.errors import UserError
from animatediff.pipelines.video import BETAS

SCHEDULERS: dict[str, tuple[type[SchedulerMixin], dict[str, Any]]] = {
    "ddim": (DDIMScheduler, {"clip_sample": False}),
    "pndm": (PNDMScheduler, {"skip_prk_steps": True}),
    "euler": (EulerDiscreteScheduler, {}),
    "euler_ancestral": (EulerAncestralDiscreteScheduler, {}),
    "dpmsolver++": (DPMSolverMultistepScheduler, {}),
}


def build_scheduler(name: str, prediction_type: str = "epsilon") -> SchedulerMixin:
    """A sampler by name on the published noise schedule: linear betas 0.00085..0.012, steps_offset 1.

    prediction_type: what the backbone predicts, one of PREDICTIONS: the noise, as the published weights do, or v.
    """
    if name not in SCHEDULERS:
        raise UserError(f"unknown scheduler '{name}'; {nearest(name, list(SCHEDULERS))}")
    kind, options = SCHEDULERS[name]
    return kind(**BETAS, steps_offset=1, prediction_type=prediction_type, **options)
