"""One rank's share of a distributed parareal network: an ordinary module with a ``step`` of its own."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grads_with_norm_

from pararealize.errors import (
    AgreedError,
    DistributedError,
    ExampleError,
    GuardError,
    RefusedCallError,
)
from pararealize.plan.plan import Plan
from pararealize.plan.recording import StepRecording
from pararealize.restore import never_compiled, preserve_run_state, set_within
from pararealize.tracing.containers import on_device

from .gradient_norms import gradient_norm
from .messages.formats import sending_fault
from .messages.message_order import StepMessages
from .rank_calls import samples_of
from .rank_setup import RankSetup
from .serving import Server, serve_requests
from .stage_module import RankProgram, StageModule
from .step import check_loss, scaler_fact, scaler_fault

__all__ = ["Stage"]

_NO_TARGET = object()


class Stage(StageModule):
    """The segments of one rank, with the weights of these alone; made by :meth:`PararealModule.distribute`.

    Its state dict has the names of the one-process network, so that the states of all ranks together are that
    network's. Random numbers (dropout) come from each rank's own generator: seed ranks differently.

    Attributes:
        rank: this one, in the parareal group.
        segments: the first and the last of its segments, from 1, in a window with n of them.
        device: where it computes; inputs are moved there.
        mesh: the ranks of all copies of the network.
        group: the ranks of one network, as ``ShardedGradScaler(process_group=stage.group)`` takes it.
        plan: of the whole network.
        rank_setup: what it is made of: the partition, the rank's parts by name, its messages and its watchdog.
        tied_names: for every key of the whole network's state dict, the other names of its tensor.
        saved_as: how the whole network is made, for its folder (:class:`~pararealize.saving.NetworkRecord`); ``None``
            where no folder holds it.
    """

    plan: Plan
    saved_as: Any
    _averages_gradients: bool

    def __init__(self, setup: RankSetup, program: RankProgram, plan: Plan | None = None) -> None:
        super().__init__(setup, program)
        self.__dict__["_averages_gradients"] = True  # not by setattr: a module of the user's may have such a name
        self.__dict__["saved_as"] = None
        if plan is not None:
            self.__dict__["plan"] = plan

    # A step ----------------------------------------------------------------------------------------------------------

    @never_compiled
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
            scaler: scales the loss before it is differentiated; every rank passes its own, over several ranks a
                ``ShardedGradScaler(process_group=stage.group)``, so that all skip a step where one does.
            **kwargs: the network's inputs by name.

        Returns:
            The loss, detached and not scaled, on every rank: the same bits, of the element type of the first step with
            inputs like these.

        Raises:
            DistributedError: ranks disagree on shapes, types, mode, autocast or the kind of call, or one did not answer
                in time.
            RefusedCallError: inputs do not fit the network's signature, are not nested as the example's were, or break
                the guards under which the network was recorded; a GuardError and an ExampleError.
        """
        with self.rank_setup.call("step"), torch.enable_grad(), self._usable_only_if_it_ends_well():
            fault = _step_fault(loss_fn, needs_loss=self.rank_setup.owns_head) or scaler_fault(scaler, self.group)
            if fault:
                self._refuse("step", fault)
            inputs, samples = self._inputs(args, kwargs, "step")
            messages = self.rank_setup.calls.begin_step(
                self._call("step", inputs),
                inputs,
                samples,
                training=self.training,
                averages=self._averages_gradients,
                scaler=scaler_fact(scaler, self.device),
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

    @never_compiled
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
            self.rank_setup.call("inference"),
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
        if failure := self.rank_setup.channel.failure:
            raise DistributedError(
                f"rank {self.rank_setup.partition.labels[self.rank]} cannot run another step after one that failed "
                f"({failure}); start the processes again from a checkpoint"
            )
        try:
            yield
        except AgreedError:
            raise
        except BaseException as error:
            self.rank_setup.channel.failure = f"{type(error).__name__}: {str(error)[:200]}"
            self.rank_setup.channel.forget()
            raise

    def _inputs(
        self, args: tuple[Any, ...], kwargs: Mapping[str, Any], call: str
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Inputs by the names that parts read, detached and on this rank's device; and samples of them."""
        partition = self.rank_setup.partition
        try:
            self._check_use(call)
        except DistributedError as fault:
            self._refuse(call, str(fault))
        try:
            tensors = partition.conditions.check(args, kwargs)
            _check_values(tensors)
        except (GuardError, ExampleError) as fault:  # which the other ranks learn, should they have other inputs
            try:
                self.rank_setup.calls.refuse(call, str(fault))
            except AgreedError as agreed:
                raise RefusedCallError(str(fault), getattr(fault, "guards", ())) from agreed
            except DistributedError as failure:  # the others had begun already
                raise fault from failure
            raise
        inputs = {partition.inputs[name]: tensor for name, tensor in tensors.items()}
        return {name: self._to_device(tensor) for name, tensor in inputs.items()}, samples_of(inputs)

    def _refuse(self, call: str, fault: str) -> NoReturn:
        """Refuse a call on all ranks, for a fault of this one: where none has sent anything, they may go on."""
        self.rank_setup.calls.refuse(call, fault)
        raise DistributedError(fault)  # of one rank alone, where there is no other

    def _to_device(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.detach().to(self.device, non_blocking=True)
        return on_device(value, self.device, non_blocking=True)

    def _call(self, call: str, inputs: Mapping[str, Any]) -> str:  # noqa: ARG002 - other stages look at them
        """The call, with all besides inputs, mode and autocast that decides which messages it sends."""
        return self._described(call)

    @contextlib.contextmanager
    def serve(self, *, forward: Callable[..., Any] | None = None) -> Iterator[Server | None]:
        """Take requests on the first rank alone, for inference; the others compute their parts until it ends.

        All ranks of the network enter it, in eval mode. On rank 0 it gives a :class:`~.serving.Server` at once, which
        is called with inputs, from any thread; on the others it waits, and gives ``None`` when rank 0 has left its
        block. Requests are answered in the types of the :func:`torch.autocast` in which all ranks enter it. Waiting for
        requests is no hang, however long. A rank that fails, dies or hangs ends all of them, with an error that names
        it, within the time-out of :meth:`PararealModule.distribute`.

        Args:
            forward: what is called in the place of the stage, such as :func:`~pararealize.capture_stage` gives.

        Raises:
            DistributedError: the stage is in train mode, or a call before has failed; on every rank.
            RankError: another rank failed, died or hung.

        Example:
            >>> import torch.distributed as dist
            >>> from torch.distributed.device_mesh import init_device_mesh
            >>> from pararealize import pararealize
            >>> from pararealize.models import resnet20
            >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            >>> stage = pararealize(resnet20(), n=3).distribute(init_device_mesh("cpu", (1,))).eval()
            >>> with stage.serve() as server:
            ...     if server is not None:  # on rank 0
            ...         print(server(torch.randn(5, 3, 32, 32)).shape)
            torch.Size([5, 10])
            >>> dist.destroy_process_group()
        """
        with self.rank_setup.call("serve"), self._usable_only_if_it_ends_well():
            if self.training:
                self._refuse("serve", "the stage is in train mode, and requests are answered in eval mode; call eval()")
        with self.collective_call("serve", copies=False):
            pass
        forward = self if forward is None else forward
        with self.rank_setup.calls.of_one_copy(), serve_requests(self.rank_setup, forward, self._trial) as server:
            yield server

    def _trial(self, tensors: Mapping[str, torch.Tensor], *, whole: bool) -> None:
        """Run what the first rank makes of a call's tensors by itself."""
        names = self.rank_setup.partition.inputs
        with torch.no_grad(), preserve_run_state(self, [self.device]):
            self._program.trial({names[name]: self._to_device(tensor) for name, tensor in tensors.items()}, whole=whole)

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

        Raises:
            DistributedError: ``max_norm`` or ``norm_type`` is no number, or out of range; on every rank.
        """
        with self.rank_setup.call("clip_grad_norm_"), self._usable_only_if_it_ends_well():
            if fault := _clipping_fault(max_norm, norm_type):
                self._refuse("clip_grad_norm_", fault)
            max_norm, norm_type = float(max_norm), float(norm_type)
            kind, limit = f"{norm_type:g}", f"{max_norm:g}"
            self.rank_setup.calls.announce("clip_grad_norm_", copies=True, norm_type=kind, max_norm=limit)
            self.rank_setup.sync.follow()
            gradients = [parameter.grad for parameter in self.rank_setup.counted if parameter.grad is not None]
            norm = gradient_norm(gradients, norm_type).to(self.device)
            if norm_type == float("inf"):
                self.rank_setup.channel.all_reduce("the gradients' norm", norm, dist.ReduceOp.MAX)
            else:
                norm = self.rank_setup.channel.all_reduce("the gradients' norm", norm**norm_type) ** (1 / norm_type)
        if error_if_nonfinite and not norm.isfinite():
            raise DistributedError(
                f"the gradients' norm of order {norm_type} is {norm.item()}, so they cannot be clipped; look for the "
                "rank whose own gradients are not finite"
            )
        clip_grads_with_norm_(self.parameters(), max_norm, norm.where(norm.isfinite(), 0.0))
        return norm

    @contextlib.contextmanager
    def collective_call(self, call: str, *, copies: bool = True, **facts: object) -> Iterator[None]:
        """Around what all ranks call together, such as a checkpoint: where one calls something else, all raise.

        Args:
            call: its name.
            copies: whether the ranks of all copies of the network call it, or those of one alone.
            **facts: what all have to pass alike.

        Raises:
            DistributedError: some ranks called something else, or did not come in time; on every rank.
        """
        calls, watch = self.rank_setup.calls, self.rank_setup.watch
        with self.rank_setup.call(call):
            watch.waiting(f"the others' {call}")
            calls.announce(call, copies=copies, waits=True, **{name: str(fact) for name, fact in facts.items()})
            calls.confirm()
            if copies:
                calls.confirm_copies()
            watch.doing(call)
            yield

    @contextlib.contextmanager
    def record(self) -> Iterator[StepRecording]:
        """Write down what this rank does when, in seconds since a barrier at the beginning. Every rank enters it.

        Gives a :class:`~pararealize.plan.recording.StepRecording`, whose ``actions`` are rows
        ``(rank, j, action, direction, start, end, m)``. On GPUs they are timed by events on the stream, which hold
        nothing up: read them after the step.
        """
        activity = self.rank_setup.activity
        with self.collective_call("record", copies=False):
            pass
        # all ranks leave a barrier at about the same time, so that each may call that moment zero: their clocks differ;
        # a device must be idle then, since its zero is an event behind all that is queued on it
        if self.device.type != "cpu":
            torch.get_device_module(self.device).synchronize(self.device)
        dist.barrier(self.rank_setup.channel.control)
        activity.recording = recording = StepRecording(self.rank, self.device)
        try:
            yield recording
        finally:
            activity.recording = None


def _step_fault(loss_fn: Any, *, needs_loss: bool) -> str:
    """What is wrong with the loss of a step; empty where nothing is. Ranks without the head need none."""
    if needs_loss and not callable(loss_fn):
        return f"loss_fn is {loss_fn!r}; pass a function (output, target) -> one number"
    return ""


def _check_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse tensors without values, by name."""
    if fault := sending_fault({name: tensor for name, tensor in tensors.items() if tensor.is_meta}):
        raise GuardError(fault)


def _clipping_fault(max_norm: Any, norm_type: Any) -> str:
    """Why gradients cannot be clipped so; empty where they can."""
    for name, value, least in (("max_norm", max_norm, "of 0 or more"), ("norm_type", norm_type, "above 0")):
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not (number >= 0 if name == "max_norm" else number > 0):
            return f"{name} is {value!r}; pass a number {least}, or math.inf"
    return ""
