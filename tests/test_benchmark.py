"""The benchmark on a tiny network: what it reports and what must hold whatever the machine. No claims about time."""

from __future__ import annotations

import json
import time

import pytest
import torch
from accelerate import init_empty_weights
from safetensors import safe_open

from animatediff.benchmarks import (
    command,
    commands,
    ditflow,
    guidance,
    memory,
    motionfollower,
    phases,
    reading,
    report,
    sampling,
    training,
)
from animatediff.benchmarks.networks import SCALES, Setup, random_unet, site_channels, stock_unet
from animatediff.benchmarks.timing import interleave, isolated, summarise
from animatediff.errors import UserError
from animatediff.models import Adapter, EfficientMT, build_unet
from animatediff.pipelines.ditflow import attention_motion_flow
from animatediff.pipelines.motionfollower import predict
from animatediff.pipelines.motionfollower.attention import record_background

TINY = Setup(scale="tiny", frames=2, height=64, width=64, rounds=1)


@pytest.fixture(scope="module")
def script():
    return command


def test_all_ways_of_a_step_are_the_same_function():
    result = sampling.measure_step(TINY)
    assert list(result["variants"]) == ["plain", "prepared", "unprepared", "direct", "stock"]
    assert all(0 <= difference < 1e-5 for difference in result["difference"].values())
    assert {values["rounds"] for values in result["variants"].values()} == {1}
    assert result["variants"]["plain"]["wall"]["ratio"] == {"median": 1.0, "low": 1.0, "high": 1.0}
    assert [row.goal for row in report.rows_of("step", result)] == [None, 1.06, None, None, None, 1.06, 1.0]


def test_full_size_counts_are_the_published_ones():
    with init_empty_weights():
        unet = build_unet(SCALES["sd15"].unet)
        model = EfficientMT(unet, adapter=Adapter(site_channels(unet)))
    counts = sampling.parameter_counts(unet, model)
    assert counts == {"backbone": 1_276_658_564, "adapter": 120_954_852, "adapter_tensors": 144}


def test_stock_network_has_the_same_tensors_and_another_norm():
    unet = random_unet(TINY)
    stock = stock_unet(unet)
    ours = {name: value.data_ptr() for name, value in unet.named_parameters()}
    assert {name: value.data_ptr() for name, value in stock.named_parameters()} == ours
    latents, text = sampling.noise_and_text(TINY, batch=1)
    with torch.no_grad():
        outputs = [net(latents, 500, text.repeat_interleave(TINY.frames, dim=0)).sample for net in (unet, stock)]
    assert outputs[0].shape == outputs[1].shape
    assert not torch.allclose(*outputs)


def test_weights_are_finite_and_activations_stay_small():
    latents, text = sampling.noise_and_text(TINY, batch=1)
    with torch.no_grad():
        output = random_unet(TINY)(latents, 500, text.repeat_interleave(TINY.frames, dim=0)).sample
    assert 0 < output.abs().max() < 100


@pytest.mark.parametrize("scheme", [memory.shared_scheme, memory.published_scheme])
def test_memory_is_counted_from_the_start_on(scheme):
    result = isolated(scheme, TINY)  # its own process, as in the benchmark: one that has freed memory may shrink
    assert 0 < result["start"] <= result["weights"] <= result["peak"]


def test_memory_is_compared_with_and_without_what_was_there_before():
    schemes = {
        "shared": {"start": 10, "weights": 20, "peak": 30},
        "published": {"start": 10, "weights": 40, "peak": 50},
    }
    compared = memory.compare_memory(schemes, "published")
    assert compared["shared"]["ratio"] == 0.6
    assert compared["shared"]["ratio_above_start"] == 0.5
    assert [row.verdict for row in report.rows_of("memory", compared)] == ["<= 0.60: met", ""]


def test_a_transfer_is_loaded_by_the_real_code_and_timed_to_the_last_phase(tmp_path):
    weights = phases.write_blank_weights(TINY, tmp_path)
    seconds = phases.run_phases(TINY, weights, str(tmp_path), time.time())
    assert list(seconds) == ["start-up", "extraction", "sampling", "decoding", "writing"]
    assert all(value > 0 for value in seconds.values())
    assert (tmp_path / "output.mp4").stat().st_size > 0


def test_blank_files_have_all_names_and_hardly_take_room(tmp_path):
    phases.write_blank(tmp_path / "blank.safetensors", {"a": (1024, 1024, 16), "b": (2,)})
    with safe_open(tmp_path / "blank.safetensors", "pt") as file:
        assert set(file.keys()) == {"a", "b"}
        assert file.get_slice("a").get_shape() == [1024, 1024, 16]
        assert torch.equal(file.get_tensor("b"), torch.zeros(2))
    assert (tmp_path / "blank.safetensors").stat().st_blocks * 512 < 1 << 20


def test_ten_prompts_share_start_up_and_extraction():
    seconds = {"start-up": 30.0, "extraction": 10.0, "sampling": 50.0, "decoding": 8.0, "writing": 2.0}
    assert phases.compare_prompts(seconds, 10) == {"single_runs": 1000.0, "one_run": 640.0, "ratio": 0.64}


def test_training_schemes_train_the_same_tensors():
    result = training.training_times(TINY)
    assert tuple(result["time"]) == training.SCHEMES
    assert result["parameters"]["adapter_tensors"] == 96
    one = training.training_memory(TINY, "shared, checkpointed")
    assert 0 < one["start"] <= one["weights"] <= one["peak"]


def test_a_published_training_step_reaches_every_trained_tensor():
    both = training._training(TINY, "published")
    assert both.unet.get_submodule("up_blocks.0.motion_modules.0.transformer_blocks.0").attn1.to_q.weight.requires_grad
    assert sum(p.requires_grad for p in both.first.parameters()) == 0
    assert {id(p) for p in both.unet.parameters() if p.requires_grad} < {id(p) for p in both.adapter.parameters()}


def test_guided_steps_are_compared_with_the_plain_one():
    result = guidance.guidance_times(TINY)
    assert tuple(result) == guidance.STEPS
    rows = list(report._guidance_rows({"time": result, "memory": {}}))
    assert [row.goal for row in rows] == [None, 2.2, None]


def test_rounds_begin_with_another_variant_each_and_end_with_the_time():
    calls: list[str] = []
    variants = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = interleave(variants, "cpu", rounds=3, seconds=60, warm_up=["b"])
    assert "".join(calls) == "b" + "abc" + "bca" + "cab"
    assert {name: len(runs) for name, runs in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert {len(runs) for runs in interleave(variants, "cpu", rounds=5, seconds=-1).values()} == {1}


def test_ratios_are_taken_round_by_round():
    times = {"a": [{"wall": 1.0}, {"wall": 2.0}, {"wall": 4.0}], "b": [{"wall": 2.0}, {"wall": 4.0}, {"wall": 4.0}]}
    assert summarise(times, "a")["b"] == {
        "wall": {"seconds": 4.0, "ratio": {"median": 2.0, "low": 1.0, "high": 2.0}},
        "rounds": 3,
    }


def test_a_killed_part_is_named():
    with pytest.raises(UserError, match="_exit was killed"):
        isolated(__import__("os")._exit, 9)


STAND_IN = """
import json, pathlib, sys
flags = dict(word.lstrip("-").split("=", 1) for word in sys.argv[1:] if "=" in word)
rows = open(flags["jobs"]).read().splitlines() if "jobs" in flags else [json.dumps({"prompt": flags["prompt"]})]
pathlib.Path(flags["output_dir"]).mkdir(exist_ok=True)
for row in rows[: int(flags["stop"])]:
    (pathlib.Path(flags["output_dir"]) / (json.loads(row)["prompt"] + ".mp4")).touch()
sys.exit("no such weights" if flags["stop"] == "0" else 0)
"""


def test_the_list_is_compared_with_as_many_single_runs(tmp_path, monkeypatch):
    (tmp_path / "inference.py").write_text(STAND_IN)
    monkeypatch.setattr(commands, "PROJECT", tmp_path)
    result = commands.measure_commands("any.yaml", ["stop=9"], prompts=4, singles=2)
    for clock in ("wall", "cpu"):
        assert result[clock]["single_runs"] == 4 * result[clock]["one_single_run"] > 0
        assert result[clock]["ratio"] == result[clock]["one_run"] / result[clock]["single_runs"]
    with pytest.raises(UserError, match="the list of 4 prompts left 3 videos"):
        commands.measure_commands("any.yaml", ["stop=3"], prompts=4, singles=1)
    with pytest.raises(UserError, match=r"inference\.py ended with status 1: no such weights"):
        commands.measure_commands("any.yaml", ["stop=0"], prompts=4, singles=1)


def test_the_command_writes_what_it_prints(script, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(script, "isolated", lambda function, *arguments: function(*arguments))
    output = tmp_path / "benchmark.json"
    size = ["--scale", "tiny", "--frames", "2", "--height", "64", "--width", "64", "--rounds", "1", "--device", "cpu"]
    assert script.main(["--only", "step", *size, "--output", str(output)]) == 0
    written = json.loads(output.read_text())
    assert list(written) == ["machine", "seconds", "parts"]
    assert written["parts"]["step"]["setup"]["frames"] == 2
    printed = capsys.readouterr().out
    assert printed.startswith(report.table(written["parts"]))
    assert "<= 1.06: " in printed


def test_parts_that_find_no_time_say_so(script, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    assert script.main(["--minutes", "-1", "--device", "cpu", "--output", str(output)]) == 0
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == ["step", "memory", "phases", "commands", "reading"]
    assert all("--only" in part["skipped"] for part in parts.values())


def test_a_part_that_cannot_be_measured_leaves_the_others(script, tmp_path, monkeypatch):
    def measure(part, setup, _options):
        if part == "memory":
            raise UserError("shared_scheme was killed")
        return {"phases": {}, "ten_prompts": {"one_run": 1.0, "single_runs": 2.0, "ratio": 0.5}}

    monkeypatch.setattr(script, "measure", measure)
    output = tmp_path / "benchmark.json"
    assert script.main(["--only", "memory,phases", "--device", "cpu", "--output", str(output)]) == 1
    parts = json.loads(output.read_text())["parts"]
    assert parts["memory"] == {"skipped": "shared_scheme was killed"}
    assert parts["phases"]["ten_prompts"]["ratio"] == 0.5


def test_parts_and_sizes_are_checked(script):
    assert script.select("memory, step", "cpu") == ["step", "memory"]
    assert script.select("", "cuda") == list(script.SHARES)
    with pytest.raises(UserError, match="unknown part 'stepp'.*step"):
        script.select("stepp", "cpu")
    with pytest.raises(UserError, match="width is 100, expected a multiple of 64"):
        script.build_setup(script.parse(["--width", "100", "--device", "cpu"]))


def test_the_memory_part_reads_as_a_table_with_its_setup_beside_it():
    from animatediff.benchmarks.report import rows_of

    scheme = {"start": 1 << 30, "weights": 6 << 30, "peak": 7 << 30, "ratio": 0.58, "ratio_above_start": 0.55}
    rows = list(rows_of("memory", {"shared": scheme, "published": scheme | {"ratio": 1.0}, "setup": {"frames": 16}}))
    assert len(rows) == 2
    assert "peak 7.00 GiB" in str(rows[0])


def test_reading_measures_a_long_clip_and_short_ones():
    result = reading.measure_reading(rounds=1, seconds=30, clips=3)
    assert (result["seconds"], result["clips"]) == (30, 3)
    assert all(result[name][clock]["median"] > 0 for name in ("long", "short") for clock in ("wall", "cpu"))
    assert [row.what for row in report.rows_of("reading", result)] == [
        "16 frames of a clip of 0.00833333 h",
        "16 frames of each of 3 short clips",
    ]


def test_the_published_form_of_ditflow_s_guided_step_gives_the_same_latents():
    setup = Setup(scale="tiny", frames=9, height=32, width=48, rounds=1)
    result = ditflow.ditflow_times(setup)
    assert list(result["time"]) == list(ditflow.STEPS)
    assert 0 < max(result["difference"].values()) < 2e-4
    result["memory"] = {name: {"weights": 2, "peak": 4 if name == "published" else 3} for name in ditflow.STEPS}
    rows = list(report.rows_of("ditflow", result))
    assert [row.goal for row in rows if row.goal] == [0.5, 0.35]
    assert rows[5].value == 0.5


def test_a_head_s_map_over_all_tokens_is_the_flow_of_the_product_of_all():
    query, key = torch.randn(2, 3, 24, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        ditflow.per_head_flow(query, key, (2, 3, 4), 2.0), attention_motion_flow(query, key, 2, 3, 4), atol=1e-5
    )


def test_the_published_form_of_motionfollower_s_guided_step_gives_the_same_latents():
    setup = Setup(scale="tiny", frames=2, height=64, width=64, rounds=1)
    result = motionfollower.motionfollower_times(setup)
    assert list(result["time"]) == list(motionfollower.STEPS)
    assert result["difference"].keys() == set(motionfollower.STEPS) - {"plain"}
    assert all(0 <= difference < 1e-5 for difference in result["difference"].values())
    sizes = {name: {"start": 1, "weights": 2, "peak": 4} for name in motionfollower.STEPS}
    result["memory"] = memory.compare_memory(sizes, "published")
    rows = list(report.rows_of("motionfollower", result))
    assert [row.goal for row in rows] == [None, None, 0.6, None, None, 0.5, 0.5, None, None, None]
    networks = motionfollower.random_networks(setup)
    ways = motionfollower.build_steps(networks, setup, motionfollower.REPEATED, strength=0.01)
    for found, published in zip(ways["ours"](), ways["published"](), strict=True):
        assert ((found - published).norm() / published.norm()).item() < 1e-5
    guided, plain = ways["ours"]()[0], ways["plain"]()[0]
    assert ((guided - plain).norm() / plain.norm()).item() > 1e-2, "it was not repeated"


def test_camera_mode_keeps_keys_and_values_of_one_step():
    setup = Setup(scale="tiny", frames=2, height=64, width=64)
    networks = motionfollower.random_networks(setup)
    inputs = motionfollower.random_inputs(networks, setup)
    with torch.no_grad(), record_background(networks.unet) as background:
        embeds = inputs.conditions.embeds
        predict(networks, inputs.reference, 500, embeds, inputs.conditions.source_pose, inputs.conditions.appearance)
    size = sum(value.numel() * value.element_size() for value in background.values())
    assert motionfollower.kept(networks, setup) == {"ours": size, "published": 30 * size}
