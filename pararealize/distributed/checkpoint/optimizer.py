"""The optimiser of each rank -> one state by the parameters' names, and back at any number of ranks.

An optimiser numbers its parameters in its own order, which is another one on every rank. Here they go by the names of
the one-process network, so that a state fits whatever ranks go on with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from pararealize.errors import CheckpointError

from .state import collect, group_of

__all__ = ["gather_optimizer_state", "load_optimizer_state", "parameter_names"]


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
        >>> from pararealize.distributed.checkpoint.optimizer import gather_optimizer_state
        >>> model = nn.Linear(2, 1)
        >>> state = gather_optimizer_state(model, torch.optim.SGD(model.parameters(), lr=0.1))
        >>> state["groups"][0]["params"], state["groups"][0]["lr"]
        (['weight', 'bias'], 0.1)
    """
    group = group_of(stage)
    names, fault = _names(stage, optimizer)
    groups = [
        {
            **{key: value for key, value in given.items() if key != "params"},
            "params": [names[id(p)] for p in given["params"]],
        }
        for given in ([] if fault else optimizer.param_groups)
    ]
    states = {names[id(parameter)]: state for parameter, state in optimizer.state.items() if id(parameter) in names}
    tensors = {
        (name, key): value
        for name, state in states.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }
    plain = {
        name: {key: value for key, value in state.items() if not isinstance(value, torch.Tensor)}
        for name, state in states.items()
    }
    told: list[Any] = [(fault, groups, plain)]
    if group is not None:
        told = [None] * dist.get_world_size(group)
        dist.all_gather_object(told, (fault, groups, plain), group=group)
    merged = _merge(told)
    gathered = collect(tensors, group, everywhere=everywhere)
    if group is not None and not everywhere and dist.get_rank(group) != 0:
        return {}
    state: dict[str, dict[str, Any]] = {}
    for _, _, others in told:
        for name, values in others.items():
            state.setdefault(name, {}).update(values)
    for (name, key), value in gathered.items():
        state.setdefault(name, {})[key] = value
    return {"state": {name: values for name, values in state.items() if values}, "groups": merged}


def load_optimizer_state(stage: nn.Module, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimiser its part of what :func:`gather_optimizer_state` gave.

    Each rank calls it for itself. A tied parameter is found under any of its names. A parameter that the state knows
    nothing of, as one that never had a gradient, starts anew.

    Raises:
        CheckpointError: another number of groups, a parameter in another group or in none, or another shape.
    """
    if not {"state", "groups"} <= set(state):
        raise CheckpointError("this is no state of gather_optimizer_state; pass what that returned")
    names, fault = _names(stage, optimizer)
    groups, known_names = state["groups"], parameter_names(stage)
    given_states: dict[str, Mapping[str, Any]] = {
        name: next((state["state"][other] for other in others if other in state["state"]), {})
        for name, others in known_names.items()
    }
    if not fault and len(groups) != len(optimizer.param_groups):
        fault = f"the state has {len(groups)} groups of parameters and the optimiser {len(optimizer.param_groups)}"
    faults = [fault] if fault else []
    for i, (given, own) in enumerate(zip(groups, optimizer.param_groups, strict=False)):
        known = set(given["params"])
        others = [names[id(p)] for p in own["params"] if not fault and known.isdisjoint(known_names[names[id(p)]])]
        if others:
            faults.append(f"{len(others)} parameters of group {i} are not in it there ({', '.join(others[:3])})")
    for parameter in (p for own in optimizer.param_groups for p in own["params"]) if not fault else ():
        for key, value in given_states[names[id(parameter)]].items():
            if isinstance(value, torch.Tensor) and value.ndim and value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)} there, {tuple(parameter.shape)} here"
                faults.append(f"{key} of {names[id(parameter)]}: {shapes}")
    if faults:
        raise CheckpointError(
            f"the optimiser's state does not fit: {'; '.join(faults[:4])}; make the optimiser as it was made before"
        )
    numbered = [p for own in optimizer.param_groups for p in own["params"]]
    numbers = {id(parameter): i for i, parameter in enumerate(numbered)}
    optimizer.load_state_dict(
        {
            "state": {i: dict(found) for i, p in enumerate(numbered) if (found := given_states[names[id(p)]])},
            "param_groups": [
                {**given, "params": [numbers[id(p)] for p in own["params"]]}
                for given, own in zip(groups, optimizer.param_groups, strict=True)
            ],
        }
    )


def parameter_names(stage: nn.Module) -> dict[str, tuple[str, ...]]:
    """For each parameter's name on this rank all that it has in the one-process network: tied ones have several."""
    ties = getattr(stage, "_ties", None)
    if ties is not None:
        return {name: (name, *ties.keys.get(name, ())) for name, _ in stage.named_parameters()}
    names: dict[int, list[str]] = {}
    for name, parameter in stage.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return {found[0]: tuple(found) for found in names.values()}


def _names(stage: nn.Module, optimizer: Optimizer) -> tuple[dict[int, str], str]:
    """Names by the parameters' identity, and what is wrong with the optimiser's parameters."""
    names = {id(parameter): name for name, parameter in stage.named_parameters()}
    strangers = sum(id(p) not in names for given in optimizer.param_groups for p in given["params"])
    return names, f"{strangers} of the optimiser's parameters are not this network's" if strangers else ""


def _merge(told: list[Any]) -> list[dict[str, Any]]:
    """The groups of all ranks, each with the parameters of all."""
    faults = [f"rank {rank}: {fault}" for rank, (fault, _, _) in enumerate(told) if fault]
    settings = [[{k: v for k, v in given.items() if k != "params"} for given in groups] for _, groups, _ in told]
    for rank, own in enumerate(settings):
        if not faults and own != settings[0]:
            faults.append(f"rank {rank} has groups of parameters {own}, and rank 0 {settings[0]}")
    if faults:
        raise CheckpointError(
            f"cannot gather the optimiser's state: {'; '.join(faults[:3])}; make it alike on all ranks"
        )
    return [
        {
            **settings[0][i],
            "params": list(dict.fromkeys(name for _, groups, _ in told for name in groups[i]["params"])),
        }
        for i in range(len(settings[0]))
    ]
