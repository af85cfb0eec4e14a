"""Shared set-up: one thread, no network, the tiny published layout written once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from animatediff import console

os.environ["HF_HUB_OFFLINE"] = "1"
assert console

import torch  # noqa: E402

from animatediff.pipelines.loading import Weights  # noqa: E402
from tests.goldens import write_tiny_layout  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """The published layout at a tiny size; every file holds different values for the same parameter."""
    return Weights(**write_tiny_layout(tmp_path_factory.mktemp("layout")))


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]
