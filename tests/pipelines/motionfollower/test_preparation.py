"""The preparation behind other doors: what it is asked for, and what there is to look at."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from animatediff.data.export import save_frames, save_video
from animatediff.inference.run import run_of
from animatediff.pipelines.motionfollower import preparation
from animatediff.pipelines.motionfollower.preparation import MotionFollowerPreparation


def test_a_click_is_a_pixel_of_the_clip(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(preparation, "prepare", lambda *given, on_progress: asked.append(given))
    source, driving = tmp_path / "source.mp4", tmp_path / "driving.mp4"
    save_video(source, np.zeros((2, 48, 64, 3), np.uint8))
    save_video(driving, np.zeros((2, 32, 32, 3), np.uint8))
    run = run_of([("test", {"method": "motionfollower", "ref_video_path": str(driving), "height": 64, "width": 96})])
    folder = tmp_path / "prepared"
    MotionFollowerPreparation().make(run, {"source_path": source}, {"source_path": (0.5, 1.0)}, folder, print)
    ((*paths, options),) = asked
    assert paths == [source, driving, folder]
    assert (options.height, options.width, options.num_frames) == (64, 96, 24)
    assert (options.source_subject, options.driving_subject) == ("31.5,47.0", "")


def test_views_show_masks_and_skeletons_over_the_frames(tmp_path: Path):
    black = np.zeros((3, 32, 48, 3), np.uint8)
    half = black.copy()
    half[:, :, :24] = 255
    grey = np.full_like(black, 100)
    sequences = {"source_images": grey, "target_images": black, "source_poses": half, "target_aligned_poses": black,
                 "source_masks": half, "predicted_masks": black}  # fmt: skip
    for name, frames in sequences.items():
        save_frames(tmp_path / name, frames)
    masked, skeleton, driving, aligned, later = MotionFollowerPreparation().views(tmp_path)
    assert masked.frames[0, 0, 0].tolist() == [185, 94, 78]  # 0.45 x 100 + 0.55 x the tint
    assert masked.frames[0, 0, 47].tolist() == later.frames[0, 0, 0].tolist() == [100, 100, 100]
    assert skeleton.frames[0, 0, 0].tolist() == [255, 255, 255]
    assert skeleton.frames[0, 0, 47].tolist() == aligned.frames[0, 0, 0].tolist() == [55, 55, 55]
    np.testing.assert_array_equal(driving.frames, black)
    assert [view.subject for view in (masked, skeleton, driving, aligned, later)] == [
        "source_path", "", "ref_video_path", "", ""]  # fmt: skip
