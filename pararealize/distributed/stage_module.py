"""RankSetup, RankProgram -> StageModule: a rank's share of a network as a module, without what a step does.

Names, copies, moves to other element types, and gradients clipped over all ranks; what torch's own wrappers for several
processes would break is refused.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol, Self

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.errors import CheckpointError, DeviceError, DistributedError, ModelError
from pararealize.plan.parts import Part
from pararealize.tracing.hooks import describe_hook
from pararealize.tracing.module_copy import copy_hooks, share_contents
from pararealize.tracing.module_view import ModuleView, mirror

from .checkpoint.collective import read_alike, tensor_facts
from .messages.message_order import StepMessages
from .rank_setup import RankSetup

__all__ = ["RankProgram", "StageModule"]

_REMEDY = (
    "a stage speaks with the other ranks by itself; for data parallelism give the mesh a dimension 'dp': "
    "init_device_mesh(..., (copies, ranks), mesh_dim_names=('dp', 'parareal'))"
)
_READ_BY_WRAPPERS = {  # attributes that no module has unless it is asked for by
    "_ddp_params_and_buffers_to_ignore": f"DistributedDataParallel would give all ranks one rank's weights: {_REMEDY}",
    "__prepare_scriptable__": "a stage cannot be scripted: its messages are no part of a graph. Script the model "
    "itself, with the weights that gather_state_dict(stage) gives",
}
_SHARDED = f"FSDP would shard parameters over ranks that hold different ones: {_REMEDY}"


class RankProgram(Protocol):
    """What one rank computes and sends in a step of some kind of network."""

    def forward(self, inputs: Mapping[str, Any], messages: StepMessages, *, graph: bool) -> Any:
        """The rank's part of a forward pass; what it gives has the network's ``output`` on the last rank."""

    def backward(self, run: Any, messages: StepMessages, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
        """Its part of the backward pass; it calls ``share`` where nothing waits for the loss."""

    def trial(self, inputs: Mapping[str, Any], *, whole: bool) -> None:
        """On the first rank: what it makes of inputs by itself, without a message, so that it fails where they do.

        Args:
            inputs: by the names that parts read.
            whole: with the first of its segments or layers; otherwise with that only where it reads integers, which may
                lie outside of its tables.
        """

    def copied(self, setup: RankSetup, memo: dict[int, Any]) -> RankProgram:
        """The same over a deep copy of the rank's modules; ``memo`` is that of the copy."""


class StageModule(ModuleView):
    """The modules of one rank under the names of the one-process network.

    A deep copy has weights of its own and speaks over the same connections: it is called on all ranks, as the stage is.

    Attributes:
        mesh: the ranks of all copies of the network.
        rank_setup: what it is made of: the partition, the rank's parts by name, its messages and its watchdog.
    """

    mesh: DeviceMesh
    rank_setup: RankSetup
    _program: RankProgram
    _copy_number: int
    _element_types: tuple[torch.Tensor, ...]
    _lifetime: _Lifetime

    def __init__(self, setup: RankSetup, program: RankProgram) -> None:
        super().__init__()
        self.__dict__["_copy_number"] = 0
        self.__dict__["_element_types"] = tuple(
            torch.empty(0, dtype=dtype, device=setup.channel.device) for dtype in (torch.float32, torch.float64)
        )
        _fill(self, setup, program)
        self.__dict__["_lifetime"] = lifetime = _Lifetime()
        # not at exit: there the watchdog itself looks at how the script ended, and tells the others
        weakref.finalize(
            lifetime, setup.watch.between_calls, partial(setup.groups.end, everyone_does=False)
        ).atexit = False

    @property
    def rank(self) -> int:
        """The number of this rank in the parareal group."""
        return self.rank_setup.rank

    @property
    def segments(self) -> tuple[int, int]:
        """The first and the last segment of this rank, from 1, in a window with n of them."""
        return self.rank_setup.partition.runs[self.rank]

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.rank_setup.channel.device

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks of one network."""
        return self.rank_setup.channel.group

    @property
    def tied_names(self) -> Mapping[str, tuple[str, ...]]:
        """For every key of the whole network's state dict, the other names of its tensor."""
        return self.rank_setup.other_names

    def part_modules(self) -> dict[Part, nn.Module]:
        """The parts of this rank and their modules; an F^j that is g^{j+1} itself has none of its own."""
        parts, modules = self.rank_setup.partition.parts, self.rank_setup.modules.parts
        return {parts[name]: module for name, module in modules.items() if not parts[name].is_segment_itself}

    def extra_repr(self) -> str:
        """Which segments of which network."""
        return self.rank_setup.description

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take this rank's part of a checkpoint of the whole network, or of this rank's part.

        Keys of other ranks are passed over; a tied tensor that is there under another of its names is taken from it.

        All ranks call it, those of all copies of the network; nothing is changed where one of them raises.

        Raises:
            CheckpointError: with ``strict``, keys of a rank are missing, or keys are no rank's; or a tensor has another
                shape.
            AgreedError: ranks pass different values of a tensor that several of them have.
        """
        tensors = read_alike(self, "load_state_dict", lambda: self._part_of(state_dict, strict=strict))
        return super().load_state_dict(self._as_tied(tensors) if assign else tensors, strict=False, assign=assign)

    def _part_of(
        self, state_dict: Mapping[str, Any], *, strict: bool
    ) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
        """The part of this rank in a checkpoint, and what all ranks that have a tensor of it have to have alike."""
        wanted, tied_names = self.state_dict(), self.tied_names
        sources = {
            key: next((name for name in (key, *tied_names.get(key, ())) if name in state_dict), None) for key in wanted
        }
        missing = [key for key, name in sources.items() if name is None]
        unknown = [key for key in state_dict if key not in tied_names and key not in wanted]
        if strict and (missing or unknown):
            faults = [
                f"{len(names)} {fault} ({', '.join(names[:3])})"
                for fault, names in (("missing", missing), ("unknown", unknown))
                if names
            ]
            raise CheckpointError(
                f"the checkpoint does not fit {self.rank_setup.description}: of its keys {', '.join(faults)}; load "
                "one that was saved from this network, or pass strict=False"
            )
        tensors = {key: state_dict[name] for key, name in sources.items() if name is not None}
        differing = [
            f"{key}: {tuple(tensor.shape)} there, {tuple(wanted[key].shape)} here"
            for key, tensor in tensors.items()
            if isinstance(tensor, torch.Tensor) and tensor.shape != wanted[key].shape
        ]
        if differing:
            raise CheckpointError(
                f"the checkpoint does not fit {self.rank_setup.description}: {'; '.join(differing[:3])}; load one that "
                "was saved from this network"
            )
        return tensors, tensor_facts(state_dict)

    def _as_tied(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors that are to be assigned, one parameter for all names of a tied one, so that it stays tied."""
        parameters: dict[int, nn.Parameter] = {}
        assigned = dict(tensors)
        for name, parameter in self.named_parameters(remove_duplicate=False):
            value = tensors.get(name)
            if isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter):
                if id(parameter) not in parameters:
                    parameters[id(parameter)] = nn.Parameter(value, parameter.requires_grad)
                assigned[name] = parameters[id(parameter)]
        return assigned

    def close(self) -> None:
        """End what connects this rank with the others: a thread, sockets, process groups. All ranks call it.

        The stage and its deep copies keep their weights, and take no more calls. Without it, all of that ends when the
        last of them is collected as garbage, save communicators of NCCL, which end with the process; where that happens
        in another thread, or within a call of any network, it ends between two calls of the thread that called it.

        Raises:
            DistributedError: the stage is in a call, such as a step whose ``loss_fn`` calls this.
        """
        if self.rank_setup.watch.is_in_call:
            raise DistributedError(
                f"rank {self.rank_setup.partition.labels[self.rank]} is within a call of the stage, which needs what "
                "close() ends; call it after that, on all ranks"
            )
        self.rank_setup.groups.end(everyone_does=True)

    # Copies ----------------------------------------------------------------------------------------------------------

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        shared = (self.mesh, self.rank_setup.partition, self.rank_setup.channel)
        memo |= {id(value): value for value in (*shared, self.__dict__.get("plan"))}
        setup = self.rank_setup.copied(memo)
        program = self._program.copied(setup, memo)
        memo |= {id(self.rank_setup): setup, id(self._program): program}
        copied: Self = type(self).__new__(type(self))
        nn.Module.__init__(copied)
        memo[id(self)] = copied
        setup.channel.copies += 1
        copied.__dict__.update(_copy_number=setup.channel.copies, _lifetime=self._lifetime)
        _fill(copied, setup, program)
        copy_hooks(self, copied, memo)
        copied.__dict__.update(
            {name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name not in vars(copied)}
        )
        return copied

    def __copy__(self) -> Self:
        copied: Self = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a stage is not pickled: it is one rank's part of a network, and holds its connections to the others. Save "
            "with save_sharded(stage, folder) or save_state(stage, file) of pararealize.distributed.checkpoint on all "
            "ranks, or torch.save(gather_state_dict(stage)); torch.save(stage.state_dict()) has this rank's part alone"
        )

    # Moves -----------------------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """What ``to``, ``double`` and the like do: other element types are possible, another device is not."""
        types = tuple(fn(tensor) for tensor in self._element_types)
        if (device := types[0].device) != self._element_types[0].device:
            raise DeviceError(
                f"the stage computes on {self.device} and cannot be moved to {device}: messages of its ranks are "
                f"sent from {self.device}. Distribute the network over a mesh of {device.type!r} devices"
            )
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.__dict__["_element_types"] = types
        return self

    def _described(self, call: str) -> str:
        """A kind of call, and of which copy in which element type: what the ranks have to agree on."""
        first, *others = (str(tensor.dtype).removeprefix("torch.") for tensor in self._element_types)
        moved = "" if any(other != first for other in others) else f" in {first}"  # to where the stage was moved last
        return call + moved + (f" of deep copy {self._copy_number}" if self._copy_number else "")

    # Wrappers of torch's ---------------------------------------------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in _READ_BY_WRAPPERS:
            raise DistributedError(_READ_BY_WRAPPERS[name])
        return super().__getattr__(name)

    def _check_use(self, call: str) -> None:
        """Refuse calls that would see this rank alone, and parameters that a step would pass over.

        Raises:
            DistributedError: the call is recorded or transformed, a hook would not run, parameters are gone, or modules
                have been replaced.
        """
        transformed = torch._C._functorch.peek_interpreter_stack() is not None
        if transformed or torch._C._is_tracing() or torch.compiler.is_compiling():
            raise DistributedError(
                "a stage was called within a transform of torch.func, torch.jit.trace or torch.export, none of which "
                "sees what other ranks compute; call step(...) for gradients, and export the network in one process, "
                "with the weights that gather_state_dict(stage) gives"
            )
        hooks = [*self._backward_hooks.values(), *self._backward_pre_hooks.values()] if call == "step" else []
        if hooks:
            raise DistributedError(
                f"the stage has a backward hook {describe_hook(hooks[0])}, which nothing would call: no rank has the "
                "gradients of the network's inputs and output. Remove it, or register it on one of "
                "stage.part_modules().values()"
            )
        self.rank_setup.sync.follow()
        if fault := self.rank_setup.modules.watch.fault():
            raise DistributedError(
                f"{fault}, since the network was distributed, and the rank would compute as before; change the model "
                "before pararealize(...) and distribute(...), or register hooks on modules within it that are one call"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_is_fsdp_managed_module":  # FullyShardedDataParallel, before it changes anything
            raise DistributedError(_SHARDED)
        super().__setattr__(name, value)

    def register_forward_pre_hook(self, hook: Any, *args: Any, **kwargs: Any) -> Any:
        """As for any module; refused is the hook of ``fully_shard``, which registers it before it changes anything."""
        if str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp"):
            raise DistributedError(_SHARDED)
        return super().register_forward_pre_hook(hook, *args, **kwargs)


def _fill(stage: StageModule, setup: RankSetup, program: RankProgram) -> None:
    """Give a stage the modules of a rank, and what computes with them."""
    mirror(stage, setup.modules.tree)  # a part that reads the network's mode reads that of the tree
    share_contents(stage, setup.modules.tree)
    # not by setattr: a module of the user's may have such a name
    stage.__dict__.update(rank_setup=setup, mesh=setup.mesh, _program=program)


class _Lifetime:
    """Referred to by a stage and its copies alone: when the last of them is gone, what connects the ranks ends."""
