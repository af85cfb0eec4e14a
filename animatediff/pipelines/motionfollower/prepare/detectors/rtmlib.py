"""DWPose through rtmlib: the skeletons of the released weights' training. Its models are fetched at first use."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from animatediff.errors import UserError, one_line

VERSION = "0.0.16"
DWPOSE = (
    "https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/onnx_sdk/"
    "rtmpose-l_simcc-ucoco_dw-ucoco_270e-384x288-2438fd99_20230728.zip"
)
INPUT_SIZE = (288, 384)  # width, height of DWPose-l
BODY, LEFT_HAND, RIGHT_HAND = slice(0, 18), slice(92, 113), slice(113, 134)  # of OpenPose's 134 points
INSTALL = f"pip install --no-deps rtmlib=={VERSION} && pip install onnxruntime"


def build(tools: Any) -> RtmlibPoser:
    """The poser. UserError where rtmlib is not installed, or its models cannot be fetched."""
    for library in ("rtmlib", "onnxruntime"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"poses by rtmlib need {library}, which is not installed: {INSTALL}")
    from rtmlib import Wholebody

    device = tools.device if tools.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it tells of every file that it loads
            network = Wholebody(
                pose=DWPOSE,
                pose_input_size=INPUT_SIZE,
                mode="performance",
                to_openpose=True,
                backend="onnxruntime",
                device=device,
            )
    except Exception as error:  # urllib, zipfile, onnxruntime: each has its own
        raise UserError(
            f"rtmlib's models could not be fetched or loaded ({one_line(error)[:120]}); check the network, or choose "
            "poses mediapipe"
        ) from error
    return RtmlibPoser(network, importlib.metadata.version("rtmlib"))


class RtmlibPoser:
    """rtmlib's Wholebody in two steps: whom it sees, and the joints of one of them."""

    def __init__(self, network: Any, version: str) -> None:
        self.network = network
        self.name = f"rtmlib {version} (DWPose-l 384x288)"

    def people(self, frames: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        found = []
        for i, frame in enumerate(frames):
            for box in np.asarray(self.network.det_model(_bgr(frame)), np.float64).reshape(-1, 4):
                found.append([i, *box, 1.0])
            told(i + 1, len(frames))
        return np.array(found, np.float64).reshape(-1, 6)

    def keypoints(self, frames: np.ndarray, boxes: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        read = np.zeros((len(frames), 60, 3), np.float32)
        for i, (frame, box) in enumerate(zip(frames, boxes, strict=True)):
            if np.isfinite(box).all():
                points, scores = self.network.pose_model(_bgr(frame), bboxes=[box.tolist()])
                person = np.concatenate([points[0], np.clip(scores[0], 0, 1)[:, None]], axis=-1)  # 134 3
                read[i] = np.concatenate([person[BODY], person[LEFT_HAND], person[RIGHT_HAND]])
            told(i + 1, len(frames))
        return read


def _bgr(frame: np.ndarray) -> np.ndarray:
    """RGB (h w 3) as the networks take it."""
    return np.ascontiguousarray(frame[..., ::-1])
