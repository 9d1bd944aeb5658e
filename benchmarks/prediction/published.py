"""Published runs -> what is predicted for them from datasheets, beside the figure."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torchvision.models import resnet101

from pararealize import capture, device_profile, find_blocks, plan_segments, receptive_fields, simulate
from pararealize.models import build
from pararealize.profiles import Roofline
from pararealize.strategies.network_costs import NetworkCosts
from pararealize.strategies.pipeline import Stages, stages_of

__all__ = ["GPIPE", "TABLE2", "TABLE3", "gpipe_rows", "paper_rows"]

# Lee, Lee and Park, table 2 (virtual wall-clock, speed-up forward and backward) and table 3 (hours of 200 epochs)
TABLE2 = {3: 2.60, 6: 4.10, 12: 5.42, 18: 5.95, 24: 4.91}
SECONDS = {1: 1.841, 3: 0.709, 6: 0.449, 12: 0.340, 18: 0.310, 24: 0.375}  # of a step, its sum of both
TABLE3 = {3: 22.7481 / 16.4772, 6: 22.7481 / 11.8036}
# torchgpipe 0.0.7, ResNet-101 on Tesla P40: (batch, chunks), speed-up of samples a second over one device at batch 118
GPIPE = {1: (220, 2, 0.85), 2: (25000, 1667, 1.41), 4: (5632, 256, 2.77), 8: (5400, 150, 4.29)}


def paper_rows() -> list[dict[str, Any]]:
    """ResNet-1001 in the paper's cuts, kinds and order, batch 128, Titan RTX."""
    with torch.device("meta"):
        model = build("resnet1001", num_classes=100)
        chain = find_blocks(capture(model, torch.empty(2, 3, 32, 32, device="meta")))
    profile, fields, rows = device_profile("titan-rtx"), receptive_fields(chain), []
    costs = NetworkCosts(chain, fields, Roofline(chain, profile), profile, profile.link("pcie"))
    one, priced, link = costs.step(128), costs.costs(128), costs.link.transfer
    rows.append({"run": "table 2, N = 1", "seconds": one, "published_seconds": SECONDS[1]})
    for n, figure in TABLE2.items():
        plan = plan_segments(costs.at_batch(128), fields, priced, n, coarse="paper", cuts="paper")
        free = simulate(plan, overlap=False, latency=0.0, bandwidth=float("inf"))
        rows.append(
            {
                "run": f"table 2, N = {n}",
                "predicted": one / free.step,
                "published": figure,
                "seconds": free.step,
                "published_seconds": SECONDS[n],
            }
        )
        if n in TABLE3:
            sent = simulate(plan, overlap=False, latency=link.latency, bandwidth=link.bandwidth)
            rows.append({"run": f"table 3, N = {n}", "predicted": one / sent.step, "published": TABLE3[n]})
    return rows


def gpipe_rows() -> list[dict[str, Any]]:
    """torchgpipe's ResNet-101: GPipe with its batches and chunks, where the forward pass is computed twice."""
    with torch.device("meta"):
        chain = find_blocks(capture(resnet101(), torch.empty(2, 3, 224, 224, device="meta")))
    profile, rows = device_profile("p40"), []
    costs = NetworkCosts(chain, receptive_fields(chain), Roofline(chain, profile), profile, profile.link("pcie"), "sgd")
    base = 118 / costs.step(118)
    rows.append({"run": "ResNet-101 on one P40, batch 118", "seconds": costs.step(118), "published_seconds": None})
    for devices, (batch, chunks, figure) in GPIPE.items():
        micro = max(round(batch / chunks), 1)
        if devices == 1:
            forward, backward = (sum(part) for part in zip(*costs.parts(micro), strict=True))
            stages = Stages(forward=(forward,), backward=(backward,), messages=())
        else:
            staged = stages_of(costs, devices, micro)
            assert staged is not None
            stages = staged[1]
        again = tuple(f + b for f, b in zip(stages.forward, stages.backward, strict=True))
        step = Stages(forward=stages.forward, backward=again, messages=stages.messages).gpipe(chunks)
        step -= sum(stages.forward)  # the last microbatch is not computed twice
        name = f"GPipe, {devices} P40, batch {batch}, {chunks} chunks"
        rows.append({"run": name, "predicted": batch / step / base, "published": figure})
    return rows


def errors(rows: list[dict[str, Any]]) -> list[float]:
    """Relative errors of speed-ups."""
    pairs = itertools.filterfalse(lambda row: row.get("published") is None, rows)
    return [abs(row["predicted"] / row["published"] - 1) for row in pairs]
