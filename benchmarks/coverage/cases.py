"""The models of the coverage table by name: ``torchvision:resnet18``, ``timm:convit_small``, ``hf:BertModel(eager)``.

Nothing is downloaded: every model is built from its code with random weights.
"""

from __future__ import annotations

import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .hugging_face import HUGGING_FACE
from .public_style import PUBLIC_STYLE
from .tensors import each

__all__ = ["Case", "build", "names", "two_of_each_family"]

MOST_PARAMETERS = 250_000_000  # a larger model is converted on the meta device
BATCH = 2
SIDE = 64  # of an image, where the model takes any size
SIDES = {"maxvit_t": 224, "inception_v3": 299}
VIDEO = {"s3d": (14, 224), "mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224)}  # frames and side, where 4 of 64 will not do
AUXILIARY = {  # built a second time: with auxiliary heads, or without them
    "googlenet": {"aux_logits": False},
    "inception_v3": {"aux_logits": False},
    "fcn_resnet50": {"aux_loss": True},
    "deeplabv3_mobilenet_v3_large": {"aux_loss": True},
}
# made smaller, for they are large all the same: (timm's depth=, side of the image)
SMALLER = {"deepseek_vit": (4, 112), "gemma4_vit": (4, 112), "qwen3_vit": (6, 112)}
MOST_DRAWN = 40_000_000  # parameters of a model of timm that is drawn

# two models of each module of timm.models, as two_of_each_family() finds them
TIMM = (Path(__file__).parent / "timm.txt").read_text().split()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A model, example inputs that it takes, and what was done to build it.

    Attributes:
        model: the original.
        inputs: a tensor, a tuple of positional or a dict of keyword arguments.
        note: the options that it was built with.
        others: inputs of other sizes, by what they are; the original may refuse them.
    """

    model: nn.Module
    inputs: Any
    note: str = ""
    others: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def on_meta(self) -> bool:
        return any(parameter.is_meta for parameter in self.model.parameters())


def names() -> list[str]:
    """Every case, by name."""
    import torchvision

    found = []
    for module in (torchvision.models, torchvision.models.segmentation, torchvision.models.video):
        for name in torchvision.models.list_models(module=module):
            found.append(f"torchvision:{name}")
            if name in AUXILIARY:
                found.append(f"torchvision:{name}({_said(AUXILIARY[name])})")
    found += [f"hf:{name}" for name in HUGGING_FACE]
    found += [f"public:{name}" for name in PUBLIC_STYLE]
    return [*found, *(f"timm:{name}" for name in TIMM)]


def build(name: str) -> Case:
    """The model of a name, with weights from seed 0; on the meta device where it is large."""
    torch.manual_seed(0)
    library, _, rest = name.partition(":")
    builders = {"torchvision": _torchvision, "timm": _timm, "hf": _hugging_face, "public": _public}
    case = builders[library](rest)
    if sum(parameter.numel() for parameter in case.model.parameters()) <= MOST_PARAMETERS:
        return case
    meta = each(lambda tensor: tensor.to("meta"), case.inputs)
    return dataclasses.replace(case, model=case.model.to("meta"), inputs=meta)


def _torchvision(name: str) -> Case:
    import torchvision

    name, _, arguments = name.partition("(")
    options: dict[str, Any] = dict(AUXILIARY[name]) if arguments else {}
    if name.startswith("vit_"):
        options["image_size"] = 64 if "32" in name else 32 if "16" in name else 28
    if name in torchvision.models.list_models(module=torchvision.models.segmentation):
        options["weights_backbone"] = None
    with _quick_initialisation():
        model = torchvision.models.get_model(name, weights=None, **options)
    options.pop("weights_backbone", None)
    if name in torchvision.models.list_models(module=torchvision.models.video):
        frames, side = VIDEO.get(name, (4, 64))
        sizes = [(frames, side, side), (frames + 2, side, side), (frames, side + 32, side)]
    else:
        side = options.get("image_size", SIDES.get(name, SIDE))
        sizes = _larger(side)
    return _case(model, 3, sizes, options)


def _larger(side: int) -> list[tuple[int, ...]]:
    return [(side, side), (side + 32, side + 32), (side, side + 32)]


def _case(model: nn.Module, channels: int, sizes: list[tuple[int, ...]], options: Mapping[str, Any]) -> Case:
    inputs, *others = (torch.randn(BATCH, channels, *size) for size in sizes)
    labels = ["×".join(map(str, size)) for size in sizes[1:]]
    return Case(model=model, inputs=inputs, note=_said(options), others=dict(zip(labels, others, strict=True)))


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
    """At the first size that the model takes: small, by an option where it is built for one size, or its own."""
    import timm

    depth, side = next((made for family, made in SMALLER.items() if name.startswith(family)), (None, SIDE))
    plain: dict[str, Any] = {} if depth is None else {"depth": depth}
    model = timm.create_model(name, **plain)
    channels, *default = model.default_cfg["input_size"]
    attempts: list[tuple[dict[str, Any], tuple[int, ...]]] = [({}, (s, s)) for s in (side, 96, 128)]
    if model.default_cfg.get("fixed_input_size", False):
        attempts = [({"img_size": s}, (s, s)) for s in (side, 96, 128)]
    for options, size in [*attempts, ({}, tuple(default))]:
        with contextlib.suppress(Exception):  # whatever it says to an option or an image of the wrong size
            sized = timm.create_model(name, **plain, **options) if options else model
            sized.eval()
            with torch.no_grad():
                sized(torch.randn(1, channels, *size))
            return _case(sized.train(), channels, _larger(size[0]), {**plain, **options})
    raise RuntimeError(f"{name} takes none of the sizes")


def _hugging_face(name: str) -> Case:
    import transformers

    transformers.logging.set_verbosity_error()
    model, inputs, (first, *others) = HUGGING_FACE[name](transformers)
    return Case(model=model, inputs=inputs(first), others={str(size): inputs(size) for size in others})


def _public(name: str) -> Case:
    model, inputs, *others = PUBLIC_STYLE[name]()
    return Case(model=model, inputs=inputs, others=others[0] if others else {})


def _said(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in options.items())


def two_of_each_family() -> Iterator[str]:
    """Two names for each module of timm.models, drawn at random from a seed: the module's name.

    Not the smallest of the module, which is what the library was written with, nor timm's own ``test_`` models, nor
    those of more than 40 million parameters, save where the module has no others: then the smallest that is left.
    """
    import timm
    from timm.models._registry import _model_to_module

    families: dict[str, list[str]] = {}
    for name in timm.list_models(exclude_filters="test_*"):
        families.setdefault(_model_to_module[name], []).append(name)
    for family, members in sorted(families.items()):
        sizes = {name: _size(timm.create_model, name) for name in members}
        _, *rest = sorted(members, key=lambda name: (sizes[name], name))
        small = [name for name in rest if sizes[name] <= MOST_DRAWN] or rest[:1]
        yield from sorted(random.Random(family).sample(sorted(small), min(2, len(small))))


def _size(create: Callable[..., nn.Module], name: str) -> float:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in create(name).parameters())
    except Exception:  # noqa: BLE001 (a few cannot be built on the meta device)
        return float("inf")
