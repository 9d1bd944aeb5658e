"""A converted network -> what ``network.json`` says of it, as plain data: how it was made, its modes, versions."""

from __future__ import annotations

import dataclasses
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal, TypeAlias

import torch
from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass
from torch import nn

from pararealize.errors import ExampleError
from pararealize.manifest import STRICT
from pararealize.tracing.captured import Capture

from .example_form import form_of_example
from .model_source import ModelSource

__all__ = [
    "SCHEMA",
    "VERSION",
    "Change",
    "Conversion",
    "NetworkRecord",
    "modes_of",
    "version_differences",
    "versions",
    "weights_digest",
]

SCHEMA, VERSION = "pararealize.network", 1
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes of an element
_SAMPLE = 4096  # elements of a tensor, about
Change: TypeAlias = Literal["statistics", "weights"]  # renewed running statistics; weights or statistics, fine-tuned
_LIBRARIES = ("pararealize", "torch", "torchvision", "timm", "transformers")


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Conversion:
    """What a network was recorded with, so that it can be recorded again as it was.

    Attributes:
        example: form of the example inputs, see :mod:`~pararealize.saving.example_form`; ``None`` where there is none.
        why_no_example: the reason for that.
        leaf_modules: qualified names of the modules that the user kept as one call each.
        dtypes: of those of the model's tensors that have a type of their own, by their names.
        weights: the digest of the original's state as it was then, see :func:`weights_digest`; empty where unknown.
        changes: what a calibration or a fine-tuning changed of that state since, so that the network in sequence is
            no longer the original. Maps that are folded into layers have a mark of their own.
    """

    example: dict[str, Any] | None = None
    why_no_example: str = ""
    leaf_modules: list[str] = dataclasses.field(default_factory=list)
    dtypes: dict[str, str] = dataclasses.field(default_factory=dict)
    weights: str = ""
    changes: list[Change] = dataclasses.field(default_factory=list)

    @staticmethod
    def of(capture: Capture) -> Conversion:
        """Of a network that is made from this capture now."""
        example, why = None, ""
        try:
            args, kwargs = capture.example.args, capture.example.kwargs
            if kwargs:  # all by name, since a dict of them is one value
                args, kwargs = (), {**capture.example.call.signature.bind_partial(*args).arguments, **kwargs}
            example = form_of_example(args, kwargs)
        except ExampleError as error:
            why = str(error)
        tensors = (*capture.model.named_parameters(), *capture.model.named_buffers())
        return Conversion(
            example=example,
            why_no_example=why,
            leaf_modules=sorted(name for name, reason in capture.opaque.items() if reason == "asked for"),
            dtypes={
                name: str(tensor.dtype).removeprefix("torch.")
                for name, tensor in tensors
                if tensor.is_floating_point() and tensor.dtype is not torch.float32
            },
            weights=weights_digest(capture.model.state_dict()),
        )


@dataclass(frozen=True, kw_only=True, config=STRICT)
class NetworkRecord:
    """What ``network.json`` says.

    Attributes:
        schema: of the file.
        version: of the schema.
        model: how the original is built.
        converted: whether it is a parareal network, whose plan stands in ``plan.json``; else the original alone.
        conversion: what it was recorded with.
        has_weights: whether there are any; not of a network on the meta device.
        training: whether it is in train mode.
        other_modes: names of the modules in the other mode.
        frozen: names of the parameters that are not trained.
        channels_last: names of the tensors whose memory has channels last, by which torch chooses how to convolve.
        recording_limit: how many recordings for other sizes it keeps.
        versions: of this library, of torch and of others that were there when it was written.
    """

    schema: Literal["pararealize.network"] = "pararealize.network"
    version: Literal[1] = 1
    model: ModelSource
    converted: bool
    conversion: Conversion
    has_weights: bool
    training: bool
    other_modes: list[str]
    frozen: list[str]
    channels_last: list[str] = dataclasses.field(default_factory=list)
    recording_limit: NonNegativeInt = 8
    versions: dict[str, str]

    def joined(self, modes: Sequence[Mapping[str, Any]]) -> NetworkRecord:
        """The same with the modes that the parts of a network have on several ranks, see :func:`modes_of`."""
        names: dict[str, Any] = {
            field: list(dict.fromkeys(name for part in modes for name in part.get(field, ())))
            for field in ("other_modes", "frozen", "channels_last")
        }
        return dataclasses.replace(self, training=bool(modes[0]["training"]), has_weights=True, **names)

    def give_modes(self, net: nn.Module) -> None:
        """Give a network the modes of its modules, and which parameters are trained."""
        net.train(self.training)
        others, frozen = set(self.other_modes), set(self.frozen)
        for name, module in net.named_modules():
            if name in others:
                module.training = not self.training
        for name, parameter in net.named_parameters():
            if parameter.is_floating_point() or parameter.is_complex():
                parameter.requires_grad_(name not in frozen)

    def give_formats(self, net: nn.Module) -> None:
        """Put the channels of a network's tensors last in memory where they were."""
        names = set(self.channels_last)
        for name, tensor in (*net.named_parameters(), *net.named_buffers()):
            if name in names and tensor.ndim in _LAST:
                tensor.data = tensor.data.contiguous(memory_format=_LAST[tensor.ndim])


def modes_of(net: nn.Module) -> dict[str, Any]:
    """The fields of a record that are a network's modes, by name."""
    return {
        "training": net.training,
        "other_modes": [name for name, module in net.named_modules() if module.training != net.training],
        "frozen": [name for name, parameter in net.named_parameters() if not parameter.requires_grad],
        "channels_last": [
            name for name, tensor in (*net.named_parameters(), *net.named_buffers()) if _has_channels_last(tensor)
        ],
    }


_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def _has_channels_last(tensor: torch.Tensor) -> bool:
    format_ = _LAST.get(tensor.ndim)
    return format_ is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=format_)


def weights_digest(state: Mapping[str, Any]) -> str:
    """A digest of an original's state; empty where it has no values, or tensors of other kinds than plain ones.

    It is taken at every conversion, and hashes no gigabytes: the SHA-256 is of each tensor's name, shape and
    type, the exact sum of its bits as integers, and a few thousand of its elements at equal distances.

    Example:
        >>> empty = nn.Linear(2, 2, device="meta")
        >>> len(weights_digest(nn.Linear(2, 2).state_dict())), weights_digest(empty.state_dict())
        (64, '')
    """
    plain = (torch.Tensor, nn.Parameter, nn.Buffer)
    for value in state.values():
        if type(value) not in plain or value.is_meta or value.is_quantized or value.layout is not torch.strided:
            return ""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        flat = value.detach().contiguous().reshape(-1)
        flat = torch.view_as_real(flat).reshape(-1) if flat.is_complex() else flat
        bits = flat.view(_INTEGERS[flat.element_size()])
        sample = bits[:: max(1, bits.numel() // _SAMPLE)].cpu()
        digest.update(repr((name, tuple(value.shape), str(value.dtype), int(bits.sum(dtype=torch.int64)))).encode())
        digest.update(sample.numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of what a network may depend on, as far as it is installed.

    Example:
        >>> versions()["torch"] == torch.__version__
        True
    """
    known: dict[str, str] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            known[name] = version(name)
        except PackageNotFoundError:
            continue
    return known | {"torch": str(torch.__version__)}


def version_differences(record: Mapping[str, str]) -> str:
    """What is of another version here than where a network was written, in words; nothing where all are the same."""
    here = versions()
    others = [f"{name} {then} there, {here.get(name, 'none')} here" for name, then in record.items()]
    return ", ".join(text for text, (name, then) in zip(others, record.items(), strict=True) if here.get(name) != then)
