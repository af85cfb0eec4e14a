"""How much memory this process takes, as the device or the system tells it."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import torch

resource: ModuleType | None
try:
    import resource
except ImportError:  # Windows
    resource = None


def peak_memory(device: torch.device | str) -> int | None:
    """The most so far, in bytes: allocated on CUDA, elsewhere resident; None where the system does not tell."""
    device = torch.device(device)
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _process_memory("VmHWM")


def memory_now(device: torch.device | str) -> int | None:
    """At this moment, in bytes, counted alike; off Linux the most so far is all there is."""
    device = torch.device(device)
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else _process_memory("VmRSS")


def _process_memory(field: str) -> int | None:
    """A line of Linux's own account of this process (getrusage there counts the parent's peak, too), or getrusage."""
    status = Path("/proc/self/status")
    if status.is_file():
        lines = status.read_text().splitlines()
        line = next((line for line in lines if line.startswith(f"{field}:")), None)
        if line is not None:
            return int(line.split()[1]) * 1024
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
