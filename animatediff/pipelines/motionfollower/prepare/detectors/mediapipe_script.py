"""Runs in an environment of its own, where mediapipe 0.10.21 is and this project is not: frames in, people out.

    python -I mediapipe_script.py find request.npz answer.npz   frames (f h w 3) uint8 -> boxes (n 6)
    python -I mediapipe_script.py read request.npz answer.npz   frames, boxes (f 4) -> keypoints (f 60 3), masks (f h w)

Boxes of `find` are frame, x0, y0, x1, y1, score; those of `read` one a frame, NaN where there is none. All in pixels.
After each frame a line "frame I of N" goes to the standard output.
"""

from __future__ import annotations

import sys
from typing import Any

import cv2
import numpy as np

# OpenPose's 18 body joints by mediapipe's 33 points; the neck is made of the shoulders.
POINTS = (0, None, 12, 14, 16, 11, 13, 15, 24, 26, 28, 23, 25, 27, 5, 2, 8, 7)
DETECTION = """
input_stream: "image"
output_stream: "detections"
node { calculator: "PoseDetectionCpu" input_stream: "IMAGE:image" output_stream: "DETECTIONS:detections" }
"""
BODY = 1.25  # a person's box as the pose network takes it, by the circle around the body that the detector gives
CROPS = (1.3, 1.0, 1.7)  # side of what is cut out, by the side of the box; tried until a person is seen in it
SIDE = 512  # pixels to which what is cut out is brought at least
HAND = 1.9  # side of a hand's cut-out, by the forearm's length
HAND_SIDE = 256
HAND_SHIFT = 0.35  # how far the middle of a hand lies beyond the wrist, by the forearm's length
HAND_MISS = 0.45  # distance from the body's wrist at which a hand is another one, by the forearm's length
SEEN = 0.3
EDGE = 0.05  # share of a frame's side within which a joint is at the edge
BEYOND = 0.35  # share of it by which a joint may lie outside
LIMBS = ((2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 10), (11, 12), (12, 13))  # outward


def find(frames: np.ndarray) -> dict[str, np.ndarray]:
    """Boxes of all people, (n 6)."""
    from google.protobuf import text_format
    from mediapipe.framework import calculator_pb2
    from mediapipe.python.solution_base import SolutionBase

    graph = text_format.Parse(DETECTION, calculator_pb2.CalculatorGraphConfig())
    height, width = frames.shape[1:3]
    boxes = []
    for i, frame in enumerate(frames):
        # A new graph for each frame: one that goes on only follows the people that it has found.
        with SolutionBase(graph_config=graph, outputs=["detections"]) as network:
            for person in network.process({"image": np.ascontiguousarray(frame)}).detections or []:
                hip, rim = (
                    np.array([point.x * width, point.y * height])
                    for point in person.location_data.relative_keypoints[:2]
                )
                half = BODY * np.linalg.norm(rim - hip)
                boxes.append([i, *(hip - half), *(hip + half), person.score[0]])
        told(i, len(frames))
    return {"boxes": np.array(boxes, np.float32).reshape(-1, 6)}


def read(frames: np.ndarray, boxes: np.ndarray) -> dict[str, np.ndarray]:
    """Keypoints (f 60 3) and masks (f h w) in 0..255 of the person in each frame's box."""
    import mediapipe as mp

    keypoints = np.zeros((len(frames), 60, 3), np.float32)
    masks = np.zeros(frames.shape[:3], np.uint8)
    options = {"static_image_mode": True, "model_complexity": 1}
    with (
        mp.solutions.holistic.Holistic(enable_segmentation=True, smooth_segmentation=False, **options) as person,
        mp.solutions.hands.Hands(max_num_hands=1, min_detection_confidence=0.3, **options) as hand,
    ):
        for i, frame in enumerate(frames):
            if np.isfinite(boxes[i]).all():
                keypoints[i], masks[i] = read_person(person, hand, frame, boxes[i])
            told(i, len(frames))
    return {"keypoints": keypoints, "masks": masks}


def read_person(person: Any, hand: Any, frame: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One frame's keypoints (60 3) and mask (h w)."""
    from mediapipe.python.solution_base import SolutionBase

    height, width = frame.shape[:2]
    keypoints, mask = np.zeros((60, 3), np.float32), np.zeros((height, width), np.uint8)
    for crop in CROPS:
        middle, side = (box[:2] + box[2:]) / 2, crop * max(box[2:] - box[:2])
        cut, matrix = cut_out(frame, middle, side, max(SIDE, min(1024, round(side))))
        # Not the class's own `process`, which takes away how sure the network is that a joint is in the picture.
        found = SolutionBase.process(person, {"image": cut})
        if found.pose_landmarks is not None:
            break
    else:
        return keypoints, mask
    points = landmarks(found.pose_landmarks, cut, matrix)
    for joint, point in enumerate(POINTS):
        if point is not None:
            keypoints[joint] = points[point]
    keypoints[1, :2] = keypoints[[2, 5], :2].mean(axis=0)
    keypoints[1, 2] = keypoints[[2, 5], 2].min()
    for first, elbow, wrist, own in ((18, 6, 7, found.left_hand_landmarks), (39, 3, 4, found.right_hand_landmarks)):
        keypoints[first : first + 21] = read_hand(hand, frame, keypoints[elbow], keypoints[wrist], own, cut, matrix)
    leave_frame(keypoints, width, height)
    if found.segmentation_mask is not None:
        levels = cv2.warpAffine(found.segmentation_mask, matrix, (width, height), flags=cv2.INTER_LINEAR)
        mask = (levels * 255).round().clip(0, 255).astype(np.uint8)
    return keypoints, mask


def leave_frame(keypoints: np.ndarray, width: int, height: int) -> None:
    """Scores of joints (60 3) at the edge and outside: the network doubts them wherever they are.

    Where a limb begins inside the frame, its end is taken to be where it is said to be; everything else outside is not
    seen.
    """
    shares = keypoints[:, :2] / (width, height)
    away = np.maximum(-shares, shares - 1).max(axis=-1)  # of the frame; negative inside
    keypoints[away > 0, 2] = np.where(away[away > 0] < EDGE, keypoints[away > 0, 2], 0)
    for inner, outer in LIMBS:
        if keypoints[inner, 2] >= SEEN and away[inner] <= 0 and -EDGE < away[outer] < BEYOND:
            keypoints[outer, 2] = max(keypoints[outer, 2], SEEN)


def read_hand(
    network: Any, frame: np.ndarray, elbow: np.ndarray, wrist: np.ndarray, own: Any, cut: np.ndarray, matrix: np.ndarray
) -> np.ndarray:
    """A hand's 21 points (21 3), from a closer look, or as the whole body's network has it; zeros where it is not seen.

    own: the body network's landmarks of it, or None, in `cut`, which `matrix` places in the frame.
    """
    forearm = float(np.linalg.norm(wrist[:2] - elbow[:2]))
    if min(elbow[2], wrist[2]) < SEEN or forearm < 4:
        return np.zeros((21, 3), np.float32)
    middle = wrist[:2] + HAND_SHIFT * (wrist[:2] - elbow[:2])
    close, placed = cut_out(frame, middle, HAND * forearm, HAND_SIDE)
    found = network.process(close).multi_hand_landmarks
    candidates = [landmarks(one, close, placed) for one in found or ()]
    candidates += [landmarks(own, cut, matrix)] if own is not None else []
    for points in candidates:
        if np.linalg.norm(points[0, :2] - wrist[:2]) <= HAND_MISS * forearm:
            points[:, 2] = wrist[2]
            return points
    return np.zeros((21, 3), np.float32)


def cut_out(frame: np.ndarray, middle: np.ndarray, side: float, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """A square around `middle`, black beyond the frame, of `pixels` x `pixels`, and the (2 3) that places it there."""
    scale = side / pixels
    matrix = np.array([[scale, 0, middle[0] - side / 2], [0, scale, middle[1] - side / 2]], np.float64)
    flags = cv2.WARP_INVERSE_MAP | cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.warpAffine(frame, matrix, (pixels, pixels), flags=flags)), matrix


def landmarks(found: Any, cut: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """mediapipe's landmarks as (n 3): x, y in the frame's pixels, and how sure they are.

    A joint counts that is in the picture (presence), be it hidden (visibility): DWPose reads those, too.
    """
    height, width = cut.shape[:2]
    points = np.array(
        [[point.x * width, point.y * height, max(point.visibility, point.presence)] for point in found.landmark],
        np.float32,
    )
    points[:, :2] = points[:, :2] @ matrix[:, :2].T + matrix[:, 2]
    return points


def told(i: int, count: int) -> None:
    print(f"frame {i + 1} of {count}", flush=True)


if __name__ == "__main__":
    with np.load(sys.argv[2], allow_pickle=False) as archive:
        request = {name: archive[name] for name in archive.files}
    answer = find(request["frames"]) if sys.argv[1] == "find" else read(request["frames"], request["boxes"])
    with open(sys.argv[3], "wb") as file:
        np.savez(file, **answer)  # type: ignore[arg-type]
