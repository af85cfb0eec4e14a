"""The parts of a base model fit each other, or one line names the two that do not, before weights are read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models

from animatediff.errors import UserError
from animatediff.pipelines.backbones.parts import load_tokenizer
from animatediff.pipelines.backbones.sd15 import load_components


@pytest.fixture
def base(tiny_weights, tmp_path: Path):
    """The base model's configs and tokenizer without any weights: none are read before the parts fit."""
    folder = tmp_path / "base"
    weights = shutil.ignore_patterns("*.bin", "*.safetensors")
    shutil.copytree(tiny_weights.pretrained_model_path, folder, ignore=weights)
    return folder


def edit(path: Path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(tiny_weights, base, match):
    with pytest.raises(UserError, match=match) as error:
        load_components(replace(tiny_weights, pretrained_model_path=str(base)))
    assert len(str(error.value).splitlines()) == 1


def test_parts_that_fit_are_read_on(tiny_weights, base):
    refused(tiny_weights, base, "no weights in .*unet; expected diffusion_pytorch_model")


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("unet", {"in_channels": 9}, "unet has in_channels 9: an inpainting base; expected 4, a base that makes"),
        ("unet", {"in_channels": 8}, "unet has in_channels 8: a base that edits images"),
        ("unet", {"in_channels": 7}, "unet has in_channels 7: expected 4"),
        ("unet", {"out_channels": 8}, "unet has out_channels 8, the UNet in_channels 4"),
        ("unet", {"cross_attention_dim": 96}, r"text of width 96 \(cross_attention_dim\), the text encoder gives 64"),
        ("unet", {"flip_sin_to_cos": False}, "unet/config.json has flip_sin_to_cos False, expected True"),
        ("unet", {"addition_embed_type": "text_time"}, "has addition_embed_type text_time, expected None"),
        ("vae", {"latent_channels": 16}, "vae has latent_channels 16, the UNet in_channels 4"),
        ("vae", {"out_channels": 1}, r"vae has out_channels 1, expected 3 \(RGB\)"),
        ("text_encoder", {"hidden_size": 128}, r"text of width 64 \(cross_attention_dim\), the text encoder gives 128"),
        ("text_encoder", {"vocab_size": 49408}, "tokenizer has 706 words, the text encoder's embedding 49408"),
        ("text_encoder", {"max_position_embeddings": 32}, "tokenizer has model_max_length 77, expected 32"),
    ],
)
def test_one_that_does_not_fit(tiny_weights, base, part, values, match):
    edit(base / part / "config.json", **values)
    refused(tiny_weights, base, match)


BAD = ["[]", "null", "3", '"x"', "{", '{"in_channels": "4"}', '{"block_out_channels": [], "hidden_size": "x"}']


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("content", BAD)
def test_a_config_that_is_none(tiny_weights, base, part, content):
    if (part, content) == ("text_encoder", BAD[-2]):
        content = '{"num_attention_heads": 7}'
    (base / part / "config.json").write_text(content)
    refused(tiny_weights, base, rf"{part}/config.json( holds|: | is not valid JSON| describes no)")


@pytest.mark.parametrize(
    ("part", "values", "match"),
    [
        ("unet", {"block_out_channels": [33, 64, 64, 64]}, "describes no UNet that can be built"),
        ("unet", {"down_block_types": ["NoBlock"] * 4}, r"down_block_types.0. is 'NoBlock', expected CrossAttnDown"),
        ("unet", {"layers_per_block": True}, "layers_per_block is true, expected a whole number"),
        ("vae", {"act_fn": "none"}, "describes no VAE that can be built"),
        ("vae", {"latent_channels": None}, "latent_channels is null, expected a whole number"),
        ("text_encoder", {"num_attention_heads": 7}, "describes no text encoder that can be built"),
        ("text_encoder", {"hidden_act": "none"}, "describes no text encoder that can be built"),
    ],
)
def test_values_that_no_network_has(tiny_weights, base, part, values, match):
    edit(base / part / "config.json", **values)
    refused(tiny_weights, base, f"{part}/config.json.*{match}")


class TestTokenizer:
    def test_without_its_config_or_length(self, tiny_weights, base):
        config = base / "tokenizer" / "tokenizer_config.json"
        text = json.loads(config.read_text())
        del text["model_max_length"]
        config.write_text(json.dumps(text))
        refused(tiny_weights, base, "tokenizer names no model_max_length, expected 77")
        config.unlink()
        refused(tiny_weights, base, "tokenizer lacks tokenizer_config.json; copy the whole tokenizer folder")

    @pytest.mark.parametrize("name", ["vocab.json", "merges.txt"])
    def test_without_its_words(self, base, name):
        (base / "tokenizer" / name).unlink()
        with pytest.raises(UserError, match=f"tokenizer lacks {name}; copy the whole tokenizer folder"):
            load_tokenizer(base / "tokenizer")

    def test_of_another_model(self, tiny_weights, base):
        folder = base / "tokenizer"
        words = json.loads((folder / "vocab.json").read_text())
        (folder / "vocab.json").write_text(json.dumps(words | {f"word{i}": len(words) + i for i in range(4)}))
        refused(tiny_weights, base, "tokenizer has 710 words, .* 706 .vocab_size.; it is another model's tokenizer")
        Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
        refused(tiny_weights, base, "tokenizer is not a CLIP tokenizer .Unk token")

    @pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "special_tokens_map.json"])
    @pytest.mark.parametrize("content", ["[]", "3", "{", '{"a": [1]}', '{"model_max_length": "77"}'])
    def test_damaged_files(self, tiny_weights, base, name, content):
        (base / "tokenizer" / name).write_text(content)
        if name == "special_tokens_map.json" and content == '{"model_max_length": "77"}':
            return  # says nothing of special tokens
        refused(tiny_weights, base, "tokenizer (is not a CLIP tokenizer|has|names|lacks)|no weights in .*unet")

    def test_nowhere(self, tmp_path):
        with pytest.raises(UserError, match="no tokenizer folder at .*nowhere"):
            load_tokenizer(tmp_path / "nowhere")
