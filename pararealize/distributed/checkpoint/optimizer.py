"""The optimiser of each rank -> one state by the parameters' names, and back at any number of ranks.

An optimiser numbers its parameters in its own order, which is another one on every rank. Here they go by the names of
the one-process network, so that a state fits whatever ranks go on with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from torch import nn
from torch.optim import Optimizer

from pararealize.errors import CheckpointError
from pararealize.manifest import faults_of_schema
from pararealize.table import shortened

from .collective import called_together, collect, gather_objects, group_of, known_to_all, read_alike, tensor_facts

__all__ = ["gather_optimizer_state", "load_optimizer_state", "parameter_names"]


class _ParameterGroup(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")
    params: list[str]


class _State(BaseModel):
    model_config = ConfigDict(strict=True, arbitrary_types_allowed=True)
    state: dict[str, dict[str, torch.Tensor | int | float | bool | None]]
    groups: list[_ParameterGroup]


_FORM = TypeAdapter(_State)


def gather_optimizer_state(stage: nn.Module, optimizer: Optimizer, *, everywhere: bool = False) -> dict[str, Any]:
    """The state of all ranks' optimisers, by names of parameters, on the CPU.

    All ranks of the group call it. The result is plain: ``torch.save`` writes it, and
    ``torch.load(..., weights_only=True)`` reads it.

    Args:
        stage: this rank's part; an ordinary module is the whole network.
        optimizer: over parameters of ``stage``, in as many groups on every rank, with the same settings.
        everywhere: give it to every rank.

    Returns:
        ``{"state": {name: {key: value}}, "groups": [{"params": [name, …], "lr": …}, …]}`` on the first rank of the
        group, an empty one elsewhere; or the same on every rank.

    Raises:
        CheckpointError: a parameter is not the stage's, or the ranks' groups differ; on every rank.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from pararealize.distributed.checkpoint import gather_optimizer_state
        >>> model = nn.Linear(2, 1)
        >>> state = gather_optimizer_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> state["groups"][0]["params"], state["groups"][0]["lr"]
        (['weight', 'bias'], 0.1)
    """
    group = group_of(stage)
    names, fault = _names(stage, optimizer)
    groups = [
        {**_settings(entry), "params": [names[id(p)] for p in entry["params"]]}
        for entry in ([] if fault else optimizer.param_groups)
    ]
    values = {
        (names[id(p)], key): value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if id(p) in names
    }
    tensors = {key: value for key, value in values.items() if isinstance(value, torch.Tensor)}
    plain = {key: value for key, value in values.items() if key not in tensors}
    with called_together(stage, "gather_optimizer_state", copies=False, everywhere=everywhere):
        reports = gather_objects((fault, groups, plain), group)
        merged = _merge(reports)
        gathered = collect(tensors, group, everywhere=everywhere)
    if group is not None and not everywhere and dist.get_rank(group) != 0:
        return {}
    state: dict[str, dict[str, Any]] = {}
    for (name, key), value in itertools.chain(*(objects.items() for _, _, objects in reports), gathered.items()):
        state.setdefault(name, {})[key] = value
    return {"state": state, "groups": merged}


def load_optimizer_state(stage: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser its part of what :func:`gather_optimizer_state` gave.

    All ranks call it, those of all replicas: where the state of one does not fit, or ranks pass different ones, all
    raise, and nothing is changed. A tied parameter is found under any of its names. A parameter that the state knows
    nothing of, as one that never had a gradient, starts anew.

    Raises:
        CheckpointError: another number of groups, a parameter in another group or in none, or another shape; on every
            rank.
        AgreedError: ranks pass different states.
    """
    parameters, states, groups = read_alike(
        stage, "load_optimizer_state", lambda: (_fitting(stage, optimizer, state), _facts(state))
    )
    numbers = {id(parameter): i for i, parameter in enumerate(parameters)}
    optimizer.load_state_dict(
        {
            "state": {i: dict(values) for i, values in enumerate(states) if values},
            "param_groups": [
                {**_settings(group), **saved, "params": [numbers[id(p)] for p in group["params"]]}
                for saved, group in zip(groups, optimizer.param_groups, strict=True)
            ],
        }
    )


def _facts(state: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What all ranks have to have alike of a state: groups, and what several of them have of a parameter."""
    values = {f"{name}: {key}": value for name, entry in state["state"].items() for key, value in entry.items()}
    plain = {key: str(value) for key, value in values.items() if not isinstance(value, torch.Tensor)}
    groups = {f"group {i} of parameters": str(group) for i, group in enumerate(state["groups"])}
    count = {"the number of groups": str(len(state["groups"]))}
    return tensor_facts(values) | {
        name: (text, shortened(text, 200)) for name, text in (plain | groups | count).items()
    }


def _fitting(
    stage: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]
) -> tuple[list[torch.Tensor], list[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """An optimiser's parameters, the state of each, and the groups that were saved."""
    _check_form(state)
    names, fault = _names(stage, optimizer)
    all_names = parameter_names(stage)
    states: dict[str, Mapping[str, Any]] = {
        name: next((state["state"][other] for other in others if other in state["state"]), {})
        for name, others in all_names.items()
    }
    faults = [fault] if fault else _misfits(optimizer, names, all_names, states, state["groups"])
    if faults:
        raise CheckpointError(
            f"the optimiser's state does not fit: {'; '.join(faults[:4])}; make the optimiser as it was made before"
        )
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return parameters, [states[names[id(p)]] for p in parameters], state["groups"]


def _check_form(state: Mapping[str, Any]) -> None:
    """Refuse what :func:`gather_optimizer_state` never gives, before anything of it is used."""
    try:
        _FORM.validate_python(state)
    except ValidationError as error:
        raise CheckpointError(
            f"this is no state of gather_optimizer_state ({faults_of_schema(error)}); pass what that returned"
        ) from error


def _misfits(
    optimizer: Optimizer,
    names: Mapping[int, str],
    all_names: Mapping[str, tuple[str, ...]],
    states: Mapping[str, Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
) -> list[str]:
    """What of a saved state does not fit an optimiser: its groups, and the shapes in it.

    Args:
        optimizer: the one that is to take the state.
        names: of its parameters, by their ids.
        all_names: for each of these names all that the parameter has.
        states: by these names, what was saved.
        groups: of parameters, as they were saved.
    """
    faults = []
    if len(groups) != len(optimizer.param_groups):
        faults.append(
            f"the state has {len(groups)} groups of parameters and the optimiser {len(optimizer.param_groups)}"
        )
    for i, (saved, group) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        here = [names[id(parameter)] for parameter in group["params"]]
        strangers = [name for name in here if set(saved["params"]).isdisjoint(all_names[name])]
        if strangers:
            faults.append(f"{len(strangers)} parameters of group {i} are not in it there ({', '.join(strangers[:3])})")
        faults += [
            f"{key} of group {i}: {ascii(saved.get(key))[:80]} there, {value!r} here"
            for key, value in _settings(group).items()
            if key in saved and not _alike(saved[key], value)
        ]
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        name = names[id(parameter)]
        for key, value in states[name].items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                faults.append(f"{key} of {name}: {tuple(value.shape)} there, {tuple(parameter.shape)} here")
    return faults


def _alike(there: Any, here: Any) -> bool:
    """Whether a setting that was saved can stand for one of an optimiser: of the same kind, whatever its value."""
    kinds = [_kind(value) for value in (there, here)]
    return kinds[0] == kinds[1] and (kinds[0] != "sequence" or len(there) == len(here))


def _kind(value: Any) -> str:
    if isinstance(value, bool | None):  # foreach, fused and the like are None for what fits best
        return "choice"
    if isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.numel() == 1):
        return "number"
    return "sequence" if isinstance(value, list | tuple) else type(value).__name__


def parameter_names(stage: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter's name on this rank all that it has in the one-process network: tied ones have several."""
    tied_names = getattr(stage, "tied_names", None)
    if tied_names is not None:
        return {name: (name, *tied_names.get(name, ())) for name, _ in stage.named_parameters()}
    names: dict[int, list[str]] = {}
    for name, parameter in stage.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {others[0]: tuple(others) for others in names.values()}


def _names(stage: nn.Module, optimizer: Optimizer) -> tuple[dict[int, str], str]:
    """Names by the parameters' ids, and what is wrong with the optimiser's parameters."""
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    strangers = sum(id(p) not in names for group in optimizer.param_groups for p in group["params"])
    return names, f"{strangers} of the optimiser's parameters are not this network's" if strangers else ""


def _settings(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group of parameters without these."""
    return {key: value for key, value in group.items() if key != "params"}


def _merge(reports: Sequence[tuple[str, list[dict[str, Any]], Any]]) -> list[dict[str, Any]]:
    """The groups of all ranks, each with the parameters of all."""
    faults = [f"rank {rank}: {fault}" for rank, (fault, _, _) in enumerate(reports) if fault]
    settings = [[_settings(group) for group in groups] for _, groups, _ in reports]
    for rank, of_rank in enumerate(settings):
        if not faults and of_rank != settings[0]:
            faults.append(f"rank {rank} has groups of parameters {of_rank}, and rank 0 {settings[0]}")
    if faults:
        text = f"cannot gather the optimiser's state: {'; '.join(faults[:3])}; make it alike on all ranks"
        raise known_to_all(CheckpointError(text))
    merged = []
    for i, setting in enumerate(settings[0]):
        names = dict.fromkeys(name for _, groups, _ in reports for name in groups[i]["params"])
        merged.append({**setting, "params": list(names)})
    return merged
