"""The page's parts, made once and handed to its routes and to its interface for programs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from animatediff.apps.forms import presets
from animatediff.apps.page.clips import Clips
from animatediff.apps.page.desk import Desk, Ticket
from animatediff.apps.page.gallery import Gallery
from animatediff.apps.page.options import Options
from animatediff.apps.page.orders import Order, read_order, read_preparation
from animatediff.errors import UserError
from animatediff.files import read_lines
from animatediff.files.reading import parse_object
from animatediff.project import PROJECT

EXAMPLES = "assets/jobs.jsonl"


class House:
    """Clips, presets, queue and gallery of one page."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.presets = {preset.key: preset for preset in presets()}
        self.clips = Clips(options)
        self.clips.sweep()
        self.desk = Desk(options)
        self._closed = threading.Event()
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self.gallery = Gallery(options, self.presets)
        lines = [parse_object(text, EXAMPLES) for _, text in read_lines(PROJECT / EXAMPLES)]
        self.prompts = list(dict.fromkeys(str(line["prompt"]) for line in lines if "prompt" in line))

    def close(self) -> None:
        """End whatever runs; nothing half-written is left."""
        self._closed.set()
        self.desk.close()

    def submit(self, body: Mapping[str, Any], visitor: str) -> Ticket:
        """A ticket for what a visitor sent."""
        return self._submit(read_order, body, visitor)

    def submit_preparation(self, body: Mapping[str, Any], visitor: str) -> Ticket:
        """A ticket for what is to be made of a visitor's clips before a job can use them."""
        return self._submit(read_preparation, body, visitor)

    def _submit(self, read: Callable[..., Order], body: Mapping[str, Any], visitor: str) -> Ticket:
        try:
            order = read(body, self.presets, self.clips, self.options)
        except UserError as error:
            raise UserError(self.clips.tidy(str(error))) from error
        self.clips.touch(order.clips)
        return self.desk.submit(order, visitor)

    def result_of(self, id: str) -> dict[str, Any]:
        """The id of a finished job's result."""
        output = self.desk.get(id).output
        result = {} if output is None else {"result": self.gallery.id_of(output)}
        return result | {"note": self.clips.tidy(self.desk.get(id).note)}

    def _sweep(self) -> None:
        while not self._closed.wait(min(60.0, 30 * self.options.delete_after)):
            self.clips.sweep(self.desk.clips_in_use())
