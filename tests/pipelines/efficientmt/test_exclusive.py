"""One pipeline is one resource: whatever calls it at once or ends midway, every request gives what it gives alone."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from animatediff.pipelines.efficientmt import EfficientMTPipeline
from tests.pipelines.small import extract, sample, small_components, small_pipeline


@pytest.fixture(scope="module")
def pipe():
    return small_pipeline()


@pytest.fixture(scope="module")
def reference(pipe):
    return extract(pipe)


def state(pipe):
    """Everything of the backbone that a request could leave changed."""
    unet = pipe.unet
    hooks = [(name, *m._forward_hooks, *m._forward_pre_hooks) for name, m in unet.named_modules()]
    return dict(unet.named_modules()), {k: v.clone() for k, v in unet.state_dict().items()}, hooks, set(unet.__dict__)


def same(before, after):
    (modules, values, *rest), (modules_after, values_after, *rest_after) = before, after
    equal = all(torch.equal(value, values_after[key]) for key, value in values.items())
    return modules == modules_after and values.keys() == values_after.keys() and equal and rest == rest_after


def test_200_interleaved_requests_of_four_threads_give_what_they_give_alone(pipe, reference):
    other = extract(pipe, seed=1)
    requests = [
        lambda: extract(pipe, seed=2).sites[next(iter(reference.sites))].features[1],
        lambda: extract(pipe, seed=3).sites[next(iter(reference.sites))].features[1],
        lambda: sample(pipe, reference, num_inference_steps=1),
        lambda: sample(pipe, other, "a dog", seed=1, num_inference_steps=1),
        lambda: sample(pipe, None, seed=2, num_inference_steps=1),
        lambda: sample(pipe, reference, num_inference_steps=2, guidance_scale=1.0),
        lambda: sample(pipe, other, num_inference_steps=1, guidance_interval=(500, 1000)),
        lambda: sample(pipe, reference, seed=3, num_inference_steps=1, eta=0.5),
    ]
    alone, before = [request() for request in requests], state(pipe)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0)) % len(requests)
    start = threading.Barrier(4)

    def run(numbers):
        start.wait()
        return [torch.equal(requests[i](), alone[i]) for i in numbers]

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            results = [result for results in threads.map(run, order.view(4, 50).tolist()) for result in results]
    finally:
        sys.setswitchinterval(interval)
    assert len(results) == 200
    assert all(results)
    assert same(before, state(pipe))


class Stop:
    """Raises once, when `module` has run."""

    def __init__(self, module: nn.Module, error: BaseException) -> None:
        self.error = error
        self.handle = module.register_forward_hook(self)

    def __call__(self, *_):
        self.handle.remove()
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), torch.OutOfMemoryError("CUDA out of memory"), ValueError("x")])
@pytest.mark.parametrize("action", ["extract", "generate"])
def test_nothing_stays_behind_where_a_request_ends_midway(pipe, reference, error, action):
    request = {
        "extract": lambda: extract(pipe, seed=2).sites[next(iter(reference.sites))].features[0],
        "generate": lambda: sample(pipe, reference, guidance_interval=(0, 500)),
    }[action]
    want, before = request(), state(pipe)
    Stop(pipe.unet.mid_block, error)
    with pytest.raises(type(error)):
        request()
    assert same(before, state(pipe))
    assert torch.equal(request(), want)


class Places:
    """Where offloading has put each model last, and where it was when it ran. "cpu:0" stands for the accelerator."""

    def __init__(self, pipe: EfficientMTPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now: dict[str, str] = {}
        self.ran: list[tuple[str, dict[str, str]]] = []
        names = {id(model): name for name, model in pipe.components.items() if isinstance(model, nn.Module)}
        to = nn.Module.to

        def spy(model, *args, **kwargs):
            device = kwargs.get("device", args[0] if args else None)
            if id(model) in names and isinstance(device, str | torch.device):
                self.now[names[id(model)]] = str(device)
            return to(model, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "to", spy)
        for name, module in (
            ("text_encoder", pipe.text_encoder),
            ("unet", pipe.unet.conv_in),
            ("vae", pipe.vae.decoder),
        ):
            module.register_forward_hook(lambda *_, name=name: self.ran.append((name, dict(self.now))))


@pytest.fixture
def offloaded(monkeypatch):
    """A pipeline under model offload, and the places of its models."""
    pipe = small_pipeline()
    places = Places(pipe, monkeypatch)
    pipe.enable_model_cpu_offload(device="cpu:0")
    return pipe, places


def test_model_offload_has_every_model_on_the_device_while_it_runs_and_none_afterwards(offloaded, pipe, reference):
    """The adapter, which has no forward of its own for a hook to see, is there with the backbone."""
    moved, places = offloaded
    for _ in range(2):
        places.ran.clear()
        assert torch.equal(sample(moved, reference, output_type="pt"), sample(pipe, reference, output_type="pt"))
        assert [name for name, _ in places.ran] == ["text_encoder"] * 2 + ["unet"] * 2 + ["vae"]
        for name, where in places.ran:
            assert (where[name], where["adapter"]) == ("cpu:0", "cpu:0")
        assert {places.now[name] for name in ("text_encoder", "unet", "vae")} == {"cpu"}


@pytest.mark.parametrize("action", ["extract", "generate"])
def test_models_are_offloaded_after_an_exception_and_the_next_request_works(offloaded, pipe, reference, action):
    moved, places = offloaded
    Stop(moved.unet.mid_block, torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.OutOfMemoryError):
        extract(moved) if action == "extract" else sample(moved, reference)
    assert {places.now[name] for name in ("text_encoder", "unet", "vae")} == {"cpu"}
    assert torch.equal(sample(moved, extract(moved)), sample(pipe, reference))


def test_a_request_inside_a_request_of_the_same_thread(pipe, reference):
    """A callback may call what the pipeline has; the reference pass needs the backbone untouched, and says so."""
    latents = []

    def encode(p, _i, _t, values):
        latents.append(p.encode_video(torch.zeros(1, 3, 8, 8), torch.Generator().manual_seed(0)))
        return values

    want = sample(pipe, reference)
    assert torch.equal(sample(pipe, reference, callback_on_step_end=encode), want)
    assert len(latents) == 2
    with pytest.raises(RuntimeError, match="extract before or after"):
        sample(pipe, reference, callback_on_step_end=lambda p, i, t, values: extract(p) and values)
    assert torch.equal(sample(pipe, reference), want)


def test_a_second_pipeline_on_the_same_backbone_is_refused_while_the_first_generates(pipe, reference):
    second = EfficientMTPipeline(**(small_components() | {"unet": pipe.unet}))
    second.set_progress_bar_config(disable=True)
    want = sample(pipe, reference)
    with pytest.raises(RuntimeError, match="is already replaced: a network serves one run at a time"):
        sample(pipe, reference, callback_on_step_end=lambda _p, _i, _t, values: sample(second, reference) and values)
    assert torch.equal(sample(pipe, reference), want)
