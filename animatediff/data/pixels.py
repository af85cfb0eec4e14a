"""A decoded video frame as a player shows it: upright, square pixels, progressive, standard range, alpha over black."""

from __future__ import annotations

import struct
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from av.sidedata.sidedata import SideData
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from animatediff.errors import UserError

MAX_PIXELS = 1 << 26  # of one video frame: 8192x8192
_WIDEST = 4  # the most that pixels are stretched; what says more is damaged

_PQ, _HLG = 16, 18  # transfer characteristics of ITU-T H.273
_WHITE, _PEAK = 203.0, 1000.0  # cd/m2: reference white (ITU-R BT.2408) and the brightest that keeps its drawing
_KNEE = 0.75  # of the white; darker levels keep their light exactly
# Linear light, BT.2020 to BT.709 primaries (ITU-R BT.2087, section 4).
_TO_BT709 = np.array(
    [[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]], dtype=np.float32
)


class Screen:
    """Turns frames of one video into pixels; `warnings` names, once each, what was done that a user should know."""

    def __init__(self, path: Path, aspect: Fraction | None) -> None:
        """`aspect`: width of a pixel by its height."""
        self.path = path
        self.aspect = aspect or Fraction(1)
        self.warnings: list[str] = []
        self._reformatter = VideoReformatter()  # kept: making one for every frame takes as long as decoding it
        if not Fraction(1, _WIDEST) <= self.aspect <= _WIDEST:
            if self.aspect > 0:
                self._warn(f"states pixels of shape {self.aspect.numerator}:{self.aspect.denominator}; square is taken")
            self.aspect = Fraction(1)

    def show(self, frame: VideoFrame) -> np.ndarray:
        """uint8 [h, w, 3] RGB."""
        height, width = frame.height, frame.width
        check_size(self.path, height, width)
        if self.aspect > 1:
            width = max(1, round(width * self.aspect))
        else:
            height = max(1, round(height / self.aspect))
        if frame.interlaced_frame and frame.height >= 4:
            self._warn("is interlaced; one field of each frame is used, at half the vertical detail")
            frame = _top_field(frame)
        if frame.color_trc in (_PQ, _HLG):
            name = "PQ" if frame.color_trc == _PQ else "HLG"
            self._warn(f"is high dynamic range ({name}); it is tone mapped to BT.709")
            rgb = tone_map(self._array(frame, "rgb48le", height, width), name)
        elif any(component.is_alpha for component in frame.format.components):
            rgba = self._array(frame, "rgba", height, width).astype(np.uint16)
            rgb = ((rgba[..., :3] * rgba[..., 3:] + 127) // 255).astype(np.uint8)
        else:
            rgb = self._array(frame, "rgb24", height, width)
        return np.ascontiguousarray(self._upright(rgb, frame))

    def _array(self, frame: VideoFrame, layout: str, height: int, width: int) -> np.ndarray:
        """[height, width, channels] of a packed layout."""
        return np.asarray(self._reformatter.reformat(frame, width, height, layout).to_ndarray())

    def _upright(self, rgb: np.ndarray, frame: VideoFrame) -> np.ndarray:
        """`rgb` by the frame's display matrix (ISO/IEC 14496-12, section 6.2.2): quarter turns and mirrors."""
        entry = frame.side_data.get("DISPLAYMATRIX")
        matrix = bytes(entry) if isinstance(entry, SideData) else b""
        if len(matrix) < 36:
            return rgb
        a, b, _, c, d, *_ = struct.unpack("=9i", matrix[:36])
        # A pixel at (x, y) is shown at (a x + c y, b x + d y).
        straight, crossed = abs(a) + abs(d), abs(b) + abs(c)
        if min(straight, crossed) > 0.02 * max(straight, crossed):
            self._warn("is to be shown at an angle; it is turned by the nearest quarter turn")
        across, down = a, d
        if crossed > straight:
            rgb, across, down = rgb.transpose(1, 0, 2), c, b  # h w 3 -> w h 3
        return rgb[:: -1 if down < 0 else 1, :: -1 if across < 0 else 1]

    def _warn(self, text: str) -> None:
        line = f"{self.path} {text}"
        if line not in self.warnings:
            self.warnings.append(line)


def check_size(path: Path, height: int, width: int) -> None:
    """UserError for frames that no memory holds 16 of."""
    if height * width > MAX_PIXELS:
        raise UserError(f"{path} states frames of {width}x{height}, expected at most 8192x8192; scale it down first")


def tone_map(pixels: np.ndarray, transfer: str) -> np.ndarray:
    """uint16 [h, w, 3] RGB of BT.2020 in PQ or HLG (ITU-R BT.2100) -> uint8 [h, w, 3] RGB of BT.709.

    Light is kept up to three quarters of the reference white of 203 cd/m2; above, 1000 cd/m2 come to the white.
    """
    light = _light_table(transfer)[pixels]
    if transfer == "HLG":  # the display's part: gamma 1.2 on luminance at a peak of 1000 cd/m2
        luminance = light @ np.array([0.2627, 0.6780, 0.0593], dtype=np.float32)
        light *= (_PEAK / _WHITE) * luminance[..., None] ** 0.2
    brightest = light.max(axis=-1, keepdims=True)
    above, span = np.maximum(brightest - _KNEE, 0) / (1 - _KNEE), (_PEAK / _WHITE - _KNEE) / (1 - _KNEE)
    rolled = np.minimum(above * (1 + above / span**2) / (1 + above), 1)
    light *= np.where(above > 0, (_KNEE + (1 - _KNEE) * rolled) / np.maximum(brightest, 1e-6), 1)
    shown = (light @ _TO_BT709.T).clip(0, 1) ** (1 / 2.4)  # the inverse of a BT.1886 display
    return (shown * 255 + 0.5).astype(np.uint8)


@cache
def _light_table(transfer: str) -> np.ndarray:
    """float32 [65536]: light of each level (BT.2100, tables 4 and 5): PQ by the reference white, HLG of the scene."""
    signal = np.linspace(0, 1, 65536)
    if transfer == "PQ":
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        return (10000 / _WHITE * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)


def _top_field(frame: VideoFrame) -> VideoFrame:
    """Every other line of each plane, from the first on: the frame's top field, half as high."""
    field = VideoFrame(frame.width, frame.height // 2, frame.format.name)
    for source, target in zip(frame.planes, field.planes, strict=True):
        lines = np.frombuffer(memoryview(source), np.uint8).reshape(-1, source.line_size)[::2]
        out = np.frombuffer(memoryview(target), np.uint8).reshape(-1, target.line_size)
        rows, columns = min(len(lines), len(out)), min(source.line_size, target.line_size)
        out[:rows, :columns] = lines[:rows, :columns]
    field.colorspace, field.color_range = frame.colorspace, frame.color_range
    field.color_trc, field.color_primaries = frame.color_trc, frame.color_primaries
    return field
