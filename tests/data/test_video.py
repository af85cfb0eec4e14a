"""Reading clips: frames by number from every container, and damaged input."""

from __future__ import annotations

import os
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from animatediff.data import decode
from animatediff.data.images import natural_key
from animatediff.data.video import read_frames
from animatediff.errors import UserError


def moving_square(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 [count, height, width, 3]: a gradient and a square; five bars on top spell the number of the frame."""
    y, x = np.mgrid[:height, :width]
    frames = np.stack([np.stack([x * 2, y * 3, x + y], -1) for _ in range(count)]).astype(np.uint8)
    for i in range(count):
        frames[i, 20:32, i % 40 : i % 40 + 12] = (250, 30, 200)
        for bit in range(5):
            frames[i, :12, 12 * bit : 12 * bit + 12] = 255 * (i >> bit & 1)
    return frames


def write(path, frames, codec="libx264", pixels="yuv420p", options=None, stamps=None, rate=10, rotation=None, mux=None):
    """Encode with PyAV; `stamps` in milliseconds make a variable frame rate."""
    with av.open(str(path), "w", options=mux or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        if stamps is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for i, pixels_rgb in enumerate(frames):
            layout = "rgba" if pixels_rgb.shape[-1] == 4 else "rgb24"
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels_rgb), layout).reformat(format=pixels)
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(frames: np.ndarray) -> list[int]:
    """Which frame of `moving_square` each one is (modulo 32), read from its bars."""
    return [sum(int(f[2:10, 12 * bit + 3 : 12 * bit + 9].mean() > 128) << bit for bit in range(5)) for f in frames]


FORMATS = {
    "plain.mp4": {},
    "groups.mp4": {"options": {"g": "6", "bf": "3"}},
    "open_groups.mp4": {"options": {"x264-params": "keyint=6:open-gop=1:bframes=3"}},
    "variable.mp4": {"stamps": [100 * i + 30 * (i % 3) + 400 * (i > 10) for i in range(24)]},
    "late.mp4": {"stamps": [500 + 100 * i for i in range(24)]},
    "turned.mp4": {"rotation": 90},
    "full_chroma.mov": {"pixels": "yuv444p"},
    "hevc.mp4": {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
    "ten_bits.mp4": {"pixels": "yuv420p10le"},
    "plain.mkv": {},
    "vp9.webm": {"codec": "libvpx-vp9", "options": {"cpu-used": "8"}},
    "vp8.webm": {"codec": "libvpx", "options": {"cpu-used": "8"}},
    "mpeg4.avi": {"codec": "mpeg4"},
    "mjpeg.avi": {"codec": "mjpeg", "pixels": "yuvj420p"},
    "animation.gif": {"codec": "gif", "pixels": "rgb8"},
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_frames_by_number(tmp_path, name):
    path = write(tmp_path / name, moving_square(24), **FORMATS[name])
    every = read_frames(path, None)
    assert every.total == 24
    assert every.indices == tuple(range(24))
    assert every.warnings == ()
    if "rotation" not in FORMATS[name]:
        assert numbers(every.frames) == list(range(24))
    expected = {None: [0, 5, 11, 17, 23], 13: [13, 15, 18, 20, 23]}
    if name == "variable.mp4":
        expected = {None: [0, 6, 10, 16, 23], 13: [13, 15, 18, 21, 23]}
    for first, chosen in expected.items():
        some = read_frames(path, 5, start=None if first is None else every.times[first])
        assert list(some.indices) == chosen
        assert np.array_equal(some.frames, every.frames[chosen])


def test_long_files_are_read_by_seeking_and_short_ones_from_memory_alike(tmp_path, monkeypatch):
    """Every start, in files whose key flags are right, mean recovery points, or are on every packet."""
    frames = moving_square(64)
    for name, options in {
        "closed.mp4": {"g": "12", "bf": "2"},
        "open.mkv": {"x264-params": "keyint=12:open-gop=1:bframes=3"},
        "refresh.mp4": {"x264-params": "keyint=12:intra-refresh=1:bframes=0"},
        "closed.ts": {"g": "12", "bf": "2"},
    }.items():
        path = write(tmp_path / name, frames, options=options)
        whole = read_frames(path, None)
        assert whole.total == 64
        for kept in (decode._KEPT, 0):
            monkeypatch.setattr(decode, "_KEPT", kept)
            for start in (0, 5, 13, 30, 47, 60):
                some = read_frames(path, 3, start=whole.times[start])
                assert np.array_equal(some.frames, whole.frames[list(some.indices)])
                assert some.warnings == ()
                assert some.indices[0] == start
        monkeypatch.undo()


@pytest.mark.parametrize("kept", [decode._KEPT, 0])
def test_seeking_skips_what_it_need_not_decode(tmp_path, monkeypatch, kept):
    path = write(tmp_path / "long.mp4", moving_square(96), options={"g": "12", "bf": "2"})
    yielded = []

    def counting(self, packets, problems, original=decode.VideoSource._decoded):
        for frame in original(self, packets, problems):
            yielded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode.VideoSource, "_decoded", counting)
    monkeypatch.setattr(decode, "_KEPT", kept)
    with decode.open_source(path) as source:
        assert yielded == []
        assert numbers(source.read([0, 50, 95])) == [0, 50 % 32, 95 % 32]
        assert len(yielded) == 1 + 3 + 12  # from key frames 0, 48 and 84
        yielded.clear()
        source.read(range(96))
        assert len(yielded) == 96  # nothing twice


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (180, 2), (-90, 3)])
def test_rotation_is_applied(tmp_path, degrees, turns):
    frames = moving_square(4)
    exact = {"x264-params": "cpu-independent=1"}  # else the two files can differ by a level
    upright = read_frames(write(tmp_path / "a.mp4", frames, options=exact), None).frames
    turned = read_frames(write(tmp_path / "b.mp4", frames, options=exact, rotation=degrees), None).frames
    assert np.array_equal(turned, np.rot90(upright, turns, axes=(1, 2)))


def test_grey_and_odd_sizes(tmp_path):
    grey = read_frames(write(tmp_path / "g.mp4", moving_square(4), pixels="gray"), None).frames
    assert grey.shape == (4, 48, 64, 3)
    assert np.ptp(grey.astype(int), axis=-1).max() <= 1
    frames = moving_square(4, 47, 63)
    odd = read_frames(write(tmp_path / "o.mkv", frames, codec="ffv1", pixels="bgr0"), None).frames
    assert np.array_equal(odd, frames)


def test_alpha_lies_over_black(tmp_path):
    frames = np.concatenate([moving_square(3), np.full((3, 48, 64, 1), 255, np.uint8)], -1)
    frames[:, :, 40:, 3] = 0
    frames[:, :, 32:40, 3] = 128
    clip = read_frames(write(tmp_path / "a.mov", frames, codec="qtrle", pixels="argb"), None).frames
    assert np.array_equal(clip[:, :, :32], frames[:, :, :32, :3])
    assert not clip[:, :, 40:].any()
    assert np.abs(clip[:, :, 32:40] - frames[:, :, 32:40, :3] * (128 / 255)).max() <= 0.5
    (tmp_path / "frames").mkdir()
    Image.fromarray(frames[0], "RGBA").save(tmp_path / "frames" / "0.png")
    assert np.array_equal(read_frames(tmp_path / "frames", None).frames[0], clip[0])


@pytest.mark.parametrize("codec", ["libvpx", "libvpx-vp9"])
def test_alpha_of_webm_lies_over_black(tmp_path, codec):
    frames = np.concatenate([moving_square(4), np.full((4, 48, 64, 1), 255, np.uint8)], -1)
    frames[:, :, 40:, 3] = 0
    options = {"auto-alt-ref": "0", "cpu-used": "8"}
    path = write(tmp_path / "a.webm", frames, codec=codec, pixels="yuva420p", options=options)
    clip = read_frames(path, None)
    assert clip.total == 4
    assert clip.frames[:, 34:, 44:].max() <= 2
    assert np.abs(clip.frames[:, 34:, :36].astype(int) - frames[:, 34:, :36, :3]).mean() < 8


def test_folder_of_images_in_natural_order(tmp_path):
    frames = moving_square(11)
    for i, frame in enumerate(frames):
        Image.fromarray(frame).save(tmp_path / f"shot {i}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / ".hidden.png").write_text("not a frame")
    clip = read_frames(tmp_path, 4)
    assert clip.indices == (0, 3, 6, 10)
    assert (clip.fps, clip.total) == (8.0, 11)
    assert np.array_equal(clip.frames, frames[[0, 3, 6, 10]])
    assert sorted(["b10", "b9", "a", "10", "9"], key=natural_key) == ["a", "b9", "b10", "9", "10"]


def test_images_of_every_kind_become_rgb(tmp_path):
    ramp = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(ramp).save(tmp_path / "0.png")
    Image.fromarray(ramp.astype(np.uint16) * 256 + 7).save(tmp_path / "1.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "2.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(ramp))).save(tmp_path / "3.png", exif=exif)
    clip = read_frames(tmp_path, None)
    for frame in clip.frames:
        assert np.array_equal(frame, np.repeat(ramp[..., None], 3, -1))
    assert read_frames(tmp_path / "0.png").warnings  # one image is a clip without motion


def test_start_and_duration(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(24))
    assert read_frames(path, None, start=0.5, duration=0.4).indices == (5, 6, 7, 8)
    assert read_frames(path, None, start=0.55, duration=0.4).indices == (5, 6, 7, 8, 9)  # 5 is on screen at 0.55
    assert read_frames(path, 3, start=1.0).indices == (10, 16, 23)
    assert read_frames(path, None, start=2.39).indices == (23,)
    assert read_frames(path, None, duration=99).total == 24
    assert read_frames(path, None, duration=0.01).indices == (0,)
    clip = read_frames(path, None, duration=0.3)
    assert clip.indices == (0, 1, 2)
    assert clip.times == pytest.approx((0, 0.1, 0.2))


def test_variable_rate_counts_seconds_not_frames(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(10), stamps=[0, 100, 200, 1000, 1100, 1200, 1300, 1400, 1500, 1600])
    assert read_frames(path, None, start=1.0, duration=0.25).indices == (3, 4, 5)
    assert read_frames(path, None, start=0.5, duration=0.1).indices == (2,)


def test_too_few_frames_repeat_with_a_warning(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(3))
    clip = read_frames(path, 8)
    assert clip.indices == (0, 0, 0, 0, 1, 1, 1, 2)
    assert clip.frames.shape[0] == 8
    assert clip.warnings == (f"{path} gives 3 frames where 8 were asked for; frames are repeated",)
    assert len(read_frames(path, 1000).frames) == 1000


def test_one_frame_video(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(1))
    clip = read_frames(path, 4)
    assert clip.indices == (0, 0, 0, 0)
    assert "no motion" in clip.warnings[0]
    assert read_frames(path, 1).warnings == ()


@pytest.fixture
def whole(tmp_path):
    """Bytes of a 60-frame mp4 with its index at the front."""
    path = write(tmp_path / "whole.mp4", moving_square(60), options={"g": "10"}, mux={"movflags": "+faststart"})
    return path.read_bytes()


def test_truncated_mp4_gives_what_decodes(tmp_path, whole):
    path = tmp_path / "cut.mp4"
    path.write_bytes(whole[: len(whole) * 6 // 10])
    clip = read_frames(path, 4)
    assert 10 < clip.total < 60
    assert numbers(clip.frames) == [i % 32 for i in clip.indices]
    assert clip.warnings == (f"{path} is damaged or truncated: {clip.total} of 60 frames could be decoded",)
    path.write_bytes(whole[: whole.index(b"mdat") + 4])
    with pytest.raises(UserError, match=r"no frame that can be decoded; the file is truncated"):
        read_frames(path)


def test_truncated_mp4_with_its_index_lost(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(24))
    content = path.read_bytes()
    path.write_bytes(content[: content.index(b"moov")])
    with pytest.raises(UserError, match=r"a\.mp4 as a video: not a video, or its header is lost"):
        read_frames(path)


def test_truncated_matroska_says_so(tmp_path):
    path = write(tmp_path / "a.mkv", moving_square(24))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    clip = read_frames(path, 2)
    assert clip.total < 24
    assert clip.warnings[0].startswith(f"{path} is truncated: its header states 2.40 s, it holds")


def test_damage_inside_is_counted_again(tmp_path, whole):
    path = tmp_path / "noise.mp4"
    middle = len(whole) // 2
    noise = np.random.default_rng(0).integers(0, 256, 400, dtype=np.uint8).tobytes()
    path.write_bytes(whole[:middle] + noise + whole[middle + 400 :])
    clip = read_frames(path, None)
    assert clip.total < 60
    assert clip.warnings == (f"{path} is damaged or truncated: {clip.total} of 60 frames could be decoded",)
    assert clip.indices == tuple(range(clip.total))


def test_sound_without_picture(tmp_path):
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 2048), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(UserError, match="no video stream"):
        read_frames(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.mp4", b"", "is empty (0 bytes)"),
        ("a.mp4", b"just some words\n" * 40, "not a video"),
        ("a.mp4", b"ffconcat version 1.0\nfile 'b.mp4'\n", "not a video"),
        ("a.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nb.mp4\n#EXT-X-ENDLIST\n", "not a video"),
        ("a.png", b"no picture", "cannot read the image"),
    ],
)
def test_files_that_are_no_video(tmp_path, capfd, name, content, message):
    write(tmp_path / "b.mp4", moving_square(2))
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_frames(tmp_path / name)
    assert message in str(raised.value)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_missing_paths_and_bad_folders(tmp_path):
    with pytest.raises(UserError, match=r"no video at .*nope\.mp4"):
        read_frames(tmp_path / "nope.mp4")
    with pytest.raises(UserError, match="holds no images"):
        read_frames(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    Image.new("RGB", (9, 6)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1\.png is 9x6, but 0\.png is 8x6"):
        read_frames(tmp_path, 2)
    (tmp_path / "1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        read_frames(tmp_path, 2)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match="not a regular file"):
        read_frames(tmp_path / "pipe.mp4")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames is 0"),
        ({"num_frames": -3}, "num_frames is -3"),
        ({"start": -1}, "start is -1"),
        ({"start": float("nan")}, "start is nan"),
        ({"start": 2.4}, r"start is 2.4 s, but .*a.mp4 is 2.40 s long"),
        ({"duration": 0}, "duration is 0"),
        ({"duration": -2.5}, "duration is -2.5"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    path = write(tmp_path / "a.mp4", moving_square(24))
    with pytest.raises(UserError, match=message):
        read_frames(path, **arguments)


def test_names_are_never_taken_for_patterns_or_addresses(tmp_path):
    for name in ("clip%03d.mp4", "a:b?.mp4", "with space é.mp4"):
        assert read_frames(write(tmp_path / name, moving_square(2)), 2).total == 2
