"""The HTML report, opened in a real browser: it plays, sorts, draws and asks nothing of the network."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from animatediff.evaluation.evaluate import Row
from animatediff.evaluation.measures import Column
from animatediff.evaluation.report import MOST_TRACKS, page_data, write_report
from animatediff.evaluation.sources import Item
from animatediff.evaluation.tables import summarise
from animatediff.evaluation.trackers import Tracks

EVIL = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'> & \"quoted\" \u2028 {{script}}"
COLUMNS = [Column("motion_fidelity", "motion fidelity", "higher"), Column("seconds", "time", "lower", "s", 1)]
FRAMES = 6
RNG = np.random.default_rng(0)


def pictures(shade: int) -> np.ndarray:
    frames = np.full((FRAMES, 32, 48, 3), shade, np.uint8)
    for k in range(FRAMES):
        frames[k, 8:20, 4 + 4 * k : 16 + 4 * k] = 255 - shade
    return frames


def paths(count: int) -> Tracks:
    start = RNG.uniform(8, 24, (count, 1, 2))
    tracks = start + np.arange(FRAMES)[None, :, None] * [2, 0]
    visibility = np.ones((count, FRAMES), dtype=bool)
    visibility[0, 3:] = False  # the first is lost half way
    return Tracks(tracks.astype(np.float32), visibility)


def make_row(method: str, name: str, prompt: str, fidelity: float, **parts) -> Row:
    record = {"prompt": prompt, "reference": f"{name}-ref.mp4", "seed": 1}
    curves = {"motion fidelity": [fidelity, float("nan"), *[fidelity] * (FRAMES - 3)]}
    values = {"motion_fidelity": fidelity, "seconds": 1.5}
    return Row(Item(method, name, Path(f"{name}.avi"), record), values, curves, **parts)


@pytest.fixture
def rows():
    def pictured(shade):
        return {
            "frames": pictures(shade),
            "reference": pictures(200),
            "tracks": paths(5),
            "reference_tracks": paths(4),
        }

    return [
        make_row("ours", "one", EVIL, 0.9, **pictured(30)),
        make_row("theirs", "one", EVIL, 0.2, **pictured(60)),
        make_row("ours", "two", "a red star", 0.4, **pictured(90)),
        make_row("ours", "three", "a lost star", float("nan"), problems=[f"unreadable {EVIL}"]),
    ]


@pytest.fixture
def report(rows, tmp_path):
    path = tmp_path / "report.html"
    write_report(path, summarise(rows, COLUMNS, {}), rows)
    return path


def state(browser):
    return browser.evaluate("({...document.documentElement.dataset})")


def column(browser, place):
    return browser.evaluate(f"[...document.querySelectorAll('#videos tbody tr')].map(r => r.cells[{place}].innerText)")


def test_page_plays_in_step_draws_tracks_and_sorts(browser, report):
    browser.open(f"{report.as_uri()}#job=0&frame=2")
    found = state(browser)
    assert found["videos"] == "3"  # reference, ours, theirs
    assert found["frame"] == "2"
    assert found["points"] == str(4 + 5 + 5)
    sizes = browser.evaluate(
        "[...document.querySelectorAll('video')].map(v => [v.videoWidth, v.videoHeight, v.duration])"
    )
    assert sizes == [[48, 32, FRAMES / 8]] * 3
    times = browser.evaluate("[...document.querySelectorAll('video')].map(v => v.currentTime)")
    assert times == [pytest.approx(2.5 / 8)] * 3
    colours = browser.evaluate(
        "[...document.querySelectorAll('canvas')].map(c => new Set(c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height).data).size)"
    )
    assert all(count > 10 for count in colours)

    browser.evaluate("document.getElementById('play').click()")
    browser.wait_for("Number(document.documentElement.dataset.steps) >= 4")
    browser.evaluate("document.getElementById('play').click()")
    assert float(state(browser)["apart"]) == 0

    browser.evaluate("(s => { s.value = 4; s.dispatchEvent(new Event('input')); })(document.getElementById('scrub'))")
    browser.wait_for("document.documentElement.dataset.frame === '4'")
    assert state(browser)["points"] == str(3 + 4 + 4)  # the lost ones are not drawn
    assert browser.evaluate("document.getElementById('frame').innerText") == "frame 5 / 6"
    browser.evaluate("document.getElementById('tracks').click()")
    browser.wait_for("document.documentElement.dataset.points === '0'")
    browser.evaluate("document.getElementById('tracks').click()")

    head = "document.querySelector('#videos th[data-key=motion_fidelity]')"
    browser.evaluate(f"{head}.querySelector('button').click()")
    assert column(browser, 3) == ["0.200", "0.400", "0.900", "—"]
    browser.evaluate(f"{head}.querySelector('button').click()")
    assert column(browser, 3) == ["0.900", "0.400", "0.200", "—"]
    assert browser.evaluate(f"{head}.getAttribute('aria-sort')") == "descending"

    # a gap at the step without a value: the first value stands alone as a dot, the others are a line
    assert browser.evaluate("document.querySelectorAll('#curves svg polyline').length") == 2
    assert browser.evaluate("document.querySelectorAll('#curves svg circle').length") == 2

    browser.evaluate(
        "[...document.querySelectorAll('#videos tbody tr')].find(r => r.innerText.includes('two')).click()"
    )
    browser.wait_for(
        "document.getElementById('prompt').innerText === 'a red star' && dataset().videos === '2'".replace(
            "dataset()", "document.documentElement.dataset"
        )
    )
    browser.evaluate(
        "[...document.querySelectorAll('#videos tbody tr')].find(r => r.innerText.includes('lost')).click()"
    )
    browser.wait_for("document.getElementById('prompt').innerText === 'a lost star'")
    assert "unreadable" in browser.evaluate("document.getElementById('screens').innerText")
    assert state(browser)["errors"] == "0"
    assert len(browser.page.screenshot()) > 20_000


def test_what_users_typed_stays_text_and_nothing_is_fetched(browser, report):
    before = len(browser.requests)
    browser.open(f"{report.as_uri()}?again#job=0&sort=prompt&order=down")
    assert browser.evaluate("window.hacked") is None
    shown = browser.evaluate("document.getElementById('prompt').textContent")
    assert shown == EVIL
    assert browser.evaluate("document.querySelectorAll('img, iframe, link, object').length") == 0
    assert browser.evaluate("document.querySelectorAll('script').length") == 2
    assert {url.split("?")[0].split("#")[0].split(":")[0] for url in browser.requests[before:]} <= {"file", "data"}
    assert sum(url.startswith("file:") for url in browser.requests[before:]) == 1
    assert browser.complaints == []


def test_page_is_one_file_with_a_policy_that_fits_it(report):
    text = report.read_text(encoding="utf-8")
    assert not re.search(r'(?:src|href)\s*=\s*"(?!data:)', text.split('id="data"')[0])
    assert "default-src 'none'" in text
    assert text.count("</script>") == 2
    inline = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S).group(1)
    assert json.loads(inline)["rows"][0]["prompt"] == EVIL


def test_long_lists_of_tracks_are_thinned_and_keep_those_that_move(rows):
    still = np.repeat(RNG.uniform(0, 30, (1000, 1, 2)), FRAMES, axis=1).astype(np.float32)
    moving = paths(10)
    rows[0].tracks = Tracks(np.concatenate([still, moving.tracks]), np.ones((1010, FRAMES), dtype=bool))
    tracks = page_data(summarise(rows, COLUMNS, {}), rows)["rows"][0]["tracks"]
    assert len(tracks["xy"]) == len(tracks["seen"]) <= MOST_TRACKS
    assert sum(path[0] != path[-2] for path in tracks["xy"]) == 10
