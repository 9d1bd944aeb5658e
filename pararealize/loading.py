"""A folder that a network was saved into -> the network, or its original, as it was."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pararealize.coarse.kinds import Coarse
from pararealize.compiler import Device, pararealize
from pararealize.distributed.checkpoint.state import load_state
from pararealize.distributed.checkpoint.tensor_file import open_tensors
from pararealize.distributed.checkpoint.weights_plan import without_added
from pararealize.network.module import PararealModule
from pararealize.saving.example_form import example_from
from pararealize.saving.model_source import build_original
from pararealize.saving.network_folder import SavedNetwork, read_folder
from pararealize.saving.network_record import version_differences

from .argument_types import typed_arguments
from .errors import CheckpointError, PararealizeError
from .random_state import preserve_state

__all__ = ["example_of", "load", "load_original"]


@typed_arguments(CheckpointError, "model", "coarse", "devices", "example_inputs")
def load(
    folder: str | os.PathLike[str],
    model: nn.Module | str | None = None,
    *,
    coarse: Coarse | None = None,
    devices: Sequence[Device] | None = None,
    example_inputs: Any = None,
) -> PararealModule:
    """The network that :meth:`PararealModule.save` wrote: the same outputs and gradients, to the bit on the CPU.

    Every file is compared with its digest first. Nothing is unpickled, and no name in a file imports anything: an
    original that a registry has (this library's, torchvision's, timm's) is built by itself; any other is passed. The
    caller's random state stays as found.

    Args:
        folder: the network's, or that of a training run or a command, which holds one.
        model: the original, with any weights; or the name of the code that builds it, such as ``"mynets.py:deep"``,
            which has to be the code that it was saved with. Left as found.
        coarse: the function that built its coarse blocks, where one of the user's own did.
        devices: where its segments run, see :func:`pararealize`; on the CPU, or where ``model`` is, when left out.
        example_inputs: inputs like those it was converted with; needed where these were objects that no file holds.

    Raises:
        CheckpointError: the folder is not as it was written, holds an original alone, or needs ``model`` or
            ``example_inputs``.
        PararealizeError: the original is not the one that was saved, as :func:`pararealize` says it.

    Example:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> from pararealize import load, models, pararealize
        >>> net = pararealize(models.resnet20(), n=3)
        >>> folder = net.save(mkdtemp() + "/resnet20-n3")
        >>> x = torch.randn(2, 3, 32, 32)
        >>> torch.equal(load(folder)(x), net(x))
        True
    """
    saved = read_folder(folder)
    if saved.plan is None:
        raise CheckpointError(
            f"{str(saved.path)!r} holds an original, {saved.record.model}, that is not converted; take it with "
            "load_original(folder), and convert it"
        )
    with preserve_state():
        original = _typed(_original(saved, model), saved.record.conversion.dtypes)
        inputs = example_of(saved) if example_inputs is None else example_inputs
        try:
            net = pararealize(
                original,
                plan=saved.plan,
                coarse=coarse,
                devices=devices,
                example_inputs=inputs,
                leaf_modules=saved.record.conversion.leaf_modules,
            )
        except PararealizeError as error:
            if others := version_differences(saved.record.versions):
                error.add_note(f"besides, {str(saved.path)!r} was written with other versions: {others}")
            raise
        net.recording_limit = saved.record.recording_limit
        if saved.record.has_weights:
            _take_tensors(net, saved)
        saved.record.give_modes(net)
    return net


@typed_arguments(CheckpointError, "model")
def load_original(folder: str | os.PathLike[str], model: nn.Module | str | None = None) -> nn.Module:
    """The original of a saved network, in eval mode, with the weights that the network was made from.

    Where the network was trained since and the folder has no weights of the original as it was, with those that it has
    now.

    Args:
        folder: as :func:`load` takes it; also one that :func:`pararealize.saving.save_model` wrote.
        model: as :func:`load` takes it; a module that is passed gets the weights.

    Raises:
        CheckpointError: as :func:`load`, or there are no weights, or they do not fit the model.
    """
    saved = read_folder(folder)
    if not saved.record.has_weights:
        raise CheckpointError(f"{str(saved.path)!r} has no weights: it was written from a network on the meta device")
    with preserve_state():
        original = _original(saved, model)
        for name, tensor in _by_name(original).items():
            if (dtype := saved.record.conversion.dtypes.get(name)) is not None:
                tensor.data = tensor.data.to(_dtype(dtype))
        with open_tensors(saved.original or saved.weights) as file:
            names = without_added(file.forms) if saved.plan is not None else list(file.forms)
            load_state(original, {name: file.tensor(name) for name in names})
    return original.eval()


def example_of(saved: SavedNetwork) -> Any:
    """Example inputs like those that a network was converted with; ``None`` of an original.

    Raises:
        CheckpointError: no file could hold them.
    """
    conversion = saved.record.conversion
    if conversion.example is None and conversion.why_no_example:
        raise CheckpointError(
            f"{str(saved.path)!r} has no example inputs: {conversion.why_no_example}; pass example_inputs="
        )
    return None if conversion.example is None else example_from(conversion.example)


def _original(saved: SavedNetwork, model: nn.Module | str | None) -> nn.Module:
    if saved.record.has_weights or isinstance(model, nn.Module):
        return build_original(saved.record.model, model)
    with torch.device("meta"):
        return build_original(saved.record.model, model)


def _typed(model: nn.Module, dtypes: Mapping[str, str]) -> nn.Module:
    """The model with tensors of the types that it was recorded with; a copy, where they are others."""
    tensors = _by_name(model)
    others = {name: _dtype(text) for name, text in dtypes.items() if name in tensors}
    if all(tensors[name].dtype is dtype for name, dtype in others.items()):
        return model
    model = copy.deepcopy(model)
    for name, tensor in _by_name(model).items():
        if name in others:
            tensor.data = tensor.data.to(others[name])
    return model


def _dtype(text: str) -> torch.dtype:
    dtype = getattr(torch, text, None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"the folder says that a tensor is of the type {text!r}, which torch has not")
    return dtype


def _by_name(net: nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(net.named_parameters()), **dict(net.named_buffers())}


def _take_tensors(net: nn.Module, saved: SavedNetwork) -> None:
    """Give a network the tensors of its folder, in their own types."""
    tensors = _by_name(net)
    with open_tensors(saved.weights) as file:
        for name, form in file.forms.items():
            if name in tensors and tensors[name].dtype is not form.dtype:
                tensors[name].data = tensors[name].data.to(form.dtype)
    load_state(net, saved.weights)
    if saved.buffers is None:
        return
    with open_tensors(saved.buffers) as file:
        if strangers := [name for name in file.forms if name not in tensors]:
            raise CheckpointError(
                f"{str(saved.buffers)!r} has tensors that this network has not: {', '.join(strangers[:3])}; pass the "
                "original that was saved as model="
            )
        for name in file.forms:
            tensors[name].data = file.tensor(name).to(tensors[name].device)
