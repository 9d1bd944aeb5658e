"""What every test shares: one thread, a fixed seed, and hypothesis without deadlines (the machine may be busy)."""

import gc
import os

import hypothesis
import pytest
import torch

# HYPOTHESIS_PROFILE=thorough draws more examples of every property that does not say how many it takes
for profile, examples in {"default": 30, "thorough": 300}.items():
    hypothesis.settings.register_profile(
        profile,
        deadline=None,
        print_blob=True,
        max_examples=examples,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_finish() -> None:
    """What is there by now stays to the end, and collections of garbage, a third of a second each, pass it over."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()
