"""The page in a real browser: from a drop to a playing result, and all that can come between."""

from __future__ import annotations

import base64
import json
import shlex
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, ConsoleMessage, Page

from animatediff.inference import cli
from tests.apps.page.clips import write_bad
from tests.apps.page.conftest import Served
from tests.browser import PATIENCE, Browser

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """A new visitor's page, 1440x900; it must complain of nothing and ask nobody else for anything."""
    with visitor(browser, served) as context:
        yield context.pages[0]


class visitor:
    """A context of its own, with the page open in it."""

    def __init__(self, browser: Browser, served: Served, size: dict[str, int] = DESK, **settings) -> None:
        chromium = browser.page.context.browser
        assert chromium is not None
        self.context = chromium.new_context(viewport=size, **settings)
        self.served, self.heard = served, []

    def __enter__(self) -> BrowserContext:
        page = self.context.new_page()
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.heard.append(str(error)))
        page.on("console", self._hear)
        page.on("request", lambda asked: self.heard.append(asked.url) if self._is_foreign(asked.url) else None)
        page.goto(self.served.url)
        page.locator("html[data-ready=yes]").wait_for()
        return self.context

    def _hear(self, said: ConsoleMessage) -> None:
        if said.type in ("error", "warning"):
            self.heard.append(f"{said.text} {said.location.get('url')}")

    def _is_foreign(self, url: str) -> bool:
        return not url.startswith((self.served.url, "blob:", "data:"))

    def __exit__(self, *_: object) -> None:
        self.context.close()
        refused = "status of 400"  # what the page then tells its visitor
        assert [line for line in self.heard if refused not in line] == []


def drop(page: Page, *paths: Path) -> None:
    """Drop files onto the page, as from a file manager."""
    files = [{"name": path.name, "data": base64.b64encode(path.read_bytes()).decode()} for path in paths]
    page.evaluate(
        """files => {
          const transfer = new DataTransfer();
          for (const {name, data} of files) {
            transfer.items.add(new File([Uint8Array.from(atob(data), c => c.charCodeAt(0))], name));
          }
          document.body.dispatchEvent(new DragEvent("drop", {dataTransfer: transfer, bubbles: true, cancelable: true}));
        }""",
        files,
    )


def until(page: Page, condition: str) -> None:
    """Ask until the expression is true; playwright's own wait_for_function needs a page that allows eval()."""
    deadline = time.monotonic() + PATIENCE / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never true: {condition}"
        page.wait_for_timeout(50)


def set_steps(page: Page, steps: int) -> None:
    page.click("#advanced")
    page.fill("#field-num_inference_steps", str(steps))
    page.keyboard.press("Escape")


def result_of(page: Page) -> str:
    """The id of the result, once it is shown with its measures."""
    page.locator("#outcome .measures dd, #outcome .measures p:has-text('Nothing to measure')").first.wait_for(
        timeout=3 * PATIENCE
    )
    return page.evaluate("location.hash").removeprefix("#result=")


def ask(served: Served, path: str) -> dict:
    with urllib.request.urlopen(f"{served.url}page/{path}") as answer:
        return json.load(answer)


def test_from_a_drop_to_a_playing_result(page: Page, served: Served, small: Path, tmp_path, monkeypatch):
    drop(page, small)
    page.locator("#tiles [aria-label='My Clip.mp4']:checked").wait_for()
    page.locator("#trim [data-end=to]").fill("500")
    page.fill("#prompt", 'it\'s a "red" star')
    set_steps(page, 3)
    assert page.locator("#changed").text_content() == "1"
    page.click("#run")
    id = result_of(page)

    result = ask(served, f"results/{id}")
    assert (result["prompt"], result["steps"], result["num_frames"]) == ('it\'s a "red" star', 3, 16)
    times = "[...document.querySelectorAll('.screen video')].map((video) => video.currentTime)"
    until(page, "document.querySelectorAll('.screen video')[1].currentTime > 0.3")
    assert not page.evaluate("document.querySelectorAll('.screen video')[1].paused")
    until(page, f"{times}.reduce((a, b) => Math.abs(a - b)) < 1 / {result['fps']}")
    page.click("[data-view=over]")
    page.locator(".split").fill("20")
    assert "20%" in page.evaluate("getComputedStyle(document.querySelector('.screen[data-side=\"1\"]')).clipPath")

    for what, kind in {"video": "video/mp4", "gif": "image/gif", "sidecar": "application/json"}.items():
        with urllib.request.urlopen(f"{served.url}page/results/{id}/{what}?download=true") as answer:
            assert answer.headers["content-type"] == kind
            assert "attachment" in answer.headers["content-disposition"]
    written = sorted(path.name for path in served.options.output.glob("my-clip/*"))
    stem = written[0].removesuffix("-reference.mp4").removesuffix(".json")
    assert written == sorted([f"{stem}.json", f"{stem}.mp4", f"{stem}-reference.mp4"])

    words = shlex.split(result["command"])
    assert words[:2] == ["python", "inference.py"]
    assert cli.main([*words[2:], f"output_dir={tmp_path}"]) == 0
    (again,) = tmp_path.glob("*/*.mp4")
    (first,) = served.options.output.glob(f"my-clip/{again.name}")
    assert again.read_bytes() == first.read_bytes()


def test_what_was_found_leaves_the_form_in_reach_on_a_phone(browser: Browser, served: Served):
    with visitor(browser, served, PHONE, has_touch=True) as context:
        page = context.pages[0]
        page.locator("#methods label:has-text('MotionFollower')").click()
        page.locator(".pair").first.click()
        page.locator("#views h3").first.wait_for()
        found, form = page.locator("#views").bounding_box(), page.locator("#form").bounding_box()
        assert found is not None
        assert form is not None
        assert found["y"] + found["height"] <= form["y"]
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]


def test_a_bundled_pair_is_looked_at_and_used(page: Page, served: Served):
    page.locator("#methods label:has-text('MotionFollower')").click()
    assert page.locator("#run").is_disabled()
    page.locator(".pair").first.click()
    page.locator("#views h3").first.wait_for()
    assert page.locator("#views button.frame").count() == 0
    assert page.locator("#tiles input:checked").count() == 0
    set_steps(page, 2)
    page.locator("#run:has-text('Make the video'):enabled").click()
    result = ask(served, f"results/{result_of(page)}")
    assert (result["method"], result["steps"]) == ("motionfollower", 2)
    assert result["reference"] in page.locator("#outcome").text_content()
    page.locator("#tiles input").first.check(force=True)
    assert page.locator(".pair[aria-pressed=true]").count() == 0
    assert page.locator("#run").is_disabled()


def test_a_reload_returns_to_the_job_and_cancel_leaves_nothing(page: Page, served: Served):
    before = sorted(served.options.output.rglob("*"))
    set_steps(page, 150)
    page.click("#run")
    page.locator(".running:has-text('of 150')").wait_for()
    page.reload()
    page.locator(".running:has-text('of 150')").wait_for()
    page.locator(".preview:not([hidden])").wait_for()
    assert page.locator(".running").text_content().count("left") == 1
    page.click("#cancel")
    page.locator("#toast:has-text('Cancelled')").wait_for()
    assert page.evaluate("location.hash") == "#make"
    assert sorted(served.options.output.rglob("*")) == before


def test_bad_uploads_are_told_in_one_line_and_leave_nothing(page: Page, served: Served, tmp_path: Path):
    before = sorted(served.options.uploads.glob("*"))
    for path, words in write_bad(tmp_path).items():
        drop(page, path)
        page.locator(f"#clip-error:has-text('{words}')").wait_for()
        assert str(served.options.output) not in page.locator("#clip-error").text_content()
    assert sorted(served.options.uploads.glob("*")) == before
    assert page.locator("#tiles input").count() == 6


def test_two_visitors_get_their_own_results(browser: Browser, served: Served):
    with visitor(browser, served) as one, visitor(browser, served, PHONE, has_touch=True) as two:
        for context, prompt, steps in ((one, "a white star", 12), (two, "a green circle", 2)):
            context.pages[0].fill("#prompt", prompt)
            set_steps(context.pages[0], steps)
        one.pages[0].click("#run")
        one.pages[0].locator(".running").wait_for()  # it is in before the other asks
        two.pages[0].click("#run")
        two.pages[0].locator(".running:has-text('In the queue: one job before yours')").wait_for()
        found = [ask(served, f"results/{result_of(context.pages[0])}")["prompt"] for context in (one, two)]
        assert found == ["a white star", "a green circle"]


@pytest.mark.parametrize(("size", "phone"), [(DESK, False), (PHONE, True)])
def test_all_of_it_fits_one_screen(browser: Browser, served: Served, size, phone):
    with visitor(browser, served, size, has_touch=phone) as context:
        page = context.pages[0]
        assert page.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]") == [
            size["width"],
            size["height"],
        ]
        box = page.locator("#run").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] <= size["height"]


def test_every_key_has_a_field_and_a_change_is_undone(page: Page):
    page.click("#advanced")
    methods = page.evaluate("fetch('page/start').then((answer) => answer.json())")["methods"]
    keys = [field["key"] for field in methods[0]["fields"]]
    assert page.evaluate("[...document.querySelectorAll('.field')].map((field) => field.dataset.key)") == keys
    page.fill("#field-guidance_scale", "3.5")
    field = page.locator(".field[data-key=guidance_scale]")
    assert "changed" in field.get_attribute("class")
    field.locator(".reset").click()
    assert "changed" not in field.get_attribute("class")
    assert page.input_value("#field-guidance_scale") == "1.6"
    page.fill("#field-guidance_scale", "1000")
    page.keyboard.press("Escape")
    page.click("#run")
    page.locator("#form-error:has-text('guidance_scale is 1000.0, expected 0 to 100')").wait_for()


def test_a_preset_without_weights_says_how_to_get_them(page: Page):
    page.select_option("#preset", "efficientmt/sd15")
    assert "download" in page.locator("#about").text_content()
    assert page.locator("#run").is_disabled()


def test_the_keyboard_reaches_everything(page: Page):
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className || ''"))
    assert {"theme", "drop", "prompt", "example", "preset", "advanced", "run", "scrub"} <= set(reached)
    nameless = """[...document.querySelectorAll("button, input, select, textarea, a")].filter((one) =>
      one.checkVisibility() && !(one.labels?.length || one.ariaLabel || one.textContent.trim() || one.title)).length"""
    assert page.evaluate(nameless) == 0


GROUNDS = {
    "--ink": ("--card", "--paper"),
    "--faint": ("--card", "--paper", "--sunk"),
    "--accent": ("--card", "--soft"),
    "--on-accent": ("--accent",),
    "--bad": ("--card",),
}
PAIRS = [(text, ground) for text, grounds in GROUNDS.items() for ground in grounds]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out(browser: Browser, served: Served, scheme):
    """WCAG 2.2, 1.4.3: 4.5 to 1 for text."""
    with visitor(browser, served, color_scheme=scheme) as context:
        ratios = context.pages[0].evaluate(
            """pairs => {
              const light = (name) => {
                const probe = document.body.appendChild(document.createElement("i"));
                probe.style.color = `var(${name})`;
                const [r, g, b] = getComputedStyle(probe).color.match(/\\d+/g).map((level) => level / 255)
                  .map((level) => level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4);
                probe.remove();
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              return pairs.map(([text, ground]) => {
                const [low, high] = [light(text), light(ground)].sort((a, b) => a - b);
                return (high + 0.05) / (low + 0.05);
              });
            }""",
            PAIRS,
        )
    assert {pair: ratio for pair, ratio in zip(PAIRS, ratios, strict=True) if ratio < 4.5} == {}


def test_the_gallery_finds_and_compares(page: Page, served: Served):
    page.goto(f"{served.url}#gallery")
    page.locator(".card").first.wait_for()
    everything = page.locator(".card").count()
    assert everything >= 3
    page.fill("[placeholder='Words of the prompt']", "green circle")
    assert page.locator(".card").count() == 1
    page.fill("[placeholder='Words of the prompt']", "")
    for number in (0, 1):
        page.locator(".card .choose input").nth(number).check()
    page.click("#compare")
    page.locator(".facts td").first.wait_for()
    until(page, "document.querySelectorAll('.compare-stage video')[1].currentTime > 0.2")


def test_another_seed_is_another_video(page: Page, served: Served):
    results = ask(served, "results")
    chosen = next(result for result in results if result["prompt"] == "a green circle")
    page.goto(f"{served.url}#result={chosen['id']}")
    page.click("#again")
    until(page, f"location.hash.startsWith('#result=') && !location.hash.endsWith('{chosen['id']}')")
    new = ask(served, f"results/{result_of(page)}")
    assert new["seed"] != chosen["seed"]
    for key in ("prompt", "steps", "reference"):
        assert new[key] == chosen[key]
