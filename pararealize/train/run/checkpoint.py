"""A training run between two steps -> tensors and plain data, one state whatever the number of ranks, and back.

    weights.safetensors   the network's state dict, by the names of the one-process network
    state.safetensors     what the optimiser keeps of each parameter; each rank's random states
    state.json            the step, sums of the epoch, the optimiser's settings, other random states, a monitor's state
                          where there is one; see plain_state.py
    manifest.json         the digests of these, of which run and step they are; written last

Nothing is pickled.
"""

import contextlib
import dataclasses
import json
import re
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
from pararealize.distributed.checkpoint.state import check_copies, load_state, own_tensors
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import CheckpointError
from pararealize.files import open_file
from pararealize.manifest import faults_of_files, read_manifest, write_manifest
from pararealize.random_state import host_state_as_json, set_host_state, set_torch_state, torch_state

from .plain_state import PLAIN, SCHEMA, VERSION, PlainState, read_plain_state

__all__ = ["RunState", "check_run_state", "gather_run_state", "load_run_state", "write_run_state"]

WEIGHTS, TENSORS = "weights.safetensors", "state.safetensors"
HOLDS = "the state of a training run"


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
        check_copies(net)
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


def write_run_state(folder: Path, state: RunState, *, run: str) -> None:
    """Write a state's files into a folder, and last of all what they have to be.

    Args:
        folder: an empty one.
        state: of the run.
        run: which one it is, see :class:`~pararealize.train.run.run_folder.RunFolder`.
    """
    for name, values in ((WEIGHTS, state.weights), (TENSORS, state.tensors)):
        save_file(values, str(folder / name))
    (folder / PLAIN).write_text(json.dumps(state.plain), encoding="utf-8")
    write_manifest(folder, HOLDS, {"run": run, "step": state.plain["step"]})


def check_run_state(folder: Path, *, run: str) -> PlainState:
    """The plain part of a checkpoint, all files of which are what was written.

    Args:
        folder: of one checkpoint.
        run: whose it has to be.

    Raises:
        CheckpointError: a file is missing, is not what was written, or is another run's or another step's; says which.
    """
    manifest = read_manifest(folder, HOLDS)
    faults = faults_of_files(folder, manifest, dict.fromkeys((WEIGHTS, TENSORS, PLAIN, *manifest.files)))
    if faults:
        raise CheckpointError(f"{str(folder)!r} is damaged: {'; '.join(faults)}")
    plain = read_plain_state(folder)
    if manifest.facts.get("run") != run:
        raise CheckpointError(
            f"{str(folder)!r} is a checkpoint of another run: {manifest.facts.get('run')!r} there, {run!r} here"
        )
    if not manifest.facts.get("step") == plain.step == step_of(folder):
        raise CheckpointError(
            f"{str(folder)!r} contradicts itself: its name says step {step_of(folder)}, its manifest "
            f"{manifest.facts.get('step')!r}, its state {plain.step}"
        )
    return plain


def step_of(folder: Path) -> int | None:
    """The step that the name of a checkpoint says.

    Example:
        >>> step_of(Path("checkpoints/step-00000024")), step_of(Path("checkpoints"))
        (24, None)
    """
    match = re.fullmatch(r"step-([0-9]{8,18})", folder.name)
    return None if match is None else int(match[1])


def load_run_state(
    folder: Path,
    plain: PlainState,
    net: nn.Module,
    optimizer: Optimizer,
    scaler: torch.amp.GradScaler | None,
    processes: TrainingProcesses,
) -> bool:
    """Put a network, its optimiser and the random states where a run stood; each rank reads its own part alone.

    Args:
        folder: of one checkpoint, which :func:`check_run_state` has looked at on the rank that writes.
        plain: what is no tensor of it.
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
    parameters = {name for names in parameter_names(net).values() for name in names}
    state: dict[str, dict[str, Any]] = {
        name: dict(values) for name, values in plain.optimizer.state.items() if name in parameters
    }
    same_world = plain.world == processes.world
    random_states: dict[str, torch.Tensor] = {}  # of this rank
    with _tensors(folder, TENSORS) as file:
        for entry in file.keys():  # noqa: SIM118 (it is no mapping)
            kind, key, name = (*entry.split("/", 2), "", "")[:3]
            if kind == "optimizer" and name in parameters:
                state.setdefault(name, {})[key] = file.get_tensor(entry)
            elif kind == "random" and same_world and key == str(processes.rank):
                random_states[name] = file.get_tensor(entry)
    keys = {key for values in state.values() for key in values}  # the optimisers of recipes keep the same of all
    if lacking := [name for name, values in state.items() if values.keys() != keys]:
        raise CheckpointError(
            f"the state in {str(folder)!r} cannot be taken: of {', '.join(lacking[:3])} it has not all of "
            f"{', '.join(sorted(keys))}"
        )
    with _tensors(folder, WEIGHTS):  # load_state's own error would speak of a file that the caller named
        pass
    load_state(net, folder / WEIGHTS)
    load_optimizer_state(net, optimizer, {"state": state, "groups": plain.optimizer.groups})
    with _taken(folder):
        if scaler is not None and plain.scaler is not None:
            scaler.load_state_dict(plain.scaler)
        if same_world:
            set_torch_state(random_states)
            set_host_state(dataclasses.asdict(plain.random[processes.rank]))
    return same_world


@contextlib.contextmanager
def _tensors(folder: Path, name: str) -> Iterator[Any]:
    """Open a file of tensors; an error is raised as one of the checkpoint."""
    try:
        open_file(folder / name).close()  # what is no file is not opened by others either
        with safe_open(str(folder / name), framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{str(folder / name)!r} cannot be read: {error}") from error


@contextlib.contextmanager
def _taken(folder: Path) -> Iterator[None]:
    """What torch, Python and NumPy say of a state that is none of theirs, as an error of the checkpoint."""
    try:
        yield
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError, OverflowError) as error:
        raise CheckpointError(
            f"the state in {str(folder)!r} cannot be taken: {type(error).__name__}: {error}"
        ) from error
