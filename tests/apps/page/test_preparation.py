"""A method that prepares its inputs: found on the page by itself, looked at, corrected by a click, and used."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from animatediff.apps.forms import Preset
from animatediff.apps.page import house as parts
from animatediff.apps.page.desk import DONE
from animatediff.apps.page.house import House
from animatediff.apps.page.options import Options
from animatediff.apps.page.orders import read_order
from animatediff.apps.page.server import serve
from animatediff.config import option
from animatediff.data.export import save_frames
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.inference.run import run_schema
from animatediff.pipelines import METHODS
from animatediff.pipelines.method import Input, View
from tests.apps.page.clips import write_clip
from tests.apps.page.test_browser import drop
from tests.browser import Browser


class Preparation:
    key, examples = "prepared", ()
    clips = (Input("source_path", "video", True, "the video to edit"),)

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict, dict]] = []

    def make(self, run, clips, subjects, folder, on_progress) -> None:
        self.asked.append((Path(run.ref_video_path).name, {key: path.name for key, path in clips.items()}, subjects))
        on_progress("finding people", 1, 2)
        save_frames(folder, read_frames(clips["source_path"], None).frames)

    def views(self, folder: Path) -> list[View]:
        frames = read_frames(folder, None).frames
        return [View("Found", frames, "source_path"), View("Turned", frames[:, ::-1].copy())]


@dataclass
class Files:
    weights_path: str = option("", "none are needed")


@dataclass
class Settings:
    strength: float = option(1.0, "how much", least=0, most=2)


class Posed:
    name, title, needs_prompt, objective, defaults = "posed", "Posed", False, None, {"num_frames": 4}
    inputs = (Input("prepared", "folder", help="stands for the rest"), Input("source_path", "video", True, "to edit"))
    unused = frozenset({"prompt", "start", "duration"})
    reference_keys: frozenset[str] = frozenset()
    Files, Settings = Files, Settings

    def __init__(self) -> None:
        self.shown_preparation = Preparation()

    def complete(self, run):
        from dataclasses import replace

        return replace(run, source_path=run.prepared, prepared="") if run.prepared else run

    def check(self, run, settings) -> None:
        return None

    def weights(self, files) -> list:
        return []


@pytest.fixture
def posed(monkeypatch) -> Posed:
    method = Posed()
    monkeypatch.setattr(METHODS, "_entries", {"posed": method})
    preset = Preset("posed", "plain", Path("plain.yaml"), run_schema("posed")(), "A stand-in.", ())
    monkeypatch.setattr(parts, "presets", lambda: [preset])
    monkeypatch.setattr("animatediff.apps.forms.read_layers", lambda path: [("plain", {"method": "posed"})])
    return method


def test_what_was_prepared_is_an_input_of_the_job(posed: Posed, tmp_path: Path, small: Path):
    house = House(Options(output=tmp_path / "out"))
    source = house.clips.take(write_clip(tmp_path / "Dancer.mp4", frames=5), "Dancer.mp4")
    body = {"preset": "posed/plain", "clip": "bundled-00-line", "clips": {"source_path": source.id}}
    ticket = house.desk.wait(house.submit_preparation(body | {"subjects": {"source_path": [0.5, 0.25]}}, "a"))
    assert (ticket.state, ticket.note) == (DONE, "")
    assert posed.shown_preparation.asked == [
        ("00-line.mp4", {"source_path": "dancer.mp4"}, {"source_path": (0.5, 0.25)})
    ]
    clip = house.clips.get(ticket.prepared)
    assert [view["title"] for view in clip.views] == ["Found", "Turned"]
    assert read_frames(house.clips.view(clip.id, 1), None).total == 5

    order = {"preset": "posed/plain", "clip": "bundled-00-line", "inputs": {"prepared": [clip.id]}}
    run = read_order(order, house.presets, house.clips, house.options).run
    assert Path(run.prepared) == house.options.uploads / clip.id / "dancer-line"

    with pytest.raises(UserError, match="source_path is missing: the video to edit"):
        house.submit_preparation(body | {"clips": {}}, "a")
    with pytest.raises(UserError, match="expected x and y, each from 0 to 1"):
        house.submit_preparation(body | {"subjects": {"source_path": [2.0, 0.0]}}, "a")
    house.close()


def test_a_bundled_pair_is_an_input_too(house: House):
    id, (folder, preparation) = next(iter(house.clips.examples.items()))
    method = id.removesuffix(f"-{folder.name}")
    clip = house.clips.get(id)
    views = preparation.views(folder)
    assert [view["title"] for view in clip.views] == [view.title for view in views]
    shown = read_frames(house.clips.view(id, 0), None).frames
    assert np.abs(shown.astype(float) - views[0].frames).mean() < 8  # but for what H.264 loses

    order = {"preset": f"{method}/miniature", "inputs": {preparation.key: [id]}}
    run = read_order(order, house.presets, house.clips, house.options).run
    assert (Path(run.prepared), run.ref_video_path) == (folder, "")
    with pytest.raises(UserError, match="the request lacks clip; choose a clip"):
        read_order(order | {"inputs": {}}, house.presets, house.clips, house.options)


def test_found_looked_at_and_corrected_in_the_browser(posed: Posed, browser: Browser, tmp_path: Path, small: Path):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with serve(Options(output=tmp_path / "out", port=port)) as url:
        page = browser.page
        page.goto(url)
        page.locator("html[data-ready=yes]").wait_for()
        assert page.locator("#methods label").count() == 1
        assert page.locator("#content").is_hidden()
        assert page.locator("#trim").is_hidden()
        assert page.locator("#run").is_disabled()
        drop(page, small)
        page.set_input_files("li[data-key=source_path] input[type=file]", small)
        page.locator("#run:has-text('Prepare'):enabled").click()
        page.locator("#views h3:has-text('Turned')").wait_for()
        assert page.locator("#run").text_content() == "Make the video"
        page.locator("#views button.frame video").click(position={"x": 30, "y": 20})
        page.locator("#views .spot:not([hidden])").wait_for()
        for _ in range(100):
            if len(posed.shown_preparation.asked) == 2:
                break
            page.wait_for_timeout(50)
        (_, _, nobody), (driving, clips, subjects) = posed.shown_preparation.asked
        assert (nobody, driving, clips) == ({}, "my-clip.mp4", {"source_path": "my-clip.mp4"})
        x, y = subjects["source_path"]
        assert 0 < x < 0.5
        assert 0 < y < 0.5
