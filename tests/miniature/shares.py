"""A model of five weights that learns from the share of this process: `python -m tests.miniature.shares model.pt`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from animatediff.miniature.loop import rank, train


def learn(path: Path, shares: Sequence[int]) -> dict[str, Tensor]:
    """The weights after three steps on the given of two shares of the data."""
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    data = torch.arange(32, dtype=torch.float32).sin().abs().view(8, 4).expand(2, 8, 4)
    wanted = torch.tensor([1.0, -3.0]).view(2, 1, 1)  # the shares pull in different directions

    def loss_of(step: int, generator: torch.Generator) -> Tensor:
        return (model(data[list(shares)] * (step + 1)) - wanted[list(shares)]).square().mean()

    train("test", [{"params": list(model.parameters()), "lr": 1e-2}], loss_of, 3, path.with_suffix(".state"), 0)
    return model.state_dict()


if __name__ == "__main__":
    learned = learn(Path(sys.argv[1]), [rank()])
    torch.save(learned, f"{sys.argv[1]}.{rank()}.pt")
