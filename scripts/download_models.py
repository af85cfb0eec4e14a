"""Fetch the published weights from the Hugging Face hub to their places under models/.

An interrupted download goes on where it stopped when the command is repeated; what is whole already is left alone.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.file_download import http_get
from huggingface_hub.utils import build_hf_headers
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from animatediff.config import nearest
from animatediff.console import run_command
from animatediff.errors import UserError, describe_os_error, one_line
from animatediff.hub import PUBLISHED, Published, find_source, markdown_table


class Unreachable(UserError):
    """The hub cannot be reached at all, so there is no use in trying the next file."""


@dataclass(frozen=True)
class Download:
    """One file to fetch."""

    place: Path
    repo: str
    source: str
    revision: str
    size: int  # bytes, from the hub
    sha256: str | None  # of large files, from the hub

    @property
    def part(self) -> Path:
        """Where the bytes gather; named after the content, so two versions never mix."""
        return self.place.with_name(f".{self.place.name}.{(self.sha256 or self.revision)[:12]}.part")

    @property
    def whole(self) -> bool:
        return self.place.is_file() and self.place.stat().st_size == self.size

    @property
    def gathered(self) -> int:
        return self.part.stat().st_size if self.part.is_file() else 0


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    endpoint = (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")
    if options.list:
        print(markdown_table(options.models))
        return 0
    downloads: list[Download] = []
    failures = 0
    for model in select(options.only, options.all):
        with counted() as failed:
            downloads += plan(model, options.models, endpoint)
        failures += len(failed)
    wanted = [download for download in downloads if not download.whole]
    for download in downloads:
        state = "whole" if download.whole else f"{readable(download.gathered)} so far" if download.gathered else "-"
        print(f"{download.place}  {readable(download.size)}  {state}")
    if options.dry_run:
        print(f"{readable(sum(download.size - download.gathered for download in wanted))} to fetch")
        return 1 if failures else 0
    check_room(wanted, options.models)
    for download in wanted:
        with counted() as failed:
            fetch(download, endpoint)
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
    parser = argparse.ArgumentParser(description=__doc__)
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


def plan(model: Published, models: Path, endpoint: str) -> list[Download]:
    """What fetching `model` takes, by the hub's own listing. UserError where a file is not there."""
    with hub_errors(endpoint, model.repo):
        info = HfApi(endpoint=endpoint).model_info(model.repo, files_metadata=True)
    listing = {file.rfilename: file for file in info.siblings or []}
    downloads = []
    for place, wanted in model.files:
        source = find_source(wanted, listing) if len(model.files) == 1 else wanted if wanted in listing else None
        if source is None:
            raise UserError(
                f"{model.repo} on {endpoint} does not hold {wanted} for certain; look at its files, and put the right "
                f"one at {models / place} by hand"
            )
        file = listing[source]
        if file.size is None or info.sha is None:
            raise UserError(f"{endpoint} does not state the size of {source} in {model.repo}; try again later")
        sha256 = file.lfs.sha256 if file.lfs else None
        downloads.append(Download(models / place, model.repo, source, info.sha, file.size, sha256))
    return downloads


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


def fetch(download: Download, endpoint: str) -> None:
    """Fetch one file, going on from what an earlier run left, and check it before it takes its place."""
    url = hf_hub_url(download.repo, download.source, revision=download.revision, endpoint=endpoint)
    try:
        download.part.parent.mkdir(parents=True, exist_ok=True)
        if download.gathered > download.size:
            download.part.unlink()
        with hub_errors(endpoint, f"{download.repo}/{download.source}"), open(download.part, "ab") as file:
            if download.gathered < download.size:
                location = get_hf_file_metadata(url, endpoint=endpoint).location
                headers = build_hf_headers()
                if urlparse(location).netloc != urlparse(url).netloc:
                    headers.pop("authorization", None)  # the token is for the hub, not for the store it points to
                name = download.place.name
                http_get(location, file, resume_size=download.gathered, headers=headers, displayed_filename=name)
        verify(download)
        os.replace(download.part, download.place)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"the disk is full while writing {download.place}; make room and repeat") from error
        raise describe_os_error(error, f"writing {download.place}") from error


def verify(download: Download) -> None:
    """UserError, and the bytes thrown away, where size or checksum differ from the hub's."""
    if download.gathered != download.size:
        told = f"{download.gathered} bytes where the hub states {download.size}"
        download.part.unlink()
        raise UserError(f"{download.source} of {download.repo} came with {told}; repeat the command to fetch it anew")
    if download.sha256 is None:
        return
    digest = hashlib.sha256()
    with (
        open(download.part, "rb") as file,
        tqdm(total=download.size, unit="B", unit_scale=True, desc="checking", leave=False, disable=None) as progress,
    ):
        while block := file.read(1 << 24):
            digest.update(block)
            progress.update(len(block))
    if digest.hexdigest() != download.sha256:
        download.part.unlink()
        raise UserError(
            f"{download.source} of {download.repo} has another checksum than the hub states; repeat to fetch it anew"
        )


@contextmanager
def hub_errors(endpoint: str, what: str) -> Iterator[None]:
    """Turn what goes wrong between us and the hub, while `what` is asked for, into one clear line."""
    kept = "repeat the command, what has come so far is kept"
    try:
        yield
    except HfHubHTTPError as error:
        raise UserError(refusal(endpoint, what, error.response.status_code, kept)) from error
    except OfflineModeIsEnabled as error:
        raise Unreachable("HF_HUB_OFFLINE is set, so nothing can be fetched; unset it and repeat") from error
    except HTTPError as error:
        reason = one_line(error) or type(error).__name__
        raise Unreachable(
            f"cannot reach {endpoint} for {what} ({reason}); check the network, or name a mirror in HF_ENDPOINT; {kept}"
        ) from error
    except OSError as error:
        if "Consistency check failed" in str(error):
            raise UserError(f"{what} ended early; {kept}") from error
        raise


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


if __name__ == "__main__":
    run_command(main)
