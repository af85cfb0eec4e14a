"""Clips and prepared folders to choose from: those bundled, and uploads, checked, named by us, and deleted in time."""

from __future__ import annotations

import contextlib
import functools
import io
import re
import secrets
import shutil
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from animatediff.apps.forms import preparations
from animatediff.apps.page.options import PROGRAMS, UPLOADS, Options
from animatediff.data.decode import VIDEO_SUFFIXES, open_source
from animatediff.data.export import save_video
from animatediff.data.images import IMAGE_SUFFIXES, is_image
from animatediff.errors import UserError
from animatediff.files import read_json, write_json
from animatediff.pipelines.method import View
from animatediff.project import PROJECT

BUNDLED = "assets/references"
STRIP = 10  # pictures of a strip
STRIP_HEIGHT = 72  # pixels
PROXY_FRAMES, PROXY_SIDE = 96, 256  # of the small copy that a browser plays, whatever was uploaded
MOST = 200  # uploads at one time
_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class Clip:
    """A video, or a picture, that a job can use."""

    id: str
    title: str
    path: str
    frames: int
    seconds: float
    width: int
    height: int
    warnings: tuple[str, ...] = ()
    views: tuple[dict[str, str], ...] = ()  # of a prepared folder: title, and whose subject a click on it chooses

    def told(self) -> dict[str, Any]:
        """What the page may know of it: all but where it lies."""
        return {name: value for name, value in asdict(self).items() if name != "path"}


class Clips:
    """Bundled clips and uploads. A clip is known by an id that we make; no visitor names a path."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.bundled = {f"bundled-{path.stem}": path for path in sorted((PROJECT / BUNDLED).glob("*.mp4"))}
        self.examples = {
            f"{name}-{folder.name}": (folder, preparation)
            for name, preparation in preparations().items()
            for folder in preparation.examples
        }

    def get(self, id: str) -> Clip:
        """The clip of that id. UserError where there is none, or none any more."""
        if id in self.bundled:
            return _bundled(id, self.bundled[id])
        if id in self.examples:
            folder, preparation = self.examples[id]
            return _prepared(id, _title(folder), folder, preparation.views(folder))
        record = self.options.uploads / id / "clip.json"
        if not _ID.fullmatch(id) or not record.is_file():
            raise UserError("that clip is no longer here: uploads are deleted after a while; drop it again")
        return Clip(**read_json(record))

    def play(self, id: str) -> Path:
        """The file that a browser plays for a clip."""
        clip = self.get(id)
        return self.bundled.get(id) or Path(clip.path).parent / "play.mp4"

    def strip(self, id: str) -> bytes:
        """The clip's frames side by side, as JPEG."""
        return _strip(self.get(id).path)

    async def receive(self, name: str, body: AsyncIterator[bytes]) -> Clip:
        """An upload, taken whole and checked; UserError, and nothing left of it, where it is not accepted."""
        from starlette.concurrency import run_in_threadpool

        folder = self._new()
        part, most = folder / "upload.part", int(self.options.max_megabytes * 1e6)
        try:
            size = 0
            with part.open("wb") as file:
                async for chunk in body:
                    size += len(chunk)
                    if size > most:
                        raise UserError(f"{name} is larger than {most / 1e6:g} MB; cut or compress it first")
                    file.write(chunk)
            return await run_in_threadpool(self._accept, folder, part, name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def take(self, source: Path, name: str) -> Clip:
        """A file that is here already, as an upload: copied and checked."""
        if source.stat().st_size > self.options.max_megabytes * 1e6:
            raise UserError(f"{name} is larger than {self.options.max_megabytes:g} MB; cut or compress it first")
        folder = self._new()
        try:
            part = folder / "upload.part"
            shutil.copyfile(source, part)
            return self._accept(folder, part, name)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def prepare(self, title: str, make: Callable[[Path], None], views: Callable[[Path], Sequence[View]]) -> Clip:
        """A folder that `make` writes, as a clip that jobs can use, with videos of its views beside it."""
        parent = self._new()
        try:
            folder = parent / (words_of(title) or "prepared")
            make(folder)
            found = views(folder)
            for number, view in enumerate(found):
                save_video(parent / f"view-{number}.mp4", view.frames)
            clip = _prepared(parent.name, title, folder, found)
            write_json(parent / "clip.json", asdict(clip))
            return clip
        except BaseException:
            shutil.rmtree(parent, ignore_errors=True)
            raise

    def view(self, id: str, number: int) -> Path:
        """The video of one view of a prepared folder."""
        clip = self.get(id)
        if not 0 <= number < len(clip.views):
            raise UserError(f"there is no view {number}; the preparation has {len(clip.views)}")
        file = self.options.uploads / id / f"view-{number}.mp4"
        if id in self.examples and not file.is_file():
            folder, preparation = self.examples[id]
            save_video(file, preparation.views(folder)[number].frames)
        return file

    def tidy(self, text: str) -> str:
        """`text` without the folder that an upload lies in."""
        return re.sub(rf"\S*{re.escape(UPLOADS)}/[0-9a-f]{{32}}/", "", text)

    def touch(self, ids: Collection[str]) -> None:
        """Begin the time of these clips anew."""
        for id in ids:
            if id not in self.bundled and id not in self.examples:
                (self.options.uploads / id).touch()

    def sweep(self, in_use: Collection[str] = ()) -> None:
        """Delete every upload older than the options allow, but for those in use."""
        oldest = time.time() - 60 * self.options.delete_after
        uploads = self.options.uploads
        for entry in [*uploads.glob("*"), *(uploads / PROGRAMS).glob("*")]:
            with contextlib.suppress(FileNotFoundError):  # another sweep was quicker
                if entry.name in in_use or entry.name == PROGRAMS or entry.stat().st_mtime >= oldest:
                    continue
                if entry.is_dir():
                    shutil.rmtree(entry, ignore_errors=True)
                else:
                    entry.unlink()

    def _new(self) -> Path:
        if sum(1 for _ in self.options.uploads.glob("*/")) >= MOST:
            raise UserError(f"{MOST} uploads are here, which is all there is room for; try again later")
        folder = self.options.uploads / secrets.token_hex(16)
        folder.mkdir(parents=True)
        return folder

    def _accept(self, folder: Path, part: Path, name: str) -> Clip:
        """The clip made of the whole upload `part`, which gets a name of ours."""
        title = Path(name.replace("\\", "/")).name or "clip"
        suffix = Path(title).suffix.lower()
        known = (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES)
        words = words_of(Path(title).stem)  # results are called after it
        path = part.rename(folder / f"{words or 'clip'}{suffix if suffix in known else '.mp4'}")
        try:
            clip = self._check(Clip(folder.name, title[:80], str(path), 0, 0, 0, 0))
        except UserError as error:  # which names the path
            raise UserError(str(error).replace(str(path), title).replace(path.name, title)) from error
        write_json(folder / "clip.json", asdict(clip))
        return clip

    def _check(self, clip: Clip) -> Clip:
        """`clip` with its facts, its small copy beside it; UserError where it is too long or too large."""
        path, options = Path(clip.path), self.options
        with open_source(path) as source:
            total, seconds = len(source.times), float(source.end)
            if seconds > options.max_seconds:
                raise UserError(f"{path} is {_time(seconds)} long, at most {_time(options.max_seconds)}; cut it first")
            height, width = source.read([0]).shape[1:3]
            if max(height, width) > options.max_side:
                raise UserError(f"{path} is {width}x{height}, at most {options.max_side} a side; scale it down first")
            if total < 2 and not is_image(path):
                raise UserError(f"{path} has 1 frame, so there is no motion to take; choose a video")
            frames = _small(source, np.linspace(0, total - 1, min(total, PROXY_FRAMES)).astype(int))
            save_video(path.parent / "play.mp4", frames, max(1.0, len(frames) / max(seconds, 1e-3)))
            told = tuple(line.replace(str(path), clip.title) for line in source.warnings)
        return Clip(clip.id, clip.title, clip.path, total, round(seconds, 3), width, height, told)


@functools.cache
def _bundled(id: str, path: Path) -> Clip:
    with open_source(path) as source:
        height, width = source.read([0]).shape[1:3]
        return Clip(id, _title(path), str(path), len(source.times), round(source.end, 3), width, height)


def _prepared(id: str, title: str, folder: Path, views: Sequence[View]) -> Clip:
    """What a preparation left in `folder`, as a clip."""
    told = tuple({"title": view.title, "subject": view.subject} for view in views)
    count, height, width = views[0].frames.shape[:3] if views else (0, 0, 0)
    return Clip(id, title, str(folder), count, count / 8, width, height, (), told)


def _title(bundled: Path) -> str:
    """Of "00-two-words.mp4": "two words"."""
    return bundled.stem.split("-", 1)[-1].replace("-", " ").replace("_", " ")


@functools.lru_cache(maxsize=64)
def _strip(path: str) -> bytes:
    with open_source(Path(path)) as source:
        pictures = _small(source, np.linspace(0, len(source.times) - 1, STRIP).astype(int), height=STRIP_HEIGHT)
    return jpeg(np.concatenate(list(pictures), axis=1))  # f h w 3 -> h (f w) 3


def _small(source: Any, numbers: np.ndarray, height: int | None = None) -> np.ndarray:
    """Frames of a source, scaled down one by one: uint8 (f h w 3)."""
    found = []
    for number in numbers:
        picture = Image.fromarray(source.read([int(number)])[0])
        scale = height / picture.height if height else min(1.0, PROXY_SIDE / max(picture.size))
        size = (max(2, round(picture.width * scale)), max(2, round(picture.height * scale)))
        found.append(np.asarray(picture.resize(size, Image.Resampling.BILINEAR)))
    return np.stack(found)


def words_of(text: str) -> str:
    """`text` as part of a file name: lower-case letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower())[:40].strip("-")


def jpeg(pixels: np.ndarray) -> bytes:
    """uint8 (h w 3) as JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=82)
    return buffer.getvalue()


def _time(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds:.0f} seconds"
