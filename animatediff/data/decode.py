"""Decoding by frame number. PyAV decides what a file holds; decord reads again what PyAV has found sound.

`open_source(path)` gives a source whose frame i is the i-th frame in presentation order, whatever the container.
The numbers come from the packets' time stamps where one packet is one frame; everywhere else, and wherever a file
turns out damaged, the file is decoded once from its start and the frames are counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from pathlib import Path
from typing import IO, Protocol

import av
import numpy as np
from av.stream import Disposition
from av.video.frame import VideoFrame
from PIL import Image

from animatediff.data.images import IMAGE_FPS, AnimatedSource, ImageSource, is_animated, is_image, list_images
from animatediff.data.packets import Entry, Index, build_index, whole_picture_test
from animatediff.data.pixels import Screen, check_size
from animatediff.data.rereads import remember, reread
from animatediff.errors import UserError, one_line

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")

# Containers that hold pictures themselves. Playlists (HLS, concat) are left out: they name other files.
_DEMUXERS = "mov,matroska,avi,gif,mpeg,mpegts,flv,asf,ogg"
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
# Where streams may begin in the middle of a file, it is searched this far for them: bytes, microseconds.
_LATE_STREAMS = ("mpegts", "mpeg", "flv")
_FURTHER = {"probesize": str(64 << 20), "analyzeduration": str(3600 * 1000000)}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
_KEPT = 64 << 20  # bytes of packets that are kept, so that a short file is read once
_THREADED = 640 * 480  # pixels from which threads gain more than they cost to start
_COVERS = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image


class Source(Protocol):
    """Frames by number."""

    fps: float
    times: list[float]  # seconds of each frame, the first at 0
    end: float  # seconds at which the last frame leaves the screen
    tick: float  # seconds to which times are exact

    @property
    def warnings(self) -> list[str]:
        """One line each, damage first."""

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames uint8 [len(indices), h, w, 3] RGB; indices ascending, repeats allowed."""

    def close(self) -> None:
        """Let go of the file."""


class Recounted(Exception):
    """The packets promised frames that did not decode; the source has counted again, so ask it anew."""


@contextlib.contextmanager
def open_source(path: Path) -> Iterator[Source]:
    """The source for a video file, an animated or still picture, or a folder of pictures.

    UserError where nothing can be read, there and in the source's `read`.
    """
    source = _source(path)
    try:
        yield source
    finally:
        source.close()


def _source(path: Path) -> Source:
    try:
        if path.is_dir():
            notes: list[str] = []
            return ImageSource(list_images(path, notes), notes)
        if not path.exists():
            raise UserError(f"no video at {path}; give a video file or a folder of images")
        if not path.is_file():
            raise UserError(f"{path} is not a regular file; give a video file or a folder of images")
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty (0 bytes); give a video file or a folder of images")
        if is_image(path):
            return AnimatedSource(path) if is_animated(path) else ImageSource([path])
    except OSError as error:
        raise UserError(f"cannot read {path}: {one_line(error.strerror or error)}") from error
    return VideoSource(path)


@contextlib.contextmanager
def _one_line_errors(path: Path) -> Iterator[None]:
    """Whatever the decoding libraries raise for a file's bytes, as a UserError of one line."""
    try:
        yield
    except (UserError, Recounted):
        raise
    except MemoryError as error:
        raise UserError(f"{path} needs more memory than there is; shorten it or scale it down") from error
    except Exception as error:
        raise UserError(f"cannot read {path} as a video; it is damaged ({one_line(error)})") from error


class VideoSource:
    """A video file. Frames are as `Screen` shows them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._damage: list[str] = []
        self._notes: list[str] = []
        self._kept: list[av.Packet] = []  # every packet, where they are few
        self._file: IO[bytes] | None = None
        self._container: av.container.InputContainer | None = None
        try:
            with _one_line_errors(path):
                self._open()
                self._screen = Screen(path, self._stream.sample_aspect_ratio)
                self._use(self._scan() or self._count())
        except BaseException:
            self.close()
            raise

    @property
    def warnings(self) -> list[str]:
        return [*self._damage, *self._screen.warnings, *self._notes]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        wanted = sorted(set(indices))
        with _one_line_errors(self.path):
            whole = self.index.plain and len(wanted) == len(self.index.stamps)
            frames = reread(self.path) if whole else None
            if frames is None:
                frames = self._read(wanted)
                if whole and frames is not None and not self.warnings:
                    remember(self.path, frames)
            if frames is None and self.index.by_stamp:
                self._use(self._count())
                raise Recounted
        if frames is None:
            raise UserError(f"{self.path} does not decode to the same frames twice; it is damaged")
        return frames if len(wanted) == len(indices) else frames[np.searchsorted(wanted, indices)]

    def close(self) -> None:
        self._kept = []
        if self._container is not None:
            self._container.close()
        if self._file is not None:
            self._file.close()
        self._container = self._file = None

    # ------------------------------------------------------------------------------------------ the file

    def _open(self) -> None:
        """Open the file at its start, and choose FFmpeg's first video stream; pictures of covers do not count."""
        self.close()
        container = self._container = self._opened(_OPTIONS)
        if any(name in _LATE_STREAMS for name in container.format.name.split(",")):
            container.close()
            container = self._container = self._opened(_OPTIONS | _FURTHER)
        stream = next((s for s in container.streams.video if not s.disposition & _COVERS), None)
        if stream is None or stream.codec_context is None:
            raise UserError(f"{self.path} holds no video stream that can be decoded")
        codec = stream.codec_context
        check_size(self.path, codec.height, codec.width)
        if codec.height * codec.width >= _THREADED:
            stream.thread_type = "AUTO"
        else:
            codec.thread_count = 1
        self._stream = stream

    def _opened(self, options: dict[str, str]) -> av.container.InputContainer:
        path = f"file:{self.path.resolve()}"
        try:
            try:
                path.encode()
            except UnicodeEncodeError:  # a name that is no text: the library takes the open file
                self._file = self.path.open("rb")
            return av.open(self._file or path, "r", container_options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError) as error:
            kind = "not permitted" if isinstance(error, PermissionError) else "not a video, or its header is lost"
            reason = one_line(error.strerror or error)
            raise UserError(f"cannot open {self.path} as a video: {kind} ({reason})") from error

    def _demuxed(self, problems: list[str]) -> Iterator[av.Packet]:
        """The stream's packets in decoding order."""
        assert self._container is not None
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):  # IndexError: the end, where streams have appeared on the way
                return
            except av.FFmpegError as error:
                problems.append(str(error))
                return
            if packet.size:
                yield packet

    def _packets(self, start: tuple[int, int] | None, problems: list[str]) -> Iterator[av.Packet]:
        """The packets from a whole picture of the index on, None: from the first; none where it is not found."""
        stamp, place = start or (0, 0)
        if self._kept:
            self._stream.codec_context.flush_buffers()
            return iter(self._kept[place:])
        if place == 0:
            self._open()
            return self._demuxed(problems)
        assert self._container is not None
        self._container.seek(stamp, stream=self._stream)
        return self._from_stamp(stamp, place, self._demuxed(problems))

    def _from_stamp(self, stamp: int, place: int, packets: Iterator[av.Packet]) -> Iterator[av.Packet]:
        """`packets` from that of a whole picture on: containers seek to what they flag as key, before it or after."""
        for packet in packets:
            if packet.pts == stamp:
                yield from chain([packet], packets)
            elif packet.pts is None or self.index.places.get(packet.pts, place) >= place:
                return

    # ------------------------------------------------------------------------------------------ which frames

    def _use(self, index: Index) -> None:
        self.index = index
        stream = self._stream
        base, rate = float(stream.time_base or 0), float(stream.average_rate or stream.guessed_rate or 0)
        self.tick = base
        self.times = [(stamp - index.stamps[0]) * base for stamp in index.stamps]
        span = self.times[-1]
        if not 0 < rate <= 1000:
            rate = (len(self.times) - 1) / span if span > 0 else IMAGE_FPS
        self.fps = rate
        if any(later <= earlier for earlier, later in pairwise(self.times)):
            self.times = [i / rate for i in range(len(self.times))]
        self.end = self.times[-1] + (index.last * base if index.last > 0 else 1 / rate)
        stated = self._stated_seconds() - max(0.0, index.stamps[0] * base)
        if stated > 1.1 * span + 2 / rate and not self._damage:
            self._damage = [f"{self.path} is truncated: its header states {stated:.2f} s, it holds {span:.2f} s"]

    def _stated_seconds(self) -> float:
        """When the last frame ends by the header of a Matroska or WebM file, which counts no frames; else 0."""
        assert self._container is not None
        if "matroska" not in self._container.format.name:
            return 0.0
        with contextlib.suppress(KeyError, ValueError):  # the writer's statistics, per stream
            hours, minutes, seconds = self._stream.metadata["DURATION"].split(":")
            return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
        alone = len(list(self._container.streams)) == 1
        return (self._container.duration or 0) / av.time_base if alone else 0.0

    def _scan(self) -> Index | None:
        """The index from the packets alone, or None where they do not tell the frames for certain."""
        codec = self._stream.codec_context
        whole = whole_picture_test(codec.name, bytes(codec.extradata or b""))
        if whole is None or _has_alpha_track(self._stream):
            return None
        entries: list[Entry] = []
        problems: list[str] = []
        size, last = 0, (0, 0)  # last: stamp and length of the packet shown last
        kept: list[av.Packet] = []
        for packet in self._demuxed(problems):
            if packet.pts is None or packet.is_corrupt:
                return None
            key = packet.is_keyframe
            entries.append(Entry(packet.pts, key, key and whole(bytes(packet)), packet.is_discard))
            last = max(last, (packet.pts, packet.duration or 0))
            size += packet.size
            if size <= _KEPT:
                kept.append(packet)
        if problems or 0 < self._promised() != len(entries):
            return None
        self._kept = kept if size <= _KEPT else []
        return build_index(entries, last[1])

    def _promised(self) -> int:
        """Packets that the file's tables tell of, those before a cut included; 0 where there are none."""
        assert self._container is not None
        tables = "mov" in self._container.format.name
        return len(self._stream.index_entries) if tables else self._stream.frames

    def _count(self) -> Index:
        """The index from decoding every frame; damage is told once as a warning."""
        problems: list[str] = []
        rate = self._stream.average_rate or self._stream.guessed_rate or IMAGE_FPS
        step = float(1 / (rate * (self._stream.time_base or 1)))
        stamps: list[int] = []
        last = 0
        for frame in self._decoded(self._packets(None, problems), problems):
            stamps.append(frame.pts if frame.pts is not None else round(len(stamps) * step))
            last = frame.duration or 0
        if not stamps:
            raise UserError(f"{self.path} holds no frame that can be decoded; the file is truncated or damaged")
        promised = self._promised_frames()
        if problems or len(stamps) < promised:
            told = f" of {promised}" if promised > len(stamps) else ""
            self._damage = [f"{self.path} is damaged or truncated: {len(stamps)}{told} frames could be decoded"]
        return Index(stamps, last=last)

    def _promised_frames(self) -> int:
        """Likewise frames, without those before a cut."""
        assert self._container is not None
        if "mov" in self._container.format.name:
            return sum(not entry.is_discard for entry in self._stream.index_entries)
        return self._stream.frames

    # ------------------------------------------------------------------------------------------ decoding

    def _read(self, wanted: list[int]) -> np.ndarray | None:
        """The frames through PyAV, or None where one that the index promises is not found."""
        problems: list[str] = []
        walk = self._walk_by_stamp if self.index.by_stamp else self._walk_by_count
        frames = [self._screen.show(frame) for frame in walk(wanted, problems)]
        if len(frames) < len(wanted) or (problems and self.index.by_stamp):
            return None
        if len({frame.shape for frame in frames}) > 1:
            note = f"{self.path} changes its frame size; every frame was scaled to the first one's"
            self._notes = [note]
            height, width = frames[0].shape[:2]
            frames = [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR)) for f in frames]
        return np.stack(frames)

    def _walk_by_count(self, wanted: list[int], problems: list[str]) -> Iterator[VideoFrame]:
        """The wanted frames, counted from the start of the file."""
        numbers = iter(wanted)
        number = next(numbers)
        for i, frame in enumerate(self._decoded(self._packets(None, problems), problems)):
            if i == number:
                yield frame
                number = next(numbers, -1)
                if number < 0:
                    return

    def _walk_by_stamp(self, wanted: list[int], problems: list[str]) -> Iterator[VideoFrame]:
        """The wanted frames by time stamp, skipping ahead wherever a whole picture allows it. Ends early on a miss."""
        frames: Iterator[VideoFrame] | None = None
        following = 0  # stamp of the frame after the newest one taken
        for number in wanted:
            stamp, start = self.index.stamps[number], self.index.start_before(number)
            if frames is None or start[0] > following:
                frames = self._decoded(self._packets(start, problems), problems)
            frame = next((f for f in frames if f.pts is None or f.pts >= stamp), None)
            if frame is None or frame.pts != stamp:
                return
            following = self.index.stamps[min(number + 1, len(self.index.stamps) - 1)]
            yield frame

    def _decoded(self, packets: Iterator[av.Packet], problems: list[str]) -> Iterator[VideoFrame]:
        """Frames in presentation order; damaged packets and frames are left out and noted in `problems`."""
        decoder = _alpha_decoder(self._stream) or self._stream.codec_context
        for packet in chain(packets, [None]):
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                problems.append(str(error))
                continue
            for frame in frames:
                if isinstance(frame, VideoFrame) and not frame.is_corrupt:
                    yield frame
                else:
                    problems.append("corrupt frame")


def _has_alpha_track(stream: av.VideoStream) -> bool:
    """Whether this is WebM with an alpha plane beside the colours, which FFmpeg's own decoders leave out."""
    return stream.metadata.get("alpha_mode") == "1" and stream.codec_context.name in _ALPHA_DECODERS


def _alpha_decoder(stream: av.VideoStream) -> av.VideoCodecContext | None:
    if not _has_alpha_track(stream):
        return None
    decoder = av.CodecContext.create(_ALPHA_DECODERS[stream.codec_context.name], "r")
    decoder.extradata = stream.codec_context.extradata
    return decoder if isinstance(decoder, av.VideoCodecContext) else None
