"""Clips of a stick figure, and detectors that read it off the drawing: everything but the networks is real."""

import numpy as np
import pytest
from PIL import Image

from animatediff.pipelines.motionfollower.prepare.detectors import choice
from animatediff.pipelines.motionfollower.skeleton import BODY_JOINTS, draw_skeleton, read_skeleton
from tests.pipelines.motionfollower.layout import outline, waving

SIDE = 128
FRAMES = 4


class DrawingDetector:
    """Finds the joints of a drawn figure by their colours; its outline is the drawing, thick."""

    name = "drawings"

    def __init__(self):
        self.calls = []

    def people(self, frames, told):
        self.calls.append("people")
        found = []
        for i, frame in enumerate(frames):
            joints = read_skeleton(frame)
            joints = joints[np.isfinite(joints).all(axis=-1)]
            if len(joints):
                found.append([i, *(joints.min(axis=0) - 6), *(joints.max(axis=0) + 6), 1.0])
            told(i + 1, len(frames))
        return np.array(found, float).reshape(-1, 6)

    def keypoints(self, frames, boxes, told):
        self.calls.append("keypoints")
        return np.stack([keypoints_of(read_skeleton(frame)[None])[0] for frame in frames])

    def outline(self, frames, boxes, told):
        self.calls.append("outline")
        return np.stack([outline(read_skeleton(frame), SIDE) for frame in frames])


def keypoints_of(body):
    """Joints (f 18 2) as keypoints (f 60 3) without hands."""
    keypoints = np.zeros((len(body), 60, 3), np.float32)
    seen = np.isfinite(body).all(axis=-1)
    keypoints[:, :BODY_JOINTS, :2] = np.nan_to_num(body)
    keypoints[:, :BODY_JOINTS, 2] = seen
    return keypoints


def write_clip(folder, body, side=SIDE):
    """A folder of drawings of joints (f 18 2)."""
    folder.mkdir(parents=True)
    for j, joints in enumerate(body):
        Image.fromarray(draw_skeleton(joints, size=(side, side))).save(folder / f"{j}.png")
    return folder


@pytest.fixture
def detector(monkeypatch):
    """The drawing detector in place of all others."""
    found = DrawingDetector()
    monkeypatch.setattr(choice, "POSERS", {"mediapipe": lambda tools: found})
    monkeypatch.setattr(choice, "MASKERS", {"mediapipe": lambda tools: found})
    return found


@pytest.fixture
def clips(tmp_path):
    """A figure that stands (the source) and one that raises its arm, a little smaller and to the left."""
    standing = np.repeat(waving(1, SIDE), FRAMES, axis=0)
    driving = waving(FRAMES, SIDE) * 0.9 + (0, 8)
    return write_clip(tmp_path / "standing", standing), write_clip(tmp_path / "waving", driving)
