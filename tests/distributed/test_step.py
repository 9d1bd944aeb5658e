"""Networks over several ranks compute what they compute in one process: outputs, losses, gradients, steps, buffers."""

from __future__ import annotations

from functools import partial

from tests.rank_comparison import NETWORKS, TIGHT, check, follow
from tests.ranks import on_ranks


def test_two_ranks_compute_what_one_process_does():
    names = [name for name in NETWORKS if name != "in place, one segment"]
    check(on_ranks(2, follow, names), names)


def test_three_ranks_compute_what_one_process_does():
    names = ["context with gradients", "shared layers", "windows", "windows, a short one between"]
    check(on_ranks(3, follow, names), names)


def test_one_rank_does():
    def alike(results):
        for name, (worst, ours, whole) in results[0].items():
            assert max(worst.values()) < TIGHT, name
            assert ours == whole

    alike(on_ranks(1, follow, ["in place, one segment", "context with gradients", "windows"]))


def test_recomputed_activations_give_the_same():
    names = ["residual, batch norm", "tied embedding"]
    check(on_ranks(2, partial(follow, checkpoint_activations=True), names), names)
