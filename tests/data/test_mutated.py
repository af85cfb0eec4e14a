"""Damaged bytes of small clips and pictures: frames of the right shape or a UserError of one line, nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from animatediff.data.video import read_frames
from animatediff.errors import UserError
from tests.data.test_video import moving_square, write

VIDEOS = {
    "a.mp4": {"options": {"g": "5", "bf": "2"}},
    "b.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}, "mux": {"movflags": "frag_keyframe"}},
    "c.mkv": {},
    "d.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "e.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "f.ts": {},
    "g.flv": {},
    "h.gif": {"codec": "gif", "pixels": "rgb8"},
    "i.mpg": {"codec": "mpeg2video", "rate": 25},
    "j.mov": {"rotation": 90, "stamps": [100 * i + 40 * (i > 6) for i in range(12)]},
}
PICTURES = ("k.png", "l.jpg", "m.webp", "n.bmp", "o.tif", "p.tiff", "q.avif")
ANIMATED = ("r.png", "s.webp", "t.avif")


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Name -> bytes of a sound file of each kind."""
    folder = tmp_path_factory.mktemp("sound")
    frames = moving_square(12)
    for name, options in VIDEOS.items():
        write(folder / name, frames, **options)
    pictures = [Image.fromarray(frame) for frame in frames]
    for name in PICTURES:
        levels = Image.fromarray(np.linspace(0, 1, 48 * 64, dtype=np.float32).reshape(48, 64))
        (levels if name == "p.tiff" else pictures[0]).save(folder / name)
    for name in ANIMATED:
        pictures[0].save(folder / name, save_all=True, append_images=pictures[1:4], duration=90)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def damage(content: bytes, edits: list[tuple[str, float, int, int]]) -> bytes:
    """`content` with some bytes changed, overwritten, cut out, put in or cut off."""
    changed = bytearray(content)
    for kind, where, length, value in edits:
        # Half of the edits go to the first kilobyte, where headers are.
        place = int(2 * where * min(1024, len(changed))) if where < 0.5 else int((2 * where - 1) * len(changed))
        if kind == "flip" and place < len(changed):
            changed[place] ^= value or 1
        elif kind == "fill":
            changed[place : place + length] = bytes([value]) * len(changed[place : place + length])
        elif kind == "cut":
            del changed[place : place + length]
        elif kind == "put":
            changed[place:place] = bytes([value]) * length
        elif kind == "end":
            del changed[max(1, place) :]
    return bytes(changed)


EDITS = st.lists(
    st.tuples(
        st.sampled_from(["flip", "flip", "flip", "fill", "cut", "put", "end"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(1, 64),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=6,
)


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=settings.default.max_examples * 3)
@given(data=st.data())
def test_damaged_files_give_frames_or_one_line(tmp_path_factory, sound, data):
    name = data.draw(st.sampled_from(sorted(sound)))
    content = damage(sound[name], data.draw(EDITS))
    path = tmp_path_factory.getbasetemp() / f"mutated-{name}"
    path.write_bytes(content)
    refusal = ""
    try:
        clip = read_frames(path, 4, start=data.draw(st.sampled_from([None, 0.3])))
    except UserError as error:
        refusal = str(error)
    if refusal:
        assert "\n" not in refusal
        assert name in refusal
        return
    assert clip.frames.dtype == np.uint8
    assert clip.frames.ndim == 4
    assert clip.frames.shape[0] == len(clip.indices) == len(clip.times) == 4
    assert clip.frames.shape[3] == 3
    assert list(clip.indices) == sorted(clip.indices)
    assert 0 <= clip.indices[0] <= clip.indices[-1] < clip.total
    assert np.isfinite([clip.fps, clip.pace, *clip.times]).all()
    assert clip.fps > 0
    assert clip.pace > 0
    assert all("\n" not in line and line for line in clip.warnings)
