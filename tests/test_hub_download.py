"""The downloader against a small hub on loopback: places, resuming, checks, and one clear line per failure."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from collections import namedtuple
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest
from huggingface_hub.utils import WeakFileLock
from huggingface_hub.utils.sha import git_hash

from animatediff import hub_download
from animatediff.errors import UserError
from animatediff.hub import PUBLISHED, RECORD, Published, find_source, markdown_table, read_record

ROOT = Path(__file__).parents[1]
REVISION = "0123456789abcdef0123456789abcdef01234567"
LATER = "89abcdef0123456789abcdef0123456789abcdef"
# A video transformer as diffusers saves it, beside what is not wanted of its repository.
FOLDER = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model-00001-of-00002.safetensors",
    "text_encoder/model-00002-of-00002.safetensors",
    "text_encoder/model.safetensors.index.json",
    "tokenizer/spiece.model",
    "tokenizer/tokenizer_config.json",
    "transformer/config.json",
    "transformer/diffusion_pytorch_model.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
]
UNWANTED = ["README.md", "assets/logo.json", "transformer/diffusion_pytorch_model.bin", "vae/old/config.yaml"]


@pytest.fixture(autouse=True)
def online(monkeypatch):
    """The other tests run offline; these have a hub of their own on loopback."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)


class Hub(ThreadingHTTPServer):
    """Repositories in memory: {commit: {repo: {file: bytes}}}; files over 1 kB count as LFS and are redirected."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.head = REVISION
        self.history: dict[str, dict[str, dict[str, bytes]]] = {REVISION: {}}
        self.stated: dict[str, int] = {}  # sizes stated otherwise than they are
        self.status: dict[str, int] = {}  # repositories or files that are refused
        self.cut: dict[str, int] = {}  # files whose next transfer breaks after so many bytes, and fails from then on
        self.content: dict[tuple[str, str], bytes] = {}  # (commit, file) whose bytes are others than listed
        self.asked: list[tuple[str, str | None]] = []  # (file, Range header) of every transfer
        self.tokens: dict[str, str | None] = {}  # the token that came with the last request for each path

    @property
    def repos(self) -> dict[str, dict[str, bytes]]:
        """What the newest commit holds."""
        return self.history[self.head]

    def advance(self, head: str) -> None:
        """A new commit, with what the last one holds."""
        self.history[head] = copy.deepcopy(self.repos)
        self.head = head

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    @property
    def store(self) -> str:
        """Large files lie under another host name, as on the real hub."""
        return f"http://localhost:{self.server_port}/store"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).strip("/")
        self.server.tokens[path] = self.headers.get("Authorization")
        if path.startswith("api/models/"):
            self.listing(path.removeprefix("api/models/"))
            return
        stored = path.startswith("store/")
        repo, _, tail = path.removeprefix("store/").partition("/resolve/")
        commit, _, name = tail.partition("/")
        content = self.server.history.get(commit, {}).get(repo, {}).get(name)
        content = self.server.content.get((commit, name), content)
        refused = self.server.status.get(name) or self.server.status.get(repo)
        if content is None or refused:
            self.send(refused or 404, b"")
        elif len(content) > 1000 and not stored:
            link = {"Location": f"{self.server.store}/{path}", "X-Linked-Size": str(len(content))}
            self.send(302, b"", {**link, "X-Linked-ETag": hashlib.sha256(content).hexdigest()})
        else:
            self.transfer(name, content, commit)

    def listing(self, path: str) -> None:
        repo, _, asked = path.partition("/revision/")
        commit = asked or self.server.head
        files = self.server.history.get(commit, {}).get(repo)
        if files is None or repo in self.server.status:
            self.send(self.server.status.get(repo, 404), b"")
            return
        siblings = []
        for name, content in files.items():
            size = self.server.stated.get(name, len(content))
            entry: dict = {"rfilename": name, "size": size, "blobId": git_hash(content)}
            if len(content) > 1000:
                entry["lfs"] = {"size": size, "sha256": hashlib.sha256(content).hexdigest(), "pointerSize": 130}
            siblings.append(entry)
        answer = {"id": repo, "modelId": repo, "sha": commit, "siblings": siblings}
        self.send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def transfer(self, name: str, content: bytes, commit: str) -> None:
        wanted = self.headers.get("Range")
        headers = {"ETag": git_hash(content), "X-Repo-Commit": commit}
        start = 0
        if self.command == "GET":
            self.server.asked.append((name, wanted))
        if wanted:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.server.cut.pop(name, None) if self.command == "GET" else None
        if cut is not None:
            self.server.status[name] = 503
        self.send(206 if wanted else 200, content[start:], headers, cut)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        if cut is not None:
            self.close_connection = True


@pytest.fixture
def hub(monkeypatch):
    server = Hub()
    for model in PUBLISHED:
        repo = server.repos.setdefault(model.repo, {})
        for source in [*FOLDER, *UNWANTED] if model.patterns else [source for _, source in model.files]:
            large = source.endswith((".ckpt", ".safetensors", ".bin"))
            repo[source] = hashlib.sha256(source.encode()).digest() * (2000 if large else 3)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
    yield server
    server.shutdown()
    server.server_close()


MOTION = "v3_sd15_mm.ckpt"
MOTION_PLACE = "Motion_Module/v3_sd15_mm.ckpt"


def files_under(folder: Path) -> list[str]:
    """What lies there beside the record and the lock."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in (RECORD, ".downloads.lock"))
    return sorted(str(path.relative_to(folder)) for path in files)


def test_every_file_comes_to_its_place(hub, tmp_path, capfd):
    assert hub_download.main(["--models", str(tmp_path)]) == 0
    places = {place: hub.repos[m.repo][source] for m in PUBLISHED if not m.optional for place, source in m.files}
    assert files_under(tmp_path) == sorted(places)
    assert len(places) == 15
    for place, content in places.items():
        assert (tmp_path / place).read_bytes() == content
    assert f"all 15 files are in {tmp_path}" in capfd.readouterr().out
    hub.asked.clear()
    assert hub_download.main(["--models", str(tmp_path)]) == 0
    assert hub.asked == []  # whatever is whole is left alone
    assert hub_download.main(["--models", str(tmp_path), "--all"]) == 0
    optional = [FOLDER if m.patterns else [source for _, source in m.files] for m in PUBLISHED if m.optional]
    assert [name for name, _ in hub.asked] == [source for sources in optional for source in sources]


def test_an_interrupted_transfer_goes_on_where_it_stopped(hub, tmp_path, capfd):
    content = hub.repos["guoyww/animatediff"][MOTION]
    hub.cut[MOTION] = 50_000
    arguments = ["--models", str(tmp_path), "--only", "motion-module"]
    assert hub_download.main(arguments) == 1
    assert f"answered 503 for guoyww/animatediff/{MOTION}; repeat the command" in capfd.readouterr().err
    left = files_under(tmp_path)
    assert len(left) == 1
    assert left[0].startswith("Motion_Module/.v3_sd15_mm.ckpt.")
    assert (tmp_path / left[0]).read_bytes() == content[:50_000]
    hub.status.clear()
    hub.asked.clear()
    assert hub_download.main(arguments) == 0
    assert hub.asked == [(MOTION, "bytes=50000-")]
    assert files_under(tmp_path) == [MOTION_PLACE]
    assert (tmp_path / MOTION_PLACE).read_bytes() == content


def test_the_token_goes_to_the_hub_alone(hub, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]) == 0
    path = f"guoyww/animatediff/resolve/{REVISION}/{MOTION}"
    assert hub.tokens == {
        "api/models/guoyww/animatediff": "Bearer hf_secret",
        path: "Bearer hf_secret",
        f"store/{path}": None,
    }


def test_a_kill_between_the_last_byte_and_the_check_costs_nothing(hub, tmp_path):
    arguments = ["--models", str(tmp_path), "--only", "motion-module"]
    assert hub_download.main(arguments) == 0
    content = (tmp_path / MOTION_PLACE).read_bytes()
    part = tmp_path / "Motion_Module" / f".{MOTION}.{hashlib.sha256(content).hexdigest()[:12]}.part"
    (tmp_path / MOTION_PLACE).rename(part)
    hub.asked.clear()
    assert hub_download.main(arguments) == 0
    assert hub.asked == []
    assert files_under(tmp_path) == [MOTION_PLACE]


def test_what_the_first_download_resolved_is_recorded_and_held_to(hub, tmp_path, capfd):
    arguments = ["--models", str(tmp_path), "--only", "cogvideox-2b"]
    assert hub_download.main(arguments) == 0
    first = hub.repos["zai-org/CogVideoX-2b"]
    folder = "CogVideoX/CogVideoX-2b"
    assert read_record(tmp_path) == {
        f"{folder}/{source}": {
            "repo": "zai-org/CogVideoX-2b",
            "source": source,
            "revision": REVISION,
            "size": len(first[source]),
            "sha256": hashlib.sha256(first[source]).hexdigest(),
        }
        for source in FOLDER
    }
    hub.advance(LATER)
    later = hub.repos["zai-org/CogVideoX-2b"]
    for source in later:
        later[source] = later[source][::-1]
    weights, config = "vae/diffusion_pytorch_model.safetensors", "vae/config.json"
    for source in (weights, config):  # bytes that rot, sizes that stay
        (tmp_path / folder / source).write_bytes(later[source])
    hub.asked.clear()
    capfd.readouterr()
    assert hub_download.main(arguments) == 0
    assert sorted(name for name, _ in hub.asked) == sorted([weights, config])
    assert capfd.readouterr().out.count("differs, to be fetched anew") == 2
    for source in FOLDER:
        assert (tmp_path / folder / source).read_bytes() == first[source]
    (tmp_path / RECORD).unlink()  # without the record, the newest
    assert hub_download.main(arguments) == 0
    assert {entry["revision"] for entry in read_record(tmp_path).values()} == {LATER}
    for source in FOLDER:
        assert (tmp_path / folder / source).read_bytes() == later[source]


def test_an_interrupted_folder_is_completed_from_the_same_commit(hub, tmp_path):
    arguments = ["--models", str(tmp_path), "--only", "wan-1.3b"]
    first, last = hub.repos["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"], "vae/diffusion_pytorch_model.safetensors"
    hub.cut[last] = 10_000
    row = next(model for model in PUBLISHED if model.name == "wan-1.3b")
    assert row.missing(tmp_path) == ["Wan/Wan2.1-T2V-1.3B-Diffusers/model_index.json"]
    assert hub_download.main(arguments) == 1
    assert row.missing(tmp_path) == [f"Wan/Wan2.1-T2V-1.3B-Diffusers/{last}"]
    hub.status.clear()
    hub.advance(LATER)
    hub.repos["Wan-AI/Wan2.1-T2V-1.3B-Diffusers"][last] = b"other weights" * 1000
    hub.asked.clear()
    assert hub_download.main(arguments) == 0
    assert hub.asked == [(last, "bytes=10000-")]
    assert (tmp_path / "Wan" / "Wan2.1-T2V-1.3B-Diffusers" / last).read_bytes() == first[last]
    assert row.missing(tmp_path) == []


def test_pinned_commits_and_checksums_are_held_to(hub, monkeypatch, tmp_path, capfd):
    def pin(**fields):
        row = replace(next(model for model in PUBLISHED if model.name == "motion-module"), **fields)
        monkeypatch.setattr(hub_download, "PUBLISHED", (row,))

    first = hub.repos["guoyww/animatediff"][MOTION]
    hub.advance(LATER)
    hub.repos["guoyww/animatediff"][MOTION] = b"later weights" * 1000
    arguments = ["--models", str(tmp_path)]
    pin(sha256={MOTION_PLACE: hashlib.sha256(first).hexdigest()})
    assert hub_download.main(arguments) == 1
    error = capfd.readouterr().err
    assert (
        f"states another checksum for {MOTION} of guoyww/animatediff than the one kept in animatediff/hub.py" in error
    )
    assert files_under(tmp_path) == []
    pin(revision=REVISION, sha256={MOTION_PLACE: hashlib.sha256(first).hexdigest()})
    assert hub_download.main(arguments) == 0
    assert (tmp_path / MOTION_PLACE).read_bytes() == first
    hub.history[REVISION]["guoyww/animatediff"][MOTION] = b"another history" * 1000
    pin()
    assert hub_download.main(arguments) == 1
    assert f"than the one kept in {tmp_path / RECORD}; delete that if you trust it" in capfd.readouterr().err
    assert (tmp_path / MOTION_PLACE).read_bytes() == first


def test_a_small_file_that_is_not_what_is_pinned_is_refused(hub, monkeypatch, tmp_path, capfd):
    small = Published("small", "guoyww/animatediff", (("a/config.json", "config.json"),), "1 kB", "a test")
    hub.repos["guoyww/animatediff"]["config.json"] = b"{}"
    monkeypatch.setattr(hub_download, "PUBLISHED", (replace(small, sha256={"a/config.json": "0" * 64}),))
    assert hub_download.main(["--models", str(tmp_path)]) == 1
    assert "config.json of guoyww/animatediff has another checksum than" in capfd.readouterr().err
    assert files_under(tmp_path) == []
    monkeypatch.setattr(hub_download, "PUBLISHED", (small,))
    hub.content[REVISION, "config.json"] = b"[]"  # the bytes are not those that the listing states
    assert hub_download.main(["--models", str(tmp_path)]) == 1
    assert "config.json of guoyww/animatediff has another checksum than" in capfd.readouterr().err
    assert files_under(tmp_path) == []


def test_a_file_that_cannot_be_read_is_told(hub, monkeypatch, tmp_path):
    arguments = ["--models", str(tmp_path), "--only", "motion-module"]
    assert hub_download.main(arguments) == 0

    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(hub_download, "sha_fileobj", broken)
    with pytest.raises(UserError, match=f"reading .*{MOTION} failed: Input/output error"):
        hub_download.main(arguments)


@pytest.mark.parametrize(
    "text", ["[]", '{"a": 1}', '{"a": {"repo": "r", "source": "s", "revision": 1, "size": 2}}', "{"]
)
def test_a_record_that_is_none_is_refused(hub, tmp_path, text):
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(UserError, match=r"downloads\.json (is not|holds a list, expected an object)"):
        hub_download.main(["--models", str(tmp_path), "--only", "adapter"])


def test_two_downloads_take_turns(hub, tmp_path, capfd):
    content = hub.repos["guoyww/animatediff"][MOTION]
    done = []
    second = threading.Thread(
        target=lambda: done.append(hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]))
    )
    out = ""
    with WeakFileLock(tmp_path / ".downloads.lock"):
        second.start()
        while "another download" not in out and second.is_alive():
            out += capfd.readouterr().out
        (tmp_path / MOTION_PLACE).parent.mkdir()
        (tmp_path / MOTION_PLACE).write_bytes(content)
    second.join()
    assert done == [0]
    assert hub.asked == []  # the first one brought it meanwhile
    assert read_record(tmp_path)[MOTION_PLACE]["sha256"] == hashlib.sha256(content).hexdigest()


def test_a_file_of_another_size_is_fetched_again(hub, tmp_path):
    (tmp_path / "Motion_Module").mkdir()
    (tmp_path / MOTION_PLACE).write_bytes(b"half of it")
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]) == 0
    assert (tmp_path / MOTION_PLACE).read_bytes() == hub.repos["guoyww/animatediff"][MOTION]


def test_a_wrong_size_is_refused_and_the_other_files_still_come(hub, tmp_path, capfd):
    hub.stated[MOTION] = 70_000
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module", "dreambooth"]) == 1
    error = capfd.readouterr().err
    assert f"error: {MOTION} of guoyww/animatediff came with 64000 bytes where the hub states 70000" in error
    assert files_under(tmp_path) == ["DreamBooth_LoRA/realisticVisionV60B1_v51VAE.safetensors"]


def test_damaged_bytes_are_refused(hub, tmp_path, capfd):
    content = hub.repos["guoyww/animatediff"][MOTION]
    part = tmp_path / "Motion_Module" / f".{MOTION}.{hashlib.sha256(content).hexdigest()[:12]}.part"
    part.parent.mkdir()
    part.write_bytes(b"\0" * 1000)
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]) == 1
    assert "has another checksum than the hub states" in capfd.readouterr().err
    assert files_under(tmp_path) == []


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "refuses guoyww/animatediff (401): it does not exist or needs permission"),
        (403, "refuses guoyww/animatediff (403)"),
        (404, "there is no guoyww/animatediff on http://127.0.0.1"),
        (500, "answered 500 for guoyww/animatediff; repeat the command"),
    ],
)
def test_refusals_of_a_repository(hub, tmp_path, capfd, status, message):
    hub.status["guoyww/animatediff"] = status
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module", "adapter"]) == 1
    errors = capfd.readouterr().err
    assert message in errors
    assert len([line for line in errors.splitlines() if line.startswith("error:")]) == 1
    assert files_under(tmp_path) == ["Integrated_Attention/checkpoint.ckpt"]


def test_a_file_that_is_gone(hub, tmp_path, capfd):
    del hub.repos["guoyww/animatediff"][MOTION]
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]) == 1
    assert f"guoyww/animatediff on {hub.url} does not hold {MOTION} for certain" in capfd.readouterr().err
    hub.status["unet/config.json"] = 404
    assert hub_download.main(["--models", str(tmp_path), "--only", "stable-diffusion"]) == 1
    assert "there is no stable-diffusion-v1-5/stable-diffusion-v1-5/unet/config.json" in capfd.readouterr().err


def test_no_network_stops_at_once(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match=r"cannot reach http://127\.0\.0\.1:9 .*HF_ENDPOINT"):
        hub_download.main(["--models", str(tmp_path)])
    assert files_under(tmp_path) == []


def test_a_disk_without_room_is_told_before_anything_is_fetched(hub, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10, 5, 60_000))
    with pytest.raises(UserError, match=r"0\.06 MB are free at .*--only"):
        hub_download.main(["--models", str(tmp_path / "new" / "models"), "--only", "motion-module"])
    assert hub.asked == []


def test_a_disk_that_fills_up_keeps_what_came(hub, monkeypatch, tmp_path, capfd):
    def full(url, file, **_):
        file.write(b"some bytes")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub_download, "http_get", full)
    assert hub_download.main(["--models", str(tmp_path), "--only", "motion-module"]) == 1
    assert f"the disk is full while writing {tmp_path / MOTION_PLACE}" in capfd.readouterr().err
    assert not (tmp_path / MOTION_PLACE).exists()


def test_dry_run_and_list_fetch_nothing(hub, tmp_path, capfd):
    assert hub_download.main(["--models", str(tmp_path), "--dry-run", "--only", "motion-module", "dreambooth"]) == 0
    out = capfd.readouterr().out
    assert f"{tmp_path / MOTION_PLACE}  0.06 MB  -" in out
    assert "0.13 MB to fetch" in out
    hub.shutdown()
    assert hub_download.main(["--models", str(tmp_path), "--list"]) == 0
    assert capfd.readouterr().out == markdown_table(tmp_path) + "\n"
    assert files_under(tmp_path) == []
    assert hub.asked == []


def test_unknown_name(tmp_path):
    with pytest.raises(UserError, match="no published model is named 'motion-modul'; did you mean 'motion-module'"):
        hub_download.main(["--models", str(tmp_path), "--only", "motion-modul"])


def test_as_a_command(hub, tmp_path):
    command = [sys.executable, "scripts/download_models.py", "--models", str(tmp_path), "--only", "adapter"]
    shown = {**os.environ, "PYTHONPATH": str(ROOT), "TQDM_POSITION": "-1"}  # bars although this is no terminal
    done = subprocess.run(command, cwd=ROOT, env=shown, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "checkpoint.ckpt: 100%" in done.stderr
    assert files_under(tmp_path) == ["Integrated_Attention/checkpoint.ckpt"]
    done = subprocess.run([*command, "nothing"], cwd=ROOT, env=shown, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no published model is named 'nothing'")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (["Integrated_Attention/checkpoint.ckpt", "checkpoint.ckpt"], "Integrated_Attention/checkpoint.ckpt"),
        (["README.md", "checkpoint.ckpt", "Motion_Module/v3_sd15_mm.ckpt"], "checkpoint.ckpt"),
        (["README.md", "weights/efficientmt.ckpt", "Motion_Module/v3_sd15_mm.ckpt"], "weights/efficientmt.ckpt"),
        (["a/checkpoint.ckpt", "b/checkpoint.ckpt"], None),
        (["one.ckpt", "two.ckpt"], None),
        (["README.md", "Motion_Module/v3_sd15_mm.ckpt"], None),
    ],
)
def test_the_adapter_is_found_or_not_guessed(listing, expected):
    assert find_source("Integrated_Attention/checkpoint.ckpt", listing) == expected


def test_an_adapter_under_another_name_comes_to_its_place(hub, tmp_path):
    files = hub.repos["yfcai/EfficientMT"]
    content = files.pop("Integrated_Attention/checkpoint.ckpt")
    files |= {"up/efficientmt.ckpt": content, "Motion_Module/v3_sd15_mm.ckpt": b"x" * 2000}
    assert hub_download.main(["--models", str(tmp_path), "--only", "adapter"]) == 0
    assert (tmp_path / "Integrated_Attention" / "checkpoint.ckpt").read_bytes() == content


def test_the_table_names_every_place_once(tmp_path):
    lines = markdown_table(tmp_path).splitlines()
    assert len(lines) == 2 + len(PUBLISHED)
    assert len({model.name for model in PUBLISHED}) == len(PUBLISHED)
    assert len({place for model in PUBLISHED for place, _ in model.files}) == sum(len(m.files) for m in PUBLISHED)
    assert all(line.count("|") == 7 for line in lines)
    place = tmp_path / MOTION_PLACE
    place.parent.mkdir()
    place.write_bytes(b"")
    (tmp_path / "StableDiffusion/stable-diffusion-v1-5/unet").mkdir(parents=True)
    (tmp_path / "StableDiffusion/stable-diffusion-v1-5/unet/config.json").write_text("{}")
    here = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in markdown_table(tmp_path).splitlines()}
    assert (here["motion-module"], here["dreambooth"], here["stable-diffusion"]) == ("yes", "no", "in part")
