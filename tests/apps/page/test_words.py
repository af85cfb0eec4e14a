"""Measures in words, tracks to draw, and glimpses of latents."""

from __future__ import annotations

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from animatediff.apps.page import preview, words
from animatediff.evaluation.trackers import Tracks


def moving(step: int, frames: int = 8) -> np.ndarray:
    """A textured square that moves to the right."""
    video = np.full((frames, 64, 64, 3), 60, np.uint8)
    texture = np.random.default_rng(0).integers(0, 255, (20, 20, 3), np.uint8)
    for i, frame in enumerate(video):
        at = (20 + step * i) % 44
        frame[20:40, at : at + 20] = texture
    return video


class TestWords:
    def test_a_copy_follows_closely(self):
        told = words.describe(moving(2), moving(2))
        first = told["measures"][0]
        assert (first["name"], first["value"], first["word"]) == ("Follows the motion", "1.00", "closely")
        assert (told["measures"][1]["value"], told["measures"][1]["word"]) == ("0.0 %", "as good as none")
        assert told["tracks"] == told["reference_tracks"]

    def test_the_opposite_hardly(self):
        told = words.describe(moving(-2)[:, :, ::-1][:, :, ::-1], moving(2))
        assert (told["measures"][0]["value"], told["measures"][0]["word"]) == ("-1.00", "hardly")

    def test_without_a_reference_there_are_tracks_alone(self):
        told = words.describe(moving(2), None)
        assert told["measures"] == []
        assert len(told["tracks"]) == words.SHOWN

    @pytest.mark.parametrize(("value", "word"), [(0.85, "closely"), (0.84, "well"), (0.3, "in part"), (-1.0, "hardly")])
    def test_bounds(self, value, word):
        assert words.said("motion_fidelity", value)["word"] == word

    def test_a_track_is_given_in_shares_of_the_frame(self):
        tracks = Tracks(np.array([[[0.0, 0.0], [31.5, 63.5]]], np.float32), np.array([[True, False]]))
        assert words.drawn(tracks, np.zeros((2, 64, 64, 3), np.uint8)) == [[[0.0078, 0.0078], None]]


class LinearVAE(torch.nn.Module):
    """Each latent is a square of 8 pixels of one colour."""

    config = SimpleNamespace(latent_channels=4)

    def __init__(self) -> None:
        super().__init__()
        self.colours = torch.nn.Linear(4, 3)
        self.dtype = torch.float32

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        colours = self.colours(latents.movedim(1, -1)).movedim(-1, 1)  # b c f h w -> b f h w c -> b 3 f h w
        return colours.repeat_interleave(8, -1).repeat_interleave(8, -2)


class TestPreview:
    @pytest.fixture
    def pipe(self) -> SimpleNamespace:
        torch.manual_seed(0)
        vae = LinearVAE()
        return SimpleNamespace(vae=vae, decode_latents=vae.decode)

    def test_the_middle_frame_is_decoded(self, pipe):
        latents = torch.randn(1, 4, 6, 16, 16, generator=torch.Generator().manual_seed(1))
        picture = np.asarray(Image.open(io.BytesIO(preview.preview(pipe, latents))))
        assert picture.shape == (128, 128, 3)
        exact = pipe.vae.decode(latents[:, :, 3:4] / latents[:, :, 3].std().clamp(min=1))[0, :, 0]
        levels = ((exact.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).detach().numpy()
        assert np.abs(levels - picture).mean() < 12  # what JPEG changes of hard edges

    def test_colours_fitted_to_a_piece_are_exact_where_the_decoder_is_linear(self, pipe):
        frame = torch.randn(1, 4, 1, 32, 48, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            fitted = preview._fitted(pipe.decode_latents, frame)
            exact = pipe.vae.decode(frame)[0, :, 0, ::8, ::8]
        inner = torch.nn.functional.interpolate(exact[None], scale_factor=5, mode="bilinear")[0]
        torch.testing.assert_close(fitted, inner, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("shape", [(1, 4, 4, 8, 8), (1, 3, 5, 8, 8), (4, 8, 8)])
    def test_what_cannot_be_told_apart_gives_none(self, pipe, shape):
        assert preview.preview(pipe, torch.zeros(shape)) is None

    def test_a_vae_kept_off_the_device_stays_there(self, pipe):
        pipe.vae._hf_hook = object()
        assert preview.preview(pipe, torch.zeros(1, 4, 6, 8, 8)) is None
