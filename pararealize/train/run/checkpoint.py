"""A training run between two steps -> tensors and plain data, one state whatever the number of ranks, and back.

    weights.safetensors   the network's state dict, by the names of the one-process network
    state.safetensors     what the optimiser keeps of each parameter; each rank's random states
    state.json            the step, sums of the epoch, the optimiser's settings, other random states, a monitor's state
                          where there is one; schema and version

Nothing is pickled.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from pararealize.distributed.checkpoint.collective import collect, first_replica, group_of
from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state, load_optimizer_state, parameter_names
from pararealize.distributed.checkpoint.state import load_state, own_tensors
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import CheckpointError
from pararealize.random_state import host_state_as_json, set_host_state, set_torch_state, torch_state

__all__ = ["RunState", "gather_run_state", "load_run_state", "read_run_state", "write_run_state"]

SCHEMA, VERSION = "pararealize.run-state", 1
WEIGHTS, TENSORS, PLAIN = "weights.safetensors", "state.safetensors", "state.json"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RunState:
    """What a checkpoint holds, a file each.

    Attributes:
        weights: the network's state dict.
        tensors: of the optimiser, by ``optimizer/KEY/PARAMETER``, and random states, by ``random/RANK/DEVICE``.
        plain: all that is no tensor, as JSON knows it.
    """

    weights: dict[str, torch.Tensor]
    tensors: dict[str, torch.Tensor]
    plain: dict[str, Any]


def gather_run_state(
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    processes: TrainingProcesses,
    facts: Mapping[str, Any],
) -> RunState:
    """Everything that a run needs to go on, complete on the rank that writes alone. All ranks call it.

    Args:
        net: the network, or this rank's part.
        optimizer: over its parameters.
        scaler: of the loss, where there is one.
        processes: the ranks that train it.
        facts: what else belongs to the state, as JSON knows it: the step, sums.
    """
    weights: dict[str, torch.Tensor] = {}
    optimizer_state: dict[str, Any] = {}
    if first_replica(net):
        weights = collect(own_tensors(net), group_of(net))
        optimizer_state = gather_optimizer_state(net, optimizer)
    random = processes.gather((torch_state(parameter.device for parameter in net.parameters()), host_state_as_json()))
    tensors = {
        f"random/{rank}/{name}": state for rank, (states, _) in enumerate(random) for name, state in states.items()
    }
    plain_states: dict[str, dict[str, Any]] = {}
    for name, values in optimizer_state.get("state", {}).items():
        for key, value in values.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer/{key}/{name}"] = value
            else:
                plain_states.setdefault(name, {})[key] = value
    plain = {
        "schema": SCHEMA,
        "version": VERSION,
        **facts,
        "world": processes.world,
        "optimizer": {"groups": optimizer_state.get("groups", []), "state": plain_states},
        "scaler": None if scaler is None else scaler.state_dict(),
        "random": [host_state for _, host_state in random],
    }
    return RunState(weights=weights, tensors=tensors, plain=plain)


def write_run_state(folder: Path, state: RunState) -> None:
    """Write a state's three files into a folder."""
    for name, values in ((WEIGHTS, state.weights), (TENSORS, state.tensors)):
        save_file(values, str(folder / name))
    (folder / PLAIN).write_text(json.dumps(state.plain), encoding="utf-8")


def read_run_state(folder: Path) -> dict[str, Any]:
    """The plain part of a state.

    Raises:
        CheckpointError: there is none, or it is of another version.
    """
    try:
        plain: dict[str, Any] = json.loads((folder / PLAIN).read_text(encoding="utf-8"))
        kind = plain["schema"], plain["version"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, type(error).__name__, error) from error
    if kind != (SCHEMA, VERSION):
        raise CheckpointError(
            f"the checkpoint {str(folder)!r} is of schema {kind[0]!r}, version {kind[1]!r}, and this is {SCHEMA!r}, "
            f"version {VERSION}; go on with the version of pararealize that wrote it"
        )
    return plain


def load_run_state(
    folder: Path,
    plain: Mapping[str, Any],
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    processes: TrainingProcesses,
) -> bool:
    """Put a network, its optimiser and the random states where a run stood; each rank reads its own part alone.

    Args:
        folder: of one checkpoint.
        plain: what :func:`read_run_state` read of it.
        net: the network, or this rank's part.
        optimizer: with the settings that the saved one had.
        scaler: of the loss, where there is one.
        processes: the ranks that train it.

    Returns:
        Whether as many ranks wrote it as there are now, so that each has its random states and the run goes on bit for
        bit.

    Raises:
        CheckpointError: something is missing or has another shape.
    """
    with _opened(folder, WEIGHTS):  # load_state's own error would speak of a file that the caller named
        pass
    load_state(net, folder / WEIGHTS)
    parameters = {name for names in parameter_names(net).values() for name in names}
    state: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in plain["optimizer"]["state"].items() if name in parameters
    }
    same_world: bool = plain["world"] == processes.world
    random_states: dict[str, torch.Tensor] = {}  # of this rank
    with _opened(folder, TENSORS) as file:
        for entry in file.keys():  # noqa: SIM118 (it is no mapping)
            kind, key, name = entry.split("/", 2)
            if kind == "optimizer" and name in parameters:
                state.setdefault(name, {})[key] = file.get_tensor(entry)
            elif kind == "random" and same_world and key == str(processes.rank):
                random_states[name] = file.get_tensor(entry)
        set_torch_state(random_states)
    load_optimizer_state(net, optimizer, {"state": state, "groups": plain["optimizer"]["groups"]})
    if scaler is not None and plain["scaler"] is not None:
        scaler.load_state_dict(plain["scaler"])
    if same_world:
        set_host_state(plain["random"][processes.rank])
    return same_world


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[Any]:
    """Open a file of tensors; an error is raised as one of the checkpoint."""
    try:
        with safe_open(str(folder / name), framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise _unreadable(folder, name, error) from error


def _unreadable(folder: Path, where: str, error: Exception) -> CheckpointError:
    text = f"the checkpoint {str(folder)!r} cannot be read ({where}: {error}); remove this folder, and the run goes on "
    return CheckpointError(text + "from the one before")
