"""What a file's keys say it is, and how keys are shown in a message."""

import pytest

from animatediff.models.key_names import describe_contents, shown

UNET = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
MOTION = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0.attention_blocks.0"


@pytest.mark.parametrize(
    ("key", "description"),
    [
        ("model.diffusion_model.out.0.bias", "an original Stable Diffusion checkpoint"),
        ("input_blocks.0.0.weight", "an original Stable Diffusion UNet"),
        (f"{UNET}.lora_A.weight", "a LoRA"),
        (f"{UNET}.lora_magnitude_vector", "a DoRA"),
        (f"{KOHYA}.dora_scale", "a DoRA"),
        (f"{KOHYA}.hada_w1_a", "a LoHa"),
        (f"{KOHYA}.lokr_w1", "a LoKr"),
        (f"{KOHYA}.oft_blocks", "a LyCORIS other than LoRA"),
        (f"{MOTION}.processor.to_q_lora.down.weight", "a MotionLoRA"),
        ("diffusion_model.blocks.0.cross_attn.k.lora_A.weight", "a LoRA of a Wan video transformer"),
        ("transformer.transformer_blocks.0.attn1.to_q.lora_A.weight", "a LoRA of a video transformer"),
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a LoRA of SDXL"),
        ("emb_params", "a textual inversion"),
        ("<cat-toy>", "a textual inversion"),
        ("up_blocks.0.x.scaler.spatial_convs.0.weight", "an EfficientMT adapter"),
        ("controlnet_cond_embedding.weight", "a SparseCtrl encoder"),
        (f"{MOTION}.to_q.weight", "motion modules"),
        ("text_model.final_layer_norm.bias", "a text encoder"),
        ("decoder.conv_in.weight", "a VAE"),
        ("down_blocks.0.attentions.0.norm.weight", "a 2D UNet"),
        ("encoder.x", "something else"),
    ],
)
def test_contents_are_recognised(key, description):
    assert describe_contents([key]).startswith(description)


def test_keys_are_shown_on_one_short_line():
    assert shown(["a", "b"]) == "a, b"
    assert shown("abcde") == "a, b, c and 2 more"
    assert shown(["two\nlines", "\udc80"]) == r"two\nlines, \udc80"
    assert shown(["x" * 500]) == "x" * 117 + "..."
