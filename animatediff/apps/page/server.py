"""gradio's server with our page in front: the page's routes, and an interface for other programs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import FileData

from animatediff.apps.page import routes
from animatediff.apps.page.access import Access
from animatediff.apps.page.desk import DONE
from animatediff.apps.page.house import House
from animatediff.apps.page.options import Options
from animatediff.errors import UserError
from animatediff.pipelines import METHODS


def build(options: Options) -> gr.Server:
    """The server, not yet started."""
    options.output.mkdir(parents=True, exist_ok=True)
    os.environ["GRADIO_TEMP_DIR"] = str(options.uploads.absolute() / "gradio")  # so that its uploads end with ours
    house = House(options)
    server = gr.Server(title="EfficientMT", docs_url=None, redoc_url=None, openapi_url=None)
    server.include_router(routes.build(house))
    server.add_middleware(Access, options=options)
    _add_interface(server, house)
    return server


def launch(options: Options, **settings: Any) -> tuple[Any, str, str]:
    """Start the page; see gradio's Server.launch for what else can be set and for what comes back."""
    return build(options).launch(
        server_name=options.host,
        server_port=options.port,
        max_file_size=int(options.max_megabytes * 1e6),
        mcp_server=options.mcp,
        footer_links=[],
        run_history=False,
        **settings,
    )


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
        clip = house.clips.take(_uploaded(video), str(video.get("orig_name") or "clip.mp4"))  # type: ignore[attr-defined]
        texts = {"seed": str(seed), **(settings or {})}
        body = {"preset": preset, "clip": clip.id, "prompt": prompt, "settings": texts}
        visitor = request.client.host if request is not None and request.client else "a program"
        ticket = house.desk.wait(house.submit(body, visitor))
        if ticket.state != DONE or ticket.output is None:
            raise gr.Error(ticket.note or "the job was cancelled")
        return FileData(path=str(ticket.output))

    @server.api(name="presets", queue=False)
    def presets() -> list[dict[str, str]]:
        """The presets that can run here, each with its method and what it is."""
        ready = [preset for preset in house.presets.values() if not preset.missing]
        return [
            {"preset": preset.key, "about": preset.about, "method": METHODS[preset.method].name} for preset in ready
        ]


def _uploaded(file: Any) -> Path:
    """Where an upload to gradio's server lies; UserError for any other path."""
    folder = Path(os.environ["GRADIO_TEMP_DIR"]).resolve()
    path = Path(str(file.get("path", "") if isinstance(file, dict) else getattr(file, "path", ""))).resolve()
    if not path.is_relative_to(folder) or not path.is_file():
        raise UserError("video is no upload; send the file itself")
    return path
