"""A folder that a network was saved into -> the network, or its original, as it was."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pararealize.analysis.blocks import find_blocks
from pararealize.coarse.kinds import Coarse
from pararealize.compiler import Device, pararealize
from pararealize.distributed.checkpoint.state import fitting_names, load_state
from pararealize.distributed.checkpoint.tensor_file import open_tensors
from pararealize.distributed.checkpoint.weights_plan import ADDED
from pararealize.network.module import PararealModule
from pararealize.network.state import note_changes, note_weights
from pararealize.saving.example_form import example_from
from pararealize.saving.meta_model import give_memory
from pararealize.saving.model_source import build_original
from pararealize.saving.network_folder import SavedNetwork, read_folder
from pararealize.saving.network_record import version_differences, weights_digest
from pararealize.saving.plain_attributes import give_plain_tensors, named_plain_tensors
from pararealize.tracing.front_end import capture
from pararealize.tracing.node_table import CONSTANT

from .argument_types import typed_arguments
from .errors import CheckpointError, ExampleError, ModelError, OriginalWarning, PararealizeError, PlanError
from .models import copy_built
from .random_state import preserve_state
from .restore import ordinary_mode

__all__ = ["example_of", "load", "load_original"]

_OF_EXAMPLES = "; pass example_inputs that the model runs on"  # the remedy of who converts, and not of who loads


@typed_arguments(CheckpointError, "coarse", "devices", "example_inputs", model=ModelError)
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
        original = _original(saved, model)
        if example_inputs is not None and saved.record.conversion.example is not None:
            _check_operations(original, saved, example_inputs)  # which the plan tells at the sizes of its own alone
        original = _with_values(original, saved, example_inputs)
        original = _typed(original, saved.record.conversion.dtypes)
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
            raise _told(error, saved) from error
        net.recording_limit = saved.record.recording_limit
        if saved.record.has_weights:
            _take_tensors(net, saved)
            saved.record.give_formats(net)
            note_weights(net, saved.record.conversion.weights)
            note_changes(net, saved.record.conversion.changes)
        saved.record.give_modes(net)
    return net


@typed_arguments(CheckpointError, "example_inputs", model=ModelError)
def load_original(
    folder: str | os.PathLike[str], model: nn.Module | str | None = None, *, example_inputs: Any = None
) -> nn.Module:
    """The original of a saved network, in eval mode, with the weights that the network was made from.

    Where the folder has only the network's own weights and these have changed since it was converted (training, a
    running mean, another element type), or nobody knows whether they have, they are given with an
    :class:`~pararealize.errors.OriginalWarning`. ``save(original=model)`` keeps the original's.

    Args:
        folder: as :func:`load` takes it; also one that :func:`pararealize.saving.save_model` wrote.
        model: as :func:`load` takes it; a module that is passed gets the weights, in the element types that they were
            saved in, and memory for them on the CPU where it is on the meta device. Its blocks, shapes and operations
            are compared with the plan's before, as :func:`load` does; those of a folder without a plan are not.
        example_inputs: as :func:`load` takes them, for that comparison.

    Raises:
        CheckpointError: as :func:`load`, or there are no weights, or they do not fit the model.
        PararealizeError: the original that is passed is not the one that was saved; it is as it was then.

    Example:
        >>> import torch
        >>> from tempfile import mkdtemp
        >>> from pararealize import load_original, pararealize
        >>> from pararealize.models import resnet20
        >>> model, x = resnet20().eval(), torch.randn(2, 3, 32, 32)
        >>> folder = pararealize(model, n=3).save(mkdtemp() + "/resnet20-n3")
        >>> torch.equal(load_original(folder)(x), model(x))
        True
    """
    saved = read_folder(folder)
    if not saved.record.has_weights:
        raise CheckpointError(
            f"{str(saved.path)!r} has no weights: it was written from a network on the meta device; save it with "
            "weights, or build the original itself"
        )
    with preserve_state():
        original = _original(saved, model)
        if model is not None:
            _check_operations(original, saved, example_inputs)
        give_memory(original, saved.tensor_names())
        _take_original(original, saved, saved.original or saved.weights)
        saved.record.give_formats(original)
    if fault := _doubt(original, saved):
        warnings.warn(fault, OriginalWarning, stacklevel=3)  # the frame above is that of the arguments' check
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


def _with_values(model: nn.Module, saved: SavedNetwork, example_inputs: Any) -> nn.Module:
    """The model, or where it is on the meta device and the folder has weights, a copy on the CPU that has them."""
    if not (saved.record.has_weights and any(tensor.is_meta for tensor in _by_name(model).values())):
        return model
    _check_operations(model, saved, example_inputs)  # another model would lack values, which is no fault of its device
    model = copy_built(model)
    give_memory(model, saved.tensor_names())
    _take_original(model, saved, saved.weights, typed=False)  # it is recorded in the types that it was recorded in
    return model


def _check_operations(model: nn.Module, saved: SavedNetwork, example_inputs: Any) -> None:
    """Compare blocks, shapes and operations of a model that was passed with the plan's, at the sizes of its example.

    Raises:
        PararealizeError: they differ, or the model cannot be recorded.
    """
    if saved.plan is None:
        return
    conversion = saved.record.conversion
    inputs = example_inputs if conversion.example is None and example_inputs is not None else example_of(saved)
    try:
        with ordinary_mode():
            recorded = capture(
                _typed(model, conversion.dtypes), inputs, leaf_modules=conversion.leaf_modules, check=False
            )
            saved.plan.check(find_blocks(recorded, granularity=saved.plan.granularity))
    except PararealizeError as error:
        raise _told(error, saved) from error


def _told(error: PararealizeError, saved: SavedNetwork) -> PararealizeError:
    """The error of a model that is not the one that was saved, with the remedy of who loads a folder."""
    if isinstance(error, PlanError):
        fact = str(error).removesuffix("; leave plan= out to make one for it")
        error = PlanError(f"{str(saved.path)!r}: {fact}; pass the original that was saved as model= (--built-by)")
    elif isinstance(error, ExampleError) and (fact := str(error).removesuffix(_OF_EXAMPLES)) != str(error):
        error = ExampleError(f"{str(saved.path)!r}: {fact}; pass the original that was saved as model= (--built-by)")
    if others := version_differences(saved.record.versions):
        error.add_note(f"besides, {str(saved.path)!r} was written with other versions: {others}")
    return error


def _take_original(model: nn.Module, saved: SavedNetwork, weights: Path, *, typed: bool = True) -> None:
    """Give a model the original's tensors of a file, and a folder's buffers; in the types of these, if ``typed``."""
    tensors = _by_name(model)
    added = () if saved.plan is None else ADDED
    with open_tensors(weights) as file:
        names = [name for name in file.forms if name.split(".")[0] not in added]
        state = {name: file.tensor(name) for name in names}
    fitting_names(model, model.state_dict(), state, None, repr(str(saved.path)), strict=True)  # before it is changed
    for name, value in state.items():
        if typed and name in tensors and tensors[name].dtype is not value.dtype:
            tensors[name].data = tensors[name].data.to(value.dtype)
    load_state(model, state)
    if saved.buffers is None:
        return
    with open_tensors(saved.buffers) as file:
        values = {name: file.tensor(name) for name in file.forms if name.split(".")[0] not in added}
    for name in tensors.keys() & values.keys():
        value = values[name].to(tensors[name].device)
        tensors[name].data = value if typed else value.to(tensors[name].dtype)
    give_plain_tensors(model, {name: value for name, value in values.items() if name not in tensors})


def _doubt(original: nn.Module, saved: SavedNetwork) -> str:
    """Why the weights that a folder has may not be the original's own; nothing where they are."""
    if saved.plan is None:
        return ""
    if unknown := _unknown_tensors(original, saved):
        return (
            f"{str(saved.path)!r} does not say which values {', '.join(unknown)} had, tensors that the original holds "
            "as plain attributes: with those that it has now it may be another function than it was; register them as "
            "buffers (persistent=False keeps them out of the state dict), and convert and save it anew"
        )
    if saved.original is not None:
        return ""
    weights = saved.record.conversion.weights
    if weights and weights == weights_digest(original.state_dict()):
        return ""
    what = (
        "have changed since it was converted (by training, maps in layers, running statistics or another element type)"
        if weights
        else "may have changed since it was converted, which nobody knows of this folder"
    )
    return (
        f"{str(saved.path)!r} has no weights of the original's own, and those of the network {what}: with them the "
        "original is another function than it was; save the network with original=model to keep its own"
    )


def _unknown_tensors(original: nn.Module, saved: SavedNetwork) -> list[str]:
    """Plain attributes that a recording does not know by name, and whose values are none of its constants."""
    if saved.buffers is None:
        return []
    with open_tensors(saved.buffers) as file:
        constants = [file.tensor(name) for name in file.forms if name.split(".")[0].startswith(CONSTANT)]
        known = set(file.forms)
    unnamed = {name: tensor for name, tensor in named_plain_tensors(original).items() if name not in known}
    doubtful = list[str]()
    for name, tensor in unnamed.items():
        alike = [value for value in constants if (value.shape, value.dtype) == (tensor.shape, tensor.dtype)]
        if alike and not any(torch.equal(value, tensor.detach().cpu()) for value in alike):
            doubtful.append(name)
    return doubtful


def _typed(model: nn.Module, dtypes: Mapping[str, str]) -> nn.Module:
    """The model with tensors of the types that it was recorded with, float32 unless said; a copy, where others."""
    tensors = _by_name(model)
    others = {
        name: _dtype(dtypes.get(name, "float32")) for name, tensor in tensors.items() if tensor.is_floating_point()
    }
    if all(tensors[name].dtype is dtype for name, dtype in others.items()):
        return model
    model = copy_built(model)
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
    plain = named_plain_tensors(net)
    with open_tensors(saved.buffers) as file:
        if strangers := [name for name in file.forms if name not in tensors and name not in plain]:
            raise CheckpointError(
                f"{str(saved.buffers)!r} has tensors that this network has not: {', '.join(strangers[:3])}; pass the "
                "original that was saved as model="
            )
        for name in tensors.keys() & file.forms.keys():
            tensors[name].data = file.tensor(name).to(tensors[name].device)
        give_plain_tensors(net, {name: file.tensor(name) for name in plain.keys() & file.forms.keys()})
