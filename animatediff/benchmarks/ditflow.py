"""DiTFlow's guided step against the published form of it, on CogVideoX-2b's widths with fewer blocks.

The published form runs the whole network to store keys and values, forms the attention maps of every head over all
tokens at once, runs the updates to the end of the guided block, and the two passes of the guidance one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from diffusers import CogVideoXTransformer3DModel, ModelMixin
from einops import rearrange

from animatediff.benchmarks.memory import compare_memory
from animatediff.benchmarks.networks import Setup, randomly_filled
from animatediff.benchmarks.timing import interleave, isolated, memory_now, peak_memory, summarise
from animatediff.models.hooks import capture, stop_after
from animatediff.pipelines.backbones.cogvideox import EvenCogVideoXDDIMScheduler
from animatediff.pipelines.ditflow import extract_motion, flow_loss, predict, sample
from animatediff.pipelines.ditflow.attention import KeyValue
from animatediff.pipelines.ditflow.dialects import Grid, dialect_of
from animatediff.pipelines.ditflow.flow import grid_coordinates
from animatediff.pipelines.ditflow.optimization import ReferenceMotion
from animatediff.pipelines.ditflow.sampling import Solver
from animatediff.pipelines.ditflow.transformer import in_force

BLOCKS, GUIDED, INJECTED = 6, 2, 0  # the guided block halfway, as 15 of 30
UPDATES, LEARNING_RATE, GUIDANCE_SCALE = 5, 0.002, 7.0
STEPS = ("published", "ours, checkpointed", "ours", "plain")
_WIDTHS = {"num_attention_heads": 30, "attention_head_dim": 64, "in_channels": 16, "out_channels": 16}
_TINY = {"num_attention_heads": 2, "attention_head_dim": 16, "text_embed_dim": 32, "time_embed_dim": 16}
_SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
}
Step = Callable[[], torch.Tensor]


def measure_ditflow(setup: Setup) -> dict[str, Any]:
    """Time of each of STEPS, interleaved in one process; peak memory, each in its own; how far results differ."""
    found = isolated(ditflow_times, setup)
    memory = {name: isolated(ditflow_memory, setup, name) for name in STEPS}
    return found | {"memory": compare_memory(memory, "published"), "setup": asdict(setup)}


def ditflow_times(setup: Setup) -> dict[str, Any]:
    """Median seconds with ratios to the published form, and the largest difference of each guided result from it."""
    steps = _steps(_network(setup), setup)
    results: dict[str, torch.Tensor] = {}  # of each step's last call

    def kept(name: str) -> Callable[[], None]:
        return lambda: results.update({name: steps[name]()})

    times = interleave({name: kept(name) for name in STEPS}, setup.device, setup.rounds, setup.seconds)
    guided = {name: results[name] for name in STEPS if name != "plain"}
    differences = {name: (latents - guided["published"]).abs().max().item() for name, latents in guided.items()}
    return {"time": summarise(times, "published"), "difference": differences, "tokens": _tokens(setup)}


def ditflow_memory(setup: Setup, name: str) -> dict[str, int]:
    """Memory before anything is built, with the weights, and at the peak of a step."""
    start = memory_now(setup.device)
    network = _network(setup)
    step = _steps(network, setup)[name]
    weights = memory_now(setup.device)
    step()
    return {"start": start, "weights": weights, "peak": peak_memory(setup.device)}


def per_head_flow(query: torch.Tensor, key: torch.Tensor, grid: Grid, temperature: float) -> torch.Tensor:
    """`attention_motion_flow` as the published program forms it: each head's map over all tokens, then their mean."""
    frames, height, width = grid
    maps = (query.float() @ key.float().mT / query.shape[-1] ** 0.5).mean(dim=0)  # (f S) (f S)
    maps = rearrange(maps, "(i q) (j k) -> (i j) q k", i=frames, j=frames)
    coordinates = grid_coordinates(height, width, maps)
    return (temperature * maps).softmax(dim=-1) @ coordinates - coordinates


def published_step(
    network: ModelMixin, latents: torch.Tensor, clean: torch.Tensor, text: torch.Tensor, motion: ReferenceMotion
) -> torch.Tensor:
    """A guided step under text [negative, positive], from the first timestep, in the published form."""
    dialect, solver = dialect_of(network), Solver(EvenCogVideoXDDIMScheduler(**_SCHEDULE), 1, latents.device)
    t, positive = solver.timesteps[0], text[1:]
    noised = solver.add_noise(clean, latents, 0)
    with torch.no_grad(), in_force(dialect, latents, None, None, tapped=[INJECTED]) as taps, capture(taps) as tapped:
        dialect.run(noised, t, positive, None)
    _, key, value = tapped[INJECTED]
    injected: dict[int, KeyValue] = {INJECTED: (key[0], value[0])}
    leaf = latents.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=LEARNING_RATE)
    with torch.enable_grad():
        for _ in range(UPDATES):
            with in_force(dialect, leaf, None, injected, tapped=[GUIDED], gradient_checkpointing=True) as taps:
                with capture(taps) as tapped, stop_after(dialect.blocks[GUIDED]):
                    dialect.run(leaf, t, positive, None)
                query, key, _ = tapped.pop(GUIDED)
                current = per_head_flow(query[0], key[0], motion.grid, motion.temperature)
                (leaf.grad,) = torch.autograd.grad(flow_loss(motion.targets[GUIDED], current), leaf)
            optimizer.step()
    latents = leaf.detach()
    with torch.no_grad():
        passes = [predict(network, latents, t, one, injected=injected).float() for one in text.split(1)]
    return solver.step(0, passes[0] + GUIDANCE_SCALE * (passes[1] - passes[0]), latents)


def _steps(network: ModelMixin, setup: Setup) -> dict[str, Step]:
    """One sampling step of each of STEPS from the same noise."""
    random = torch.Generator().manual_seed(0)
    shape = (1, (setup.frames - 1) // 4 + 1, network.config.in_channels, setup.height // 8, setup.width // 8)
    clean, noise = (torch.randn(shape, generator=random).to(setup.device) for _ in range(2))
    tokens = (2, network.config.max_text_seq_length, network.config.text_embed_dim)
    text = torch.randn(tokens, generator=random).to(setup.device)
    motion = extract_motion(network, clean, text[:1], [GUIDED])

    def ours(guided: bool) -> torch.Tensor:
        return sample(
            network,
            EvenCogVideoXDDIMScheduler(**_SCHEDULE),
            noise,
            text,
            motion if guided else None,
            motion_latents=clean if guided else None,
            injection_blocks=(INJECTED,),
            num_inference_steps=1,
            guidance_steps=int(guided),
            optimization_steps=UPDATES,
            learning_rate=(LEARNING_RATE, LEARNING_RATE),
            guidance_scale=GUIDANCE_SCALE,
        )

    def checkpointed(step: Step) -> torch.Tensor:
        network.enable_gradient_checkpointing()
        try:
            return step()
        finally:
            network.disable_gradient_checkpointing()

    return {
        "published": lambda: checkpointed(lambda: published_step(network, noise, clean, text, motion)),
        "ours, checkpointed": lambda: checkpointed(lambda: ours(True)),
        "ours": lambda: ours(True),
        "plain": lambda: ours(False),
    }


def _network(setup: Setup) -> CogVideoXTransformer3DModel:
    shapes = _TINY if setup.scale == "tiny" else _WIDTHS
    return randomly_filled(lambda: CogVideoXTransformer3DModel(**shapes, num_layers=BLOCKS), setup).requires_grad_(
        False
    )


def _tokens(setup: Setup) -> int:
    return ((setup.frames - 1) // 4 + 1) * (setup.height // 16) * (setup.width // 16)
