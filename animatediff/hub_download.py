"""Fetch the published weights from the Hugging Face hub to their places under models/.

An interrupted download goes on where it stopped when the command is repeated; what is whole already is left alone.
Commit and SHA-256 of what came are kept in models/downloads.json; later runs fetch that commit and check the files.
"""

from __future__ import annotations

import argparse
import errno
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import urlparse

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    FileMetadataError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import WeakFileLock, build_hf_headers, filter_repo_objects
from huggingface_hub.utils.sha import git_hash, sha_fileobj
from tqdm import tqdm

from animatediff.config import nearest
from animatediff.console import Parser
from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.files import write_json
from animatediff.hub import PUBLISHED, RECORD, Published, find_source, markdown_table, read_record


class Unreachable(UserError):
    """The hub cannot be reached at all, so there is no use in trying the next file."""


@dataclass(frozen=True)
class Download:
    """One file to fetch: what the hub states of it, and what is pinned or recorded."""

    models: Path
    name: str  # the place under `models`
    repo: str
    source: str
    revision: str  # a commit
    size: int  # bytes
    sha256: str | None  # known of large files, and of small ones that were fetched before
    git_id: str | None  # the hash that git gives the content; None of large files, which lie in a store of their own

    @property
    def place(self) -> Path:
        return self.models / self.name

    @property
    def part(self) -> Path:
        """Where the bytes gather; named after the content, so two versions never mix."""
        return self.place.with_name(f".{self.place.name}.{(self.sha256 or self.revision)[:12]}.part")

    @property
    def entry(self) -> dict[str, Any]:
        """What the record says of it."""
        return {key: getattr(self, key) for key in ("repo", "source", "revision", "size", "sha256")}

    @property
    def gathered(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def main(arguments: list[str] | None = None) -> int:
    """The command: 0 where all that was asked for is there, 1 where a file could not be had. UserError stops all."""
    options = parse(arguments)
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if options.list:
        print(markdown_table(options.models))
        return 0
    record = read_record(options.models)
    downloads: list[Download] = []
    failures = 0
    for model in select(options.only, options.all):
        with counted() as failed:
            downloads += plan(model, options.models, endpoint, record)
        failures += len(failed)
    wanted = [download for download in downloads if differs(download, download.place)]
    whole = [sealed(download) for download in downloads if download not in wanted]
    for download in downloads:
        state = f"{readable(download.gathered)} so far" if download.gathered else "-"
        if download.place.is_file():
            state = "differs, to be fetched anew" if download in wanted else "whole"
        print(f"{download.place}  {readable(download.size)}  {state}")
    if options.dry_run:
        print(f"{readable(sum(download.size - download.gathered for download in wanted))} to fetch")
        return 1 if failures else 0
    check_room(wanted, options.models)
    if wanted or any(record.get(download.name) != download.entry for download in whole):
        with alone_in(options.models) as waited:
            keep_record(options.models, whole + wanted)
            for download in wanted:
                with counted() as failed:
                    if not waited or differs(download, download.place):
                        fetch(download, endpoint)
                    keep_record(options.models, [sealed(download)])
                failures += len(failed)
    if not failures:
        print(f"all {len(downloads)} files are in {options.models}")
    return 1 if failures else 0


@contextmanager
def counted() -> Iterator[list[UserError]]:
    """One bad file does not stop the others: its error is told and kept in the list. No network stops all."""
    failed: list[UserError] = []
    try:
        yield failed
    except Unreachable:
        raise
    except UserError as error:
        failed.append(error)
        print(f"error: {one_line(error)}", file=sys.stderr)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = Parser("download", __doc__)
    names = ", ".join(model.name for model in PUBLISHED)
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder to fill (default: models)")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"fetch only these: {names}")
    parser.add_argument("--all", action="store_true", help="fetch the optional ones as well")
    parser.add_argument("--list", action="store_true", help="print the table of published weights, and what is here")
    parser.add_argument("--dry-run", action="store_true", help="ask the hub for the sizes, fetch nothing")
    return parser.parse_args(arguments)


def select(only: list[str] | None, everything: bool) -> list[Published]:
    """The models asked for; UserError on an unknown name."""
    known = [model.name for model in PUBLISHED]
    for name in only or []:
        if name not in known:
            raise UserError(f"no published model is named '{name}'; {nearest(name, known)}")
    if only:
        return [model for model in PUBLISHED if model.name in only]
    return [model for model in PUBLISHED if everything or not model.optional]


def plan(model: Published, models: Path, endpoint: str, record: dict[str, dict[str, Any]]) -> list[Download]:
    """What fetching `model` takes, by the hub's own listing at the pinned, else the recorded, else the newest commit.

    UserError where a file is not there, or is not what was pinned or recorded.
    """
    known = {place: entry for place, entry in record.items() if entry["repo"] == model.repo}
    revision = model.revision or next((known[place]["revision"] for place, _ in model.files if place in known), None)
    with hub_errors(endpoint, model.repo if revision is None else f"{model.repo} at commit {revision[:12]}"):
        info = HfApi(endpoint=endpoint).model_info(model.repo, revision=revision, files_metadata=True)
    listing = {file.rfilename: file for file in info.siblings or []}
    downloads = []
    for name, source in locate(model, models, endpoint, list(listing)):
        file = listing[source]
        if file.size is None or info.sha is None:
            raise UserError(f"{endpoint} does not state the size of {source} in {model.repo}; try again later")
        stated = file.lfs.sha256 if file.lfs else None
        recorded = known[name]["sha256"] if name in known and known[name]["revision"] == info.sha else None
        pinned = model.sha256.get(name) or recorded
        if pinned and stated and pinned != stated:
            where = "animatediff/hub.py" if name in model.sha256 else f"{models / RECORD}; delete that if you trust it"
            raise UserError(
                f"{endpoint} states another checksum for {source} of {model.repo} than the one kept in {where}"
            )
        git_id = None if file.lfs else file.blob_id
        downloads.append(Download(models, name, model.repo, source, info.sha, file.size, pinned or stated, git_id))
    return downloads


def locate(model: Published, models: Path, endpoint: str, listing: list[str]) -> list[tuple[str, str]]:
    """Place under `models` and path in the repository of every file of `model`. UserError where one is not there."""
    found = []
    alone = len(model.files) == 1 and not model.patterns
    for place, wanted in model.files:
        source = find_source(wanted, listing) if alone else wanted if wanted in listing else None
        if source is None:
            raise UserError(
                f"{model.repo} on {endpoint} does not hold {wanted} for certain; look at its files, and put the right "
                f"one at {models / place} by hand"
            )
        found.append((place, source))
    if model.patterns:
        folder = PurePosixPath(model.place)
        further = filter_repo_objects(listing, allow_patterns=list(model.patterns))
        found += [(str(folder / source), source) for source in sorted(further)]
    return found


def check_room(downloads: list[Download], models: Path) -> None:
    """UserError where the disk cannot hold what is still to come."""
    folder = models.absolute()
    while not folder.exists():
        folder = folder.parent
    needed, free = sum(d.size - d.gathered for d in downloads), shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{readable(needed)} are still to be fetched, but only {readable(free)} are free at {folder}; "
            "make room, or name fewer models with --only"
        )


@contextmanager
def alone_in(models: Path) -> Iterator[bool]:
    """Hold the lock on `models`, so that no two downloads write there; yields whether another was waited for."""
    path, waited = models / ".downloads.lock", False
    with ExitStack() as held:
        try:
            models.mkdir(parents=True, exist_ok=True)
            held.enter_context(WeakFileLock(path, timeout=0.1))
        except TimeoutError:
            print(f"another download to {models} is under way; waiting for it")
            held.enter_context(WeakFileLock(path))
            waited = True
        except OSError as error:
            raise describe_os_error(error, f"writing {path}") from error
        yield waited


def keep_record(models: Path, downloads: list[Download]) -> None:
    """Write what `downloads` resolved to into the record."""
    record = read_record(models)
    kept = record | {download.name: download.entry for download in downloads}
    if kept != record:
        write_json(models / RECORD, dict(sorted(kept.items())))


def sealed(download: Download) -> Download:
    """`download` with the checksum of the file that lies at its place."""
    return download if download.sha256 else replace(download, sha256=sha256_of(download.place))


def fetch(download: Download, endpoint: str) -> None:
    """Fetch one file and check it before it takes its place; a large one goes on from what an earlier run left."""
    try:
        download.place.parent.mkdir(parents=True, exist_ok=True)
        with hub_errors(endpoint, f"{download.repo}/{download.source}"):
            (take if download.git_id else gather)(download, endpoint)
        problem = differs(download, download.part)
        if problem:
            download.part.unlink()
            raise UserError(f"{download.source} of {download.repo} {problem}; repeat the command to fetch it anew")
        os.replace(download.part, download.place)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"the disk is full while writing {download.place}; make room and repeat") from error
        raise describe_os_error(error, f"writing {download.place}") from error


def take(download: Download, endpoint: str) -> None:
    """Bring a small file to its part."""
    with tempfile.TemporaryDirectory(prefix=".part-", dir=download.models) as folder:
        fetched = hf_hub_download(
            download.repo, download.source, revision=download.revision, local_dir=folder, endpoint=endpoint
        )
        os.replace(fetched, download.part)


def gather(download: Download, endpoint: str) -> None:
    """Bring a large file to its part, going on from the bytes that are there."""
    # By hand: hf_hub_download throws a broken transfer's bytes away and checks no checksum.
    url = hf_hub_url(download.repo, download.source, revision=download.revision, endpoint=endpoint)
    if download.gathered > download.size:
        download.part.unlink()
    with open(download.part, "ab") as file:
        if download.gathered < download.size:
            location = get_hf_file_metadata(url, endpoint=endpoint).location
            headers = build_hf_headers()
            if urlparse(location).netloc != urlparse(url).netloc:
                headers.pop("authorization", None)  # the token is for the hub, not for the store it points to
            name = download.place.name
            http_get(location, file, resume_size=download.gathered, headers=headers, displayed_filename=name)


def differs(download: Download, path: Path) -> str | None:
    """How the file at `path` differs from what it should be, for a message; None where it is right."""
    if not path.is_file():
        return "is not there"
    if path.stat().st_size != download.size:
        return f"came with {path.stat().st_size} bytes where the hub states {download.size}"
    if download.sha256 is not None:
        same = sha256_of(path) == download.sha256
    else:
        same = download.git_id is None or read(path, lambda file: git_hash(file.read())) == download.git_id
    return None if same else "has another checksum than the hub states"


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal digits; a bar shows the progress of large ones."""

    def digest(file: BinaryIO) -> str:
        what = {"total": path.stat().st_size, "desc": f"checking {path.name}", "leave": False}
        with tqdm.wrapattr(file, "read", **what, disable=None, delay=1) as watched:
            return sha_fileobj(watched, 1 << 24).hex()

    return read(path, digest)


def read(path: Path, take_in: Callable[[BinaryIO], str]) -> str:
    """What `take_in` makes of the file; UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return take_in(file)
    except OSError as error:
        raise describe_os_error(error, f"reading {path}") from error


@contextmanager
def hub_errors(endpoint: str, what: str) -> Iterator[None]:
    """Turn what goes wrong between us and the hub, while `what` is asked for, into one clear line."""
    try:
        yield
    except (HTTPError, OSError) as error:
        wrapped = isinstance(error, LocalEntryNotFoundError)  # what hf_hub_download makes of any trouble
        told = explain(error.__cause__ or error if wrapped else error, endpoint, what)
        if told is None:
            raise
        raise told from error


def explain(error: BaseException, endpoint: str, what: str) -> UserError | None:
    """The one line for what went wrong with the hub while `what` was asked for; None where it was not the hub."""
    kept = "repeat the command, what has come so far is kept"
    reason = one_line(error) or type(error).__name__
    if isinstance(error, HfHubHTTPError):
        return UserError(refusal(endpoint, what, error.response.status_code, kept))
    if isinstance(error, OfflineModeIsEnabled):
        return Unreachable("HF_HUB_OFFLINE is set, so nothing can be fetched; unset it and repeat")
    if isinstance(error, HTTPError):
        return Unreachable(
            f"cannot reach {endpoint} for {what} ({reason}); check the network, or name a mirror in HF_ENDPOINT; {kept}"
        )
    if isinstance(error, FileMetadataError):
        return UserError(f"{endpoint} does not answer as a hub for {what} ({reason}); name another in HF_ENDPOINT")
    if "Consistency check failed" in reason:
        return UserError(f"{what} ended early; {kept}")
    return None


def refusal(endpoint: str, what: str, status: int, kept: str) -> str:
    """What an answer other than the file means."""
    if status in (401, 403):
        return (
            f"{endpoint} refuses {what} ({status}): it does not exist or needs permission; accept its terms on its "
            "page, then set HF_TOKEN"
        )
    if status == 404:
        return f"there is no {what} on {endpoint} (404); it may have moved"
    return f"{endpoint} answered {status} for {what}; {kept}"


def readable(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10_000_000 else f"{count / 1e6:.2f} MB"
