"""The models of the coverage table by name: ``torchvision:resnet18``, ``timm:deit_tiny_patch16_224``, ``hf:Bert``.

Nothing is downloaded: every model is built from its code with random weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .hugging_face import HUGGING_FACE

__all__ = ["Case", "build", "names", "smallest_of_each_family"]

MOST_PARAMETERS = 250_000_000  # a larger model is converted on the meta device
BATCH = 2
SIDE = 96  # of an image, where the model takes any size
SIDES = {"maxvit_t": 224, "inception_v3": 299}
WITHOUT_AUXILIARY = ("googlenet", "inception_v3")  # once as they come, once with aux_logits=False
# made smaller, for they are the smallest of their families all the same: (timm's depth=, side of the image)
SMALLER = {"deepseek_vit_412m": (4, 112), "gemma4_vit_167m": (4, 112), "qwen3_vit_88m": (6, 112)}

# the smallest model of each module of timm.models, as smallest_of_each_family() finds them
TIMM = (Path(__file__).parent / "timm.txt").read_text().split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, example inputs that it takes, and what was done to build it."""

    model: nn.Module
    inputs: Any
    note: str = ""

    @property
    def on_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.model.parameters())


def names() -> list[str]:
    """Every case, by name."""
    import torchvision

    torchvision_names = []
    for name in torchvision.models.list_models(module=torchvision.models):
        torchvision_names.append(f"torchvision:{name}")
        if name in WITHOUT_AUXILIARY:
            torchvision_names.append(f"torchvision:{name}(aux_logits=False)")
    return [*torchvision_names, *(f"hf:{name}" for name in HUGGING_FACE), *(f"timm:{name}" for name in TIMM)]


def build(name: str) -> Case:
    """The model of a name, with weights from seed 0; on the meta device where it is large."""
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    case = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face}[library](rest)
    if sum(parameter.numel() for parameter in case.model.parameters()) <= MOST_PARAMETERS:
        return case
    return dataclasses.replace(case, model=case.model.to("meta"), inputs=case.inputs.to("meta"))


def _torchvision(name: str) -> Case:
    import torchvision

    name, _, arguments = name.partition("(")
    options: dict[str, Any] = {"aux_logits": False} if arguments else {}
    if name.startswith("vit_"):
        options["image_size"] = 64 if "32" in name else 32 if "16" in name else 28
    with _quick_initialisation():
        model = torchvision.models.get_model(name, weights=None, **options)
    side = options.get("image_size", SIDES.get(name, SIDE))
    return Case(model=model, inputs=torch.randn(BATCH, 3, side, side), note=_said(options))


@contextlib.contextmanager
def _quick_initialisation() -> Iterator[None]:
    """Normal weights in place of truncated normal ones, which take most of the time of building a large model."""
    plain = nn.init.trunc_normal_
    nn.init.trunc_normal_ = lambda tensor, mean=0.0, std=1.0, *_, **__: nn.init.normal_(tensor, mean, std)
    try:
        yield
    finally:
        nn.init.trunc_normal_ = plain


def _timm(name: str) -> Case:
    import timm

    depth, side = SMALLER.get(name, (None, 128))
    options = {} if depth is None else {"depth": depth}
    model = timm.create_model(name, **options)
    channels, *default = model.default_cfg["input_size"]
    sizes: list[tuple[int, ...]] = [tuple(default)]
    if not model.default_cfg.get("fixed_input_size", False):
        sizes.insert(0, (side, side))
    inputs = next(x for x in (torch.randn(BATCH, channels, *size) for size in sizes) if _runs(model, x))
    return Case(model=model, inputs=inputs, note=_said(options))


def _runs(model: nn.Module, inputs: torch.Tensor) -> bool:
    model.eval()
    try:
        with torch.no_grad():
            model(inputs)
    except Exception:  # noqa: BLE001 (whatever it says to an image of the wrong size)
        return False
    finally:
        model.train()
    return True


def _hugging_face(name: str) -> Case:
    import transformers

    transformers.logging.set_verbosity_error()
    model, inputs = HUGGING_FACE[name](transformers)
    return Case(model=model, inputs=inputs)


def _said(options: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def smallest_of_each_family() -> Iterator[str]:
    """One name for each module of timm.models: that of fewest parameters, timm's own ``test_`` models left out."""
    import timm
    from timm.models._registry import _model_to_module

    families: dict[str, list[str]] = {}
    for name in timm.list_models(exclude_filters="test_*"):
        families.setdefault(_model_to_module[name], []).append(name)
    for _, members in sorted(families.items()):
        yield min(members, key=lambda name: (_size(timm.create_model, name), name))


def _size(create: Callable[..., nn.Module], name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in create(name).parameters())
    except Exception:  # noqa: BLE001 (a few cannot be built on the meta device)
        return float("inf")
