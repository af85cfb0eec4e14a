"""MotionFollower's sampling (arXiv 2405.20325): reconstruction and edit of a clip, step by step side by side.

The reconstruction starts from the same noise as the edit and is denoised under the source's skeletons. What the edit
takes from it at a step (compared features; in camera mode keys and values) is read off its forward of that step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch.nn import functional

from animatediff.errors import UserError
from animatediff.models.hooks import capture
from animatediff.pipelines.motionfollower.attention import KeysValues, background_attentions, record_background
from animatediff.pipelines.motionfollower.conditions import Conditioning, Conditions
from animatediff.pipelines.motionfollower.guidance import TermWeights, guidance, velocity_and_guidance
from animatediff.pipelines.motionfollower.networks import (
    Features,
    Networks,
    captured_features,
    conditioned,
    feature_blocks,
    features,
    image_vectors,
    velocity,
)
from animatediff.pipelines.motionfollower.schedule import (
    NOISE_SHARE,
    StepRules,
    alpha_at,
    join,
    rules_at,
    split,
    timesteps,
    variance,
)
from animatediff.pipelines.motionfollower.windows import Blend, window_starts

Pair = tuple[torch.Tensor, torch.Tensor]
Callback = Callable[[int, torch.Tensor, torch.Tensor], Pair | None]


@dataclass(frozen=True)
class Options:
    """What a run may do otherwise than the published program; defaults are that program.

    pose_scale, appearance_scale: weights of the controllers; 0 of the appearance controller leaves it out.
    step_scaling: see `rules_at`; regions, weights: see `guidance_losses`; mask_attention: see
    `attend_with_background`; window, overlap: see `window_starts`. gradient_checkpointing: less memory in guided
    steps, for time. estimator: other networks whose features are compared, instead of the edit's own.
    """

    pose_scale: float = 1.0
    appearance_scale: float = 1.0
    regions: str = "published"
    weights: TermWeights = field(default_factory=TermWeights)
    step_scaling: str = "absolute"
    mask_attention: bool = False
    gradient_checkpointing: bool = False
    window: int = 24
    overlap: int = 8
    estimator: Networks | None = None


@dataclass(frozen=True)
class _Window:
    """One window of a run: its conditions, and what the UNet's cross-attentions add with and without the image."""

    conditions: Conditions
    vectors: Mapping[str, torch.Tensor]
    zero_vectors: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class _Reconstruction:
    """What one forward of the reconstruction gives."""

    velocity: torch.Tensor | None  # None where nothing was run
    features: Features | None  # where the step is guided
    background: KeysValues  # empty outside camera mode


NOTHING = _Reconstruction(None, None, {})  # of a step that needs none


@dataclass
class _Run:
    """A run's fixed arguments, and the window used last (a clip of one window has its conditions made once)."""

    networks: Networks
    conditions: Conditioning
    guidance_scale: float
    guidance_strength: float
    options: Options
    last: tuple[tuple[int, int], _Window] | None = None

    def window(self, start: int, stop: int) -> _Window:
        """The window of the frames start .. stop - 1."""
        if self.last is None or self.last[0] != (start, stop):
            conditions, unet = self.conditions.window(start, stop), self.networks.unet
            vectors = image_vectors(unet, conditions.embeds)
            zero_vectors = image_vectors(unet, torch.zeros_like(conditions.embeds))
            self.last = (start, stop), _Window(conditions, vectors, zero_vectors)
        return self.last[1]


def step(
    networks: Networks,
    i: int,
    latents: torch.Tensor,
    reference: torch.Tensor,
    conditions: Conditioning,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.0,
    guidance_strength: float = 4.0,
    camera: bool = False,
    noise: torch.Tensor | None = None,
    options: Options | None = None,
) -> Pair:
    """Step `i` of both branches: the edit's latents and the reconstruction's, (1 4 f h w) each, in and out.

    guidance_scale: of classifier-free guidance on the image; up to 1 there is none. guidance_strength: of the score
    guidance; 0 switches it off. camera: the edit looks at the source's background from step 20. noise (1 4 f h w):
    what the noisy steps (11 to 19) add; ValueError where it is missing there. UserError for NaN or infinite latents.
    """
    run = _Run(networks, conditions, guidance_scale, guidance_strength, options or Options())
    return _step(run, i, latents, reference, num_inference_steps, camera, noise)


def sample(
    networks: Networks,
    latents: torch.Tensor,
    conditions: Conditioning,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.0,
    guidance_strength: float = 4.0,
    camera: bool = False,
    generator: torch.Generator | None = None,
    noises: Mapping[int, torch.Tensor] | None = None,
    callback: Callback | None = None,
    options: Options | None = None,
    whole_reconstruction: bool = True,
) -> torch.Tensor:
    """The edit's latents (1 4 f h w) from initial noise `latents`, which both branches start from; in its dtype.

    The noise of the noisy steps comes from `noises`, by step, or is drawn from `generator`, in order; ValueError
    where a run needs it and has neither. `callback(i, latents, reference)` follows each step and may return both
    anew. whole_reconstruction: false ends that branch with the last step that the edit takes something from; the edit
    is the same. Other arguments as for `step`. The state is float32 whatever the networks' dtype.
    """
    run = _Run(networks, conditions, guidance_scale, guidance_strength, options or Options())
    check_sizes(latents, conditions)
    dtype, latents = latents.dtype, latents.float()
    reference = latents
    rules = [
        rules_at(i, num_inference_steps, guidance_strength, run.options.step_scaling)
        for i in range(len(timesteps(num_inference_steps)))
    ]
    last = max((i for i, its in enumerate(rules) if its.takes(camera)), default=-1)
    for i, its in enumerate(rules):
        noise = _noise(i, latents, dtype, generator, noises) if its.noisy else None
        reconstructs = whole_reconstruction or i <= last
        latents, reference = _step(run, i, latents, reference, num_inference_steps, camera, noise, reconstructs)
        changed = callback(i, latents, reference) if callback else None
        latents, reference = changed or (latents, reference)
    return latents.to(dtype)


def check_sizes(latents: torch.Tensor, conditions: Conditioning) -> None:
    """UserError unless latents (1 4 f h w) are of the conditions' number of frames and of sizes that can be halved."""
    frames, height, width = latents.shape[2:]
    if frames != conditions.num_frames:
        raise UserError(f"the latents have {frames} frames, the conditions {conditions.num_frames}; expected as many")
    if height % 2 or width % 2:
        raise UserError(f"the latents are {height}x{width}, expected even sides: pixels in multiples of 16")


@torch.no_grad()
def _step(
    run: _Run,
    i: int,
    latents: torch.Tensor,
    reference: torch.Tensor,
    num_inference_steps: int,
    camera: bool,
    noise: torch.Tensor | None,
    reconstructs: bool = True,
) -> Pair:
    rules = rules_at(i, num_inference_steps, run.guidance_strength, run.options.step_scaling)
    if rules.noisy and noise is None:
        raise ValueError(f"step {i} adds noise inside the target mask; give it, or a generator")
    num_frames = latents.shape[2]
    length = min(run.options.window, num_frames)
    starts = window_starts(num_frames, i, run.options.window, run.options.overlap)
    injects = camera and rules.late
    kept: _Reconstruction | None = None  # of the single window; several are made anew in each run, for memory
    for repeat in range(rules.runs):
        if repeat:
            latents = _back_up(run, starts, length, latents, rules)
        blend = Blend(starts, num_frames, length)
        for start in starts:
            frames = slice(start, start + length)
            window = run.window(start, start + length)
            part = kept or (
                _reconstruct(run, window, reference[:, :, frames], rules, injects) if reconstructs else NOTHING
            )
            kept = part if len(starts) == 1 else None
            v0, g = _edit(run, window, latents[:, :, frames], rules, part)
            for name, value in (("reconstruction", part.velocity), ("plain", v0), ("guidance", g)):
                if value is not None:
                    blend.add(name, start, value)
        plain, g = blend.mean("plain"), blend.mean("guidance")
        velocity_of_reference = blend.mean("reconstruction")
        assert plain is not None
        guided = plain if g is None else plain + g
        x0, eps = split(latents, guided, rules.timestep, plain)
        latents = join(x0, eps, rules.previous)
        if rules.noisy:
            latents = _with_noise(latents, x0, eps, noise, _masks(run, latents), rules)
        _check_finite(latents, g, i, num_inference_steps)
    if velocity_of_reference is not None:
        reference = join(*split(reference, velocity_of_reference, rules.timestep), rules.previous)
    return latents, reference


def _reconstruct(
    run: _Run, window: _Window, reference: torch.Tensor, rules: StepRules, injects: bool
) -> _Reconstruction:
    """One forward of the reconstruction, with what this step takes from it."""
    unet, conditions, estimator = run.networks.unet, window.conditions, run.options.estimator
    blocks = feature_blocks(unet) if rules.guided and estimator is None else {}
    with (
        conditioned(unet, window.vectors, conditions.source_pose, conditions.appearance, run.options.pose_scale),
        capture(blocks) as outputs,
        record_background(unet, injects) as background,
    ):
        predicted = velocity(unet, reference, rules.timestep)
    compared = captured_features(outputs, reference.shape[2]) if blocks else None
    if rules.guided and estimator is not None:
        compared = features(
            estimator, reference, rules.timestep, conditions.embeds, conditions.source_pose, None,
            run.options.pose_scale,
        )  # fmt: skip
    return _Reconstruction(predicted, compared, background)


def _edit(
    run: _Run, window: _Window, latents: torch.Tensor, rules: StepRules, reconstruction: _Reconstruction
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The edit's velocity under classifier-free guidance, and the score guidance of a guided step.

    The halves run one after the other. Where no attention is replaced, the conditional half is also the forward that
    is compared with the reconstruction.
    """
    unet, options, conditions, t = run.networks.unet, run.options, window.conditions, rules.timestep
    pose, appearance = conditions.target_pose, conditions.appearance
    masks = (conditions.source_masks, conditions.target_masks)
    height, width = latents.shape[-2:]
    attentions = background_attentions(unet, reconstruction.background, *masks, (height, width), options.mask_attention)
    compared = reconstruction.features
    g = None
    if compared is not None and (attentions or options.estimator is not None):
        estimator = options.estimator or run.networks
        with checkpointed(estimator, options.gradient_checkpointing):
            g = guidance(
                estimator, latents, t, conditions.embeds, pose, None if options.estimator else appearance,
                compared, *masks, run.guidance_strength, pose_scale=options.pose_scale, weights=options.weights,
                regions=options.regions,
            )  # fmt: skip
    v_uncond = None
    if run.guidance_scale > 1:
        with conditioned(unet, window.zero_vectors, pose, appearance, options.pose_scale, attentions):
            v_uncond = velocity(unet, latents, t)
    with conditioned(unet, window.vectors, pose, appearance, options.pose_scale, attentions):
        if compared is not None and g is None:
            with checkpointed(run.networks, options.gradient_checkpointing):
                v_cond, g = velocity_and_guidance(
                    run.networks, latents, t, compared, *masks, run.guidance_strength, options.weights, options.regions
                )
        else:
            v_cond = velocity(unet, latents, t)
    v0 = v_cond if v_uncond is None else v_uncond + run.guidance_scale * (v_cond - v_uncond)
    return v0, g


def _back_up(run: _Run, starts: list[int], length: int, latents: torch.Tensor, rules: StepRules) -> torch.Tensor:
    """Latents after a step taken back to before it, by one plain prediction of the edit."""
    unet, t = run.networks.unet, max(rules.previous, 0)
    blend = Blend(starts, latents.shape[2], length)
    for start in starts:
        window = run.window(start, start + length)
        conditions = window.conditions
        with conditioned(unet, window.vectors, conditions.target_pose, conditions.appearance, run.options.pose_scale):
            blend.add("plain", start, velocity(unet, latents[:, :, start : start + length], t))
    plain = blend.mean("plain")
    assert plain is not None
    return join(*split(latents, plain, t), rules.timestep)


def _with_noise(
    latents: torch.Tensor,
    x0: torch.Tensor,
    eps: torch.Tensor,
    noise: torch.Tensor | None,
    inside: torch.Tensor,
    rules: StepRules,
) -> torch.Tensor:
    """`latents` of a step, where `inside` (1 1 f h w) is 1 those of a step with noise."""
    assert noise is not None
    abar = alpha_at(rules.previous)
    sigma = NOISE_SHARE * variance(rules.timestep, rules.previous) ** 0.5
    noisy = abar**0.5 * x0 + (1 - abar - sigma**2) ** 0.5 * eps + sigma * noise.to(x0)
    return inside * noisy + (1 - inside) * latents


def _masks(run: _Run, latents: torch.Tensor) -> torch.Tensor:
    """The whole clip's target masks on the latents' grid: (1 1 f h w)."""
    masks = run.conditions.target_masks.to(latents)
    return functional.interpolate(masks, latents.shape[-2:], mode="nearest").transpose(0, 1)[None]


def _noise(
    i: int,
    latents: torch.Tensor,
    dtype: torch.dtype,
    generator: torch.Generator | None,
    noises: Mapping[int, torch.Tensor] | None,
) -> torch.Tensor:
    """Step i's noise, (1 4 f h w): given, or drawn in the run's dtype."""
    if noises is not None:
        if i not in noises:
            raise ValueError(f"step {i} adds noise inside the target mask and noises has none for it")
        return noises[i]
    if generator is None:
        raise ValueError(f"step {i} adds noise inside the target mask; give a generator or noises")
    return randn_tensor(latents.shape, generator=generator, device=latents.device, dtype=dtype)


@contextmanager
def checkpointed(networks: Networks, active: bool = True) -> Iterator[None]:
    """Inside the block forwards keep less for the backward pass, which belongs inside, and compute it again there."""
    unet = networks.unet
    if not active or unet.is_gradient_checkpointing:
        yield
        return
    unet.enable_gradient_checkpointing()
    try:
        yield
    finally:
        unet.disable_gradient_checkpointing()


def _check_finite(latents: torch.Tensor, g: torch.Tensor | None, i: int, total: int) -> None:
    if torch.isfinite(latents).all():
        return
    guilty = g is not None and not torch.isfinite(g).all()
    cause = "the gradient of the guidance" if guilty else "the predicted velocity"
    advice = "a smaller guidance_strength or dtype=fp32" if guilty else "dtype=fp32 or dtype=bf16"
    raise UserError(f"step {i + 1} of {total} gave NaN or infinite latents, from {cause}; try {advice}")
