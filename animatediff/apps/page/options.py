"""What whoever starts the page decides: where results go, who may come in, what a visitor may send and ask for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

UPLOADS = ".uploads"  # in the output folder; hidden, so that no command takes an upload for a result
PROGRAMS = "programs"  # in there: what comes and goes through gradio's interface for programs


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


@dataclass(frozen=True)
class Options:
    """One page's settings; each is a flag of `efficientmt demo`, but for the hub's `framed` and `gpu`."""

    output: Path = Path("outputs")
    host: str = "127.0.0.1"
    port: int = 7860
    user: str = ""
    password: str = ""
    max_megabytes: float = 200
    max_seconds: float = 60
    max_side: int = 4096  # pixels
    max_work: float = 8  # frames x height x width x steps, as a multiple of the preset's
    max_waiting: int = 3  # jobs of one visitor
    max_queue: int = 50
    delete_after: float = 60  # minutes
    keep: int = 1  # engines
    mcp: bool = False
    framed: bool = False  # whether it stands in a frame of the Hugging Face hub
    overrides: dict[str, str] = field(default_factory=dict)  # common keys, for every job
    gpu: Callable[[Callable[..., Any]], Callable[..., Any]] = _as_it_is  # decorates the function that needs a device

    @property
    def uploads(self) -> Path:
        """Where uploads lie until they are deleted."""
        return self.output / UPLOADS
