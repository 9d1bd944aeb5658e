"""A rank's segments and the inputs -> its part of one step, forward and backward.

    forward    x_j = C^j(x), y_j = g^j(x_j)         all segments of all ranks at the same time
               receive z_{j-1}                      (correction.py)
               z_j = y_j + F^{j-1}(z_{j-1} - x_j)   on leaves: this graph is cut off from the one above
               send z_j                             on the last rank: head and loss
    backward   receive dz_j
               the graph of F^{j-1} alone           gives dz_{j-1}, dx_j, dy_j
               send dz_{j-1}                        before the expensive part, so that all ranks differentiate at once
               the graph of C^j and g^j, from dx_j and dy_j

That is a window; what it ends with goes to the ranks of the next one (window_ends.py). Backward begins with the last.
Values of the stem and the context that other ranks read are cut off in the same way; their gradients come back last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
import torch.distributed as dist

from pararealize.errors import DistributedError

from .activity import Activity
from .autograd_cuts import add_gradients, as_leaf, differentiable_tensors, differentiate
from .correction import correct, differentiate_correction, expect_corrections
from .gradients import GradientSync
from .messages.formats import is_integral
from .messages.message_order import PendingMessage, StepMessages
from .partition import SharedValue
from .rank_segments import RankSegments, SegmentValues, WindowSegments, WindowValues
from .rank_setup import RankSetup
from .window_ends import (
    differentiate_all_reduce,
    end_gradient,
    expect_begin,
    pass_end,
    receive_begin,
    return_begin_gradient,
)

__all__ = ["SegmentStep", "check_loss", "scaler_fact", "scaler_fault"]


class SegmentStep:
    """The part that one rank of a parareal network has in every step.

    Args:
        segments: of the rank.
        activity: is told of each action.
        sync: averages and sums gradients around the backward calls.

    Attributes:
        segments: as above.
    """

    def __init__(self, segments: RankSegments, activity: Activity, sync: GradientSync) -> None:
        self.segments, self._activity, self._sync = segments, activity, sync

    def copied(self, setup: RankSetup, memo: dict[int, Any]) -> SegmentStep:  # noqa: ARG002 - nothing else to copy
        """The same over a deep copy of the rank's modules."""
        return SegmentStep(self.segments.over(setup.modules), setup.activity, setup.sync)

    def forward(self, inputs: Mapping[str, Any], messages: StepMessages, *, graph: bool) -> SegmentValues:
        """All that a rank computes and sends, up to the network's output on the last rank.

        Args:
            inputs: the network's inputs by the names that parts read.
            messages: for inputs like these.
            graph: whether there will be a backward.
        """
        segments, activity = self.segments, self._activity
        run = SegmentValues(graph=graph, values=dict(inputs))
        pending = [
            (value, messages.expect_given(value.name, 0, value.readers))
            for value in segments.partition.values
            if segments.rank in value.readers
        ]
        windows = [(window, WindowValues(graph=graph)) for window in segments.windows]
        for window, of_window in windows if messages.posts_ahead else windows[:1]:
            _expect(window, of_window, messages)
        if segments.owns("context"):
            self._compute_values("context", run, messages)
        if segments.owns("stem"):
            self._compute_values("stem", run, messages)
        for shared, message in pending:
            with activity.during("receive", segments.first):
                value = messages.receive(message)
            run.values[shared.name] = as_leaf(value) if graph and shared.differentiable else value
        end = None
        while windows:
            window, of_window = windows.pop(0)
            if window.before is not None and not messages.posts_ahead:
                _expect(window, of_window, messages)
            receive_begin(window, of_window, end, messages, activity)
            for j in window.run:
                self._compute_fine(window, j, of_window, run)
            if window.run and not window.ranks.all_reduces:
                correct(window, of_window, run, messages, activity)
            end = pass_end(window, of_window, messages, activity)
            if graph:
                run.windows.append(of_window)
        return run

    def trial(self, inputs: Mapping[str, Any], *, whole: bool) -> None:
        """What the first rank makes of inputs by itself: context, stem, and as a whole its first segment.

        That goes along, too, where it reads integers, which may lie outside of tables of its own.
        """
        segments = self.segments
        values = dict(inputs)
        for kind in ("context", "stem"):
            if segments.owns(kind):
                values |= self._values_of(kind, values)
        first = segments.windows[0]
        if whole or any(is_integral(values[name]) for name in segments.reads("segment", 1, m=first.m)):
            first.call("segment", 1, values, values[segments.partition.parts["stem"].gives[0]].clone())

    def backward(
        self, run: SegmentValues, messages: StepMessages, loss: torch.Tensor | None, share: Callable[[], None]
    ) -> None:
        """All that a rank differentiates: gradients stand in its parameters' ``grad`` behind it.

        Args:
            run: what its forward pass kept.
            messages: of the step.
            loss: on the last rank, what to differentiate.
            share: begins to give the loss to all ranks; it is called where nothing waits for it.
        """
        segments = self.segments
        begin = None  # of the window that was differentiated before
        if not segments.windows[-1].run:
            share()
        for window, of_window in zip(reversed(segments.windows), reversed(run.windows), strict=True):
            if window.run:
                self._differentiate_ends(window, of_window, messages, loss, begin)
            if window.after is None and window.run:
                share()
            if window.before is None:
                pending = [
                    (value, messages.expect_gradients(value.name, reader))
                    for reader in range(1, segments.partition.ranks)
                    for value in segments.partition.values
                    if segments.rank == 0 and value.differentiable and reader in value.readers
                ]
            for j in reversed(window.run):
                phase = segments.phase_of(window) + window.last - j + 1
                with self._sync.phase(phase), self._activity.during("fine", j, "backward", window.m):
                    pairs = [(of_window.y[j], of_window.y_leaf[j].grad), (of_window.x[j], of_window.x_leaf[j].grad)]
                    differentiate([pair for pair in pairs if j > 1 or pair[0] is of_window.y[j]])
            return_begin_gradient(window, of_window, messages, self._activity)
            begin = of_window.begin
        self._return_gradients(run, messages)
        if segments.rank == 0:
            with self._sync.phase(segments.phase_of(None)):
                self._differentiate_values(run, messages, pending)

    def _differentiate_ends(
        self,
        window: WindowSegments,
        run: WindowValues,
        messages: StepMessages,
        loss: torch.Tensor | None,
        begin: torch.Tensor | None,
    ) -> None:
        """Differentiate what follows a window's segments, so that these have gradients, and other ranks' too."""
        gradient = end_gradient(window, run, begin, messages, self._activity)
        if window.ranks.all_reduces:
            assert gradient is not None
            differentiate_all_reduce(window, run, gradient)
            return
        with self._sync.phase(self.segments.phase_of(window)):
            loss = loss if window.after is None else None
            differentiate_correction(window, run, messages, self._activity, loss, gradient)

    def _compute_values(self, kind: Literal["context", "stem"], run: SegmentValues, messages: StepMessages) -> None:
        """Run the context or the stem, and send what others read of it."""
        segments, activity = self.segments, self._activity
        with activity.during(kind, segments.first):
            values = self._values_of(kind, run.values)
        shared = {value.name: value for value in segments.partition.values}
        cut = run.graph and (kind == "context" or segments.partition.cuts_stem)
        for name, value in values.items():
            if cut and name in shared and shared[name].differentiable:
                run.ends[name] = value
                run.values[name] = as_leaf(value)
            else:
                run.values[name] = value
            for readers in messages.calls_for(shared[name].readers) if name in shared else ():
                with activity.during("send", segments.first):
                    messages.give(name, value, readers)

    def _values_of(self, kind: Literal["context", "stem"], values: Mapping[str, Any]) -> dict[str, Any]:
        """What the context or the stem gives, by name."""
        result = self.segments.call(kind, 0, values)
        gives = self.segments.partition.parts[kind].gives
        several = kind == "context" or len(gives) > 1
        return dict(zip(gives, result if several else (result,), strict=True))

    def _compute_fine(self, window: WindowSegments, j: int, run: WindowValues, values: SegmentValues) -> None:
        """``x_j = C^j(w)`` and ``y_j = g^j(x_j)``, equation (2), corrected by K^j where there is one.

        w is the raw input, or what the window begins with.
        """
        partition, activity = self.segments.partition, self._activity
        if j > 1:
            if run.begin is not None:
                values.values[self.segments.reads("adapter", j, m=window.m)[0]] = run.begin
            with activity.during("adapter", j, m=window.m):
                x = window.call("adapter", j, values.values)
        elif run.begin is not None:
            x = run.begin.clone() if partition.n == 1 else run.begin  # as below
        else:
            x_1 = partition.parts["stem"].gives[0]
            x = values.values[x_1]
            if x_1 in values.ends and not (partition.n > 1 and partition.source == "stem"):
                x = x.clone()  # g^1 may change it in place, and it is a leaf
        with activity.during("fine", j, m=window.m):
            y = window.call("segment", j, values.values, x)
            if self.segments.owns("correction", j, m=window.m):
                y = window.call("correction", j, values.values, x, y)
        run.x[j], run.y[j] = x, y
        run.x_leaf[j], run.y_leaf[j] = (as_leaf(x), as_leaf(y)) if run.graph else (x, y)

    def _return_gradients(self, run: SegmentValues, messages: StepMessages) -> None:
        """Send the gradients of the values that came from the first rank."""
        segments = self.segments
        for value in segments.partition.values:
            if value.differentiable and segments.rank in value.readers:
                gradients = [leaf.grad for leaf in differentiable_tensors(run.values[value.name])]
                with self._activity.during("send", segments.first, "backward"):
                    messages.send_gradients(value.name, gradients, 0)

    def _differentiate_values(
        self, run: SegmentValues, messages: StepMessages, pending: list[tuple[SharedValue, PendingMessage]]
    ) -> None:
        """Differentiate context and stem, from the gradients of this rank's parts and those that the others sent."""
        first = self.segments.first
        for value, message in pending:
            with self._activity.during("receive", first, "backward"):
                gradients = messages.receive_gradients(message)
            add_gradients(differentiable_tensors(run.values[value.name]), gradients)
        with self._activity.during("stem", first, "backward"):
            differentiate(
                (end, leaf.grad)
                for name, value in run.ends.items()
                for end, leaf in zip(
                    differentiable_tensors(value), differentiable_tensors(run.values[name]), strict=True
                )
            )


def _expect(window: WindowSegments, run: WindowValues, messages: StepMessages) -> None:
    """Post the receives of a window: what it begins with, z and sums."""
    expect_begin(window, run, messages)
    expect_corrections(window, run, messages)


def check_loss(loss: Any) -> torch.Tensor:
    """A loss that can be differentiated.

    Raises:
        DistributedError: it is none.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        what += "" if getattr(loss, "requires_grad", True) else " without a graph"
        raise DistributedError(
            f"loss_fn gave {what}; it has to return one number that depends on "
            "the output, such as a mean over the batch"
        )
    return loss


def scaler_fault(scaler: Any, group: dist.ProcessGroup) -> str:
    """Why the ranks of a group cannot scale a loss so, each with a scaler of its own; empty where they can."""
    remedy = "pass a torch.distributed.fsdp.sharded_grad_scaler.ShardedGradScaler(process_group=stage.group)"
    if scaler is None:
        return ""
    if not (hasattr(scaler, "scale") and hasattr(scaler, "is_enabled")):
        return f"scaler is {scaler!r}; pass a torch.amp.GradScaler, or leave it out"
    ranks = dist.get_process_group_ranks(group)
    if not scaler.is_enabled() or len(ranks) == 1:
        return ""
    if getattr(type(scaler), "unscale_", None) is torch.amp.GradScaler.unscale_:  # it asks no other rank
        return (
            f"scaler is a {type(scaler).__name__}, which skips a step on the rank whose gradients overflow and on no "
            f"other of {len(ranks)}; {remedy}"
        )
    asked = getattr(scaler, "process_group", None)  # None is every rank there is
    if missing := [] if asked is None else sorted({*ranks} - {*dist.get_process_group_ranks(asked)}):
        return f"the scaler's process group is without the ranks {missing} of this network; {remedy}"
    return ""


def scaler_fact(scaler: torch.amp.GradScaler | None, device: torch.device) -> str:
    """A scaler as ranks compare it; with its scale where reading that does not hold up the device."""
    if scaler is None or not scaler.is_enabled():
        return "off"
    return f"on, with the scale {scaler.get_scale():g}" if device.type == "cpu" else "on"
