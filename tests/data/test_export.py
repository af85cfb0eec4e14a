"""Writing results: what is written reads back, nothing half-written stays, names are safe and never collide."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from animatediff.data.export import check_frames_folder, safe_name, save_frames, save_gif, save_video, side_by_side
from animatediff.data.video import read_frames
from animatediff.errors import UserError
from animatediff.files import atomic_group

ROOT = Path(__file__).parents[2]


def smooth_frames(count: int = 6, height: int = 32, width: int = 48) -> np.ndarray:
    """uint8 [count, height, width, 3]: colour ramps that drift."""
    y, x = np.mgrid[:height, :width]
    return np.stack([np.stack([x * 4 + 2 * i, y * 6, 200 - x - y + 0 * i], -1) for i in range(count)]).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


def test_video_is_what_a_browser_plays(tmp_path):
    frames = smooth_frames()
    save_video(tmp_path / "deep" / "a.mp4", frames, fps=12)
    clip = read_frames(tmp_path / "deep" / "a.mp4", None)
    assert (clip.total, clip.fps) == (6, 12.0)
    assert difference(clip.frames, frames) < 3
    with av.open(str(tmp_path / "deep" / "a.mp4")) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt, codec.colorspace, codec.color_range) == ("h264", "yuv420p", 1, 1)
    content = (tmp_path / "deep" / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")
    assert os.listdir(tmp_path / "deep") == ["a.mp4"]


def test_flat_colours_survive(tmp_path):
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0), (128, 64, 32)]
    frames = np.stack([np.full((16, 16, 3), colour, np.uint8) for colour in colours])
    save_video(tmp_path / "a.mp4", frames)
    assert np.abs(read_frames(tmp_path / "a.mp4", None).frames.astype(int) - frames).max() <= 3


def test_same_frames_same_bytes_whatever_was_encoded_before(tmp_path):
    rng = np.random.default_rng(0)

    def textured() -> np.ndarray:  # flat clips and ramps hide the difference
        coarse = smooth_frames(16, 64, 64) + 12 * rng.normal(size=(16, 16, 16, 3)).repeat(4, axis=1).repeat(4, axis=2)
        return coarse.clip(0, 255).astype(np.uint8)

    same, written = textured(), set()
    for _ in range(6):
        save_video(tmp_path / "other.mp4", textured())
        save_video(tmp_path / "same.mp4", same)
        written.add((tmp_path / "same.mp4").read_bytes())
    assert len(written) == 1


@pytest.mark.parametrize("size", [(31, 47), (1, 1), (32, 33)])
def test_odd_sides_gain_a_copy_of_the_last_line(tmp_path, size):
    frames = smooth_frames(3, *size)
    save_video(tmp_path / "a.mp4", frames)
    read = read_frames(tmp_path / "a.mp4", None).frames
    assert read.shape[1:3] == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert difference(read[:, : size[0], : size[1]], frames) < 4


def test_gif_keeps_the_rate_on_average(tmp_path):
    frames = smooth_frames(9)
    save_gif(tmp_path / "a.gif", frames, fps=8)
    with Image.open(tmp_path / "a.gif") as image:
        delays = []
        for i in range(image.n_frames):
            image.seek(i)
            delays.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert len(delays) == 9
    assert set(delays) == {120, 130}
    assert sum(delays) == 1120  # nine frames at 8 fps, to the hundredth below
    assert difference(read_frames(tmp_path / "a.gif", None).frames, frames) < 4


def test_a_gif_of_one_frame(tmp_path):
    save_gif(tmp_path / "a.gif", smooth_frames(1), fps=8)
    with Image.open(tmp_path / "a.gif") as image:
        assert (image.n_frames, image.info["duration"]) == (1, 120)
    assert difference(read_frames(tmp_path / "a.gif", None).frames, smooth_frames(1)) < 4


def test_names_that_mean_something_to_imageio_are_plain_names(tmp_path):
    frames = smooth_frames(2)
    save_gif(tmp_path / "clips.zip" / "<bytes>.gif", frames)
    save_frames(tmp_path / "clips.zip" / "frames", frames)
    assert sorted(os.listdir(tmp_path / "clips.zip")) == ["<bytes>.gif", "frames"]
    assert np.array_equal(read_frames(tmp_path / "clips.zip" / "frames", None).frames, frames)


def test_frames_read_back_to_the_bit_and_are_replaced_whole(tmp_path):
    frames = smooth_frames()
    save_frames(tmp_path / "out" / "frames", frames)
    assert np.array_equal(read_frames(tmp_path / "out" / "frames", None).frames, frames)
    save_frames(tmp_path / "out" / "frames", frames[:2])
    assert sorted(os.listdir(tmp_path / "out" / "frames")) == ["00000.png", "00001.png"]
    assert os.listdir(tmp_path / "out") == ["frames"]


def write_frames_in_a_group(folder: Path) -> None:
    with atomic_group(record=folder / "a.json") as new:
        save_frames(new(folder / "frames"), smooth_frames())


def test_a_folder_that_frames_could_not_take_is_told_beforehand(tmp_path):
    """In a group, too: what counts is where the frames are to end up."""
    check_frames_folder(tmp_path / "new")
    save_frames(tmp_path / "frames", smooth_frames())
    check_frames_folder(tmp_path / "frames")
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(UserError, match="holds other files than frames, so it is not replaced"):
            check_frames_folder(folder)
    (tmp_path / "frames" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="/frames holds other files than frames"):
        write_frames_in_a_group(tmp_path)
    assert (tmp_path / "frames" / "notes.txt").read_text() == "mine"


def test_frames_never_replace_a_users_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds other files than frames"):
        save_frames(tmp_path, smooth_frames())
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_frames_failing_half_way_keep_the_old_ones(tmp_path, monkeypatch):
    save_frames(tmp_path / "frames", smooth_frames(2))
    saved = []

    def full_disk(self, file, original=Image.Image.save, **options):
        saved.append(file)
        if len(saved) == 3:
            raise OSError(28, "No space left on device")
        original(self, file, **options)

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(UserError, match="frames failed: No space left on device"):
        save_frames(tmp_path / "frames", smooth_frames(5))
    assert os.listdir(tmp_path) == ["frames"]
    assert len(os.listdir(tmp_path / "frames")) == 2


def test_frames_that_cannot_take_their_place_leave_the_old_ones(tmp_path, monkeypatch):
    save_frames(tmp_path / "frames", smooth_frames(2))
    moves = []

    def refuse_second(source, target, original=os.replace):
        moves.append(target)
        if len(moves) == 2:
            raise OSError(13, "Permission denied")
        original(source, target)

    monkeypatch.setattr(os, "replace", refuse_second)
    with pytest.raises(UserError, match="Permission denied"):
        save_frames(tmp_path / "frames", smooth_frames(5))
    assert os.listdir(tmp_path) == ["frames"]
    assert len(os.listdir(tmp_path / "frames")) == 2


LIMITED = """
import resource, signal, sys
import numpy as np
from animatediff.data import export
from animatediff.errors import UserError
noise = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    getattr(export, sys.argv[1])(sys.argv[2], noise)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize(
    ("writer", "name", "limit"),
    [
        ("save_video", "a.mp4", 40),
        ("save_video", "a.mp4", 30_000),
        ("save_gif", "a.gif", 9000),
        ("save_frames", "f", 500),
    ],
)
def test_no_room_leaves_nothing(tmp_path, writer, name, limit):
    """The system refuses to let a file grow past a limit, as a full disk does, wherever the writer happens to be."""
    command = [sys.executable, "-c", LIMITED, writer, str(tmp_path / name), str(limit)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"writing {tmp_path / name} failed: File too large\n"
    assert done.stderr == ""
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("writer", "name"), [(save_video, "a.mp4"), (save_gif, "a.gif"), (save_frames, "frames")])
def test_a_folder_that_cannot_be_made(tmp_path, writer, name):
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(UserError, match=r"failed: (Not a directory|File exists)"):
        writer(tmp_path / "taken" / name, smooth_frames())
    assert os.listdir(tmp_path) == ["taken"]


def test_a_failing_video_keeps_the_old_one(tmp_path, monkeypatch):
    save_video(tmp_path / "a.mp4", smooth_frames())
    before = (tmp_path / "a.mp4").read_bytes()

    def broken(*_, **__):
        raise av.error.InvalidDataError(1094995529, "Invalid data found when processing input")

    monkeypatch.setattr(av.VideoFrame, "from_ndarray", broken)
    with pytest.raises(UserError, match=r"writing .*a\.mp4 failed: Invalid data"):
        save_video(tmp_path / "a.mp4", smooth_frames())
    assert (tmp_path / "a.mp4").read_bytes() == before
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_bad_arguments_are_named(tmp_path):
    with pytest.raises(UserError, match=r"a\.txt; end the name in \.mp4, \.mov, \.mkv"):
        save_video(tmp_path / "a.txt", smooth_frames())
    for writer, name in ((save_video, "a.mp4"), (save_gif, "a.gif")):
        for fps in (0, -8, float("nan"), 5000):
            with pytest.raises(UserError, match=f"fps is {fps}"):
                writer(tmp_path / name, smooth_frames(), fps)
    with pytest.raises(ValueError, match=r"frames are float64 \[6, 32, 48, 3\]"):
        save_video(tmp_path / "a.mp4", smooth_frames() / 255)
    assert os.listdir(tmp_path) == []


def test_side_by_side_pairs_frames_by_time_and_scales_the_reference():
    reference = np.stack([np.full((10, 20, 3), 40 * i, np.uint8) for i in range(5)])
    output = np.full((3, 30, 24, 3), 7, np.uint8)
    joined = side_by_side(reference, output)
    assert joined.shape == (3, 30, 60 + 24, 3)
    assert joined[:, 0, 0, 0].tolist() == [0, 80, 160]
    assert np.array_equal(joined[:, :, 60:], output)
    assert np.ptp(joined[1, :, :60]) == 0
    longer = side_by_side(reference[:2, :, :5], np.zeros((4, 10, 5, 3), np.uint8))
    assert longer[:, 0, 0, 0].tolist() == [0, 0, 40, 40]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat runs", "a-cat-runs"),
        ("00c4e6f642692c12", "00c4e6f642692c12"),
        ("sample_wolf", "sample_wolf"),
        ("A cat", "a-cat--"),
        ("a-cat", "a-cat--"),
        ("a  cat", "a-cat--"),
        ("a cat ", "a-cat--"),
        ("un café, s'il vous plaît", "un-cafe-s-il-vous-plait--"),
        ("../../etc/passwd", "etc-passwd--"),
        ("C:\\Windows\\con", "c-windows-con--"),
        ("line\nbreak\0", "line-break--"),
        ("con", "con--"),
        ("lpt1", "lpt1--"),
        ("🐺", "untitled--"),
        ("", "untitled--"),
        ("...", "untitled--"),
        ("x" * 10_000, "x" * 46 + "--"),
        ("\udcff", "untitled--"),
    ],
)
def test_safe_name(text, expected):
    name = safe_name(text)
    assert len(name) <= 60
    if expected.endswith("--"):
        assert name[: len(expected)] == expected
        assert len(name) == len(expected) + 12
        assert all(digit in "0123456789abcdef" for digit in name[-12:])
    else:
        assert name == expected


def test_safe_names_never_collide():
    hashed = safe_name("A cat")
    texts = [
        "a cat",
        "A cat",
        "a-cat",
        "a_cat",
        "a  cat",
        " a cat",
        "a cat.",
        "á cat",
        hashed,
        hashed.replace("-", " "),
    ]
    texts += ["untitled", "", "🐺", "🐺🐺", "x" * 200, "x" * 201, "x" * 60]
    names = [safe_name(text).casefold() for text in texts]
    assert len(set(names)) == len(texts)
    assert len(safe_name("x" * 99, max_length=20)) == 20


def test_names_of_files_keep_their_hyphens():
    assert safe_name("00-line", spaced=False) == "00-line"
    assert safe_name("00 line", spaced=False).startswith("00-line--")
    assert safe_name("a--b", spaced=False) != "a--b"
