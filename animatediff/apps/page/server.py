"""gradio's server with our page in front: the page's routes, and an interface for other programs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from animatediff.apps.page import routes
from animatediff.apps.page.access import Access
from animatediff.apps.page.desk import DONE
from animatediff.apps.page.house import House
from animatediff.apps.page.options import PROGRAMS, Options
from animatediff.errors import UserError
from animatediff.pipelines import METHODS


def build(house: House) -> gr.Server:
    """The server, not yet started."""
    os.environ["GRADIO_TEMP_DIR"] = str(
        house.options.uploads.absolute() / PROGRAMS
    )  # so that its uploads end with ours
    server = gr.Server(title="EfficientMT", docs_url=None, redoc_url=None, openapi_url=None)
    server.include_router(routes.build(house))
    server.add_middleware(Access, options=house.options)
    _add_interface(server, house)
    return server


@contextmanager
def serve(options: Options, **settings: Any) -> Iterator[str]:
    """The page, running within the block; gives its address. `settings` are those of gradio's Server.launch."""
    options.output.mkdir(parents=True, exist_ok=True)
    house = House(options)
    app = None
    try:
        app, url, _ = build(house).launch(
            server_name=options.host,
            server_port=options.port,
            max_file_size=int(options.max_megabytes * 1e6),
            mcp_server=options.mcp,
            footer_links=[],
            run_history=False,
            prevent_thread_lock=True,
            quiet=True,
            **settings,
        )
        yield url
    finally:
        house.close()
        if app is not None and app.blocks is not None:
            app.blocks.close(verbose=False)


def _add_interface(server: gr.Server, house: House) -> None:
    @server.api(name="transfer", concurrency_limit=None)
    def transfer(
        video: FileData,
        prompt: str,
        preset: str = next(iter(house.presets)),
        seed: int = 42,
        settings: dict[str, str] | None = None,
        request: gr.Request = None,  # type: ignore[assignment]
    ) -> FileData:
        """Make a new video with the motion of a clip and the content of a sentence.

        Args:
            video: the clip that gives the motion
            prompt: what the new video shows
            preset: one of those that /presets lists
            seed: another seed, another video
            settings: further keys of the method, each as the text that key=value takes
        """
        visitor = request.client.host if request is not None and request.client else "a program"
        try:
            clip = house.clips.take(*_uploaded(video))
            texts = {"seed": str(seed), **(settings or {})}
            order = {"preset": preset, "clip": clip.id, "prompt": prompt, "settings": texts}
            ticket = house.desk.wait(house.submit(order, visitor))
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        if ticket.state != DONE or ticket.output is None:
            raise gr.Error(ticket.note or "the job was cancelled", print_exception=False)
        given = Path(os.environ["GRADIO_TEMP_DIR"]) / ticket.id / ticket.output.name  # which its clients may fetch
        given.parent.mkdir(parents=True)
        shutil.copyfile(ticket.output, given)
        return FileData(path=str(given))

    @server.api(name="presets", queue=False)
    def presets() -> list[dict[str, str]]:
        """The presets that can run here, each with its method and what it is."""
        ready = [preset for preset in house.presets.values() if not preset.missing]
        return [
            {"preset": preset.key, "about": preset.about, "method": METHODS[preset.method].name} for preset in ready
        ]


def _uploaded(file: Any) -> tuple[Path, str]:
    """Where an upload to gradio's server lies, and what it was called; UserError for any other path."""
    told = file if isinstance(file, dict) else file.model_dump()
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    path = Path(str(told.get("path") or "")).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise UserError("video is no upload; send the file itself")
    return path, str(told.get("orig_name") or path.name)
