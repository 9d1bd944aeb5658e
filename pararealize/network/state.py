"""A parareal network -> the state of its original, what is known of it, and whether a checkpoint's fits.

Every function takes the network as a plain module, as PararealModule itself uses them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from pararealize.coarse.folded_map import says_folded
from pararealize.distributed.checkpoint.state import tensor_misfit
from pararealize.errors import CheckpointError
from pararealize.saving.network_record import Change, Conversion

__all__ = ["changes_of", "checked_state", "note_changes", "note_weights", "original_state"]


def original_state(net: nn.Module) -> dict[str, Any]:
    """The state of a network's original as it is now, maps in layers included."""
    state, keys = net.state_dict(), net.__dict__["_original_keys"]
    return {key: state[key] for key in keys}


def note_weights(net: nn.Module, weights: str) -> None:
    """Note the digest of the original's own weights, by which a saved folder tells whether it has them still."""
    net.__dict__["_conversion"] = dataclasses.replace(net.__dict__["_conversion"], weights=weights)


def changes_of(net: nn.Module) -> frozenset[Change]:
    """What was changed of the original's state since it was given to the network, other than by folded maps."""
    conversion: Conversion = net.__dict__["_conversion"]
    return frozenset(conversion.changes)


def note_changes(net: nn.Module, changes: Iterable[Change]) -> None:
    """Note what is changed of the original's state by now; copies of the network and its folder have it, too."""
    conversion: Conversion = net.__dict__["_conversion"]
    net.__dict__["_conversion"] = dataclasses.replace(conversion, changes=sorted(changes))


def checked_state(net: nn.Module, state_dict: Mapping[str, Any], model: str) -> dict[str, Any]:
    """The original's part of a checkpoint; keys of adapters and coarse blocks, as of another n, are passed over.

    Args:
        net: the network that it is for.
        state_dict: the checkpoint.
        model: the original's name, for the message.

    Raises:
        CheckpointError: keys of the original are missing, others are unknown, values are no tensors, a shape, a layout
            or the kind of numbers differs, or maps are folded into its layers.
    """
    if not isinstance(state_dict, Mapping) or not all(isinstance(key, str) for key in state_dict):
        raise CheckpointError(
            f"the checkpoint is a {type(state_dict).__name__} that is no dict of tensors by name; pass "
            "model.state_dict(), or what safetensors.torch.load_file(path) gives"
        )
    current, keys = net.state_dict(), net.__dict__["_original_keys"]
    originals = [key for key in state_dict if key.split(".")[0] not in ("adapters", "coarse")]
    pairs = {key: (state_dict[key], current[key]) for key in originals if key in current}
    misfits = {
        "missing": [key for key in keys if key not in state_dict],
        "unknown": [key for key in originals if key not in current],
        "of another shape or type": [f"{key}: {fault}" for key, pair in pairs.items() if (fault := _misfit(*pair))],
        "with maps folded into layers": [key for key in state_dict if says_folded(key, state_dict[key])],
    }
    faults = [f"{len(found)} {fault} ({', '.join(found[:3])})" for fault, found in misfits.items() if found]
    if faults:
        raise CheckpointError(
            f"the checkpoint does not fit {model}: of its keys {', '.join(faults)}; load one that was saved from this "
            "model"
        )
    return {key: state_dict[key] for key in keys}


def _misfit(value: Any, current: torch.Tensor) -> str:
    """Why a value of a checkpoint cannot take the place of a tensor; nothing where it can."""
    fault = tensor_misfit(value, current)
    if not fault and value.is_meta and not current.is_meta:
        return "without values, on the meta device, there"
    return fault
