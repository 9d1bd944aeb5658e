"""Published runs -> what is predicted for them from datasheets, beside the figure."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torchvision.models import resnet101

from pararealize import capture, device_profile, find_blocks, plan_segments, receptive_fields, simulate
from pararealize.analysis.operations import PartOperations, list_chain_operations
from pararealize.models import build
from pararealize.profiles import Roofline
from pararealize.strategies.network_costs import NetworkCosts, all_reduce
from pararealize.strategies.pipeline import Stages, stages_of

__all__ = ["GPIPE", "LLAMA", "PAIRS", "TABLE2", "TABLE3", "gpipe_rows", "pairs_rows", "paper_rows"]

# Lee, Lee and Park, table 2 (virtual wall-clock, speed-up forward and backward) and table 3 (hours of 200 epochs)
TABLE2 = {3: 2.60, 6: 4.10, 12: 5.42, 18: 5.95, 24: 4.91}
SECONDS = {1: 1.841, 3: 0.709, 6: 0.449, 12: 0.340, 18: 0.310, 24: 0.375}  # of a step, its sum of both
TABLE3 = {3: 22.7481 / 16.4772, 6: 22.7481 / 11.8036}
# Calvo González et al., arXiv 2502.02790, Llama 2 7B: tokens a second; of how many pairs of layers, we do not know
LLAMA, PAIRS = 1.19, (5, 7, 9)
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


def pairs_rows() -> list[dict[str, Any]]:
    """Llama 2 7B on two A100, one token: pairs of layers at once against tensor parallelism, both over both devices.

    Tensor parallelism takes half of each matrix on each device, and sums twice a layer; a pair of layers takes all of
    one layer's matrices on each device, with half the launches and half the sums. What was generated before a token is
    not read again here: its bytes are the same in both.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        use_cache=False,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(torch.bfloat16).eval()
        chain = find_blocks(capture(model, {"input_ids": torch.zeros(2, 1, dtype=torch.long)}))
    profile = device_profile("a100")
    operations, link = list_chain_operations(chain), profile.link("nvlink")
    sums = 2 * all_reduce(link, 2.0 * config.hidden_size, 2)

    def seconds(part: PartOperations, share: float) -> float:
        """Of one token, with that share of every matrix."""
        return sum(
            max(one.flops * share / profile.peak(one.kind) if one.flops else 0.0,
                (one.bytes_sample + one.bytes_fixed * share) / profile.bandwidth) + one.kernels * profile.launch
            for one in part.forward
        )  # fmt: skip

    layer = operations.blocks[len(operations.blocks) // 2]
    ends = seconds(operations.stem, 1) + seconds(operations.head, 1)
    halves, whole = seconds(layer, 0.5) + sums, seconds(layer, 1) + sums
    tensor = ends + config.num_hidden_layers * halves
    rows: list[dict[str, Any]] = [{"run": "Llama 2 7B, a token, tensor parallelism on two A100", "seconds": tensor}]
    for pairs in PAIRS:
        step = ends + (config.num_hidden_layers - 2 * pairs) * halves + pairs * whole
        rows.append({"run": f"Llama 2 7B, {pairs} pairs of layers", "predicted": tensor / step, "seconds": step})
        if pairs == PAIRS[len(PAIRS) // 2]:
            rows[-1] |= {"run": f"{rows[-1]['run']} (published: of a number not known)", "published": LLAMA}
    return rows


def errors(rows: list[dict[str, Any]]) -> list[float]:
    """Relative errors of speed-ups."""
    pairs = itertools.filterfalse(lambda row: row.get("published") is None, rows)
    return [abs(row["predicted"] / row["published"] - 1) for row in pairs]
