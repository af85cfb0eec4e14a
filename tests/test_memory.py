"""How much memory a process takes, and what is said where the system does not tell."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from animatediff import memory
from animatediff.benchmarks import timing
from animatediff.errors import UserError
from animatediff.training.report import Meter

ALONE = """
import numpy as np
from animatediff.memory import memory_now, peak_memory
before = memory_now("cpu")
block = np.ones(256 * 2**20, np.uint8)
held = memory_now("cpu")
del block
print(before, held, memory_now("cpu"), peak_memory("cpu"))
"""


def test_what_was_given_back_counts_at_the_peak_only():
    """In a process of its own: what else this one gives back would count against the block."""
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=120, check=True)
    before, held, after, peak = map(int, done.stdout.split())
    assert held - before > 240 * 2**20
    assert held - after > 240 * 2**20
    assert peak - before > 240 * 2**20


def test_a_system_that_does_not_tell(monkeypatch):
    monkeypatch.setattr(memory, "resource", None)
    monkeypatch.setattr(memory.Path, "is_file", lambda self: False)
    assert memory.peak_memory("cpu") is None
    values = Meter(torch.device("cpu"), 1).update(0.5, 1e-4)
    assert "peak" not in Meter.line(values)
    for measure in (timing.peak_memory, timing.memory_now):
        with pytest.raises(UserError, match="does not tell a process its memory"):
            measure("cpu")
