"""Where each frame of a video lies, from its packets alone: the index, and which packets hold whole pictures.

A container's key flag is not enough to start decoding: files without a table of key frames flag every packet, and
recovery points (x264's intra-refresh) are flagged though they need what came before. The picture headers tell.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Entry(NamedTuple):
    """One packet, in units of the stream's time base."""

    stamp: int  # when its picture is shown
    key: bool  # flagged as key by the container
    whole: bool  # decoding can start here: everything shown from it on is decoded from it on
    discard: bool  # decoded, not shown (before the first cut of an edit list)


@dataclass(frozen=True)
class Index:
    """Frames by number in presentation order, each with its time stamp."""

    stamps: list[int]
    starts: list[tuple[int, int]] = field(default_factory=list)  # (stamp, place in decoding order) of whole pictures
    places: dict[int, int] = field(default_factory=dict)  # stamp of a packet -> its place in decoding order
    last: int = 0  # how long the last frame is shown, 0 where the file does not say
    plain: bool = False  # every packet is shown and every key is a whole picture

    @property
    def by_stamp(self) -> bool:
        """Frames can be found by their stamps; otherwise they are counted from the start of the file."""
        return bool(self.starts)

    def start_before(self, number: int) -> tuple[int, int]:
        """The whole picture, as (stamp, place), from which frame `number` is decoded with the least work."""
        return self.starts[bisect_right(self.starts, self.stamps[number], key=lambda start: start[0]) - 1]


def build_index(entries: Sequence[Entry], last: int = 0) -> Index | None:
    """The index of packets in decoding order, or None where they do not tell the frames for certain."""
    shown = sorted(entry.stamp for entry in entries if not entry.discard)
    if not shown or not entries[0].whole or entries[0].stamp > shown[0]:
        return None
    places = {entry.stamp: place for place, entry in enumerate(entries)}
    cut_inside = any(entry.discard and shown[0] <= entry.stamp <= shown[-1] for entry in entries)
    if len(places) < len(entries) or cut_inside:
        return None
    starts = [(entry.stamp, place) for place, entry in enumerate(entries) if entry.whole]
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(starts)):
        return None
    plain = all(entry.key == entry.whole and not entry.discard for entry in entries)
    return Index(shown, starts, places, last, plain)


def whole_picture_test(codec: str, extradata: bytes) -> Callable[[bytes], bool] | None:
    """Whether a packet of `codec` flagged as key holds a whole picture; None for codecs not known to tell.

    Only codecs are known in which one packet is one shown frame.
    """
    if codec in ("mjpeg", "prores"):
        return lambda data: True
    if codec == "h264":
        length = (extradata[4] & 3) + 1 if len(extradata) > 4 and extradata[0] == 1 else 0
        return lambda data: _first_slice(data, length, lambda head: head & 31, range(1, 6)) == 5  # IDR
    if codec == "hevc":
        length = (extradata[21] & 3) + 1 if len(extradata) > 21 and extradata[0] == 1 else 0
        return lambda data: _first_slice(data, length, lambda head: head >> 1 & 63, range(32)) in range(16, 22)  # IRAP
    if codec in ("vp9", "libvpx-vp9"):
        return _vp9_key
    if codec in ("av1", "libdav1d"):
        return _av1_key
    return None


def _first_slice(data: bytes, length: int, kind: Callable[[int], int], slices: range) -> int | None:
    """Type of the first NAL unit that is a slice. `length`: bytes of the length before each, 0 for start codes."""
    place = 0
    while place < len(data):
        if length:
            size = int.from_bytes(data[place : place + length], "big")
            head, following = place + length, place + length + size
        else:
            head = data.find(b"\0\0\1", place) + 3
            following = head
            if head < 3:
                return None
        if head >= len(data):
            return None
        if kind(data[head]) in slices:
            return kind(data[head])
        place = following
    return None


def _vp9_key(data: bytes) -> bool:
    """VP9 bitstream specification, section 6.2: frame marker, profile, show_existing_frame, frame_type."""
    if not data or data[0] >> 6 != 2:
        return False
    shift = 2 if data[0] & 0x30 == 0x30 else 3  # profile 3 has a reserved bit more
    return data[0] >> (shift - 1) & 3 == 0


def _av1_key(data: bytes) -> bool:
    """AV1 bitstream specification, sections 5.3 and 5.9: a shown key frame after a sequence header of its own."""
    place, sequence = 0, False
    while place < len(data):
        head = data[place]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        place += 1 + extended
        size = len(data) - place
        if sized:
            size, shift = 0, 0
            while place < len(data):
                byte = data[place]
                size |= (byte & 127) << shift
                shift, place = shift + 7, place + 1
                if byte < 128 or shift > 56:
                    break
        if kind in (3, 6):  # a frame header, alone or with its frame
            return sequence and place < len(data) and data[place] >> 4 == 1
        sequence = sequence or kind == 1
        place += size
    return False
