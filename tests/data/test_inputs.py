"""Clips and pictures of the awkward kinds that people bring, made here; what is right for each."""

from __future__ import annotations

import os
import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from animatediff.data import decode, pixels, rereads
from animatediff.data.images import read_image
from animatediff.data.packets import Entry, build_index, whole_picture_test
from animatediff.data.video import is_steady, read_frames, sample_indices
from animatediff.errors import UserError
from tests.data.test_video import moving_square, numbers, write

EXACT = {"x264-params": "cpu-independent=1"}


def bar(times, height=64, width=96):
    """uint8 [f, h, w, 3]: a bar whose centre stands at 8 + (width - 16) t of the columns, for t in 0..1."""
    frames = np.full((len(times), height, width, 3), 30, np.uint8)
    for frame, time in zip(frames, times, strict=True):
        centre = round(8 + (width - 16) * time)
        frame[:, centre - 4 : centre + 4] = 230
    return frames


def shown_times(frames):
    """The t of each frame of `bar`."""
    light = frames.mean(axis=(1, 3)) > 130
    return [(np.flatnonzero(row).mean() + 0.5 - 8) / (frames.shape[2] - 16) for row in light]


# ---------------------------------------------------------------------------------------------- time


def test_frames_are_chosen_by_time_where_the_rate_varies(tmp_path):
    stamps = [*range(0, 750, 17), *range(765, 3765, 200)]  # 45 frames at 60 a second, then 15 at 5 a second
    path = write(tmp_path / "vfr.mp4", bar(np.array(stamps) / 3765), stamps=stamps, pixels="yuv444p")
    clip = read_frames(path, 16)
    assert clip.warnings == ()
    steps = np.diff(shown_times(clip.frames))
    assert 0 < steps.min() <= steps.max() < 0.12  # by number the largest is 0.21
    assert clip.pace == pytest.approx(15 / 3.565, rel=0.01)
    late = read_frames(path, 8, start=0.5, duration=2)
    assert np.diff(shown_times(late.frames)).max() < 0.12
    assert late.times[0] == pytest.approx(0.493)


def test_gif_of_varying_speed(tmp_path):
    times = [*np.arange(20) * 0.02, *(0.4 + np.arange(8) * 0.2)]
    pictures = [Image.fromarray(frame) for frame in bar(np.array(times) / 2, width=416)]
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], duration=[20] * 20 + [200] * 8)
    clip = read_frames(tmp_path / "a.gif", 16)
    assert clip.total == 28
    assert np.diff(shown_times(clip.frames)).max() < 0.14
    assert clip.warnings == (f"{tmp_path / 'a.gif'} gives 12 frames where 16 were asked for; frames are repeated",)


@pytest.mark.parametrize(
    ("times", "tick", "steady"),
    [
        (np.arange(60) / 30, 0, True),
        (np.cumsum([0.0, *([0.1, 0.108] * 20)]), 0, True),  # within 10 %
        (np.cumsum([0.0, *[0.1] * 20, *[0.12] * 20]), 0, False),
        (np.round(np.arange(60) / 30, 2), 0.01, True),  # 30 a second in hundredths: 3, 3, 4, ...
        (np.delete(np.arange(60) / 30, 40), 0, True),  # one frame dropped
        ([*np.arange(30) / 30, *(5 + np.arange(30) / 30)], 0, False),  # one still of 4 s in the middle
        ([0.0], 0, True),
        ([0.0, 0.1, 0.9], 0, False),
    ],
)
def test_what_counts_as_one_rate(times, tick, steady):
    assert is_steady(list(times), tick) is steady


def test_the_published_rule_holds_at_one_rate(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(30), rate=Fraction(30000, 1001))
    assert read_frames(path, 16).indices == tuple(sample_indices(30, 16))


@pytest.mark.parametrize("suffix", [".webp", ".png", ".avif"])
def test_animated_pictures_are_clips(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    frames = bar(np.arange(12) / 12)
    pictures = [Image.fromarray(frame) for frame in frames]
    options = {} if suffix == ".png" else {"lossless": True} if suffix == ".webp" else {"quality": 100}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100, **options)
    clip = read_frames(path, 12)
    assert (clip.total, clip.indices, clip.warnings) == (12, tuple(range(12)), ())
    assert np.abs(np.array(shown_times(clip.frames)) - np.arange(12) / 12).max() < 0.01
    assert clip.pace == pytest.approx(10)
    assert read_frames(path, 3, start=0.6).indices == (6, 8, 11)
    renamed = path.rename(tmp_path / "clip.mp4")  # content tells, not the name
    assert np.array_equal(read_frames(renamed, 12).frames, clip.frames)


def test_animated_pictures_of_varying_speed_and_a_still_before_them(tmp_path):
    lengths = [50] * 10 + [250] * 6
    times = np.cumsum([0, *lengths[:-1]]) / sum(lengths)
    pictures = [Image.fromarray(frame) for frame in bar(times)]
    still = Image.new("RGB", pictures[0].size)
    still.save(
        tmp_path / "a.png", save_all=True, append_images=pictures, duration=[*lengths], default_image=True, loop=0
    )
    clip = read_frames(tmp_path / "a.png", 8)
    assert clip.total == 16
    assert np.diff(shown_times(clip.frames)).max() < 0.26
    assert clip.frames[0].max() == 230


def test_held_drawings_are_counted(tmp_path):
    drawings = bar(np.arange(12) / 12)
    path = write(tmp_path / "held.mp4", np.repeat(drawings, 10, axis=0), rate=60)
    clip = read_frames(path, 16)
    assert clip.warnings == (f"{path} shows frames several times: 12 of the 16 taken are distinct",)
    assert set(np.bincount(np.array(clip.indices) // 10)) == {1, 2}
    assert read_frames(write(tmp_path / "on ones.mp4", bar(np.arange(60) / 60)), 16).warnings == ()


def test_slow_motion_is_no_held_drawing(tmp_path):
    """A ramp of grey that creeps: neighbours differ by a few levels everywhere, and none of them is another's copy."""
    ramp = np.linspace(0, 200, 96)[None, :, None].repeat(64, 0).repeat(3, 2)
    frames = np.stack([ramp + 2 * step for step in range(16)]).astype(np.uint8)
    assert read_frames(write(tmp_path / "slow.mp4", frames), 16).warnings == ()


# ---------------------------------------------------------------------------------------------- pixels


@pytest.mark.parametrize(("aspect", "shown"), [(Fraction(2), (96, 128)), (Fraction(1, 2), (192, 64))])
def test_pixels_become_square(tmp_path, aspect, shown):
    y, x = np.mgrid[:96, :64]
    disc = (x - 32) ** 2 * aspect**2 + (y - 48) ** 2 < 24**2 * (1 if aspect > 1 else aspect**2)
    frames = np.repeat(np.where(disc[..., None], 220, 20).astype(np.uint8)[None], 4, 0).repeat(3, -1)
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 96, 64, "yuv444p"
        stream.codec_context.sample_aspect_ratio = aspect
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    clip = read_frames(tmp_path / "a.mp4", None)
    assert clip.frames.shape[1:3] == shown
    inside = clip.frames[0, ..., 0] > 120
    assert abs(int(inside.any(0).sum()) - int(inside.any(1).sum())) <= 1  # round


@pytest.mark.parametrize("flips", [(True, False), (False, True), (True, True)])
@pytest.mark.parametrize("degrees", [0, 90, 180])
def test_mirrored_and_turned(tmp_path, degrees, flips):
    """As the matrix is defined: the pixel at (x, y) is shown at (a x + c y, b x + d y)."""
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options=EXACT)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(degrees, hflip=flips[0], vflip=flips[1])
        for frame in moving_square(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    clip = read_frames(path, None)
    plain = read_frames(write(tmp_path / "b.mp4", moving_square(2), options=EXACT), None).frames
    with av.open(str(path)) as container:
        matrix = next(container.decode(video=0)).side_data.get("DISPLAYMATRIX")
    values = struct.unpack("=5i", bytes(matrix)[:20]) if matrix else (65536, 0, 0, 0, 65536)  # none: upright
    a, b, _, c, d = (value / 65536 for value in values)
    y, x = np.mgrid[:48, :64]
    across, down = np.rint(a * x + c * y).astype(int), np.rint(b * x + d * y).astype(int)
    across, down = across - across.min(), down - down.min()
    expected = np.zeros((2, down.max() + 1, across.max() + 1, 3), np.uint8)
    expected[:, down, across] = plain
    assert np.array_equal(clip.frames, expected)


def test_interlaced_frames_are_not_combed_and_named(tmp_path):
    """A disc that jumps between fields: one field alone shows it once."""
    frames = np.full((12, 64, 96, 3), 30, np.uint8)
    for i, frame in enumerate(frames):
        frame[0::2, 8 + 4 * i : 24 + 4 * i] = 220
        frame[1::2, 8 + 4 * i + 20 : 24 + 4 * i + 20] = 220
    path = write(
        tmp_path / "a.mp4", frames, options={"flags": "+ildct+ilme", "x264-params": "tff=1:qp=4"}, pixels="yuv420p"
    )
    clip = read_frames(path, None)
    assert clip.warnings == (f"{path} is interlaced; one field of each frame is used, at half the vertical detail",)
    for i, frame in enumerate(clip.frames):
        assert np.abs(frame[8:56, 12 + 4 * i : 20 + 4 * i].astype(int) - 220).max() < 30
        assert np.abs(frame[8:56, 32 + 4 * i : 40 + 4 * i].astype(int) - 30).max() < 30


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_high_dynamic_range_is_tone_mapped_and_named(tmp_path, transfer, name):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx265", rate=10, options={"x265-params": "log-level=none"})
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p10le"
        stream.codec_context.color_trc, stream.codec_context.color_primaries = transfer, 9
        stream.codec_context.colorspace = 9
        for frame in bar(np.arange(6) / 6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    assert read_frames(path, None).warnings == (f"{path} is high dynamic range ({name}); it is tone mapped to BT.709",)


def test_tone_mapping_keeps_the_light_of_what_is_not_bright():
    """PQ levels of BT.2100: 58 % is 203 cd/m2, reference white; grey stays grey; 1000 cd/m2 and more are white."""
    grey = np.rint(np.array([0, 0.3, 0.4, 0.5806, 0.7518, 0.9, 1]) * 65535).astype(np.uint16)
    levels = pixels.tone_map(np.repeat(grey[None, :, None], 3, -1), "PQ")[0]
    assert np.ptp(levels.astype(int), axis=-1).max() <= 1
    luminance = np.array([0, 10.04, 32.46])  # cd/m2 of BT.2100's equation
    assert np.abs(levels[:3, 1] - 255 * (luminance / 203) ** (1 / 2.4)).max() <= 1
    assert levels[:, 1].tolist() == sorted(levels[:, 1].tolist())
    assert 225 < levels[3, 1] < 245
    assert levels[4:, 1].tolist() == [255, 255, 255]
    hlg = pixels.tone_map(np.full((1, 1, 3), round(0.75 * 65535), np.uint16), "HLG")
    assert abs(int(hlg[0, 0, 1]) - int(levels[3, 1])) <= 2  # 75 % of HLG is the same white (BT.2408)


def test_pictures_with_levels_of_no_stated_white(tmp_path):
    ramp = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    expected = np.repeat(np.rint(ramp * 255)[..., None], 3, -1)
    for name, levels in {
        "float": ramp,
        "float255": ramp * 255,
        "int": np.rint(ramp * 255).astype(np.int32),
        "int32": np.rint(ramp.astype(np.float64) * (2**31 - 1)).astype(np.int32) * 1,
    }.items():
        path = tmp_path / f"{name}.tiff"
        Image.fromarray(levels).save(path)
        notes: list[str] = []
        read = read_image(path, notes)
        scale = 0.5 if name == "int32" else 1
        assert np.abs(read - expected * scale).max() <= 1
        assert len(notes) == 1
        assert notes[0].startswith(f"{path} holds 32-bit levels with no stated white")
    (tmp_path / "folder").mkdir()
    for i, top in enumerate((0.5, 2.0)):  # one white for all, not each its own
        Image.fromarray(ramp * top).save(tmp_path / "folder" / f"{i}.tiff")
    clip = read_frames(tmp_path / "folder", None)
    assert clip.frames[1].max() == 2
    assert clip.frames[0].max() <= 1
    nan = ramp.copy()
    nan[0, 0] = np.nan
    Image.fromarray(nan).save(tmp_path / "nan.tiff")
    assert read_image(tmp_path / "nan.tiff", [])[0, 0].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("error")
def test_pictures_with_broken_exif_and_several_pages(tmp_path):
    frame = moving_square(1)[0]
    Image.fromarray(frame).save(tmp_path / "a.jpg", quality=95, exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
    assert np.abs(read_frames(tmp_path / "a.jpg", 1).frames[0].astype(int) - frame).mean() < 12
    pages = [Image.fromarray(f) for f in moving_square(3)]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    clip = read_frames(tmp_path / "a.tiff", 1)
    assert np.array_equal(clip.frames[0], moving_square(1)[0])
    assert clip.warnings == (f"{tmp_path / 'a.tiff'} holds 3 pictures; the first is used",)


# ---------------------------------------------------------------------------------------------- containers


def patched(path, old: bytes, new: bytes, count=1):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, count))
    return path


def test_tags_in_other_encodings(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "cafX plage"
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in moving_square(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    patched(path, b"cafX plage", b"caf\xe9 plage")
    assert read_frames(path, None).total == 6


def add_cover(container):
    stream = container.add_stream("png", rate=1)
    stream.height, stream.width, stream.pix_fmt = 20, 20, "rgb24"
    stream.disposition = av.stream.Disposition.attached_pic
    return stream


@pytest.mark.parametrize("place", [0, 1])
def test_cover_pictures_are_never_the_video(tmp_path, place):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        cover = add_cover(container) if place == 0 else None
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        cover = cover or add_cover(container)
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((20, 20, 3), np.uint8), "rgb24")))
        container.mux(cover.encode())
        for frame in moving_square(12):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    clip = read_frames(path, None)
    assert (numbers(clip.frames), clip.warnings) == (list(range(12)), ())


def test_sound_and_a_cover_hold_no_video(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        song, cover = container.add_stream("aac", rate=44100), add_cover(container)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), "fltp", "mono")
        sound.sample_rate = 44100
        container.mux(song.encode(sound))
        container.mux(song.encode())
        container.mux(cover.encode(av.VideoFrame.from_ndarray(np.zeros((20, 20, 3), np.uint8), "rgb24")))
        container.mux(cover.encode())
    with pytest.raises(UserError, match="holds no video stream"):
        read_frames(path)


def test_the_first_of_two_streams(tmp_path):
    path = tmp_path / "a.mp4"
    frames = moving_square(24)
    with av.open(str(path), "w") as container:
        streams = [container.add_stream("libx264", rate=10) for _ in range(2)]
        for stream in streams:
            stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for i in range(24):
            for stream, frame in zip(streams, (frames[i], 255 - frames[-1 - i]), strict=True):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), "rgb24")))
        for stream in streams:
            container.mux(stream.encode())
    for _ in range(2):  # read again: decord takes the other stream of such files
        assert numbers(read_frames(path, None).frames) == list(range(24))


def test_without_a_table_of_key_frames(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(60), options={"g": "20", "bf": "3"})
    whole = read_frames(path, None)
    patched(path, b"stss", b"free")  # every packet counts as key now
    for start in (0.0, 0.7, 2.5, 4.1):
        clip = read_frames(path, 5, start=start)
        assert np.array_equal(clip.frames, whole.frames[list(clip.indices)])
        assert clip.indices[0] == round(start * 10)


def cut(path, begin: int, length: int):
    """Shorten an mp4 to `length` from `begin`, in units of the stream's time base, as cutters without encoding do."""
    content = bytearray(path.read_bytes())
    place = content.index(b"elst")
    version, count, _, start = struct.unpack(">IIIi", content[place + 4 : place + 20])
    assert (version, count) == (0, 1)
    with av.open(str(path)) as container:
        base = container.streams.video[0].time_base
        scale = struct.unpack(">I", content[content.index(b"mvhd") + 16 :][:4])[0]
    content[place + 12 : place + 20] = struct.pack(">Ii", round(length * base * scale), start + begin)
    path.write_bytes(content)


def test_edit_lists_are_sound(tmp_path):
    path = write(tmp_path / "a.mp4", moving_square(60), options={"g": "20", "bf": "3"})
    with av.open(str(path)) as container:
        step = int(Fraction(1, 10) / container.streams.video[0].time_base)
    whole = read_frames(path, None)
    cut(path, 25 * step, 30 * step)
    for kept in (decode._KEPT, 0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(decode, "_KEPT", kept)
            clip = read_frames(path, None)
            assert clip.warnings == ()
            assert np.array_equal(clip.frames, whole.frames[25 : 25 + clip.total])
            assert clip.total in (30, 31, 32)
            some = read_frames(path, 3, start=1.2)
            assert np.array_equal(some.frames, clip.frames[list(some.indices)])


def test_matroska_that_starts_late_is_sound(tmp_path):
    path = write(tmp_path / "a.mkv", moving_square(24), stamps=[71_600_000 + 100 * i for i in range(24)])
    clip = read_frames(path, None)
    assert (clip.total, clip.warnings) == (24, ())
    assert clip.times[0] == 0


def test_a_stream_that_appears_on_the_way(tmp_path):
    """A packet of a transport stream that belongs to no stream known so far."""
    path = write(tmp_path / "a.ts", moving_square(60))
    content = bytearray(path.read_bytes())
    starts = [i for i in range(0, len(content), 188) if content[i + 1 : i + 3] == b"\x41\x00"]  # of a picture each
    assert len(starts) == 60
    content[starts[30] + 2] = 0x27
    path.write_bytes(content)
    with av.open(str(path)) as container, pytest.raises(IndexError):  # what the library makes of it
        list(container.demux(container.streams.video[0]))
    clip = read_frames(path, None)
    assert clip.total == 59
    assert numbers(clip.frames[:30]) == list(range(30))


def test_a_video_that_begins_after_a_minute_of_sound(tmp_path):
    sound = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
    sound.sample_rate = 44100
    for name, seconds, frames in (("1.ts", 60, []), ("2.ts", 1, moving_square(24))):
        with av.open(str(tmp_path / name), "w") as container:
            song = container.add_stream("aac", rate=44100)
            stream = container.add_stream("libx264", rate=10) if len(frames) else None
            if stream:
                stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
            for second in range(seconds):
                sound.pts = second * 44100
                container.mux(song.encode(sound))
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
            container.mux([*song.encode(), *(stream.encode() if stream else [])])
    path = tmp_path / "a.ts"
    path.write_bytes((tmp_path / "1.ts").read_bytes() + (tmp_path / "2.ts").read_bytes())
    assert numbers(read_frames(path, None).frames) == list(range(24))


def test_names_that_are_no_text(tmp_path):
    made = write(tmp_path / "a.mp4", moving_square(6))
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.mp4")
    try:
        os.rename(made, name)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert numbers(read_frames(name, None).frames) == list(range(6))


def test_too_long_names_and_giant_frames(tmp_path):
    with pytest.raises(UserError, match="cannot read .*xxx: File name too long"):
        read_frames(tmp_path / ("x" * 300))
    with pytest.raises(UserError, match="states frames of 30000x30000, expected at most 8192x8192"):
        pixels.check_size(tmp_path / "a.mp4", 30000, 30000)


# ---------------------------------------------------------------------------------------------- folders


def test_folders_with_nothing_to_read(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(UserError, match=r"holds no images: a\.png is no file"):
        read_frames(tmp_path)
    (tmp_path / "a.png").rmdir()
    (tmp_path / "b.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"holds no images: b\.png is a link to nothing"):
        read_frames(tmp_path)
    Image.new("RGB", (8, 6)).save(tmp_path / "c.png")
    (tmp_path / "d.png").mkdir()
    clip = read_frames(tmp_path, 1)
    assert clip.total == 1
    assert clip.warnings == (f"{tmp_path}: b.png is a link to nothing, so it is left out (and 1 more)",)


# ---------------------------------------------------------------------------------------------- what is a whole picture


def test_whole_pictures_by_their_headers():
    h264 = whole_picture_test("h264", b"\x01d\0\n\xff")  # lengths of four bytes
    assert h264(b"\0\0\0\x01\x09" + b"\0\0\0\x02\x65\x88")
    assert not h264(b"\0\0\0\x02\x06\x05" + b"\0\0\0\x02\x41\x9a")  # a recovery point: SEI, then a P slice
    assert not h264(b"\0\0\0\x02\x06\x05")
    assert whole_picture_test("h264", b"")(b"\0\0\0\x01\x09\xf0\0\0\x01\x65\x88")  # start codes
    hevc = whole_picture_test("hevc", b"")
    assert [hevc(b"\0\0\x01" + bytes([kind << 1, 1])) for kind in (1, 16, 19, 20, 21, 22)] == [
        False,
        *[True] * 4,
        False,
    ]
    vp9 = whole_picture_test("vp9", b"")
    assert [vp9(bytes([head])) for head in (0x80, 0x84, 0x88, 0xB0, 0xB2, 0x00)] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    av1 = whole_picture_test("libdav1d", b"")
    assert av1(b"\x12\x00\x0a\x01\x00\x32\x01\x10")
    assert not av1(b"\x12\x00\x32\x01\x10")  # no sequence header of its own
    assert not av1(b"\x12\x00\x0a\x01\x00\x32\x01\x30")  # an inter frame
    assert whole_picture_test("mpeg4", b"") is None
    for test in (h264, hevc, vp9, av1):
        assert test(b"") is False


def test_an_index_needs_certain_packets():
    sound = [Entry(i, i % 4 == 0, i % 4 == 0, False) for i in range(8)]
    index = build_index(sound, 1)
    assert index.plain
    assert [index.start_before(i) for i in (0, 3, 4, 7)] == [(0, 0), (0, 0), (4, 4), (4, 4)]
    assert build_index([sound[1], *sound]) is None  # the first cannot be decoded alone
    assert build_index([*sound, sound[3]]) is None  # two of one time
    assert build_index([*sound[:3], sound[3]._replace(discard=True), *sound[4:]]) is None  # a cut inside
    led = [sound[0]._replace(stamp=-2, discard=True), *sound[1:]]
    assert build_index(led).stamps == list(range(1, 8))
    assert not build_index(led).plain


# ---------------------------------------------------------------------------------------------- decord


@pytest.fixture
def decord():
    if rereads._decord() is None:
        pytest.skip("decord is not installed here")
    rereads._checksums.clear()
    yield
    rereads._checksums.clear()


@pytest.fixture
def reads(monkeypatch):
    """Which decoder answered each read."""
    answers = []

    def pyav(self, wanted, original=decode.VideoSource._read):
        answers.append("PyAV")
        return original(self, wanted)

    def again(path, original=rereads.reread):
        frames = original(path)
        if frames is not None:
            answers.append("decord")
        return frames

    monkeypatch.setattr(decode.VideoSource, "_read", pyav)
    monkeypatch.setattr(decode, "reread", again)
    return answers


def test_decord_reads_again_what_pyav_has_read_whole(tmp_path, decord, reads):
    for size in ((48, 64), (50, 66), (60, 102)):
        path = write(tmp_path / f"{size}.mp4", moving_square(24, *size), options={"g": "6"})
        first = read_frames(path, 5)
        every = read_frames(path, None)
        again = read_frames(path, 24)
        part = read_frames(path, 5, start=1.0)
        assert reads == ["PyAV", "PyAV", "decord", "PyAV"]
        assert np.array_equal(every.frames, again.frames)
        assert np.array_equal(first.frames, every.frames[list(first.indices)])
        assert np.array_equal(part.frames, every.frames[list(part.indices)])
        reads.clear()


def test_decord_does_not_read_what_it_would_read_otherwise(tmp_path, decord, reads):
    """Damaged files, changed ones, and any whose frames it gives otherwise than PyAV."""
    plain = write(tmp_path / "plain.mp4", moving_square(8))
    read_frames(plain, None)
    write(plain, moving_square(9))
    assert read_frames(plain, None).total == 9
    content = bytearray(write(tmp_path / "damaged.mp4", moving_square(60)).read_bytes())
    middle = content.index(b"mdat") + 3000
    content[middle : middle + 300] = bytes(300)
    (tmp_path / "damaged.mp4").write_bytes(content)
    for _ in range(2):
        assert "damaged" in read_frames(tmp_path / "damaged.mp4", None).warnings[0]
    assert "decord" not in reads


def test_decord_missing_or_failing_means_pyav(tmp_path, decord, monkeypatch):
    path = write(tmp_path / "a.mp4", moving_square(8))
    before = read_frames(path, None).frames
    with monkeypatch.context() as patch:
        patch.setattr(rereads, "_decord", lambda: None)
        assert np.array_equal(read_frames(path, None).frames, before)
    import decord as library

    def fail(path):
        raise library.DECORDError("no")

    monkeypatch.setattr(library, "VideoReader", fail)
    assert np.array_equal(read_frames(path, None).frames, before)


def test_one_wrong_pixel_of_decord_means_pyav_for_good(tmp_path, decord, reads, monkeypatch):
    import decord as library

    class Wrong(library.VideoReader):
        def get_batch(self, indices):
            frames = super().get_batch(indices).asnumpy()
            frames[-1, -1, -1, -1] ^= 1
            return library.nd.array(frames)

    path = write(tmp_path / "a.mp4", moving_square(8))
    before = read_frames(path, None).frames
    with monkeypatch.context() as patch:
        patch.setattr(library, "VideoReader", Wrong)
        assert np.array_equal(read_frames(path, None).frames, before)
    assert np.array_equal(read_frames(path, None).frames, before)
    assert reads == ["PyAV"] * 3
