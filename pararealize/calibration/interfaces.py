"""PararealModule, batches -> InterfaceValues: what crosses each interface, in sequence and in parallel segments.

Everything is read off the network's own graph, equation (3), so context and devices are where the graph has them. The
values are those of eval mode, without gradients.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pararealize.errors import CalibrationError, ExampleError
from pararealize.network.module import PararealModule
from pararealize.network.parts import read_equation
from pararealize.tracing.call_signature import CallSignature

__all__ = ["Batches", "InterfaceRecord", "InterfaceValues", "Interfaces", "inputs_of", "labels_of", "one_pass"]

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(slots=True, kw_only=True)
class InterfaceValues:
    """The values of one batch at all interfaces.

    Attributes:
        sources: what C^j reads, by j.
        context: what a part reads beside its activation or residual, by the part's name (``g2``, ``F1``, ``head``).
        true: u_j, the output of segment j where all run in sequence, by j = 1..n: what z_j should be, and x_{j+1}.
        output: output of the whole network in sequence.
        labels: the batch's labels, where it has any.
        x: C^j's output by j = 2..n, once it was computed.
        y: g^j's output by j.
        z: the corrected value by j.
    """

    sources: dict[int, Tensor]
    context: dict[str, tuple[Any, ...]]
    true: dict[int, Tensor]
    output: Any
    labels: Tensor | None = None
    x: dict[int, Tensor] = field(default_factory=dict)
    y: dict[int, Tensor] = field(default_factory=dict)
    z: dict[int, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples the batch has."""
        return len(self.true[1])

    @property
    def bytes(self) -> int:
        """The memory of all values, those included that are computed later."""
        leaves = pytree.tree_leaves((self.sources, self.context, self.output))
        sizes = {leaf.data_ptr(): leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor)}
        return sum(sizes.values()) + 4 * sum(value.nbytes for value in self.true.values())  # u, x, y and z


class Interfaces:
    """The parts of a parareal network, called one by one to get the values between them.

    Args:
        net: the network; its adapters and coarse blocks may change between calls.
    """

    def __init__(self, net: PararealModule) -> None:
        self.net, self.n = net, net.plan.n
        nodes = read_equation(net.graph)
        calls = {name: call for name, call in nodes.calls.items() if name not in ("stem", "context")}
        self._early = nodes.before(calls.values())
        adapters = {part.j: name for name, part in nodes.parts.items() if part.kind == "adapter"}
        self._source = {j: calls[name].all_input_nodes[0] for j, name in adapters.items()}
        self._context = {name: nodes.context_of(name) for name in calls}
        self._x_1, self._inputs = nodes.x[0, 1], CallSignature.tensor_nodes(self.net.graph)

    def adapter(self, j: int) -> nn.Module:
        """C^j."""
        return self.net.adapters[f"C{j}"]

    def segment(self, j: int) -> nn.Module:
        """g^j."""
        return self.net.segments[f"g{j}"]

    def coarse(self, j: int) -> nn.Module | None:
        """F^j, ``None`` where it is g^{j+1} itself."""
        return dict(self.net.coarse.items()).get(f"F{j}")

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
        early = self._before_segments(batch)
        context = {name: tuple(early[node] for node in nodes) for name, nodes in self._context.items()}
        u = early[self._x_1]
        true: dict[int, Tensor] = {}
        for j in range(1, self.n + 1):
            true[j] = u = self.segment(j)(self.at(j, u), *context[f"g{j}"])
            _check_finite(u, f"the output of segment {j} of the network in sequence", number)
        return InterfaceValues(
            sources={j: early[node] for j, node in self._source.items()},
            context=context,
            true=true,
            output=self.net.head(self.at(self.n, u).clone(), *context["head"]),
            labels=labels_of(batch),
        )

    @torch.no_grad()
    def with_fine(self, values: InterfaceValues) -> InterfaceValues:
        """The same values, with x and y filled in where they are missing: adapters and segments, equation (2)."""
        if not values.y:
            values.y[1] = values.true[1]
            for j in range(2, self.n + 1):
                values.x[j] = self.adapter(j)(values.sources[j])
                values.y[j] = self.segment(j)(values.x[j], *values.context[f"g{j}"])
        return values

    @torch.no_grad()
    def residual(self, values: InterfaceValues, j: int) -> Tensor:
        """r_j = z_j - x_{j+1}, from the coarse blocks in front of it; z_j is remembered."""
        return self.at(j + 1, self.corrected(values, j)) - values.x[j + 1]

    def corrected(self, values: InterfaceValues, j: int) -> Tensor:
        """z_j by F^1 to F^{j-1}, remembered from call to call; needs x and y."""
        if 1 not in values.z:
            values.z[1] = values.y[1]
        if j not in values.z:
            values.z[j] = values.y[j] + self.correction(values, j - 1, self.residual(values, j - 1))
        return values.z[j]

    @torch.no_grad()
    def correction(self, values: InterfaceValues, j: int, r: Tensor) -> Tensor:
        """F^j(r)."""
        block = self.coarse(j)
        value: Tensor = (self.segment(j + 1) if block is None else block)(r, *values.context[f"F{j}"])
        return value

    @torch.no_grad()
    def result(self, values: InterfaceValues) -> Any:
        """h(z_n), the parareal network's output; needs x and y."""
        return self.net.head(self.corrected(values, self.n).clone(), *values.context["head"])

    def at(self, j: int, value: Tensor) -> Tensor:
        """A value on the device of segment j."""
        return value if self.net.segment_devices is None else value.to(self.net.segment_devices[j - 1])

    def _before_segments(self, batch: Any) -> dict[fx.Node, Any]:
        """The values of the stem, of the context, and of what adapters read."""
        run = fx.Interpreter(self.net, garbage_collect_values=False)
        values = run.env = {}
        tensors = inputs_of(batch, CallSignature.of_graph(self.net.graph))
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


class InterfaceRecord:
    """The values of all batches: of the first batches in memory, as many as fit; else computed anew in every pass.

    Args:
        interfaces: the network's interfaces.
        batches: inputs, or inputs and labels; read once here, and again in every pass where not all fit.
        keep: bytes of activations that may be held in memory; the first batch is, whatever its size.

    Raises:
        ExampleError: there is no batch, or the batches can be read only once.
    """

    def __init__(self, interfaces: Interfaces, batches: Batches, *, keep: int) -> None:
        self.interfaces, self.batches = interfaces, batches
        self.in_memory: list[InterfaceValues] = []
        self.count = self.samples = 0
        room = keep
        for number, batch in enumerate(one_pass(batches), start=1):
            values = interfaces.in_sequence(batch, number)
            self.count, self.samples = number, self.samples + values.samples
            if number == len(self.in_memory) + 1 and (values.bytes <= room or not self.in_memory):
                self.in_memory.append(values)
                room -= values.bytes
        if not self.count:
            raise ExampleError("there is no batch; pass some tens of batches of training inputs")

    @property
    def complete(self) -> bool:
        """Whether every batch is in memory."""
        return len(self.in_memory) == self.count

    def __iter__(self) -> Iterator[InterfaceValues]:
        if self.complete:
            return iter(self.in_memory)
        return (self.interfaces.in_sequence(batch, i) for i, batch in enumerate(one_pass(self.batches), start=1))

    def with_fine(self) -> Iterator[InterfaceValues]:
        """The values with x and y."""
        return map(self.interfaces.with_fine, self)


def inputs_of(batch: Any, call: CallSignature) -> Mapping[str, Tensor]:
    """The tensors of a batch by their names: of an input, of ``(input, labels)``, or of a dict of keyword arguments.

    A dict with none of the arguments' names is itself the input, but for its labels.

    Raises:
        ExampleError: an input is missing, or is not nested as in the example of the conversion.
    """
    names = list(call.signature.parameters)
    if isinstance(batch, list | tuple) and not batch:
        raise ExampleError("a batch is empty; pass tensors, (input, labels), or dicts of keyword arguments")
    if not isinstance(batch, Mapping):
        return call.tensors((batch[0] if isinstance(batch, list | tuple) else batch,), {})
    inputs = {name: value for name, value in batch.items() if name in names}
    if not inputs and call.takes_mapping:
        return call.tensors((batch if call.fits(batch) else {k: v for k, v in batch.items() if k != "labels"},), {})
    required = [p.name for p in call.signature.parameters.values() if p.default is p.empty and p.name not in inputs]
    if required:
        raise ExampleError(
            f"the batch has no input {required[0]!r}, which {call.model} needs; pass a dict of its inputs by name "
            f"({', '.join(names)}), with its labels as 'labels'"
        )
    return call.tensors((), inputs)


def labels_of(batch: Any) -> Tensor | None:
    """The labels, one integer a sample, where the batch has them."""
    if isinstance(batch, Mapping):
        labels = batch.get("labels")
    else:
        labels = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    is_label = isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()
    return labels if is_label else None


def one_pass(batches: Batches) -> Iterator[Any]:
    """One pass over batches that can be read several times: a list, a loader, or a function that gives an iterator.

    Raises:
        ExampleError: they can be read once only.
    """
    source: Any = batches() if callable(batches) else batches
    if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
        raise ExampleError(
            f"the batches are a {type(source).__name__}; pass a list, a loader, or a function that gives one"
        )
    iterator: Iterator[Any] = iter(source)
    if iterator is batches:
        raise ExampleError(
            "calibration reads its batches several times, and an iterator gives them once; pass a list, a loader, or a "
            "function that gives a new iterator, such as data.batches"
        )
    return iterator


def _check_finite(value: Tensor, what: str, number: int) -> None:
    if not bool(torch.isfinite(value).all()):
        raise CalibrationError(
            f"{what} is not finite in batch {number}; calibration needs a trained network and inputs that it takes: "
            "look for NaN or infinity in the batch, or load the trained weights"
        )
