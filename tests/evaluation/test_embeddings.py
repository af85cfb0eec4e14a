"""CLIP and DINO by key: the same numbers as transformers gives, cut prompts, and reasons where there is no model."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessorPil, CLIPModel, CLIPProcessor, Dinov2Config, Dinov2Model

from animatediff.errors import UserError
from animatediff.evaluation.embeddings import load_clip, load_dino

FRAMES = np.random.default_rng(0).integers(0, 255, (3, 40, 64, 3), dtype=np.uint8)


def test_embeddings_give_clips_own_similarity(tiny_clip):
    clip = load_clip(tiny_clip)
    ours = torch.nn.functional.cosine_similarity(clip.frames(FRAMES), clip.text("a red star")[None])
    processor = CLIPProcessor(clip.processor, clip.tokenizer)
    images = [Image.fromarray(frame) for frame in FRAMES]
    model = CLIPModel.from_pretrained(tiny_clip)
    with torch.no_grad():
        theirs = model(**processor(text=["a red star"], images=images, return_tensors="pt")).logits_per_image[:, 0]
    assert ours.tolist() == pytest.approx((theirs / model.logit_scale.exp()).tolist(), abs=1e-6)


def test_long_prompts_are_cut_where_clip_ends(tiny_clip):
    clip = load_clip(tiny_clip)
    assert clip.limit == 16
    assert torch.equal(clip.text("a" + " b" * 13 + " c"), clip.text("a" + " b" * 13 + " d e f"))
    assert not torch.equal(clip.text("a b"), clip.text("a c"))


def test_many_frames_are_split_into_batches_without_changing_them(tiny_clip):
    clip = load_clip(tiny_clip)
    many = np.concatenate([FRAMES] * 12)
    assert torch.allclose(clip.frames(many)[-3:], clip.frames(FRAMES), atol=1e-6)


def test_dino_gives_the_class_token(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(**small)).eval()
    model.save_pretrained(tmp_path)
    processor = BitImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    found = load_dino(str(tmp_path)).frames(FRAMES)
    pixels = processor(images=[Image.fromarray(frame) for frame in FRAMES], return_tensors="pt").pixel_values
    with torch.no_grad():
        assert torch.allclose(found, model(pixels).last_hidden_state[:, 0], atol=1e-6)


@pytest.mark.parametrize("load", [load_clip, load_dino])
def test_reasons_are_one_line(load, tmp_path):
    with pytest.raises(UserError, match="is none"):
        load("none")
    with pytest.raises(UserError, match=r"cannot be loaded \(.{10,}\)"):
        load(str(tmp_path))
    with pytest.raises(UserError, match="=someone/some-model cannot be loaded") as raised:  # no network in tests
        load("someone/some-model")
    assert "\n" not in str(raised.value)
