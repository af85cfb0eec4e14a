"""Muon for the miniature's stages: short runs from nothing learn more in a step than with AdamW."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from animatediff.miniature.loop import Together, adamw

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, and how often it is done
ITERATIONS = 5
RMS = 0.2  # of an update at learning rate 1, as AdamW's: so that both take the same rates


@torch.no_grad()
def orthogonalised(matrix: Tensor) -> Tensor:
    """`matrix` [m, n] with all its singular values moved to about 1, by Newton-Schulz iterations in bfloat16."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.mT if tall else matrix).bfloat16()
    x = x / (x.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x.mT if tall else x).to(matrix.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum whose updates are orthogonalised (Jordan et al. 2024); kernels count as matrices [out, the rest]."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": 0.95, "decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One update of every parameter that has a gradient; returns the loss of `closure`, where it is given."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1)  # Nesterov
                update = orthogonalised(ahead).view_as(parameter)
                size = RMS * max(ahead.shape) ** 0.5
                parameter.mul_(1 - group["lr"] * group["decay"]).add_(update, alpha=-group["lr"] * size)
        return loss


def muon(network: nn.Module, lr: float, elsewhere: Callable[[str], bool]) -> Together:
    """Muon for the matrices and kernels of `network`, AdamW for its vectors and where `elsewhere(name)`; one rate."""
    named = list(network.named_parameters())
    chosen = {name for name, parameter in named if parameter.ndim > 1 and not elsewhere(name)}
    return Together(
        Muon([parameter for name, parameter in named if name in chosen], lr),
        adamw([{"params": [parameter for name, parameter in named if name not in chosen], "lr": lr}]),
    )
