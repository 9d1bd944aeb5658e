"""PararealModule, batches -> InterfaceValues: what crosses each interface, in sequence and in parallel segments.

Everything is read off the network's own graph, equation (3), so context and devices are where the graph has them. The
values are those of eval mode, without gradients. Windows come one after the other: each begins with what the one before
gives as it is, fitted or not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pararealize.coarse.folded_map import FoldedMap
from pararealize.coarse.output_correction import OutputCorrection
from pararealize.coarse.spec import numbered
from pararealize.errors import ExampleError
from pararealize.network.module import PararealModule
from pararealize.network.parts import Index, read_equation
from pararealize.plan.spec import SegmentPlan, Window
from pararealize.tracing.call_signature import CallSignature

from .batch import Batches, RepeatedBatches, check_finite, inputs_of, labels_of
from .folded_layers import FoldableLayer, FoldedLayers
from .masks import AUTO, MaskChoice, mask_of, unmasked
from .norm_statistics import NormStatistics
from .output_kind import LabelEvidence

__all__ = ["InterfaceRecord", "InterfaceValues", "Interfaces"]


@dataclass(slots=True, kw_only=True)
class InterfaceValues:
    """The values of one batch at all interfaces, by (m, j) as parts are numbered; m is 0 where one window is alone.

    Attributes:
        sources: what C^{m,j} reads, where that is there before the segments: in the first window.
        context: what a part reads beside its activation or residual, by the part's name (``g2``, ``F1``, ``head``).
        true: u_{m,j}, the output of a segment where all run in sequence: what z_{m,j} should be, and x_{m,j+1}.
        output: output of the whole network in sequence.
        labels: the batch's labels, where it has any.
        mask: of the leading axes of values, ``(batch, tokens)``: which positions count; None where all do.
        begins: w_{m-1}, what window m begins with, by m from 1, once it was computed; that of window 1 only where there
            are several windows or corrections, which read it.
        x: output of C^{m,j}, j > 1, once it was computed.
        y: output of g^{m,j}.
        z: the corrected value.
    """

    sources: dict[Index, Tensor]
    context: dict[str, tuple[Any, ...]]
    true: dict[Index, Tensor]
    output: Any
    labels: Tensor | None = None
    mask: Tensor | None = None
    begins: dict[int, Tensor] = field(default_factory=dict)
    x: dict[Index, Tensor] = field(default_factory=dict)
    y: dict[Index, Tensor] = field(default_factory=dict)
    z: dict[Index, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples the batch has."""
        return len(next(iter(self.true.values())))

    @property
    def bytes(self) -> int:
        """The memory of all values, those included that are computed later: x, y and z of one window at a time."""
        first = [w for m, w in self.begins.items() if m == 1]
        leaves = pytree.tree_leaves((self.sources, self.context, self.output, first))
        sizes = {leaf.data_ptr(): leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)}
        of_windows: dict[int, int] = {}
        ends: dict[int, int] = {}
        for (m, _), value in self.true.items():
            of_windows[m] = of_windows.get(m, 0) + value.nbytes
            ends[m] = value.nbytes
        # u of all windows; x, y and z of the largest; w where there are several
        several = sum(ends.values()) if len(ends) > 1 else 0
        return sum(sizes.values()) + sum(of_windows.values()) + 3 * max(of_windows.values()) + several

    def anew(self) -> InterfaceValues:
        """The same batch, of which adapters, segments and coarse blocks have computed nothing yet."""
        return replace(self, begins={m: w for m, w in self.begins.items() if m == 1}, x={}, y={}, z={})

    def forget(self, window: Window, *, corrected_only: bool = False) -> None:
        """Drop what the parts of one window have computed, or its corrected values alone, and what followed."""
        for row in window.segments:
            for values in (self.z,) if corrected_only else (self.x, self.y, self.z):
                values.pop(row.index, None)
        for m in [m for m in self.begins if m > window.m]:
            del self.begins[m]


class Interfaces:
    """The parts of a parareal network, called one by one to get the values between them.

    Args:
        net: the network; its adapters, coarse blocks, corrections and running statistics may change between calls. The
            network in sequence keeps the statistics that it has here.
        mask: which positions of a batch count, see :func:`~pararealize.calibration.masks.mask_of`.

    Attributes:
        windows: the rows of the plan, window by window.
        statistics: the running statistics of the original's batch norms, as they are here.
        folds: the layers in which maps may be folded.
    """

    def __init__(self, net: PararealModule, mask: MaskChoice = AUTO) -> None:
        self.net, self.windows, self.mask = net, net.plan.windows, mask
        self.statistics, self.folds = NormStatistics(net), FoldedLayers(net)
        nodes = read_equation(net.graph)
        calls = {name: call for name, call in nodes.calls.items() if name not in ("stem", "context")}
        self._early = nodes.before(calls.values())
        adapters = {part.index: calls[name] for name, part in nodes.parts.items() if part.kind == "adapter"}
        sources = {index: call.all_input_nodes[0] for index, call in adapters.items()}
        self._source = {index: node for index, node in sources.items() if node in set(self._early)}
        reading = [name for name in calls if nodes.parts[name].kind in ("segment", "coarse", "head")]
        self._context = {name: nodes.context_of(name) for name in reading}
        self._homes = {part.index: part.home for part in nodes.parts.values() if part.kind == "segment"}
        self._keeps_first = len(self.windows) > 1 or bool(net.plan.corrections)
        self._x_1 = nodes.x[self.windows[0].segments[0].index]
        self._inputs, self._call = CallSignature.tensor_nodes(net.graph), CallSignature.of_graph(net.graph)

    @property
    def last(self) -> Index:
        """The number of the last segment."""
        return self.windows[-1].segments[-1].index

    def adapter(self, index: Index) -> nn.Module:
        """C^{m,j}."""
        return self.net.adapters[numbered("C", *index)]

    def segment(self, index: Index) -> nn.Module:
        """g^{m,j}."""
        return self.net.segments[numbered("g", *index)]

    def coarse(self, index: Index) -> nn.Module | None:
        """F^{m,j}, ``None`` where it is g^{m,j+1} itself."""
        return self.net.coarse._modules.get(numbered("F", *index))

    def correction(self, index: Index) -> OutputCorrection | FoldedMap | None:
        """K^{m,j}, ``None`` where the segment has none."""
        return self.net.coarse._modules.get(numbered("K", *index))  # type: ignore[return-value]

    @torch.no_grad()
    def in_sequence(self, batch: Any, number: int = 1) -> InterfaceValues:
        """Run the network in sequence on a batch, segment after segment.

        Args:
            batch: inputs, or inputs and labels.
            number: the batch's number among others, for error messages.

        Raises:
            CalibrationError: an activation is not finite.
            ExampleError: the batch does not fit the network.
            GuardError: its sizes are others than the network was recorded for.
        """
        with self.statistics.as_found(), self.folds.as_found():
            early = self._before_segments(batch)
            context = {name: tuple(early[node] for node in nodes) for name, nodes in self._context.items()}
            u = early[self._x_1]
            mask = mask_of(batch, self.mask, u, self.windows[0].segments[0].x.channel + 1, self._call)
            begins = {1: u} if self._keeps_first else {}
            true: dict[Index, Tensor] = {}
            for row in self.net.plan.segments:
                true[row.index] = u = self.segment(row.index)(self.at(row.index, u), *context[row.name])
                check_finite(unmasked(u, mask), f"the output of {row.label} of the network in sequence", number)
            output = self.net.head(self.at(self.last, u).clone(), *context["head"])
        return InterfaceValues(
            sources={index: early[node] for index, node in self._source.items()},
            context=context,
            true=true,
            output=output,
            labels=labels_of(batch),
            mask=mask,
            begins=begins,
        )

    @torch.no_grad()
    def begin(self, values: InterfaceValues, window: Window) -> Tensor:
        """w_{m-1}, which window m begins with, from the windows before it as they are now; remembered."""
        latest = max((m for m in values.begins if m <= window.m), default=1)
        for before in self.windows[latest - 1 : window.m - 1]:
            w = self.end(values, before)
            values.forget(before)
            values.begins[before.m + 1] = w
        return values.begins[window.m]

    @torch.no_grad()
    def with_fine(self, values: InterfaceValues, window: Window) -> InterfaceValues:
        """The same values, with x and y of a window filled in where they are missing: equation (2)."""
        first = window.segments[0]
        if first.index in values.y:
            return values
        if window.m == 1 and not isinstance(self.correction(first.index), FoldedMap):
            values.y[first.index] = values.true[first.index]
        else:
            values.y[first.index] = self._fine(values, first, self.at(first.index, self.begin(values, window)))
        for row in window.segments[1:]:
            source = values.sources.get(row.index)
            if source is None:
                source = self.at(row.index, self.begin(values, window))
            values.x[row.index] = self.adapter(row.index)(source)
            values.y[row.index] = self._fine(values, row, values.x[row.index])
        return values

    def input(self, values: InterfaceValues, index: Index) -> Tensor:
        """x_{m,j}; needs x of the window."""
        return values.x[index] if index[1] > 1 else self.at(index, values.begins[index[0] or 1])

    def last_output(self, values: InterfaceValues, one: FoldableLayer) -> Tensor:
        """What the last layer of a segment adds to the stream; needs x of the window."""
        index = one.row.index
        return one.output(self.segment(index), self.input(values, index), values.context[numbered("g", *index)])

    @torch.no_grad()
    def fine(self, values: InterfaceValues, index: Index) -> Tensor:
        """y_{m,j} as the others read it: with its correction K^{m,j}, where it has one; needs x and y."""
        correction, y = self.correction(index), values.y[index]
        return y if correction is None else correction(self.input(values, index), y)

    @torch.no_grad()
    def residual(self, values: InterfaceValues, index: Index) -> Tensor:
        """r_j = z_j - x_{j+1}, from the coarse blocks in front of it; z_j is remembered."""
        m, j = index
        return self.at((m, j + 1), self.corrected(values, index)) - values.x[m, j + 1]

    def corrected(self, values: InterfaceValues, index: Index) -> Tensor:
        """z_{m,j} by F^{m,1} to F^{m,j-1}, remembered from call to call; needs x and y."""
        m, last = index
        for j in range(1, last + 1):
            if (m, j) not in values.z:
                z = self.fine(values, (m, j))
                if j > 1:
                    z = z + self.propagated(values, (m, j - 1), self.residual(values, (m, j - 1)))
                values.z[m, j] = z
        return values.z[index]

    @torch.no_grad()
    def propagated(self, values: InterfaceValues, index: Index, r: Tensor) -> Tensor:
        """F^{m,j}(r)."""
        (m, j), block = index, self.coarse(index)
        value: Tensor = (self.segment((m, j + 1)) if block is None else block)(
            r, *values.context[numbered("F", *index)]
        )
        return value

    def end(self, values: InterfaceValues, window: Window) -> Tensor:
        """w_m, the corrected output of a window; x, y and z are remembered."""
        return self.corrected(self.with_fine(values, window), window.segments[-1].index)

    @torch.no_grad()
    def result(self, values: InterfaceValues) -> Any:
        """h(w_M), the parareal network's output."""
        return self.net.head(self.end(values, self.windows[-1]).clone(), *values.context["head"])

    @torch.no_grad()
    def rest_in_sequence(self, values: InterfaceValues, window: Window) -> Any:
        """The network's output if the windows behind one ran in sequence, as the original's segments do."""
        u = self.end(values, window)
        with self.statistics.as_found(), self.folds.as_found():
            for row in self.net.plan.segments:
                if row.index > window.segments[-1].index:
                    u = self._fine(values, row, self.at(row.index, u))
            return self.net.head(self.at(self.last, u).clone(), *values.context["head"])

    def at(self, index: Index, value: Tensor) -> Tensor:
        """A value on the device of segment (m, j)."""
        devices = self.net.segment_devices
        return value if devices is None else value.to(devices[self._homes[index] - 1])

    def _fine(self, values: InterfaceValues, row: SegmentPlan, x: Tensor) -> Tensor:
        y: Tensor = self.segment(row.index)(x, *values.context[row.name])
        return y

    def _before_segments(self, batch: Any) -> dict[fx.Node, Any]:
        """The values of the stem, of the context, and of what adapters read."""
        run = fx.Interpreter(self.net, garbage_collect_values=False)
        values = run.env = {}
        tensors = inputs_of(batch, self._call)
        self.net.call_conditions.check_tensors(tensors)
        home = next(iter(self.net.stem.parameters()), next(self.net.parameters())).device
        values.update((node, tensors[name].to(home)) for name, node in self._inputs.items())
        for node in self._early:
            if not CallSignature.begins(node):
                try:
                    values[node] = run.run_node(node)
                except Exception as error:
                    raise ExampleError(
                        f"the stem of {self.net.plan.model} does not take this batch: {error}; pass batches like the "
                        "example inputs of the conversion"
                    ) from error
        return values


@dataclass(frozen=True, slots=True)
class _Begin:
    """What a window of a batch begins with: w_{m-1}, and m."""

    w: Tensor
    m: int


class InterfaceRecord:
    """The values of all batches: of the first batches in memory, as many as fit; else computed anew in every pass.

    Args:
        interfaces: the network's interfaces.
        batches: inputs, or inputs and labels; read once here, and again in every pass where not all fit.
        keep: bytes of activations that may be held in memory; the first batch is, whatever its size.
        seed: of the random numbers of every pass.

    Attributes:
        in_memory: the values of the first batches.
        count: how many batches there are.
        samples: how many samples they have.
        counts: of each batch, whether its mask leaves any position in.
        room: what is left of ``keep``. What the latest window of a batch that is not in memory begins with is kept
            where that fits, so that a pass does not run the windows before it.
        evidence: what labels say of the original's outputs.
        output: the original's output for the first batch.

    Raises:
        ExampleError: there is no batch, or the batches can be read only once.
    """

    def __init__(self, interfaces: Interfaces, batches: Batches, *, keep: int, seed: int = 0) -> None:
        self.interfaces, self._batches = interfaces, RepeatedBatches(batches, seed=seed)
        self.in_memory: list[InterfaceValues] = []
        self.count = self.samples = 0
        self.counts: list[bool] = []
        self.room = keep
        self._begins: dict[int, _Begin] = {}  # by the number of a batch that is not in memory
        self.evidence = LabelEvidence()
        self.output: Any = None
        for number, batch in enumerate(self._batches.one_pass(), start=1):
            values = interfaces.in_sequence(batch, number)
            self.count, self.samples = number, self.samples + values.samples
            self.counts.append(values.mask is None or bool(values.mask.any()))
            self.evidence.add(values.output, values.labels, values.mask)
            self.output = values.output if number == 1 else self.output
            if number == len(self.in_memory) + 1 and (values.bytes <= self.room or not self.in_memory):
                self.in_memory.append(values)
                self.room = max(self.room - values.bytes, 0)
            else:
                self._batches.note(number - 1, batch)
        if not self.count:
            raise ExampleError("there is no batch; pass some tens of batches of training inputs")

    def forget(self, window: Window, *, corrected_only: bool = False) -> None:
        """Drop from the values in memory what the parts of one window have computed, or its corrected values alone."""
        for values in self.in_memory:
            values.forget(window, corrected_only=corrected_only)
        for number in [number for number, begin in self._begins.items() if begin.m > window.m]:
            self._forget_begin(number)

    @property
    def complete(self) -> bool:
        """Whether every batch is in memory."""
        return len(self.in_memory) == self.count

    def __iter__(self) -> Iterator[InterfaceValues]:
        return self.part(0, self.count)

    def part(self, start: int, stop: int) -> Iterator[InterfaceValues]:
        """The values of the batches from ``start`` up to ``stop``, counted from 0.

        Raises:
            CalibrationError: this pass gives another batch than the first.
            ExampleError: this pass ends before.
        """
        yield from self.in_memory[start:stop]
        if stop > (kept := len(self.in_memory)):
            start = max(start, kept)
            for number, batch in enumerate(self._batches.later_pass(start, stop, self.count), start=start + 1):
                values = self.interfaces.in_sequence(batch, number)
                if begin := self._begins.get(number):
                    values.begins[begin.m] = begin.w
                yield values
                self._remember_begin(number, values)

    def _remember_begin(self, number: int, values: InterfaceValues) -> None:
        """Keep what the latest window that has been begun begins with, where there is room for it."""
        latest = max(values.begins, default=1)
        self._forget_begin(number)
        if latest > 1 and self._batches.is_known(number - 1) and (w := values.begins[latest]).nbytes <= self.room:
            self._begins[number] = _Begin(w, latest)
            self.room -= w.nbytes

    def _forget_begin(self, number: int) -> None:
        if number in self._begins:
            self.room += self._begins.pop(number).w.nbytes

    def with_fine(self, window: Window) -> Iterator[InterfaceValues]:
        """The values with x and y of a window."""
        return (self.interfaces.with_fine(values, window) for values in self)
