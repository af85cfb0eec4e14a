"""One page for all tests of a file: the miniature, a folder of its own, two or three steps a job."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("gradio", reason='gradio is not installed: pip install "efficientmt[demo]"')

from animatediff.apps.page.house import House
from animatediff.apps.page.options import Options
from animatediff.apps.page.server import serve


@dataclass(frozen=True)
class Served:
    """A running page: where it answers, and where its results go."""

    url: str
    options: Options


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A running page."""
    options = Options(output=tmp_path_factory.mktemp("page") / "out", port=free_port())
    with serve(options) as url:
        yield Served(url, options)


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The parts of a page, without a server."""
    made = House(Options(output=tmp_path_factory.mktemp("house") / "out"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip as a visitor drops it."""
    from tests.apps.page.clips import write_clip

    return write_clip(tmp_path_factory.mktemp("drop") / "My Clip.mp4")
