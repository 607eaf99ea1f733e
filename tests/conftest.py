"""Sets up every test: one thread per process, and the environment of a machine without CUDA except under `-m gpu`."""

import os

import pytest
from hypothesis import settings

from pipelines.launch.ranks import prepare_environment
from ufork.parallel.nvidia_devices import has_cuda_device

os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# No deadline: other processes may slow an example down. The examples are the same in every run, so that a failure is
# due to the commit; `pytest --hypothesis-profile=search` tries new ones.
settings.register_profile("search", deadline=None)
settings.register_profile("same examples", deadline=None, derandomize=True)
settings.load_profile("same examples")


def pytest_configure(config: pytest.Config) -> None:
    """Hides all GPUs from the tests that expect none; runs before any test module imports torch."""
    if not _selects_gpu_tests(config):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not has_cuda_device():
        raise pytest.UsageError("-m gpu: this machine has no NVIDIA device; run the other tests by `make test`")
    prepare_environment(os.environ, num_local_ranks=os.cpu_count() or 1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips the tests of GPUs where these are hidden."""
    if not _selects_gpu_tests(config):
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU; run by `make test-gpu`"))


def _selects_gpu_tests(config: pytest.Config) -> bool:
    return config.option.markexpr.split(" and ")[0] == "gpu"
