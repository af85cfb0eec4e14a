"""What one job does: extract, generate, write, told step by step; it stops at the next step once it is asked to."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from animatediff.apps.page.clips import jpeg
from animatediff.apps.preview import preview
from animatediff.data.export import save_video
from animatediff.inference.engine import Engine, Result
from animatediff.inference.jobs import Job
from animatediff.inference.outputs import frames_per_second, write
from animatediff.pipelines.method import attribute

REFERENCE = "-reference.mp4"  # how the name of a result's reference goes on: its frames as the network saw them
PREVIEWS = 8  # of one run


class Cancelled(Exception):
    """The visitor asked for an end."""


@dataclass(frozen=True)
class Progress:
    """How far a job is."""

    stage: str
    step: int = 0
    steps: int = 0
    preview: bytes | None = None  # JPEG


def produce(engine: Engine, job: Job, stop: Path) -> Iterator[Progress]:
    """Make and write one video, telling how far it is. Cancelled is raised at the first step after `stop` exists.

    A generator, and `stop` a file, because where a device is lent for one call (a hub Space's) that call runs in a
    process of its own: what it yields comes back, nothing else does.
    """
    told: queue.Queue[Progress | BaseException | None] = queue.Queue()
    closed = threading.Event()

    def check() -> None:
        if closed.is_set() or stop.exists():
            raise Cancelled

    def run() -> None:
        try:
            _run(engine, job, told.put, check)
            told.put(None)
        except BaseException as error:
            told.put(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        while (news := told.get()) is not None:
            if isinstance(news, BaseException):
                raise news
            yield news
    finally:
        closed.set()
        thread.join()


def _run(engine: Engine, job: Job, tell: Callable[[Progress], None], check: Callable[[], None]) -> None:
    phase = attribute(engine.method, "phase", lambda _run, _step: "making the video")
    check()
    tell(Progress("reading the motion"))
    extracted = engine.extract(job.run)
    check()
    tell(Progress(phase(job.run, 0)))

    def stepped(step: int, steps: int, latents: Any) -> None:
        check()
        every = max(1, steps // PREVIEWS)
        picture = preview(engine.pipeline, latents) if (step + 1) % every == 0 and step + 1 < steps else None
        last = step + 1 == steps
        shown = None if picture is None else jpeg(picture)
        tell(Progress("decoding" if last else phase(job.run, step + 1), step + 1, steps, shown))

    result = engine.make(job.run, extracted, stepped)
    check()
    tell(Progress("writing"))
    write(job, with_reference(job, result))


def with_reference(job: Job, result: Result) -> Result:
    """The result with its reference written beside it, frame by frame as the network saw it and at the same rate.

    So the two play in step, and a comparison can be shown after the upload is gone.
    """
    pixels, fps = result.reference.pixels, frames_per_second(job.run, result)
    return replace(result, files={**result.files, REFERENCE: lambda path: save_video(path, pixels, fps)})
