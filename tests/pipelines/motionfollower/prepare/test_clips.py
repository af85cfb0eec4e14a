"""Which frames and which part of both clips are taken."""

import numpy as np
import pytest
from PIL import Image

from animatediff.data.export import save_video
from animatediff.errors import UserError
from animatediff.pipelines.motionfollower.prepare import PrepareOptions
from animatediff.pipelines.motionfollower.prepare.clips import choose, read_detected, read_written, scaled, square


def frames(count, height=32, width=64):
    rng = np.random.default_rng(count)
    return rng.integers(0, 256, (count, height, width, 3), np.uint8)


def folder_of(path, pictures):
    path.mkdir()
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(path / f"{i}.png")
    return path


@pytest.fixture
def videos(tmp_path):
    """Four seconds at 24 frames a second, and two at 30."""
    save_video(tmp_path / "long.mp4", frames(96), 24)
    save_video(tmp_path / "short.mp4", frames(60, 48, 32), 30)
    return tmp_path / "long.mp4", tmp_path / "short.mp4"


def test_frames_of_both_lie_at_the_same_times(videos):
    source, driving = choose(*videos, PrepareOptions(fps=6, driving_start=0.5))
    assert source.numbers == tuple(range(0, 36, 4))  # 1.5 s are left of the shorter clip
    assert driving.numbers == tuple(range(15, 60, 5))
    three = choose(*videos, PrepareOptions(num_frames=3, fps=6))
    assert [window.numbers for window in three] == [(0, 4, 8), (0, 5, 10)]


def test_every_image_of_a_folder_is_a_frame(tmp_path, videos):
    folder = folder_of(tmp_path / "images", frames(5))
    source, driving = choose(folder, videos[1], PrepareOptions(fps=15))
    assert source.numbers == (0, 1, 2, 3, 4)
    assert driving.numbers == (0, 2, 4, 6, 8)


def test_sizes_and_shapes(tmp_path):
    pictures = frames(2)  # 32 x 64
    folder = folder_of(tmp_path / "wide", pictures)
    source, _ = choose(folder, folder, PrepareOptions(height=64, width=64))
    assert (source.stretch, source.detected_size()) == (2.0, (32, 64))
    wanted = np.asarray(Image.fromarray(pictures[1]).resize((64, 64), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(read_written(source)[1], wanted)
    np.testing.assert_array_equal(read_detected(source), pictures)
    assert square((64, 64), source.stretch) == (64, 128)
    crop, driving = choose(folder, folder, PrepareOptions(height=64, width=64, fit="crop"))
    assert (crop.stretch, crop.box, driving.stretch) == (1.0, (16, 0, 48, 32), 2.0)
    np.testing.assert_array_equal(read_detected(crop), pictures[:, :, 16:48])
    pad, _ = choose(folder, folder, PrepareOptions(height=64, width=64, fit="pad"))
    assert (pad.stretch, pad.box) == (1.0, (0, -16, 64, 48))
    np.testing.assert_array_equal(read_detected(pad)[:, 16:48], pictures)
    assert not read_detected(pad)[:, :16].any()
    auto, _ = choose(folder, folder, PrepareOptions(height=64, width=64, fit="auto"))
    assert auto.size == (48, 96)
    assert auto.stretch == pytest.approx(1.0)


def test_large_clips_are_looked_at_smaller(tmp_path):
    folder = folder_of(tmp_path / "large", np.zeros((2, 100, 1536, 3), np.uint8))
    assert choose(folder, folder, PrepareOptions())[0].detected_size() == (50, 768)
    keypoints = np.ones((1, 60, 3), np.float32)
    np.testing.assert_array_equal(scaled(keypoints, 2, 3)[0, 0], (2, 3, 1))


def test_one_frame_and_a_start_past_the_end(tmp_path, videos):
    one = folder_of(tmp_path / "one", frames(1))
    with pytest.raises(UserError, match=r"one gives 1 frame, and driving is to be a clip of 2 or more"):
        choose(videos[0], one, PrepareOptions())
    with pytest.raises(UserError, match=r"a start of 9 s is past the end of .*long\.mp4, which is 4\.00 s long"):
        choose(*videos, PrepareOptions(source_start=9))
