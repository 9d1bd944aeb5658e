"""A trained network and its run's folder -> the folder ``network`` in it, from which the network loads anywhere."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import nn

from pararealize.distributed.stage import Stage
from pararealize.distributed.training_processes import TrainingProcesses
from pararealize.errors import ModelError
from pararealize.files import whole_folder
from pararealize.models import built_as
from pararealize.network.module import PararealModule
from pararealize.saving.network_folder import NETWORK, fill_folder, model_source, record_of, write_weights
from pararealize.saving.network_record import Conversion, NetworkRecord, modes_of
from pararealize.tracing.module_view import ModuleView

__all__ = ["WEIGHTS", "write_saved"]

WEIGHTS = "weights.safetensors"  # of a run: of all ranks together


def write_saved(net: nn.Module, folder: Path, processes: TrainingProcesses) -> None:
    """Write what :meth:`PararealModule.save` would, of a network of one process or of several, or of an original.

    All ranks call it, once the weights of all of them stand in the folder. Networks of other kinds (multigrid, those
    with hooks) have no such folder.

    Args:
        net: this rank's part, or the network.
        folder: of the run.
        processes: the ranks.
    """
    record = _record(net, processes.gather(modes_of(net)) if isinstance(net, Stage) else ())
    if record is None or not processes.is_first:
        return
    plan = net.plan if isinstance(net, PararealModule | Stage) else None

    def write(part: Path) -> None:
        if isinstance(net, Stage):
            shutil.copyfile(folder / WEIGHTS, part / WEIGHTS)
        else:
            write_weights(net, part)

    with whole_folder(folder / NETWORK, replace=True) as part:
        fill_folder(part, record, plan, write)


def _record(net: nn.Module, modes: Any) -> NetworkRecord | None:
    """What the folder says; ``None`` of a network that has none. ``modes`` are those of all ranks' parts."""
    try:
        if isinstance(net, PararealModule):
            return net.saved_record()
        if isinstance(net, Stage):
            return None if net.saved_as is None else net.saved_as.joined(modes)
        if isinstance(net, ModuleView):
            return None
        source = model_source(type(net).__name__, None, None, built_as(net), net.state_dict())
        return record_of(net, source, Conversion(), converted=False)
    except ModelError:  # it has hooks, which no file holds
        return None
