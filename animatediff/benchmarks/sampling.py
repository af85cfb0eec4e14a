"""What following a reference costs: one sampling step under classifier-free guidance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNetMotionModel
from torch.utils.flop_counter import FlopCounterMode

from animatediff.benchmarks.networks import Setup, random_adapter, random_unet, stock_unet
from animatediff.benchmarks.published import directly
from animatediff.benchmarks.timing import interleave, summarise
from animatediff.models.adapter import EfficientMT, extract, integrated
from animatediff.models.hooks import inject

TIMESTEP = 500


@torch.no_grad()
def measure_step(setup: Setup) -> dict[str, Any]:
    """Both guidance halves through the network at once, with a reference in three ways and without in two.

    plain: our backbone alone, to which all ratios are. prepared: with the reference, what is constant over steps
    computed beforehand, as the pipeline does. unprepared: the same computed in every step. direct: the equations as
    written, in every step. stock: diffusers' UNetMotionModel on the same weights. `difference` is the relative error
    of prepared and unprepared to direct: all three are the same function. `operations` counts the multiplications and
    additions of one step, whatever the machine.
    """
    unet = random_unet(setup)
    adapter = random_adapter(unet, setup).requires_grad_(False)
    latents, text = noise_and_text(setup, batch=2)
    reference = extract(unet, adapter, latents[:1], TIMESTEP, text[:1])
    model, stock = EfficientMT(unet, adapter=adapter), stock_unet(unet)
    with integrated(unet, adapter, reference):
        blocks = {path: unet.get_submodule(path) for path, _ in adapter.named_sites()}
    outputs: dict[str, torch.Tensor] = {}

    def step(network: UNetMotionModel = unet) -> torch.Tensor:
        return network(latents, TIMESTEP, text.repeat_interleave(setup.frames, dim=0)).sample  # text ((2 f) tokens dim)

    def prepared() -> None:
        with inject(unet, blocks):  # what `integrated` does once for all steps
            outputs["prepared"] = step()

    def unprepared() -> None:
        outputs["unprepared"] = model(latents, TIMESTEP, text, reference)

    def direct() -> None:
        with directly(unet, adapter, reference):
            outputs["direct"] = step()

    variants: dict[str, Callable[[], Any]] = {
        "plain": step,
        "prepared": prepared,
        "unprepared": unprepared,
        "direct": direct,
        "stock": lambda: step(stock),
    }
    operations = {name: _operations(variants[name]) for name in ("plain", "prepared")}
    times = interleave(variants, setup.device, setup.rounds, setup.seconds, ["plain"])
    difference = {name: _relative(outputs[name], outputs["direct"]) for name in ("prepared", "unprepared")}
    return {
        "variants": summarise(times, "plain"),
        "difference": difference,
        "operations": operations,
        "parameters": parameter_counts(unet, model),
    }


def noise_and_text(setup: Setup, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random latents (b 4 f h w) and text embeddings (b 77 dim)."""
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(batch, *setup.latent_shape[1:], generator=generator)
    text = torch.randn(batch, 77, setup.shapes.unet["cross_attention_dim"], generator=generator)
    return latents.to(setup.device, setup.dtype), text.to(setup.device, setup.dtype)


def parameter_counts(unet: UNetMotionModel, model: EfficientMT) -> dict[str, int]:
    """How many parameters the backbone and the adapter have, and in how many tensors the adapter's are."""
    own = list(model.adapter.parameters())
    return {
        "backbone": sum(p.numel() for p in unet.parameters()),
        "adapter": sum(p.numel() for p in own),
        "adapter_tensors": len(own),
    }


def _operations(step: Callable[[], Any]) -> int:
    """Floating-point operations of one step, as torch counts those of products, convolutions and attention."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    return ((value - expected).float().norm() / expected.float().norm()).item()
