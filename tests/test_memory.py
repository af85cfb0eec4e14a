"""How much memory a process takes, and what is said where the system does not tell."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from animatediff import memory
from animatediff.benchmarks import timing
from animatediff.errors import UserError
from animatediff.training.report import Meter


def test_what_was_given_back_counts_at_the_peak_only():
    before = memory.memory_now("cpu")
    block = np.ones(64 * 2**20, np.uint8)
    held = memory.memory_now(torch.device("cpu"))
    assert held - before > 60 * 2**20
    del block
    assert memory.peak_memory("cpu") - before > 60 * 2**20
    assert memory.memory_now("cpu") < held - 60 * 2**20


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(memory.Path, "is_file", lambda self: False)
    assert memory.peak_memory("cpu") is None
    values = Meter(torch.device("cpu"), 1).update(0.5, 1e-4)
    assert "peak" not in Meter.line(values)
    for measure in (timing.peak_memory, timing.memory_now):
        with pytest.raises(UserError, match="does not tell a process its memory"):
            measure("cpu")
