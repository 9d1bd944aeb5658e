"""Words of ``pararealize train`` -> arguments of training. Nothing here imports torch before it is needed."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pararealize.errors import DeviceError, MultigridError, PlanError, RecipeError

from . import arguments

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from .train_display import Display

__all__ = [
    "check_graphs",
    "check_used",
    "folder",
    "iterations",
    "mesh",
    "milestones",
    "monitor",
    "precision",
    "takes_classes",
    "tensorboard",
]


OF_METHODS = {  # options that only some methods read
    ("parareal",): ("n", "coarse", "cuts", "source", "windows", "sequential", "granularity", "cost", "plan"),
    ("parareal", "serial"): ("graphs",),
    ("multigrid", "oneshot"): ("levels", "coarsening", "iterations", "relaxation"),
}


def check_used(names: Collection[str], *, method: str, by_torchrun: bool) -> None:
    """Refuse options of the network that stand on the command line and would change nothing.

    Args:
        names: of the options on the command line, as parameters of the command.
        method: the name of the training method.
        by_torchrun: whether torchrun started several processes.

    Raises:
        PlanError: it names them, and what they belong to.

    Example:
        >>> check_used(["n", "epochs"], method="parareal", by_torchrun=False)
    """
    all_methods = {"serial", *(name for methods in OF_METHODS for name in methods)}
    for methods, options in OF_METHODS.items():
        unused = [f"--{name.replace('_', '-')}" for name in options if name in names]
        if unused and method in all_methods.difference(methods):
            raise PlanError(
                f"{', '.join(unused)}: nothing that --method {method} reads, but of --method {' or '.join(methods)}; "
                f"leave {'it' if len(unused) == 1 else 'them'} out, or choose that method"
            )
    if "ranks" in names and not by_torchrun:
        raise PlanError(
            "--ranks says how several processes share a network, and this one is alone; start them with "
            "torchrun --nproc-per-node N -m pararealize_cli train, or leave it out"
        )


def check_graphs(devices: str | None, *, by_torchrun: bool) -> None:
    """Refuse ``--graphs`` where the network would be on no GPU, or in one process on several; before any work.

    Args:
        devices: as on the command line.
        by_torchrun: whether torchrun started several processes.

    Raises:
        DeviceError: it says what is there, and what to write.

    Example:
        >>> check_graphs("cpu", by_torchrun=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
            ...
        pararealize.errors.DeviceError: CUDA graphs need a network on GPUs, and this one is on cpu; this machine has...
    """
    import torch

    from pararealize.network.local.module import check_gpus
    from pararealize.planning.arguments import device_fault

    named = arguments.devices(devices) or ["cuda" if by_torchrun and torch.cuda.is_available() else "cpu"]
    if faults := [fault for name in named if (fault := device_fault(name))]:
        raise DeviceError("; ".join(faults))
    check_gpus(map(torch.device, named), "add --devices cuda where there is one, or leave --graphs out")
    if len(named) > 1:
        raise DeviceError(
            f"--graphs captures a step on one GPU, and --devices names {len(named)}; name one, or start a process for "
            "each with torchrun"
        )


def mesh(method: str, n: int | None, ranks: int | None, devices: str | None, timeout: float) -> DeviceMesh:
    """The processes that torchrun started, with those that hold one network side by side."""
    from pararealize.distributed.mesh import make_mesh

    if n is None and method == "parareal":
        raise PlanError(f"the method {method!r} needs --n, the number of segments, such as --n 3")
    return make_mesh(n or 1, ranks=ranks, device=devices, timeout=timeout)


def takes_classes(model: str) -> bool:
    """Whether a model by name can be told the number of classes; what a file gives may not.

    Example:
        >>> takes_classes("timm:convnext_atto"), takes_classes("mynets.py:deep")
        (True, False)
    """
    return ":" not in model or model.startswith(("timm:", "torchvision:"))


def milestones(text: str | None) -> tuple[float, ...] | None:
    """Epochs, separated by commas.

    Example:
        >>> milestones("80,120")
        (80.0, 120.0)
    """
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise RecipeError(
            f"--milestones {text!r} are no numbers; write epochs in rising order, such as 80,120"
        ) from error


def iterations(text: str | None) -> dict[str, int]:
    """``K/L``, forward and adjoint, as options of multigrid; none where nothing is said.

    Example:
        >>> iterations("2/1")
        {'forward_iterations': 2, 'backward_iterations': 1}
    """
    if text is None:
        return {}
    match = re.fullmatch("([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None:
        raise MultigridError(f"--iterations {text!r} are no two numbers; write forward/adjoint ones, such as 2/1")
    return {"forward_iterations": int(match[1]), "backward_iterations": int(match[2])}


def monitor(
    watch: bool, every: int | None, exact: float | None, *, method: str, steps: int, epochs: int
) -> dict[str, dict[str, Any]]:
    """The monitor's settings as an option of multigrid; none where none is wanted.

    Args:
        watch: whether there is to be a monitor.
        every: steps between exact gradients; None for an epoch's, at most 50.
        exact: share of the steps, at the end, that are exact; None for a fifth.
        method: the name of the training method.
        steps: of an epoch.
        epochs: of the training.

    Example:
        >>> monitor(True, None, None, method="multigrid", steps=12, epochs=20)
        {'monitor': {'every': 12, 'exact_after': 192}}
    """
    if not watch:
        if every is not None or exact is not None:
            option = "--monitor-exact" if every is None else "--monitor-every"
            raise MultigridError(f"{option} says how to monitor, and nothing is monitored; add --monitor")
        return {}
    if method != "multigrid":
        raise MultigridError(
            f"--monitor watches layers that are solved for by multigrid, and the method is {method!r}; add "
            "--method multigrid, or leave it out"
        )
    share = 0.2 if exact is None else exact
    settings: dict[str, Any] = {"every": min(steps, 50) if every is None else every}
    if share > 0:
        settings["exact_after"] = max(1, round((1 - share) * steps * epochs))
    return {"monitor": settings}


def precision(amp: str, devices: str | None, mesh: DeviceMesh | None) -> Any:
    """The precision of autocast, None for none; ``auto`` goes by where the network lies."""
    if amp == "off":
        return None
    if amp != "auto":
        return amp
    on_gpu = mesh.device_type == "cuda" if mesh is not None else (devices or "").startswith("cuda")
    return "float16" if on_gpu else "bfloat16"


def tensorboard(choice: bool | None, display: Display) -> bool:
    """Whether to write event files: the user's choice, or where TensorBoard is installed; says so where it is not."""
    from pararealize.train.run.tensorboard import has_tensorboard

    if choice is not None:
        return choice
    installed = has_tensorboard()
    if not installed:
        display.say(
            "no files for TensorBoard, which is not installed: pip install 'pararealize[train]', or say "
            "--no-tensorboard"
        )
    return installed


def folder(output: Path | None, model: str, method: str, n: int | None, data: str) -> Path:
    """The run's folder, named after model, method and data where no name is given.

    Example:
        >>> str(folder(None, "mynets.py:deep", "parareal", 3, "digits"))
        'mynets.py-deep-n3-digits'
    """
    if output is not None:
        return output
    parts = [model, method if method != "parareal" else f"n{n}", data]
    return Path("-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts))
