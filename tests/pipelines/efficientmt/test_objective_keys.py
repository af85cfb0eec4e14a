from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from animatediff.errors import UserError
from animatediff.models.adapter import PARTS
from animatediff.pipelines.efficientmt.objective import build_noise_schedule
from animatediff.pipelines.efficientmt.objective_keys import EfficientMTKeys, trained_parts
from animatediff.training.config import read_config


def test_sd15_holds_the_published_settings(repository: Path) -> None:
    config = read_config([str(repository / "configs/training/sd15.yaml")], [])
    published = {
        "sites": "up",
        "use_scaler": True,
        "scaler_bias": 0.0,
        "train_parts": None,
        "reference_timestep": 400,
        "reference_timestep_max": None,
        "null_text": 0.1,
        "timestep_sampling": "uniform",
        "timestep_min": 0,
        "timestep_max": 999,
        "loss_weighting": "none",
        "learning_rate": 1e-4,
        "learning_rates": {},
        "max_steps": 50_000,
        "batch_size": 1,
        "mixed_precision": "fp16",
    }
    assert {key: getattr(config, key) for key in published} == published
    assert (config.data.num_frames, config.data.height, config.data.width) == (16, 512, 512)
    assert trained_parts(config) == PARTS


def test_every_ablation_is_one_line_over_the_published_run(repository: Path) -> None:
    files = sorted((repository / "configs/training/ablations").glob("*.yaml"))
    assert len(files) == 8
    for file in files:
        assert len(file.read_text().splitlines()) == 1
        config = read_config([str(repository / "configs/training/sd15.yaml"), str(file)], [])
        ((key, value),) = yaml.safe_load(file.read_text()).items()
        assert getattr(config, key) == value != getattr(EfficientMTKeys(), key)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.rot=x"], "did you mean 'root'"),
        (["sites=up1"], "did you mean 'up_1'"),
        (["loss_weighting=min_snr"], "loss_weighting is 'min_snr'"),
        (["train_parts=[to_o]"], "did you mean 'to_"),
        (["learning_rates.scalar=1"], "did you mean 'scaler'"),
        (["data.num_frames=33"], "data.num_frames is 33, expected 1 to 32"),
        (["timestep_max=1000"], "timestep_max is 1000, expected 0 to 999"),
        (["use_scaler=false", "train_parts=[scaler]"], "use_scaler is false"),
        (["use_scaler=false", "scaler_bias=3"], "use_scaler is false"),
        (["train_parts=[]"], "nothing would learn"),
        (["train_parts=[to_q]", "learning_rates.scaler=1e-3"], "scaler, which is not trained"),
        (["timestep_min=500", "timestep_max=400"], "timestep_min 500 is above timestep_max 400"),
        (["reference_timestep_max=300"], "reference_timestep_max is 300"),
        (["weights.lora_paths=[a]"], "lora_paths"),
        (["weights.sparsectrl_path=a.ckpt"], "unknown key 'weights.sparsectrl_path'"),
        (["weights.domain_adapter_path=a.ckpt"], "unknown key 'weights.domain_adapter_path'"),
        (["validation.num_inference_steps=0"], "validation.num_inference_steps is 0, expected 1 to 1000"),
        (["validation.num_inference_steps=1001"], "validation.num_inference_steps is 1001, expected 1 to 1000"),
        (["validation.guidance_scale=-1"], "validation.guidance_scale is -1.0, expected 0 to 100"),
        (["validation.guidance_scale=.nan"], "validation.guidance_scale is nan, expected 0 to 100"),
        (["data.root=null"], "data.root is empty"),
        (["validation.measures=world"], "needs the ground truth"),
    ],
)
def test_unknown_and_contradictory_keys_are_one_clear_line(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as error:
        read_config([], overrides)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_backbone_that_predicts_v_takes_no_weighting() -> None:
    assert build_noise_schedule(read_config([], []), "v_prediction").config.prediction_type == "v_prediction"
    weighted = read_config([], ["loss_weighting=inverse_alpha_bar"])
    assert build_noise_schedule(weighted, "epsilon").config.prediction_type == "epsilon"
    with pytest.raises(UserError, match="loss_weighting is inverse_alpha_bar, but .* predicts v.*loss_weighting=none"):
        build_noise_schedule(weighted, "v_prediction")


def test_without_a_scaler_the_attention_is_what_learns() -> None:
    assert trained_parts(read_config([], ["use_scaler=false"])) == ("to_q", "to_k", "to_v")
