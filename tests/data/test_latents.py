from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from animatediff.data import latents
from animatediff.data.latents import EncodedInputs, Encoder, PrecomputedInputs, ShardCache, fill_cache, uncached
from animatediff.data.pairs import ClipShape, all_clips
from animatediff.errors import UserError
from animatediff.miniature.pairs import synthetic_groups
from animatediff.miniature.text import build_text_encoder, build_tokenizer

SHAPE = ClipShape(num_frames=3, height=16, width=16)
CLIPS = list(all_clips(synthetic_groups(2, clips=2, seed=0)))


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, mid_block_add_attention=False)
    tokenizer = build_tokenizer()
    return Encoder(vae, build_text_encoder(tokenizer), tokenizer, chunk_size=2)


def shards(folder: Path) -> dict[str, float]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}


def test_a_rerun_reuses_everything(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert fill_cache(ShardCache(tmp_path), encoder, CLIPS, SHAPE) == {}
    before = shards(tmp_path)
    monkeypatch.setattr(Encoder, "moments", None)
    monkeypatch.setattr(Encoder, "text", None)
    assert fill_cache(ShardCache(tmp_path), encoder, CLIPS, SHAPE) == {}
    assert shards(tmp_path) == before


def test_an_interruption_loses_one_shard_at_most(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "SHARD", 2)
    encode, calls = Encoder.moments, []

    def interrupted(self: Encoder, pixels: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode(self, pixels)

    monkeypatch.setattr(Encoder, "moments", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fill_cache(ShardCache(tmp_path), encoder, CLIPS, SHAPE)
    assert [encoder.clip_key(clip, SHAPE) in ShardCache(tmp_path) for clip in CLIPS] == [True, True, False, False]
    cache = ShardCache(tmp_path)
    fill_cache(cache, encoder, CLIPS, SHAPE)
    assert len(calls) == 6
    assert all(encoder.clip_key(clip, SHAPE) in cache for clip in CLIPS)


def test_parts_share_the_work(encoder: Encoder, tmp_path: Path) -> None:
    first, second = ShardCache(tmp_path), ShardCache(tmp_path)
    fill_cache(first, encoder, CLIPS, SHAPE, part=0, parts=2)
    assert list(uncached(first, encoder, CLIPS, SHAPE, {})) == [CLIPS[1].name, CLIPS[3].name]
    fill_cache(second, encoder, CLIPS, SHAPE, part=1, parts=2)
    assert uncached(first, encoder, CLIPS, SHAPE, {}) == {}


def test_a_key_changes_with_the_clip_the_shape_and_the_weights(encoder: Encoder) -> None:
    keys = {encoder.clip_key(clip, shape) for clip in CLIPS[:2] for shape in (SHAPE, ClipShape(3, 16, 24))}
    with torch.no_grad():
        encoder.vae.encoder.conv_in.bias[0] += 1
    other = Encoder(encoder.vae, encoder.text_encoder, encoder.tokenizer)
    keys.add(other.clip_key(CLIPS[0], SHAPE))
    assert len(keys) == 5
    assert encoder.caption_key("a star") != encoder.caption_key("a cross")


def test_a_damaged_shard_is_made_again(encoder: Encoder, tmp_path: Path) -> None:
    fill_cache(ShardCache(tmp_path), encoder, CLIPS, SHAPE)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    cache = ShardCache(tmp_path)
    assert len(uncached(cache, encoder, CLIPS, SHAPE, {})) == 4
    fill_cache(cache, encoder, CLIPS, SHAPE)
    assert uncached(cache, encoder, CLIPS, SHAPE, {}) == {}


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(
    encoder: Encoder, tmp_path: Path, small_disk: None
) -> None:
    with pytest.raises(UserError, match="writing .*safetensors failed"):
        fill_cache(ShardCache(tmp_path), encoder, CLIPS, SHAPE)
    assert list(tmp_path.iterdir()) == []


def test_precomputed_and_encoded_inputs_are_equal(encoder: Encoder, tmp_path: Path) -> None:
    cache, device = ShardCache(tmp_path), torch.device("cpu")
    fill_cache(cache, encoder, CLIPS, SHAPE)
    noise = torch.randn(4, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    results = []
    for inputs in (PrecomputedInputs(cache, encoder, SHAPE, device), EncodedInputs(encoder, SHAPE, device)):
        read = torch.stack([inputs.read(clip) for clip in CLIPS])
        results.append((inputs.latents(read, noise), inputs.text(["", CLIPS[0].caption])))
    assert results[0][0].shape == (4, 4, 3, 16, 16)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_latents_are_scaled_samples_of_the_posterior(encoder: Encoder) -> None:
    pixels = CLIPS[0].pixels(SHAPE)
    posterior = encoder.vae.encode(pixels).latent_dist
    noise = torch.randn(1, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    made = encoder.latents(encoder.moments(pixels)[None], noise)
    expected = (posterior.mean + posterior.std * noise[0].transpose(0, 1)) * encoder.vae.config.scaling_factor
    torch.testing.assert_close(made[0].transpose(0, 1), expected)
