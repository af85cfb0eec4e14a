"""The engine as many threads use it."""

from __future__ import annotations

import random
import shutil
import threading
from pathlib import Path

import numpy as np
import torch

from animatediff.inference import Engine
from animatediff.inference.run import read_run
from animatediff.pipelines.efficientmt import method


def test_interleaved_calls_from_threads_equal_serial_ones(small_config: Path, clip: Path, load_once, monkeypatch):
    """40 calls from 4 threads on one engine that keeps one reference, so that it is extracted anew all the time."""
    monkeypatch.setattr(method, "load_pipeline", load_once)
    other = shutil.copy(clip, small_config.parent / "other.mp4")
    engine = Engine(read_run([small_config], ["num_inference_steps=1"]), references=1)
    frames = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    jobs = [{"ref_video_path": str(path), "prompt": "a fox", "seed": 1} for path in (clip, other)]
    jobs += [jobs[0] | {"prompt": "a red star", "guidance_scale": 1.0}, jobs[1] | {"reference_seed": 7}]

    def extract(number: int) -> torch.Tensor:
        given = frames if number == 3 else None
        sites = engine.extract(jobs[number], given).motion.sites
        return torch.cat([feature.flatten() for site in sites.values() for feature in site.features])

    def generate(number: int) -> torch.Tensor:
        return torch.from_numpy(engine.generate(jobs[number]))

    calls = [(call, number) for call in (extract, generate) for number in range(len(jobs))]
    serial = {(call, number): call(number) for call, number in calls}
    assert not torch.equal(serial[generate, 0], serial[generate, 2])
    asked = calls * 5
    random.Random(0).shuffle(asked)
    together = threading.Barrier(4)
    wrong: list[object] = []

    def work(part: list) -> None:
        together.wait()
        for call, number in part:
            try:
                if not torch.equal(call(number), serial[call, number]):
                    wrong.append((call.__name__, number))
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(asked[place::4],)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 40
    assert not wrong


def test_who_moves_the_networks_gets_them_on_the_cpu(small_config: Path, clip: Path, load_once, monkeypatch):
    places = []

    def load(files, device, dtype):
        places.append(str(device))
        return load_once(files)

    monkeypatch.setattr(method, "load_pipeline", load)
    engine = Engine(read_run([small_config], ["num_inference_steps=1"]), device=torch.device("cuda:3"))
    engine.load()
    assert places == ["cpu"]
    assert engine.device == torch.device("cuda:3")


def test_what_it_is_told_to_forget_is_extracted_anew(small_config: Path, clip: Path, load_once, monkeypatch):
    monkeypatch.setattr(method, "load_pipeline", load_once)
    engine = Engine(read_run([small_config], ["num_inference_steps=1"]))
    job = {"ref_video_path": str(clip), "prompt": "a fox"}
    first = engine.extract(job)
    assert engine.extract(job) is first
    engine.forget()
    assert engine.extract(job) is not first


def test_a_pipeline_knows_the_run_it_was_loaded_for(small_config: Path, load_once, monkeypatch):
    monkeypatch.setattr(method, "load_pipeline", load_once)
    pipe = Engine(read_run([small_config], ["guidance_scale=3", "seed=7"], {"prompt": "a fox"})).load()
    assert pipe.recipe["method"] == "efficientmt"
    assert pipe.recipe["settings"]["guidance_scale"] == 3.0
    assert pipe.recipe["settings"]["num_frames"] == 2
    assert "adapter" in pipe.recipe["weights"]
    assert not {"seed", "prompt", "pretrained_model_path"} & set(pipe.recipe["settings"])
