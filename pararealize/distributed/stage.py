"""One rank's share of a distributed parareal network: an ordinary module with a ``step`` of its own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils import _pytree as pytree

from pararealize.errors import CheckpointError, DistributedError
from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.plan.recording import StepRecording
from pararealize.tracing.module_copy import share_contents
from pararealize.tracing.operations import as_captured

from .consistency import agree
from .p2p import Kinds
from .rank import Own
from .step import backward, check_loss, forward
from .tied import Ties

__all__ = ["Stage"]

_NONE = object()


class Stage(nn.Module):
    """The segments of one rank, with the weights of these alone; made by :meth:`PararealModule.distribute`.

    Its state dict has the names of the one-process network, so that the states of all ranks together are that
    network's. Random numbers (dropout) come from each rank's own generator: seed ranks differently.

    Attributes:
        rank: this one, in the parareal group.
        segments: the first and the last of its segments, from 1.
        device: where it computes; inputs are moved there.
        mesh: the ranks of all copies of the network.
        group: the ranks of one network, as ``ShardedGradScaler(process_group=stage.group)`` takes it.
        plan: of the whole network.
    """

    _own: Own
    _ties: Ties
    _described: str
    _synchronised: bool
    _signatures: dict[Any, Kinds]
    _failure: str
    mesh: DeviceMesh
    plan: Plan

    def __init__(self, tree: nn.Module, own: Own, ties: Ties, described: str, mesh: DeviceMesh) -> None:
        super().__init__()
        share_contents(self, tree)
        self.__dict__.update(
            _own=own, _ties=ties, _described=described, mesh=mesh, _synchronised=True, _signatures={}, _failure=""
        )

    @property
    def rank(self) -> int:
        """The number of this rank in the parareal group."""
        return self._own.rank

    @property
    def segments(self) -> tuple[int, int]:
        """The first and the last segment of this rank, from 1."""
        return self._own.first, self._own.last

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self._own.wire.device

    @property
    def group(self) -> dist.ProcessGroup:
        """The ranks of one network."""
        return self._own.wire.group

    def part_modules(self) -> dict[Part, nn.Module]:
        """The parts of this rank and their modules; an F^j that is g^{j+1} itself has none of its own."""
        parts = self._own.layout.parts
        return {parts[name]: m for name, m in self._own.parts.items() if not parts[name].is_segment_itself}

    # A step ----------------------------------------------------------------------------------------------------------

    def step(
        self,
        *args: Any,
        target: Any = _NONE,
        loss_fn: Callable[..., torch.Tensor],
        scaler: torch.amp.GradScaler | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Forward and backward over all ranks: adds gradients to ``parameters()`` of each.

        Every rank calls it, with inputs of the same values (of its dp group's batch). Inputs get no gradients. Under
        :func:`torch.autocast` forward and loss run in its types, and backward outside of it.

        Args:
            *args: the network's inputs.
            target: what ``loss_fn`` compares with; needed on the last rank only. Left out, ``loss_fn(output)`` is
                called.
            loss_fn: ``(output, target) -> one number``, such as a mean over the batch; called on the last rank only.
            scaler: scales the loss before it is differentiated; every rank passes its own.
            **kwargs: the network's inputs by name.

        Returns:
            The loss, detached and not scaled, on every rank.

        Raises:
            DistributedError: ranks disagree on shapes, types, mode or autocast, or one did not answer in time.
            TypeError: inputs do not fit the network's signature.
        """
        own = self._own
        with own.watch.step(), torch.enable_grad():
            inputs = self._inputs(args, kwargs)
            kinds = self._kinds(inputs, "step")
            own.replicas = self._ties.replicas if self._synchronised else None
            with self._whole():
                return self._step(inputs, kinds, target, loss_fn, scaler)

    def _step(
        self,
        inputs: Mapping[str, Any],
        kinds: Kinds,
        target: Any,
        loss_fn: Callable[..., torch.Tensor],
        scaler: torch.amp.GradScaler | None,
    ) -> torch.Tensor:
        own, ties = self._own, self._ties
        run = self._forward(inputs, kinds, graph=True)
        loss = scaled = None
        if own.is_last:
            loss = check_loss(loss_fn(run.output) if target is _NONE else loss_fn(run.output, self._here(target)))
            scaled = loss
        if scaler is not None:  # on the other ranks, only so that they have the scale too
            scaled_here = scaler.scale(torch.zeros((), device=self.device) if loss is None else loss)
            scaled = None if loss is None else scaled_here
        shared: list[tuple[torch.Tensor, dist.Work]] = []
        if own.replicas is not None:
            own.replicas.begin()
        ties.sharers.begin()
        with torch.autocast(self.device.type, enabled=False):
            self._backward(
                run, scaled, lambda: shared.append(own.wire.share("loss", loss, own.layout.ranks - 1, kinds))
            )
            if own.replicas is not None:
                own.replicas.finish()
            if self._synchronised:
                ties.sharers.finish()
        ((value, work),) = shared
        own.wire.wait(work, "the loss", own.layout.ranks - 1)
        own.wire.flush()
        kinds.complete = True
        return value

    def _forward(self, inputs: Mapping[str, Any], kinds: Kinds, *, graph: bool) -> Any:
        """The rank's part of a forward pass: its result has the ``output`` on the last rank."""
        return forward(self._own, inputs, kinds, graph=graph)

    def _backward(self, run: Any, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
        """The rank's part of the backward pass."""
        backward(self._own, run, loss, share)

    def forward(self, *args: Any, everywhere: bool = False, **kwargs: Any) -> Any:
        """The network's output, without a graph.

        Args:
            *args: the network's inputs.
            everywhere: give the output to every rank, copied to its device.
            **kwargs: the network's inputs by name.

        Returns:
            The output on the last rank, ``None`` elsewhere; or the output on every rank.
        """
        own = self._own
        with own.watch.step(), torch.no_grad():
            inputs = self._inputs(args, kwargs)
            kinds = self._kinds(inputs, "inference, everywhere" if everywhere else "inference")
            with self._whole():
                output = self._forward(inputs, kinds, graph=False).output
                own.wire.flush()
                kinds.complete = True
                return own.wire.copied(output, own.layout.ranks - 1) if everywhere else output

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """What is begun inside has to end well: messages that were left behind would be taken for later ones."""
        try:
            yield
        except BaseException as error:
            self.__dict__["_failure"] = f"{type(error).__name__}: {str(error)[:200]}"
            self._own.wire.forget()
            raise

    def _inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs by the names that parts read, detached and on this rank's device."""
        if self._failure:
            raise DistributedError(
                f"rank {self._own.wire.who(self.rank)} cannot run another step after one that failed "
                f"({self._failure}); start the processes again from a checkpoint"
            )
        layout = self._own.layout
        bound = layout.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        for name, captured in layout.fixed.items():
            as_captured(bound.arguments[name], captured, name)
        return {layout.inputs[name]: self._here(value) for name, value in bound.arguments.items()}

    def _here(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(self.device, non_blocking=True)
        return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(self.device, non_blocking=True), value)

    def _kinds(self, inputs: Mapping[str, Any], call: str) -> Kinds:
        """What messages look like for inputs like these; the ranks agree on a signature once."""
        kind = self.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, torch.Tensor) else repr(value) for value in inputs.values()
        )
        signature = (shapes, self.training, autocast, call)
        known = self._signatures
        if signature not in known:
            undefined = self._ties.undefined.names()
            facts = {
                "call": call,
                "mode": "train" if self.training else "eval",
                "autocast": str(autocast or "off").removeprefix("torch."),
                **{f"input {name}": _text(value) for name, value in inputs.items()},
            }
            if undefined:
                facts["fault"] = (
                    f"{len(undefined)} tensors have no values ({', '.join(undefined[:3])}): the network came from the "
                    "meta device, and no module draws them; load a checkpoint with stage.load_state_dict(...)"
                )
            own = self._own
            own.watch.waiting("the beginning of a step")
            agree(
                own.wire.control,
                facts,
                what="run a step",
                remedy="give every rank of a parareal group the same inputs, mode and autocast",
                timeout=own.wire.timeout,
                who=own.wire.who,
            )
            known[signature] = Kinds()
        return known[signature]

    # Around steps ----------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def no_sync(self) -> Iterator[None]:
        """Steps inside add up gradients on each rank alone; the next step outside averages and sums all of them.

        Averages are those over dp, sums those of parameters that several ranks share. Messages between segments are
        needed in any case.
        """
        before, self.__dict__["_synchronised"] = self._synchronised, False
        try:
            yield
        finally:
            self.__dict__["_synchronised"] = before

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
    ) -> torch.Tensor:
        """Scale all gradients so that their norm over all ranks of the network is at most ``max_norm``.

        Parameters that several ranks share count once. Every rank calls it. Where the norm is not finite, gradients
        stay as they are.

        Returns:
            The norm before, the same on every rank.
        """
        gradients = [p.grad for p in self.parameters() if p.grad is not None and id(p) in self._ties.counted]
        own_norm = get_total_norm(gradients, norm_type).to(self.device) if gradients else torch.zeros(())
        norm = own_norm.to(self.device, torch.float64)
        if norm_type == float("inf"):
            work = dist.all_reduce(norm, dist.ReduceOp.MAX, group=self.group, async_op=True)
        else:
            norm = norm**norm_type
            work = dist.all_reduce(norm, group=self.group, async_op=True)
        assert work is not None
        self._own.wire.wait(work, "the gradients' norm", self.rank)
        norm = norm if norm_type == float("inf") else norm ** (1 / norm_type)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the gradients' norm of order {norm_type} is {norm.item()}, so they cannot be clipped")
        clip_grads_with_norm_(self.parameters(), max_norm, norm.where(norm.isfinite(), 0.0))
        return norm

    @contextlib.contextmanager
    def record(self) -> Iterator[StepRecording]:
        """Write down what this rank does when, in seconds since a barrier at the beginning. Every rank enters it.

        Gives a :class:`~pararealize.plan.recording.StepRecording`, whose ``actions`` are rows ``(rank, j, action,
        direction, start, end)``. On GPUs each action waits for the device, so that a recorded step is slower.
        """
        own = self._own
        dist.barrier(own.wire.control)
        own.recording = StepRecording(own.rank, self.device)
        try:
            yield own.recording
        finally:
            own.recording = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take this rank's part of a checkpoint of the whole network, or of this rank's part.

        Keys of other ranks are passed over; a tied tensor that is there under another of its names is taken from it.

        Raises:
            CheckpointError: with ``strict``, keys of this rank are missing, or keys are no rank's.
        """
        wanted = self.state_dict()
        keys = self._ties.keys
        found = {}
        for key in wanted:
            names = [name for name in (key, *keys.get(key, ())) if name in state_dict]
            if names:
                found[key] = state_dict[names[0]]
        missing = [key for key in wanted if key not in found]
        unknown = [key for key in state_dict if key not in keys]
        if strict and (missing or unknown):
            faults = [
                f"{len(names)} {fault} ({', '.join(names[:3])})"
                for fault, names in (("missing", missing), ("unknown", unknown))
                if names
            ]
            raise CheckpointError(
                f"the checkpoint does not fit {self._described}: of its keys {', '.join(faults)}; load one that was "
                "saved from this network, or pass strict=False"
            )
        return super().load_state_dict(found, strict=False, assign=assign)

    def extra_repr(self) -> str:
        """Which segments of which network."""
        return self._described


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return repr(value)
