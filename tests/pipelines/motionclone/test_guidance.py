"""MotionClone's representation and loss: the published numbers, then what they leave open."""

import pytest
import torch

from animatediff.errors import UserError
from animatediff.models import build_unet
from animatediff.models.hooks import capture
from animatediff.pipelines.motionclone.guidance import (
    distance,
    extract_motion,
    motion_loss,
    noise_and_loss,
    predict_noise,
    temporal_attentions,
)
from tests.goldens import MOTIONCLONE, TINY, filled_unet, golden, relative_error

SMALL = TINY | {"block_out_channels": [32, 32, 64, 64], "layers_per_block": 1, "cross_attention_dim": 8}
NAMES = [
    f"up_blocks.1.motion_modules.{i}.temporal_transformer.transformer_blocks.0.attention_blocks.{j}"
    for i in range(3)
    for j in range(2)
]


def number(name):
    return golden(name, MOTIONCLONE)


def error(out, name):
    return relative_error(out, name, MOTIONCLONE)


@pytest.fixture(scope="module")
def published():
    return filled_unet()


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return build_unet(SMALL).requires_grad_(False).eval()


@pytest.fixture
def case():
    """Latents of an odd, non-square size, five frames, and a text."""
    random = torch.Generator().manual_seed(1)
    return torch.randn(1, 4, 5, 9, 14, generator=random), torch.randn(1, 3, 8, generator=random)


def motion_of(name):
    pairs = zip(number(f"motion.{name}.values"), number(f"motion.{name}.indices").long(), strict=True)
    return dict(zip(NAMES, pairs, strict=True))


class TestPublishedNumbers:
    def test_extraction(self, published):
        clean, noise = number("reference.latents"), torch.randn(1, 4, 16, 16, 16, generator=torch.manual_seed(42))
        assert error(noise, "extract.noise@997") == 0
        abar = number("schedule.alphas_cumprod")[400]
        motion = extract_motion(published, abar.sqrt() * clean + (1 - abar).sqrt() * noise, 400, number("text.empty"))
        assert list(motion) == NAMES
        assert error(torch.stack([values for values, _ in motion.values()]), "motion.t2v.values") < 1e-5
        sure = number("motion.t2v.sure").bool()
        indices = torch.stack([indices for _, indices in motion.values()])
        assert torch.equal(indices[sure], number("motion.t2v.indices").long()[sure])

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_loss_gradient_and_noise(self, published, checkpointing):
        latents = number("guidance.latents").requires_grad_()
        if checkpointing:
            published.enable_gradient_checkpointing()
        try:
            noise, loss = noise_and_loss(published, latents, 899, number("text.one"), motion_of("t2v"))
            (grad,) = torch.autograd.grad(2000 * loss, latents)
        finally:
            published.disable_gradient_checkpointing()
        assert abs(loss.item() - number("guidance.loss").item()) < 2e-7
        assert error(grad, "guidance.grad@7") < 1e-5
        assert error(noise, "guidance.noise@7") < 1e-5
        assert not noise.requires_grad

    def test_loss_alone_is_the_same(self, published):
        latents = number("guidance.latents").requires_grad_()
        loss = motion_loss(published, latents, 899, number("text.one"), motion_of("t2v"))
        (grad,) = torch.autograd.grad(2000 * loss, latents)
        assert abs(loss.item() - number("guidance.loss").item()) < 2e-7
        assert error(grad, "guidance.grad@7") < 1e-5


class TestExtraction:
    def test_maps_are_those_the_attentions_use(self, unet, case):
        """Against diffusers' own scores of what goes into each attention, at an odd size and five frames."""
        latents, text = case
        attentions = temporal_attentions(unet, ["up_blocks.1", "down_blocks.2"])
        projections = {f"{n}.{p}": getattr(a, p) for n, a in attentions.items() for p in ("to_q", "to_k")}
        with torch.no_grad(), capture(projections) as tokens:
            predict_noise(unet, latents, 400, text)
        motion = extract_motion(unet, latents, 400, text, ["up_blocks.1", "down_blocks.2"], k=2)
        assert list(motion) == list(attentions)
        for name, attention in attentions.items():
            q, k = (attention.head_to_batch_dim(tokens[f"{name}.{p}"]) for p in ("to_q", "to_k"))
            scores = attention.get_attention_scores(q, k).unflatten(0, (-1, attention.heads))
            values, indices = scores.sort(dim=-1, descending=True)
            assert torch.allclose(motion[name][0], values[..., :2], atol=1e-6)
            sure = values[..., :2] - values[..., 1:3] > 1e-5
            assert torch.equal(motion[name][1][sure], indices[..., :2][sure])
        assert motion[list(motion)[-1]][0].shape == (3 * 4, 8, 5, 2)  # 9x14 halved twice, rounded up

    def test_nothing_runs_after_the_last_guided_motion_module(self, unet, case):
        tail = {"same block": unet.up_blocks[1].upsamplers[0], "next": unet.up_blocks[2], "end": unet.conv_out}
        with capture(tail) as ran:
            extract_motion(unet, case[0], 400, case[1])
            assert not ran
            predict_noise(unet, case[0], 400, case[1])
        assert set(ran) == set(tail)

    def test_part_of_a_block(self, unet, case):
        motion = extract_motion(unet, case[0], 400, case[1], ["up_blocks.1.motion_modules.0"])
        assert list(motion) == NAMES[:2]

    def test_block_that_does_not_exist(self, unet, case):
        known = ", ".join(f"{side}_blocks.{i}" for side in ("down", "up") for i in range(4))
        for block in ("up_blocks.7", "up_blocks.1.motion_modules.9", "mid_block", "up_block"):
            with pytest.raises(UserError) as caught:
                extract_motion(unet, case[0], 400, case[1], ["up_blocks.1", block])
            assert str(caught.value) == f"'{block}' is no block with temporal attention; there are {known}"

    def test_no_block(self, unet, case):
        with pytest.raises(UserError, match="no block to guide"):
            extract_motion(unet, case[0], 400, case[1], [])

    @pytest.mark.parametrize("k", [0, 6])
    def test_k_beyond_the_frames(self, unet, case, k):
        with pytest.raises(UserError, match=f"k is {k}, expected 1 to 5"):
            extract_motion(unet, case[0], 400, case[1], k=k)


class TestLoss:
    def test_of_the_reference_itself_is_zero(self, unet, case):
        motion = extract_motion(unet, case[0], 400, case[1], k=3)
        assert motion_loss(unet, case[0], 400, case[1], motion).item() == 0
        assert motion_loss(unet, case[0] + 0.1, 400, case[1], motion).item() > 0

    def test_is_the_sum_of_means(self):
        values, indices = torch.tensor([[[[0.5], [0.2]]]]), torch.tensor([[[[1], [0]]]])
        maps = torch.tensor([[[[0.3, 0.7], [0.6, 0.4]]]])
        loss = distance([("a", maps), ("b", maps)], {"a": (values, indices), "b": (values, indices)})
        assert loss.item() == pytest.approx(2 * (0.2**2 + 0.4**2) / 2)

    def test_order_of_the_motion_does_not_matter(self, unet, case):
        motion = extract_motion(unet, case[0], 400, case[1], ["down_blocks.3", "up_blocks.1"])
        backwards = dict(reversed(motion.items()))
        losses = [motion_loss(unet, 2 * case[0], 400, case[1], m) for m in (motion, backwards)]
        assert losses[0] == losses[1] > 0

    def test_no_gradient_after_the_last_guided_motion_module(self, unet, case):
        latents = case[0].clone().requires_grad_()
        motion = extract_motion(unet, case[0], 400, case[1])
        probes = {"before": unet.up_blocks[1].motion_modules[-1], "after": unet.up_blocks[2], "end": unet.conv_out}
        with capture(probes, keep=lambda out: out.requires_grad) as recorded:
            noise_and_loss(unet, latents, 400, case[1], motion)
        assert recorded == {"before": True, "after": False, "end": False}
        assert torch.is_grad_enabled()

    def test_reference_of_another_size(self, unet, case):
        motion = extract_motion(unet, case[0], 400, case[1])
        with pytest.raises(UserError, match="another size or number of frames"):
            motion_loss(unet, case[0][..., :6], 400, case[1], motion)

    def test_motion_of_another_backbone(self, unet, case):
        values = torch.zeros(1, 8, 5, 1)
        with pytest.raises(UserError, match=r"has up_blocks\.9\.x, which this backbone lacks"):
            motion_loss(unet, case[0], 400, case[1], {"up_blocks.9.x": (values, values.long())})
        with pytest.raises(UserError, match="is empty"):
            motion_loss(unet, case[0], 400, case[1], {})
