"""The tiny training run of tests/training."""

from tests.training.conftest import _fresh_accelerator, cache, settings, tiny_base  # noqa: F401
