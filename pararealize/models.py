"""A name -> a network: the CIFAR pre-activation ResNets that no library ships, and every other model one can name.

The ResNets are those of He, Zhang, Ren and Sun, "Identity mappings in deep residual networks" (ECCV 2016), for 32×32
images. :func:`build` also takes torchvision's names, ``timm:NAME``, ``package.module:callable`` and
``file.py:callable``.
"""

import copy
import importlib
import inspect
import weakref
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from .argument_types import typed_arguments
from .errors import ModelError
from .lookup import brief, find, unknown

__all__ = [
    "PreActBasic",
    "PreActBottleneck",
    "PreActResNet",
    "build",
    "built_as",
    "copy_built",
    "default_input",
    "is_registered",
    "names",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "resnet164",
    "resnet1001",
    "timm_names",
    "torchvision_names",
]


class PreActBasic(nn.Module):
    """A pre-activation unit of two 3×3 convolutions: ``x + conv2(relu(bn2(conv1(relu(bn1(x))))))``.

    Shapes: ``(batch, inputs, H, W)`` to ``(batch, width, H/stride, W/stride)``. Where the shape changes, a strided 1×1
    convolution of the first activation ``relu(bn1(x))`` takes the place of the skip, as in the authors' code.
    """

    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.projection = _projection(inputs, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        """One unit, ``(batch, inputs, H, W)`` to ``(batch, width, H/stride, W/stride)``."""
        a = self.relu(self.bn1(x))
        skip = x if self.projection is None else self.projection(a)
        a = self.conv1(a)
        a = self.conv2(self.relu(self.bn2(a)))
        y: Tensor = skip + a
        return y


class PreActBottleneck(nn.Module):
    """A pre-activation unit of 1×1, 3×3 and 1×1 convolutions, the last one four times as wide as the others.

    Shapes: ``(batch, inputs, H, W)`` to ``(batch, 4 * width, H/stride, W/stride)``. The first convolution has the
    stride, and where the shape changes a strided 1×1 convolution of the first activation takes the place of the skip,
    both as in the authors' code.
    """

    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs = self.expansion * width
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, width, 1, stride=stride, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.projection = _projection(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        """One unit, ``(batch, inputs, H, W)`` to ``(batch, 4 * width, H/stride, W/stride)``."""
        a = self.relu(self.bn1(x))
        skip = x if self.projection is None else self.projection(a)
        a = self.conv1(a)
        a = self.conv2(self.relu(self.bn2(a)))
        a = self.conv3(self.relu(self.bn3(a)))
        y: Tensor = skip + a
        return y


def _projection(inputs: int, outputs: int, stride: int) -> nn.Conv2d | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class PreActResNet(nn.Module):
    """A pre-activation ResNet for 32×32 images.

    A 3×3 convolution from 3 to 16 channels; three stages of ``units`` units of inner widths 16, 32 and 64 at 32, 16 and
    8 pixels; batch norm, ReLU, the mean over the pixels, and a linear layer. Its depth counts the convolutions on the
    longest path and the linear layer: ``6 * units + 2`` of :class:`PreActBasic`, ``9 * units + 2`` of
    :class:`PreActBottleneck`. Convolutions start from He's normal initialisation (fan out), as in the authors' code.

    Args:
        unit: the class of the residual units, :class:`PreActBasic` or :class:`PreActBottleneck`.
        units: how many units a stage has.
        num_classes: how many classes the linear layer tells apart.

    Shapes: ``(batch, 3, 32, 32)`` to ``(batch, num_classes)``; other image sizes that four divides work too.

    Source: He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", ECCV 2016.

    Example:
        >>> import torch
        >>> net = PreActResNet(PreActBottleneck, units=2, num_classes=10)
        >>> net(torch.zeros(5, 3, 32, 32)).shape
        torch.Size([5, 10])
    """

    image_size = 32  # what example inputs are made from where none are given
    stage1: nn.Sequential
    stage2: nn.Sequential
    stage3: nn.Sequential

    def __init__(self, unit: type[PreActBasic | PreActBottleneck], units: int, num_classes: int = 10) -> None:
        super().__init__()
        if units < 1 or num_classes < 1:
            raise ModelError(
                f"a PreActResNet needs at least one unit a stage and one class, but units = {units} and "
                f"num_classes = {num_classes}; pass positive numbers"
            )
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        channels = 16
        for stage, (width, stride) in enumerate([(16, 1), (32, 2), (64, 2)], start=1):
            blocks = nn.Sequential()
            for i in range(units):
                blocks.append(unit(channels, width, stride if i == 0 else 1))
                channels = width * unit.expansion
            self.add_module(f"stage{stage}", blocks)
        self.bn = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(batch, 3, H, W)`` to logits ``(batch, num_classes)``."""
        x = self.conv1(x)
        x = self.stage1(x)
        x = self.stage2(x)
        x = self.stage3(x)
        x = self.pool(self.relu(self.bn(x)))
        logits: Tensor = self.fc(x.flatten(1))
        return logits


# networks that still exist: by which name, and with which arguments, each was built
_BUILT: weakref.WeakKeyDictionary[nn.Module, tuple[str, dict[str, Any]]] = weakref.WeakKeyDictionary()


def _resnet(unit: type[PreActBasic | PreActBottleneck], depth: int) -> Callable[..., PreActResNet]:
    """The constructor of one depth: ``6n + 2`` layers of basic units, ``9n + 2`` of bottleneck units."""
    layers = 6 if unit is PreActBasic else 9
    units, rest = divmod(depth - 2, layers)
    assert rest == 0, f"depth {depth} is not {layers}n + 2"

    def constructor(num_classes: int = 10) -> PreActResNet:
        network = PreActResNet(unit, units, num_classes)
        _BUILT[network] = f"resnet{depth}", {} if num_classes == 10 else {"num_classes": num_classes}
        return network

    constructor.__name__ = constructor.__qualname__ = f"resnet{depth}"
    constructor.__doc__ = (
        f"Pre-activation ResNet-{depth} for 32×32 images: 3 stages of {units} {unit.__name__} units.\n\n"
        f"    ``(batch, 3, 32, 32)`` to ``(batch, num_classes)``; see :class:`PreActResNet`.\n    "
    )
    return constructor


resnet20 = _resnet(PreActBasic, 20)
resnet32 = _resnet(PreActBasic, 32)
resnet44 = _resnet(PreActBasic, 44)
resnet56 = _resnet(PreActBasic, 56)
resnet110 = _resnet(PreActBasic, 110)
resnet164 = _resnet(PreActBottleneck, 164)
resnet1001 = _resnet(PreActBottleneck, 1001)

BUILT_IN: dict[str, Callable[..., PreActResNet]] = {
    constructor.__name__: constructor
    for constructor in (resnet20, resnet32, resnet44, resnet56, resnet110, resnet164, resnet1001)
}


def names() -> list[str]:
    """The built-in names: the CIFAR pre-activation ResNets, smallest first.

    Example:
        >>> names()
        ['resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110', 'resnet164', 'resnet1001']
    """
    return list(BUILT_IN)


def torchvision_names() -> list[str]:
    """The names of torchvision's classification models, in alphabetical order."""
    from torchvision import models

    return list(models.list_models(module=models))


def timm_names() -> list[str]:
    """The names of timm's models, without ``timm:``.

    Raises:
        ModelError: timm is not installed.
    """
    return list(_import_timm("a list of timm's models").list_models())


@typed_arguments(ModelError)
def build(name: str, **arguments: Any) -> nn.Module:
    """The network of that name, with random weights drawn from torch's global generator.

    Args:
        name: a built-in name (:func:`names`), a name of torchvision's (:func:`torchvision_names`, or
            ``torchvision:NAME``), ``timm:NAME``, ``package.module:callable`` or ``file.py:callable``. Built-in names go
            before torchvision's. What ``callable`` names may also be a module that has been built already.
        arguments: passed on to the constructor, such as ``num_classes=100``.

    torchvision's ``googlenet`` and ``inception_v3`` come without their auxiliary heads, which exist in training mode
    only, unless ``aux_logits=True`` is passed.

    Raises:
        ModelError: nothing has that name (close matches are listed), it cannot be imported, or it fails or gives
            something else than a module when called.

    Example:
        >>> from pararealize.models import build
        >>> net = build("resnet20", num_classes=100)
        >>> sum(p.numel() for p in net.parameters())
        278132
    """
    network = _build(name, arguments)
    _BUILT[network] = name, dict(arguments)
    return network


def built_as(network: nn.Module) -> tuple[str, dict[str, Any]] | None:
    """By which name :func:`build` gave this very network, and with which arguments; ``None`` where it did not.

    Example:
        >>> built_as(build("resnet20", num_classes=100)), built_as(nn.Linear(2, 2))
        (('resnet20', {'num_classes': 100}), None)
    """
    return _BUILT.get(network)


def copy_built(network: nn.Module) -> nn.Module:
    """A deep copy of a network, of which it is known, too, by which name it was built.

    Example:
        >>> built_as(copy_built(build("resnet20")))
        ('resnet20', {})
    """
    copied = copy.deepcopy(network)
    if (built := built_as(network)) is not None:
        _BUILT[copied] = built
    return copied


def is_registered(name: str) -> bool:
    """Whether a name is one of a registry's, built-in, torchvision's or timm's, and so imports no code of the user's.

    Example:
        >>> is_registered("resnet20"), is_registered("timm:convnext_atto"), is_registered("mynets.py:deep")
        (True, True, False)
    """
    scheme, colon, _ = name.rpartition(":")
    return not colon or scheme in ("torchvision", "timm")


def _build(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    arguments = dict(arguments)
    if name in BUILT_IN:
        try:
            inspect.signature(BUILT_IN[name]).bind(**arguments)
        except TypeError as error:
            raise ModelError(f"{name} {error}; it takes {inspect.signature(BUILT_IN[name])}") from error
        return BUILT_IN[name](**arguments)
    scheme, colon, rest = name.rpartition(":")
    if scheme == "timm":
        return _timm(rest, arguments)
    if scheme != "torchvision" and colon:
        return _called(name, arguments)
    candidates = torchvision_names()
    if rest not in candidates:
        if colon:
            raise ModelError(unknown(rest, candidates, "a classification model of torchvision's"))
        raise ModelError(unknown(name, [*BUILT_IN, *candidates], "a built-in model or one of torchvision's"))
    return _torchvision(rest, arguments)


def default_input(name: str) -> tuple[int, ...] | None:
    """The shape of one input of a named model, without the batch dimension; None where it is not known.

    Example:
        >>> default_input("resnet1001"), default_input("resnet50"), default_input("file.py:net")
        ((3, 32, 32), (3, 224, 224), None)
    """
    if name in BUILT_IN:
        return (3, 32, 32)
    scheme, _, rest = name.rpartition(":")
    if scheme == "timm":
        timm = _import_timm(name)
        settings = timm.get_pretrained_cfg(rest) if timm.is_model(rest.partition(".")[0]) else None
        return None if settings is None else tuple(settings.input_size)
    if scheme in {"", "torchvision"} and rest in torchvision_names():
        pixels = 299 if rest == "inception_v3" else 224
        return (3, pixels, pixels)
    return None


def _torchvision(name: str, arguments: dict[str, Any]) -> nn.Module:
    from torchvision import models

    if name in {"googlenet", "inception_v3"}:
        arguments = {"aux_logits": False, "init_weights": True, **arguments}
    return _module(name, models.get_model(name, weights=None, **arguments))


def _import_timm(name: str) -> ModuleType:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise ModelError(
            f"{name} needs timm, which is not installed; say pip install 'pararealize[zoo]' (or pip install timm)"
        ) from error


def _timm(name: str, arguments: dict[str, Any]) -> nn.Module:
    timm = _import_timm(f"timm:{name}")
    if not timm.is_model(name.partition(".")[0]):
        raise ModelError(unknown(name, timm.list_models(), "a model of timm's"))
    return _module(name, timm.create_model(name, pretrained=False, **arguments))


def _called(name: str, arguments: dict[str, Any]) -> nn.Module:
    value = find(name)
    if isinstance(value, nn.Module):
        return value
    if not callable(value):
        raise ModelError(
            f"{name!r} is a {type(value).__name__}, which cannot be called; name a function or a class that gives a "
            f"torch.nn.Module"
        )
    try:
        network = value(**arguments)
    except Exception as error:
        raise ModelError(f"calling {name!r} failed: {brief(error)}") from error
    return _module(name, network)


def _module(name: str, value: object) -> nn.Module:
    if not isinstance(value, nn.Module):
        raise ModelError(f"{name!r} gives a {type(value).__name__} and not a torch.nn.Module; name one that does")
    return value
