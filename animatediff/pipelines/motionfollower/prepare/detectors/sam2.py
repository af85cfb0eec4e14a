"""A person's outline by SAM 2 (Ravi et al., arXiv 2408.00714) through transformers: a box, followed over the clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub import HfApi

from animatediff.errors import UserError, one_line
from animatediff.files import is_folder
from animatediff.project import locate

REPOSITORY = "facebook/sam2.1-hiera-tiny"
LOCAL = "models/sam2.1-hiera-tiny"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as its own processor has them
HUB_SECONDS = 10
BOX_LABELS = (2, 3)  # what it calls a box's two corners


def build(tools: Any) -> Sam2Masker:
    """The masker, from models/ or from the hub. UserError where it can be had from neither."""
    from transformers import Sam2VideoModel

    place = locate(LOCAL)
    try:
        model = _load(Sam2VideoModel, place if is_folder(place) else REPOSITORY)
    except Exception as error:  # OSError, httpx's, huggingface_hub's
        raise UserError(
            f"SAM 2 could not be fetched ({one_line(error)[:100]}); put {REPOSITORY} of the hub at {LOCAL}"
        ) from error
    device = tools.device if tools.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return Sam2Masker(model.to(device).eval())


def _load(kind: Any, source: str) -> Any:
    """The model from a folder, from what was fetched before, or from the hub; an unreachable hub is told at once."""
    settings = {"use_safetensors": True}
    if source == REPOSITORY:
        try:
            return kind.from_pretrained(source, local_files_only=True, **settings)
        except OSError:
            HfApi().model_info(source, timeout=HUB_SECONDS)  # from_pretrained tries for a minute
    return kind.from_pretrained(source, **settings)


class Sam2Masker:
    """Sam2VideoModel with one object."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.name = f"SAM 2 ({REPOSITORY})"

    @torch.inference_mode()
    def outline(self, frames: np.ndarray, boxes: np.ndarray, told: Callable[[int, int], None]) -> np.ndarray:
        from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession

        height, width = frames.shape[1:3]
        start = int(np.flatnonzero(np.isfinite(boxes).all(axis=-1))[0])
        side = int(self.model.prompt_encoder.input_image_size)
        session = Sam2VideoInferenceSession(
            video=_pixels(frames, side),
            video_height=height,
            video_width=width,
            inference_device=self.model.device,
            inference_state_device=self.model.device,
            dtype=self.model.dtype,
        )
        corners = torch.tensor(boxes[start].reshape(2, 2) * (side / width, side / height), dtype=torch.float32)
        prompt = {"point_coords": corners[None, None], "point_labels": torch.tensor([[BOX_LABELS]], dtype=torch.int32)}
        session.add_point_inputs(session.obj_id_to_idx(1), start, prompt)
        session.obj_with_new_inputs = [1]
        masks = np.zeros(frames.shape[:3], np.uint8)
        done = 0
        for reverse in (False, True):
            for output in self.model.propagate_in_video_iterator(session, start_frame_idx=start, reverse=reverse):
                levels = F.interpolate(output.pred_masks.float(), (height, width), mode="bilinear")  # 1 1 h w
                masks[output.frame_idx] = 255 * (levels[0, 0] > 0).cpu().numpy()
                done += 1
                told(min(done, len(frames)), len(frames))
        return masks


def _pixels(frames: np.ndarray, side: int) -> torch.Tensor:
    """Frames uint8 (f h w 3) as the network takes them: (f 3 side side)."""
    squares = np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_LINEAR) for frame in frames])
    levels = torch.from_numpy(squares).permute(0, 3, 1, 2).float() / 255  # f h w 3 -> f 3 h w
    return (levels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
