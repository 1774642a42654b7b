"""What every test runs under: one thread a process, no network, no time limit on a single example."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: spinning threads of several ranks
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
from hypothesis import settings

settings.register_profile("cambium", deadline=None)
settings.load_profile("cambium")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where there is none."""
    marked = [item for item in items if item.get_closest_marker("cuda")]
    if not marked or "CUDA_TESTS_ON_CPU" in os.environ:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="NOT TESTED: no CUDA device"))
