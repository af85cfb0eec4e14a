"""What a visitor can send, and what comes of it: orders, uploads, the queue, who comes in, results on disk."""

from __future__ import annotations

import base64
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from animatediff.apps.page import command, routes
from animatediff.apps.page.access import Access
from animatediff.apps.page.clips import Clips
from animatediff.apps.page.desk import CANCELLED, DONE, FAILED_, RUNNING, WAITING, Desk
from animatediff.apps.page.house import House
from animatediff.apps.page.options import Options
from animatediff.apps.page.orders import Order, offered, read_order
from animatediff.apps.page.server import serve
from animatediff.apps.page.work import Cancelled, Progress
from animatediff.errors import UserError
from animatediff.pipelines import METHODS
from tests.apps.page.conftest import free_port

ORDER = {"preset": "efficientmt/miniature", "clip": "bundled-00-line", "prompt": "a red star"}
LOCAL = "http://127.0.0.1:7860"


def read(house: House, **changes) -> Order:
    return read_order(ORDER | changes, house.presets, house.clips, house.options)


def client(house: House, options: Options | None = None, **settings) -> TestClient:
    app = FastAPI()
    app.include_router(routes.build(house))
    app.add_middleware(Access, options=options or house.options)
    return TestClient(app, base_url=LOCAL, **settings)


class TestOrders:
    def test_what_is_sent_is_the_run(self, house: House):
        text = "it's ${oc.env:HOME} = null"
        order = read(house, prompt=text, settings={"seed": "7", "efficientmt.guidance_interval": "[0, 500]"}, start=0.5)
        assert (order.run.prompt, order.run.seed, order.run.start) == (text, 7, 0.5)
        assert order.run.efficientmt.guidance_interval == [0, 500]
        assert Path(order.run.output_dir) == house.options.output
        assert order.clips == ("bundled-00-line",)

    @pytest.mark.parametrize("key", ["output_dir", "ckpt_path", "ref_video_path", "device", "overwrite", "lora_paths",
                                     "method", "ditflow.positions_path", "base", "prompt"])  # fmt: skip
    def test_no_setting_names_a_file_or_what_loading_has_fixed(self, house: House, key):
        with pytest.raises(UserError, match="there is no setting"):
            read(house, settings={key: "/etc/passwd"})

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"clip": "../../../etc/passwd"}, "no longer here"),
            ({"clip": "/etc/passwd"}, "no longer here"),
            ({"preset": "../default"}, "there is no preset"),
            ({"preset": "efficientmt/sd15"}, "no weights at"),
            ({"prompt": " "}, "the prompt is empty"),
            ({"prompt": "a" * 2001}, "too long"),
            ({"prompt": 7}, "the request: prompt is 7"),
            ({"settings": {"seed": 7}}, "settings"),
            ({"settings": {"num_inference_steps": "1000"}}, "40 times the preset's work, at most 8 here"),
            ({"settings": {"guidance_scale": "nan"}}, "guidance_scale"),
            ({"settings": {"fit": "/etc"}}, "fit"),
        ],
    )
    def test_what_is_not_to_be_had_is_told_in_one_line(self, house: House, changes, words):
        with pytest.raises(UserError, match=words):
            read(house, **changes)

    @pytest.mark.parametrize("method", list(METHODS))
    def test_offered_keys_name_no_file(self, method):
        for field in offered(method):
            assert not field.name.endswith(("_path", "_paths", "_dir")), field.key


class TestUploads:
    def test_its_name_is_ours(self, house: House, small: Path):
        with client(house) as page:
            told = page.post("/page/clips", params={"name": "../../../Evil Name.sh"}, content=small.read_bytes()).json()
        assert told["title"] == "Evil Name.sh"
        assert "path" not in told
        path = Path(house.clips.get(told["id"]).path)
        assert path == house.options.uploads / told["id"] / "evil-name.mp4"
        assert (told["frames"], told["width"], told["height"], told["seconds"]) == (8, 64, 48, 1.0)

    def test_one_too_large_leaves_nothing(self, tmp_path: Path, small: Path, house: House):
        clips = Clips(Options(output=tmp_path, max_megabytes=0.001))

        async def body():
            for _ in range(8):
                yield b"x" * 500

        import asyncio

        with pytest.raises(UserError, match=r"big\.mp4 is larger than 0\.001 MB; cut or compress it first"):
            asyncio.run(clips.receive("big.mp4", body()))
        assert list(clips.options.uploads.iterdir()) == []

    def test_uploads_are_deleted_in_time_but_for_those_in_use(self, tmp_path: Path, small: Path):
        clips = Clips(Options(output=tmp_path, delete_after=10))
        old, used, new = (clips.take(small, "a.mp4").id for _ in range(3))
        for id in (old, used):
            os.utime(tmp_path / ".uploads" / id, (time.time() - 601,) * 2)
        clips.sweep({used})
        assert {path.name for path in clips.options.uploads.iterdir()} == {used, new}
        with pytest.raises(UserError, match="no longer here"):
            clips.get(old)
        assert Clips(clips.options).get(new).title == "a.mp4"  # after a restart, too


class TestQueue:
    @pytest.fixture
    def slow(self, tmp_path: Path, house: House):
        """A queue whose jobs go on, a step each, when they are told to; and one order after the other."""
        go = threading.Semaphore(0)

        def decorate(_produce: Callable) -> Callable:
            def produce(job, stop: Path):
                for step in range(1, 4):
                    go.acquire()
                    if stop.exists():
                        raise Cancelled
                    if job.run.prompt == "bad":
                        raise UserError("the clip went away")
                    if job.run.prompt == "defect":
                        raise ZeroDivisionError
                    yield Progress("making the video", step, 3)

            return produce

        desk = Desk(Options(output=tmp_path, gpu=decorate, max_waiting=2))
        desk.engine = lambda _run: type("Engine", (), {"load": lambda self: None})()  # type: ignore[method-assign]
        yield desk, go, lambda prompt="a star": read(house, prompt=prompt)
        go.release(100)
        desk.close()

    def test_first_come_first_served(self, slow):
        desk, go, order = slow
        first, second, third = (desk.submit(order(), visitor) for visitor in "abc")
        until(lambda: first.state == RUNNING)
        assert [desk.place(ticket) for ticket in (first, second, third)] == [0, 1, 2]
        desk.cancel(second.id)
        assert (second.state, desk.place(third)) == (CANCELLED, 1)
        go.release(3)
        until(lambda: third.state == RUNNING)
        assert (first.state, first.step, first.steps) == (DONE, 3, 3)

    def test_one_that_runs_stops_at_its_next_step(self, slow):
        desk, go, order = slow
        ticket = desk.submit(order(), "a")
        until(lambda: ticket.stage == "loading models" and ticket.state == RUNNING)
        go.release()
        until(lambda: ticket.step == 1)
        desk.cancel(ticket.id)
        assert ticket.state == RUNNING
        go.release()
        assert desk.wait(ticket).state == CANCELLED
        assert ticket.step == 1

    def test_a_visitor_has_so_many_places(self, slow):
        desk, _, order = slow
        desk.submit(order(), "b")
        until(lambda: not [one for one in desk.tickets.values() if one.state == WAITING])
        for _ in range(2):
            desk.submit(order(), "a")
        with pytest.raises(UserError, match="2 jobs of yours are waiting already"):
            desk.submit(order(), "a")
        desk.submit(order(), "b")

    def test_failures_are_told_and_stop_no_one(self, slow):
        desk, go, order = slow
        go.release(5)
        bad, defect, good = (desk.submit(order(prompt), prompt) for prompt in ("bad", "defect", "good"))
        assert desk.wait(good).state == DONE
        assert (bad.state, bad.note) == (FAILED_, "the clip went away")
        assert (defect.state, "ZeroDivisionError" in defect.note) == (FAILED_, True)


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


class TestAccess:
    def test_a_name_that_points_here_is_refused(self, house: House):
        with client(house) as page:
            assert page.get("/", headers={"host": "evil.example"}).status_code == 421
            assert page.get("/", headers={"host": "localhost:1"}).status_code == 200

    def test_another_site_cannot_send(self, house: House):
        with client(house) as page:
            answer = page.post("/page/jobs", json=ORDER, headers={"sec-fetch-site": "cross-site"})
            assert answer.status_code == 403
        assert house.desk.tickets == {}

    def test_a_password(self, house: House):
        options = Options(output=house.options.output, host="0.0.0.0", user="anna", password="pass:word")
        with client(house, options) as page:
            for auth, status in ((None, 401), (("anna", "pass"), 401), (("anna", "pass:word"), 200)):
                assert page.get("/page/start", auth=auth).status_code == status
                assert page.get("/gradio_api/info", auth=auth).status_code == (
                    404 if auth and status == 200 else status
                )

    @pytest.mark.parametrize("path", ["/gradio_api/file=http://x.example/", "/gradio_api/proxy=http://x.example/",
                                      "/docs", "/login", "/gradio_api/file=https://x", "/gradio_api/component_server",
                                      "/static/../routes.py", "/static/page.html"])  # fmt: skip
    def test_nothing_else_is_answered(self, house: House, path):
        with client(house) as page:
            assert page.get(path).status_code == 404

    def test_scripts_come_from_here_alone(self, house: House):
        with client(house) as page:
            policy = page.get("/").headers["content-security-policy"]
        assert "script-src 'self';" in policy
        assert "unsafe" not in policy
        assert policy.startswith("default-src 'none'")

    @pytest.mark.parametrize("body", [b"{", b"[]", b"\xff", b'{"preset": "efficientmt/miniature"}', b" " * 200_000])
    def test_a_bad_request_is_one_line(self, house: House, body):
        with client(house) as page:
            answer = page.post("/page/jobs", content=body)
        assert answer.status_code == 400
        assert len(answer.json()["error"].splitlines()) == 1


class TestPrograms:
    """The interface for programs, and what is left on disk for a later page."""

    def test_a_client_makes_a_video_that_a_later_page_shows(self, served, small: Path):
        from gradio_client import Client, handle_file

        programs = Client(served.url, verbose=False)
        assert {"efficientmt/miniature"} <= {row["preset"] for row in programs.predict(api_name="/presets")}
        more = {"num_inference_steps": "2"}
        video = Path(programs.predict(handle_file(small), "a red star", settings=more, api_name="/transfer"))
        assert video.name == "a-red-star-42.mp4"

        later = House(served.options)
        (shown,) = later.gallery.all()
        assert shown.output.read_bytes() == video.read_bytes()
        assert shown.told()["prompt"] == "a red star"
        told = later.gallery.measures(shown)
        assert len(told["tracks"]) > 10
        assert {measure["key"] for measure in told["measures"]} <= {
            "motion_fidelity", "track_distance", "global_motion_error"}  # fmt: skip
        order = later.gallery.repeat(shown, 5)
        assert (order.run.seed, order.run.prompt) == (5, "a red star")
        for upload in later.options.uploads.glob(
            "*"
        ):  # once they are deleted the result still plays beside its reference
            if upload.name in order.clips:
                (upload / "my-clip.mp4").unlink()
        assert later.gallery.file(shown, "reference").is_file()
        with pytest.raises(UserError, match="no reference video"):
            later.gallery.repeat(shown, 6)
        later.close()

    @pytest.mark.parametrize("path", ["/etc/passwd", "pyproject.toml", "../../clip.mp4"])
    def test_no_client_names_a_path(self, served, path):
        def post(data: list) -> str:
            body = json.dumps({"data": data}).encode()
            request = urllib.request.Request(
                f"{served.url}gradio_api/call/transfer", body, {"content-type": "application/json"}
            )
            with urllib.request.urlopen(request) as answer:
                event = json.load(answer)["event_id"]
            with urllib.request.urlopen(f"{served.url}gradio_api/call/transfer/{event}") as answer:
                return answer.read().decode()

        before = sorted(served.options.output.rglob("*"))
        told = post([{"path": path, "meta": {"_type": "gradio.FileData"}}, "a star", "efficientmt/miniature", 1, None])
        assert "event: error" in told
        assert sorted(served.options.output.rglob("*")) == before


def test_a_page_with_a_password_starts_and_its_clients_come_in(tmp_path: Path):
    from gradio_client import Client

    options = Options(output=tmp_path, port=free_port(), user="anna", password="pass word")
    with serve(options) as url:
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{url}page/start")
        programs = Client(url, verbose=False, httpx_kwargs={"auth": ("anna", "pass word")})
        assert programs.predict(api_name="/presets")


class TestCommand:
    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--host", "0.0.0.0"], "lets other machines in, so --auth USER:PASSWORD is needed"),
            (["--auth", "anna"], "--auth is not USER:PASSWORD"),
            (["--auth", ":x"], "--auth is not USER:PASSWORD"),
            (["--port", "0"], "0 is not 1 to 65535"),
            (["--max-seconds", "nan"], "nan is not 0.1 to 1e"),
            (["--delete-after", "soon"], "invalid number value"),
            (["dtype=fp64"], "dtype is 'fp64'"),
            (["ditflow.loss=moft"], "ditflow"),
            (["--colour", "red"], "--colour"),
            (["--mcp"], r'--mcp needs the package mcp; pip install "gradio\[mcp\]"'),
        ],
    )
    def test_a_mistake_is_one_line(self, flags, words, tmp_path, monkeypatch):
        monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=words):
            command.read_options([*flags, "--output", str(tmp_path)], None)

    def test_flags_and_keys(self, tmp_path):
        options = command.read_options(
            ["--host", "0.0.0.0", "--auth", "a:b:c", "dtype=bf16", "--output", str(tmp_path)], None
        )
        assert (options.user, options.password, options.overrides) == ("a", "b:c", {"dtype": "bf16"})

    def test_without_gradio_one_line_says_how_to_get_it(self, monkeypatch, tmp_path):
        monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(UserError, match=r'pip install "efficientmt\[demo\]"'):
            command.main(["--output", str(tmp_path)])


def test_basic_auth_is_what_browsers_send():
    options = Options(user="ä", password="b")
    header = "Basic " + base64.b64encode("ä:b".encode()).decode()
    assert Access(None, options)._knows(header)
    assert not Access(None, options)._knows("Basic !!")
