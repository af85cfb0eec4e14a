"""push_to_hub against a small hub on loopback that takes uploads alone: what arrives, and the card with it."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import pytest
import yaml

PUSH = """
import sys
from tests.pipelines import sisters
pipe = sisters.motionclone()
pipe.recipe = {"method": "motionclone", "settings": {"guidance_scale": 2.5}}
pipe.push_to_hub("anna/clone", token="hf_x")
pipe.save_pretrained(sys.argv[1], push_to_hub=True, repo_id="anna/kept", token="hf_x", commit_message="mine")
"""


class Hub(ThreadingHTTPServer):
    """Remembers what commits bring: repository -> path -> bytes. anna/kept has a README already."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.files: dict[str, dict[str, bytes]] = {"anna/clone": {}, "anna/kept": {}}
        self.summaries: dict[str, str] = {}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        place = urlparse(self.path).path
        repo = "/".join(place.split("/")[3:5])
        if place == "/api/repos/create":
            name = json.loads(body)
            self.answer({"url": f"{self.server.url}/{name.get('organization')}/{name['name']}", "name": name["name"]})
        elif place == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif place.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            self.answer({"files": files})
        elif place.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "header":
                    self.server.summaries[repo] = line["value"]["summary"]
                elif line["key"] == "file":
                    self.server.files[repo][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer({"commitUrl": f"{self.server.url}/anna/clone/commit/{'0' * 40}", "commitOid": "0" * 40})
        else:
            self.answer({}, 404)

    def do_HEAD(self) -> None:
        self.send_response(200 if self.path.startswith("/anna/kept/") else 404)
        self.send_header("X-Error-Code", "EntryNotFound")
        for name, value in {"ETag": '"1"', "X-Repo-Commit": "0" * 40, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def do_GET(self) -> None:
        self.answer({"id": "anna/clone", "sha": "0" * 40, "siblings": [], "tags": [], "private": False})

    def answer(self, value: object, status: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("saved") / "pipe"


@pytest.fixture(scope="module")
def hub(saved: Path, repository: Path) -> Hub:
    """The hub after both pipelines were pushed."""
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = os.environ | {"PYTHONPATH": str(repository), "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HOME": str(saved.parent / "hf"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", PUSH, str(saved)],
        env=environment, cwd=saved.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    return server


def test_a_pipeline_arrives_whole_with_a_card_of_its_recipe(hub: Hub):
    files = hub.files["anna/clone"]
    assert hub.summaries["anna/clone"] == "Upload MotionClonePipeline"
    assert {"README.md", "model_index.json", "pipeline.py", "unet/config.json"} <= set(files)
    assert files["unet/diffusion_pytorch_model.safetensors"]
    assert json.loads(files["model_index.json"])["_class_name"] == ["pipeline", "MotionClonePipeline"]
    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "diffusers"
    assert 'from_pretrained("anna/clone", custom_pipeline="anna/clone", trust_remote_code=True)' in card
    recipe = yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])
    assert recipe == {"method": "motionclone", "settings": {"guidance_scale": 2.5}}


def test_a_card_that_is_there_already_stays_and_saving_uploads_too(hub: Hub, saved: Path):
    assert hub.summaries["anna/kept"] == "mine"
    assert "model_index.json" in hub.files["anna/kept"]
    assert "README.md" not in hub.files["anna/kept"]
    assert (saved / "README.md").is_file()
