"""A case -> a row: the speed-up that is predicted, and how near the original the network is at every stage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pararealize import calibrate, capture, find_blocks, fine_tune, pararealize
from pararealize.analysis.finder import Granularity
from pararealize.train.recipe import Recipe

from . import minilm
from .cases import SCHEDULES, Case

__all__ = ["measure"]

TOKENS = 1024  # of a batch of sentences
TESTED = 10
SEEN = 3  # held-out batches that fine-tuning looks at


def measure(case: Case, out: Path) -> dict[str, Any]:
    """The row of a case, from weights and data below ``out``."""
    torch.manual_seed(0)
    began = time.process_time()
    if case.network == "minilm":
        row = _minilm(case, out)
    elif case.network.startswith("efficientnet"):
        from .efficientnet import measure_efficientnet

        row = measure_efficientnet(case, out)
    else:
        from .fashion import measure_fashion

        row = measure_fashion(case, out)
    return row | {"steps": case.steps, "cpu_seconds": time.process_time() - began}


def recipe_of(steps: int, lr: float) -> Recipe:
    """AdamW, a rate that rises for a tenth of the steps and falls as a cosine."""
    warmup = max(1, steps // 10)
    return Recipe(optimizer="adamw", lr=lr, schedule="cosine", warmup=warmup, clip=1.0, weight_decay=0.0)


def _minilm(case: Case, out: Path) -> dict[str, Any]:
    schedule, folder = SCHEDULES["minilm"][case.schedule], minilm.weights_folder(out)
    assert folder is not None
    model = minilm.encoder(folder)
    training = minilm.packed(
        folder, minilm.sentences(out, held_out=False), tokens=TOKENS, count=case.fitted + case.steps, seed=0
    )
    held_out = minilm.sentences(out, held_out=True)
    # what fine-tuning chooses its best step by is not what the figures are measured on
    seen = minilm.packed(folder, held_out[1 :: len(held_out) // 400], tokens=TOKENS, count=SEEN, seed=1)
    tested = minilm.packed(folder, held_out[:: len(held_out) // 400], tokens=TOKENS, count=TESTED, seed=2)
    granularity: Granularity = "finest" if schedule.halves else "repeated"
    names = [block.name for block in find_blocks(capture(model, training[0]), granularity=granularity).blocks]
    options = schedule.options(names) | {"granularity": granularity}
    net = pararealize(model, coarse=case.coarse, source="stem", example_inputs=training[0], **options).eval()
    with torch.no_grad():
        wanted = [minilm.embeddings(model(**batch), batch["attention_mask"]) for batch in tested]
    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.speedup}
    stages = {"before": minilm.quality_of(net, tested, wanted)}
    calibration = calibrate(net, training[: case.fitted], test=seen)
    stages["calibrated"] = minilm.quality_of(net, tested, wanted)
    if case.steps:

        def loss(student: Tensor, teacher: Tensor, batch: Any) -> Tensor:
            return minilm.distance(student, teacher, batch, emphasis=case.emphasis)

        added = {name.split(".")[0] for name, _ in net.named_parameters()} & {"adapters", "coarse"}
        tuning = fine_tune(
            net, training[case.fitted :], calibration, steps=case.steps, test=seen,
            loss=loss, match=0.1, train=["bert.encoder", *sorted(added)], recipe=recipe_of(case.steps, 3e-4),
        )  # fmt: skip
        stages["distilled"] = minilm.quality_of(net, tested, wanted)
        row |= {"best_step": tuning.best, "samples": tuning.samples}
    return row | {"tested": sum(map(len, wanted)), "stages": stages}


def correlation(ours: Tensor, theirs: Tensor) -> float:
    """Pearson's, of all numbers of two matrices."""
    return float(torch.corrcoef(torch.stack([ours.double().flatten(), theirs.double().flatten()]))[0, 1])
