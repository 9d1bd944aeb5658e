"""One rank's share of a distributed parareal network: an ordinary module with a ``step`` of its own."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils import _pytree as pytree

from pararealize.errors import (
    AgreedError,
    CheckpointError,
    DistributedError,
    ExampleError,
    GuardError,
    RefusedCallError,
)
from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.plan.recording import StepRecording
from pararealize.restore import set_within
from pararealize.tracing.module_copy import share_contents

from .messages.message_order import StepMessages
from .rank_calls import samples_of
from .rank_setup import RankSetup
from .step import check_loss

__all__ = ["RankProgram", "Stage"]

_NO_TARGET = object()


class RankProgram(Protocol):
    """What one rank computes and sends in a step of some kind of network."""

    def forward(self, inputs: Mapping[str, Any], messages: StepMessages, *, graph: bool) -> Any:
        """The rank's part of a forward pass; what it gives has the network's ``output`` on the last rank."""

    def backward(self, run: Any, messages: StepMessages, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
        """Its part of the backward pass; it calls ``share`` where nothing waits for the loss."""


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
        rank_setup: what it is made of: the partition, the rank's parts by name, its messages and its watchdog.
        tied_names: for every key of the whole network's state dict, the other names of its tensor.
    """

    mesh: DeviceMesh
    plan: Plan
    rank_setup: RankSetup
    _program: RankProgram
    _averages_gradients: bool
    _failure: str

    def __init__(self, setup: RankSetup, program: RankProgram, plan: Plan | None = None) -> None:
        super().__init__()
        share_contents(self, setup.modules.tree)
        self.__dict__.update(  # not by setattr: a module of the user's may have such a name
            rank_setup=setup,
            mesh=setup.mesh,
            _program=program,
            _averages_gradients=True,
            _failure="",
            **({} if plan is None else {"plan": plan}),
        )
        # not at exit: there the watchdog itself looks at how the script ended, and tells the others
        weakref.finalize(self, setup.watch.close).atexit = False

    @property
    def rank(self) -> int:
        """The number of this rank in the parareal group."""
        return self.rank_setup.rank

    @property
    def segments(self) -> tuple[int, int]:
        """The first and the last segment of this rank, from 1."""
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

    # A step ----------------------------------------------------------------------------------------------------------

    def step(
        self,
        *args: Any,
        target: Any = _NO_TARGET,
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
            DistributedError: ranks disagree on shapes, types, mode, autocast or the kind of call, or one did not answer
                in time.
            RefusedCallError: inputs do not fit the network's signature, are not nested as the example's were, or break
                the guards under which the network was recorded; a GuardError and an ExampleError.
        """
        with self.rank_setup.watch.step("step"), torch.enable_grad(), self._usable_only_if_it_ends_well():
            inputs, samples = self._inputs(args, kwargs, "step")
            messages = self.rank_setup.calls.begin_step(
                self._call("step", inputs),
                inputs,
                samples,
                training=self.training,
                averages=self._averages_gradients,
                scales=scaler is not None and scaler.is_enabled(),
            )
            return self._step(inputs, messages, target, loss_fn, scaler)

    def _step(
        self,
        inputs: Mapping[str, Any],
        messages: StepMessages,
        target: Any,
        loss_fn: Callable[..., torch.Tensor],
        scaler: torch.amp.GradScaler | None,
    ) -> torch.Tensor:
        setup = self.rank_setup
        run = self._program.forward(inputs, messages, graph=True)
        loss = scaled = None
        if setup.owns_head:
            arguments = () if target is _NO_TARGET else (self._to_device(target),)
            scaled = loss = check_loss(loss_fn(run.output, *arguments))
        if scaler is not None:  # on the other ranks, only so that they have the scale too
            scaled_here = scaler.scale(torch.zeros((), device=self.device) if loss is None else loss)
            scaled = None if loss is None else scaled_here
        shared: list[tuple[torch.Tensor, dist.Work]] = []
        last = setup.partition.ranks - 1
        if self._averages_gradients:
            setup.calls.confirm_copies()
        setup.sync.begin(active=self._averages_gradients)
        with torch.autocast(self.device.type, enabled=False):
            self._program.backward(run, messages, scaled, lambda: shared.append(messages.share("loss", loss, last)))
            setup.sync.finish()
        ((value, work),) = shared
        setup.channel.wait(work, "the loss", last)
        self._end_messages(messages)
        return value

    def _end_messages(self, messages: StepMessages) -> None:
        """The end of a step or an evaluation: all that was sent has left, and every format is known."""
        self.rank_setup.channel.flush()
        messages.formats_known = True

    def forward(self, *args: Any, everywhere: bool = False, **kwargs: Any) -> Any:
        """The network's output, without a graph.

        Args:
            *args: the network's inputs.
            everywhere: give the output to every rank, copied to its device.
            **kwargs: the network's inputs by name.

        Returns:
            The output on the last rank, ``None`` elsewhere; or the output on every rank.
        """
        with (
            self.rank_setup.watch.step("inference", everyone=False),
            torch.no_grad(),
            self._usable_only_if_it_ends_well(),
        ):
            calls, call = self.rank_setup.calls, "inference, everywhere" if everywhere else "inference"
            inputs, samples = self._inputs(args, kwargs, call)
            messages = calls.begin(self._call(call, inputs), inputs, samples, training=self.training)
            output = self._program.forward(inputs, messages, graph=False).output
            if self.rank_setup.owns_head:
                calls.confirm()  # all ranks have a part in it
            self._end_messages(messages)
            if self._averages_gradients:
                calls.end_inference()
            return messages.copy_to_all(output, self.rank_setup.partition.ranks - 1) if everywhere else output

    @contextlib.contextmanager
    def _usable_only_if_it_ends_well(self) -> Iterator[None]:
        """Refuse further calls after one that failed: messages that it left behind would be taken for later ones.

        What all ranks refuse together has sent no message.
        """
        if self._failure:
            raise DistributedError(
                f"rank {self.rank_setup.partition.labels[self.rank]} cannot run another step after one that failed "
                f"({self._failure}); start the processes again from a checkpoint"
            )
        try:
            yield
        except AgreedError:
            raise
        except BaseException as error:
            self.__dict__["_failure"] = f"{type(error).__name__}: {str(error)[:200]}"
            self.rank_setup.channel.forget()
            raise

    def _inputs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: str
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Inputs by the names that parts read, detached and on this rank's device; and samples of them."""
        partition = self.rank_setup.partition
        try:
            tensors = partition.conditions.check(args, kwargs)
        except (GuardError, ExampleError) as fault:  # which the other ranks learn, should they have other inputs
            try:
                self.rank_setup.calls.refuse(call, str(fault))
            except AgreedError as agreed:
                raise RefusedCallError(str(fault), getattr(fault, "guards", ())) from agreed
            raise
        inputs = {partition.inputs[name]: tensor for name, tensor in tensors.items()}
        return {name: self._to_device(tensor) for name, tensor in inputs.items()}, samples_of(inputs)

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(self.device, non_blocking=True)
        return pytree.tree_map_only(torch.Tensor, lambda leaf: leaf.to(self.device, non_blocking=True), value)

    def _call(self, call: str, inputs: Mapping[str, Any]) -> str:  # noqa: ARG002 - other stages look at them
        """The call, with all besides inputs, mode and autocast that decides which messages it sends."""
        return call

    # Around steps ----------------------------------------------------------------------------------------------------

    def no_sync(self) -> contextlib.AbstractContextManager[None]:
        """Steps inside add up gradients on each rank alone; the next step outside averages and sums all of them.

        Averages are those over dp, sums those of parameters that several ranks share. Messages between segments are
        needed in any case.
        """
        return set_within(self, "_averages_gradients", False)

    def clip_grad_norm_(
        self, max_norm: float, norm_type: float = 2.0, *, error_if_nonfinite: bool = False
    ) -> torch.Tensor:
        """Scale all gradients so that their norm over all ranks of the network is at most ``max_norm``.

        Parameters that several ranks share count once. Every rank calls it. Where the norm is not finite, gradients
        stay as they are.

        Returns:
            The norm before, the same on every rank.
        """
        with self.rank_setup.watch.step("clip_grad_norm_", everyone=False), self._usable_only_if_it_ends_well():
            self.rank_setup.calls.announce("clip_grad_norm_", norm_type=f"{norm_type:g}", max_norm=f"{max_norm:g}")
            gradients = [parameter.grad for parameter in self.rank_setup.counted if parameter.grad is not None]
            norm_here = get_total_norm(gradients, norm_type) if gradients else torch.zeros(())
            norm = norm_here.to(self.device, torch.float64)
            if norm_type == float("inf"):
                self.rank_setup.channel.all_reduce("the gradients' norm", norm, dist.ReduceOp.MAX)
            else:
                norm = self.rank_setup.channel.all_reduce("the gradients' norm", norm**norm_type) ** (1 / norm_type)
        if error_if_nonfinite and not norm.isfinite():
            raise RuntimeError(f"the gradients' norm of order {norm_type} is {norm.item()}, so they cannot be clipped")
        clip_grads_with_norm_(self.parameters(), max_norm, norm.where(norm.isfinite(), 0.0))
        return norm

    @contextlib.contextmanager
    def record(self) -> Iterator[StepRecording]:
        """Write down what this rank does when, in seconds since a barrier at the beginning. Every rank enters it.

        Gives a :class:`~pararealize.plan.recording.StepRecording`, whose ``actions`` are rows
        ``(rank, j, action, direction, start, end)``. On GPUs each action waits for the device, so that a recorded step
        is slower.
        """
        activity = self.rank_setup.activity
        with self.rank_setup.watch.step("record", everyone=False), self._usable_only_if_it_ends_well():
            self.rank_setup.calls.announce("record")
            self.rank_setup.calls.confirm()
        # all ranks leave a barrier at about the same time, so that each may call that moment zero: their clocks differ
        dist.barrier(self.rank_setup.channel.control)
        activity.recording = recording = StepRecording(self.rank, self.device)
        try:
            yield recording
        finally:
            activity.recording = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Take this rank's part of a checkpoint of the whole network, or of this rank's part.

        Keys of other ranks are passed over; a tied tensor that is there under another of its names is taken from it.

        Raises:
            CheckpointError: with ``strict``, keys of this rank are missing, or keys are no rank's.
        """
        wanted, tied_names = self.state_dict(), self.tied_names
        sources = {key: [name for name in (key, *tied_names.get(key, ())) if name in state_dict] for key in wanted}
        tensors = {key: state_dict[names[0]] for key, names in sources.items() if names}
        missing = [key for key in wanted if key not in tensors]
        unknown = [key for key in state_dict if key not in tied_names]
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
        return super().load_state_dict(tensors, strict=False, assign=assign)

    def extra_repr(self) -> str:
        """Which segments of which network."""
        return self.rank_setup.description
