"""Glimpses of latents."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from animatediff.apps import preview


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
        picture = preview.preview(pipe, latents)
        assert picture.shape == (128, 128, 3)
        exact = pipe.vae.decode(latents[:, :, 3:4] / latents[:, :, 3].std().clamp(min=1))[0, :, 0]
        levels = ((exact.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).detach().numpy()
        np.testing.assert_array_equal(picture, levels.astype(np.uint8))

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
