"""Decoding by frame number: video files through decord or PyAV.

`open_source(path)` gives a source whose frame i is the i-th frame in presentation order, whatever the container.
The numbers come from the packets' time stamps where one packet is one frame; everywhere else, and wherever a file
turns out damaged, the file is decoded once from its start and the frames are counted.
"""

from __future__ import annotations

import contextlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Protocol

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image

from animatediff.data.images import IMAGE_FPS, IMAGE_SUFFIXES, ImageSource, list_images
from animatediff.errors import UserError, one_line

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".webm", ".mkv", ".avi", ".gif", ".mpg", ".mpeg", ".ts", ".flv", ".wmv")

# Containers that hold pictures themselves. Playlists (HLS, concat) are left out: they name other files.
_DEMUXERS = "mov,matroska,avi,gif,mpeg,mpegts,flv,asf,ogg,webp_pipe,apng"
# Codecs where one packet is one frame and a key frame can be decoded alone.
_ONE_FRAME_PER_PACKET = {"h264", "hevc", "vp9", "av1", "libdav1d", "mjpeg", "prores"}
_ALPHA_DECODERS = {"vp8": "libvpx", "vp9": "libvpx-vp9"}
# What decord's older FFmpeg converts to RGB exactly as PyAV's does (with even sides and no rotation).
_DECORD_CODECS = {"h264", "hevc", "vp9", "mjpeg"}
_DECORD_FORMATS = {"yuv420p", "yuvj420p", "yuv444p"}


class Source(Protocol):
    """Frames by number."""

    fps: float
    times: list[float]  # seconds of each frame, the first at 0
    warnings: list[str]

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Frames uint8 [len(indices), h, w, 3] RGB; indices ascending, repeats allowed."""


class Recounted(Exception):
    """The packets promised frames that did not decode; the source has counted again, so ask it anew."""


def open_source(path: Path) -> Source:
    """The source for a video file, one image, or a folder of images. UserError where nothing can be read."""
    if path.is_dir():
        return ImageSource(list_images(path))
    if not path.exists():
        raise UserError(f"no video at {path}; give a video file or a folder of images")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; give a video file or a folder of images")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give a video file or a folder of images")
    if path.suffix.lower() in IMAGE_SUFFIXES:
        return ImageSource([path])
    return VideoSource(path)


@dataclass(frozen=True)
class Index:
    """Where each frame of a video lies, in presentation order."""

    stamps: list[int]  # time stamps in units of the stream's time base, strictly rising when `seekable`
    keys: list[int]  # frame numbers that can be decoded alone; empty when not `seekable`
    seekable: bool  # frames can be found by their time stamp
    decord: bool = False  # decord decodes this stream exactly as PyAV does


class VideoSource:
    """A video file. Frames are upright; alpha is laid over black."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.warnings: list[str] = []
        scanned = self._scan()
        self._use(scanned if scanned is not None else self._count())

    def read(self, indices: Sequence[int]) -> np.ndarray:
        wanted = sorted(set(indices))
        frames = self._read_decord(wanted) if self.index.decord else None
        if frames is None:
            frames = self._read_pyav(wanted)
        if frames is None:
            self._use(self._count())
            raise Recounted
        return frames[np.searchsorted(wanted, indices)]

    def _use(self, index: Index) -> None:
        self.index = index
        with _opened(self.path) as (container, stream):
            base, rate = float(stream.time_base or 0), stream.average_rate or stream.guessed_rate
            # Matroska and WebM state their length in the header and their frames nowhere.
            video_only = "matroska" in container.format.name and len(list(container.streams)) == 1
            stated = (container.duration or 0) / av.time_base if video_only else 0.0
        self.times = [(stamp - index.stamps[0]) * base for stamp in index.stamps]
        span = self.times[-1]
        self.fps = float(rate) if rate else (len(self.times) - 1) / span if span > 0 else IMAGE_FPS
        if any(later <= earlier for earlier, later in pairwise(self.times)):
            self.times = [i / self.fps for i in range(len(self.times))]
        if stated > 1.1 * self.times[-1] + 2 / self.fps:
            self.warnings.append(f"{self.path} is truncated: its header states {stated:.2f} s, it holds {span:.2f} s")

    def _scan(self) -> Index | None:
        """The index from the packets alone, or None where they do not tell the frames for certain."""
        packets: list[tuple[int, bool]] = []
        with _opened(self.path) as (container, stream):
            codec = stream.codec_context
            decord = codec.name in _DECORD_CODECS and codec.pix_fmt in _DECORD_FORMATS
            decord = decord and codec.width % 2 == 0 and codec.height % 2 == 0 and _decord() is not None
            if codec.name not in _ONE_FRAME_PER_PACKET or _has_alpha_track(stream):
                return None
            try:
                for packet in container.demux(stream):
                    if packet.size == 0:  # the end of the stream
                        continue
                    if packet.pts is None or packet.is_corrupt or packet.is_discard:
                        return None
                    packets.append((packet.pts, packet.is_keyframe))
            except av.FFmpegError:
                return None
            if not packets or not packets[0][1] or 0 < stream.frames != len(packets):
                return None
        decord = decord and _closed_groups(packets) and self._rotation() == 0
        packets.sort()
        stamps = [stamp for stamp, _ in packets]
        if len(set(stamps)) < len(stamps) or not packets[0][1]:
            return None
        keys = [i for i, (_, is_key) in enumerate(packets) if is_key]
        return Index(stamps, keys, seekable=True, decord=decord)

    def _rotation(self) -> int:
        with _opened(self.path) as (container, stream):
            first = next(_decoded(container, stream, []), None)
            return first.rotation if first is not None else 0

    def _count(self) -> Index:
        """The index from decoding every frame; damage is told once as a warning."""
        problems: list[str] = []
        with _opened(self.path) as (container, stream):
            promised, rate = stream.frames, stream.average_rate or stream.guessed_rate or IMAGE_FPS
            step = float(1 / (rate * (stream.time_base or 1)))
            stamps = [
                frame.pts if frame.pts is not None else round(i * step)
                for i, frame in enumerate(_decoded(container, stream, problems))
            ]
        if not stamps:
            raise UserError(f"{self.path} holds no frame that can be decoded; the file is truncated or damaged")
        if problems or len(stamps) < promised:
            told = f" of {promised}" if promised > len(stamps) else ""
            self.warnings = [f"{self.path} is damaged or truncated: {len(stamps)}{told} frames could be decoded"]
        return Index(stamps, [], seekable=False)

    def _read_decord(self, wanted: list[int]) -> np.ndarray | None:
        """The frames through decord, or None where it fails."""
        decord = _decord()
        if decord is None:
            return None
        try:
            reader = decord.VideoReader(str(self.path))
            return reader.get_batch(wanted).asnumpy() if len(reader) == len(self.index.stamps) else None
        except (decord.DECORDError, IndexError, RuntimeError):
            return None

    def _read_pyav(self, wanted: list[int]) -> np.ndarray | None:
        """The frames through PyAV, or None where a frame the index promises is not found."""
        with _opened(self.path) as (container, stream):
            walk = _seek_walk if self.index.seekable else _plain_walk
            frames = [_to_rgb(frame) for frame in walk(container, stream, self.index, wanted)]
        if len(frames) < len(wanted):
            return None
        if len({frame.shape for frame in frames}) > 1:
            self.warnings.append(f"{self.path} changes its frame size; every frame was scaled to the first one's")
            height, width = frames[0].shape[:2]
            frames = [np.asarray(Image.fromarray(f).resize((width, height), Image.Resampling.BILINEAR)) for f in frames]
        return np.stack(frames)


def _closed_groups(packets: list[tuple[int, bool]]) -> bool:
    """Whether no packet, in decoding order, is shown before a key frame that it follows.

    decord 0.6 mistakes frames around such key frames (open groups of pictures) after a seek.
    """
    newest_key = packets[0][0]
    for stamp, is_key in packets:
        if stamp < newest_key:
            return False
        newest_key = stamp if is_key else newest_key
    return True


def _plain_walk(
    container: av.container.InputContainer, stream: av.VideoStream, index: Index, wanted: list[int]
) -> Iterator[VideoFrame]:
    """The wanted frames, counted from the start of the file."""
    numbers = iter(wanted)
    number = next(numbers)
    for i, frame in enumerate(_decoded(container, stream, [])):
        if i == number:
            yield frame
            number = next(numbers, -1)
            if number < 0:
                return


def _seek_walk(
    container: av.container.InputContainer, stream: av.VideoStream, index: Index, wanted: list[int]
) -> Iterator[VideoFrame]:
    """The wanted frames by time stamp, skipping ahead wherever a key frame allows it. Ends early on a miss."""
    frames, reached = _decoded(container, stream, []), -1
    for number in wanted:
        key = index.keys[bisect_right(index.keys, number) - 1]
        if key > reached + 1:
            container.seek(index.stamps[key], stream=stream, backward=True)
            frames = _decoded(container, stream, [])
        frame = next((f for f in frames if f.pts is None or f.pts >= index.stamps[number]), None)
        if frame is None or frame.pts != index.stamps[number]:
            return
        reached = number
        yield frame


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, problems: list[str]
) -> Iterator[VideoFrame]:
    """Frames in presentation order; damaged packets and frames are left out and noted in `problems`."""
    packets, alpha = container.demux(stream), _alpha_decoder(stream)
    while True:
        try:
            packet = next(packets)
            if alpha is None:
                frames = packet.decode()
            else:
                frames = alpha.decode(packet if packet.size else None)
        except StopIteration:
            return
        except (av.EOFError, av.OSError) as error:
            problems.append(str(error))
            return
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


def _to_rgb(frame: VideoFrame) -> np.ndarray:
    """uint8 [h, w, 3] RGB, upright, alpha over black."""
    if any(component.is_alpha for component in frame.format.components):
        rgba = np.asarray(frame.to_ndarray(format="rgba"), np.uint16)
        rgb = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
    else:
        rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    return np.ascontiguousarray(np.rot90(rgb, round(frame.rotation / 90)))


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The opened file and its video stream (cover pictures do not count)."""
    options = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path.resolve()}", container_options=options)
    except av.FFmpegError as error:
        kind = "not permitted" if isinstance(error, PermissionError) else "not a video, or its header is lost"
        raise UserError(f"cannot open {path} as a video: {kind} ({one_line(error.strerror)})") from error
    with container:
        stream = next((s for s in container.streams.video if "ATTACHED_PIC" not in str(s.disposition).upper()), None)
        if stream is None or stream.codec_context is None:
            raise UserError(f"{path} holds no video stream that can be decoded")
        stream.thread_type = "AUTO"
        yield container, stream


@cache
def _decord() -> ModuleType | None:
    """decord with its decoder's log turned off, or None where it is not installed."""
    try:
        import decord
    except (ImportError, OSError):
        return None
    decord.logging.set_level(decord.logging.QUIET)
    return decord
