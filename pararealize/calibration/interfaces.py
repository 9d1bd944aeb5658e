"""PararealModule, a batch -> Crossing: what crosses each interface, in the network in sequence and in segments.

Everything is read off the network's own graph, equation (3), so context and devices are where the graph has them. The
values are those of eval mode, without gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from pararealize.errors import CalibrationError, ExampleError
from pararealize.network.module import PararealModule

__all__ = ["Batches", "Crossing", "Interfaces", "Record", "fresh", "inputs_of", "labels_of"]

Batches: TypeAlias = Iterable[Any] | Callable[[], Iterable[Any]]


@dataclass(slots=True, kw_only=True)
class Crossing:
    """One batch at all interfaces.

    Attributes:
        sources: what C^j reads, by j.
        context: what g^j reads beside its input, by j; ``n + 1`` for the head.
        coarse_context: what F^j reads beside the residual, by j.
        true: u_j, the output of segment j where all run in sequence, by j = 1..n: what z_j should be, and x_{j+1}.
        output: of the whole network in sequence.
        labels: of the batch, where it has any.
        x: C^j's output by j = 2..n, once it was computed.
        y: g^j's output by j.
        z: the corrected value by j.
    """

    sources: dict[int, Tensor]
    context: dict[int, tuple[Any, ...]]
    coarse_context: dict[int, tuple[Any, ...]]
    true: dict[int, Tensor]
    output: Any
    labels: Tensor | None = None
    x: dict[int, Tensor] = field(default_factory=dict)
    y: dict[int, Tensor] = field(default_factory=dict)
    z: dict[int, Tensor] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """Of the batch."""
        return len(self.true[1])

    @property
    def bytes(self) -> int:
        """What it takes to keep, with the values that are computed later."""
        once = pytree.tree_leaves((self.sources, self.context, self.coarse_context, self.output))
        seen = {leaf.data_ptr(): leaf.nbytes for leaf in once if isinstance(leaf, Tensor)}
        return sum(seen.values()) + 4 * sum(value.nbytes for value in self.true.values())


class Interfaces:
    """The parts of a parareal network, and how to run them one by one.

    Args:
        net: the network; its adapters and coarse blocks may change between calls.
    """

    def __init__(self, net: PararealModule) -> None:
        self.net, self.n = net, net.plan.n
        self._places = net.devices
        nodes = list(net.graph.nodes)
        late: set[fx.Node] = set()
        self._early: list[fx.Node] = []
        self._source: dict[int, fx.Node] = {}
        self._context: dict[int, list[fx.Node]] = {}
        self._coarse_context: dict[int, list[fx.Node]] = {}
        for node in nodes:
            part, _, name = str(node.target).partition(".")
            is_part = node.op == "call_module" and part in ("adapters", "segments", "coarse", "head")
            if is_part:
                first, *context = node.args
                if node.name.startswith("F_"):
                    self._coarse_context[int(node.name.removeprefix("F_"))] = context
                elif part == "adapters":
                    self._source[int(name[1:])] = first
                else:
                    self._context[self.n + 1 if part == "head" else int(name[1:])] = context
            if is_part or node.op == "output" or late.intersection(node.all_input_nodes):
                late.add(node)
            else:
                self._early.append(node)
        self._entry = next(n.args[0] for n in nodes if n.op == "call_module" and n.target == "segments.g1")

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
    def cross(self, batch: Any, number: int = 1) -> Crossing:
        """Run the network in sequence on a batch, segment after segment.

        Raises:
            CalibrationError: an activation is not finite.
            ExampleError: the batch does not fit the network.
        """
        values = self._enter(batch)
        pick = values.__getitem__
        context = {j: tuple(map(pick, nodes)) for j, nodes in self._context.items()}
        u = values[self._entry]
        true: dict[int, Tensor] = {}
        for j in range(1, self.n + 1):
            true[j] = u = self.segment(j)(self.at(j, u), *context[j])
            _check_finite(u, f"the output of segment {j} of the network in sequence", number)
        output = self.net.head(self.at(self.n, u).clone(), *context[self.n + 1])
        return Crossing(
            sources={j: values[node] for j, node in self._source.items()},
            context=context,
            coarse_context={j: tuple(map(pick, nodes)) for j, nodes in self._coarse_context.items()},
            true=true,
            output=output,
            labels=labels_of(batch),
        )

    @torch.no_grad()
    def fine(self, crossing: Crossing) -> None:
        """Fill in x and y: the adapters and the segments behind them, equation (2)."""
        crossing.y[1] = crossing.true[1]
        for j in range(2, self.n + 1):
            crossing.x[j] = self.adapter(j)(crossing.sources[j])
            crossing.y[j] = self.segment(j)(crossing.x[j], *crossing.context[j])

    def filled(self, crossing: Crossing) -> Crossing:
        """The crossing, with x and y."""
        if not crossing.y:
            self.fine(crossing)
        return crossing

    @torch.no_grad()
    def residual(self, crossing: Crossing, j: int) -> Tensor:
        """r_j = z_j - x_{j+1}, from the coarse blocks in front of it; z_j is remembered."""
        return self.at(j + 1, self.corrected(crossing, j)) - crossing.x[j + 1]

    def corrected(self, crossing: Crossing, j: int) -> Tensor:
        """z_j by F^1 to F^{j-1}, remembered from call to call."""
        if 1 not in crossing.z:
            crossing.z[1] = crossing.y[1]
        if j not in crossing.z:
            crossing.z[j] = crossing.y[j] + self.correction(crossing, j - 1, self.residual(crossing, j - 1))
        return crossing.z[j]

    @torch.no_grad()
    def correction(self, crossing: Crossing, j: int, r: Tensor) -> Tensor:
        """F^j(r)."""
        block = self.coarse(j)
        context = crossing.coarse_context[j]
        value: Tensor = self.segment(j + 1)(r, *context) if block is None else block(r, *context)
        return value

    @torch.no_grad()
    def result(self, crossing: Crossing) -> Any:
        """h(z_n), once :meth:`fine` ran."""
        return self.net.head(self.corrected(crossing, self.n).clone(), *crossing.context[self.n + 1])

    def at(self, j: int, value: Tensor) -> Tensor:
        """A value on the device of segment j."""
        return value if self._places is None else value.to(self._places[j - 1])

    def _enter(self, batch: Any) -> dict[fx.Node, Any]:
        """The values of the stem, of the context, and of what adapters read."""
        run = fx.Interpreter(self.net, garbage_collect_values=False)
        values = run.env = {}
        placeholders = [node for node in self._early if node.op == "placeholder"]
        given = inputs_of(batch, [str(node.target) for node in placeholders])
        home = next(iter(self.net.stem.parameters()), next(self.net.parameters())).device
        for node in placeholders:
            name = str(node.target)
            if name not in given and not node.args:
                raise ExampleError(
                    f"the batch has no input {name!r}, which {self.net.plan.model} needs; pass a dict of its inputs by "
                    f"name ({', '.join(str(node.target) for node in placeholders)}), with its labels as 'labels'"
                )
            value = given.get(name, node.args[0] if node.args else None)
            values[node] = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(home), value)
        for node in self._early:
            if node.op != "placeholder":
                try:
                    values[node] = run.run_node(node)
                except Exception as error:
                    raise ExampleError(
                        f"the stem of {self.net.plan.model} does not take this batch: {error}; pass batches like the "
                        "example inputs of the conversion"
                    ) from error
        return values


class Record:
    """The crossings of all batches: kept where they fit into ``keep`` bytes, else computed anew in every pass.

    Args:
        interfaces: of the network.
        batches: of inputs, or of inputs and labels; read once here, and again in every pass where not all is kept.
        keep: bytes of activations.

    Raises:
        ExampleError: there is no batch, or the batches can be read only once.
    """

    def __init__(self, interfaces: Interfaces, batches: Batches, *, keep: int) -> None:
        self.interfaces, self.batches = interfaces, batches
        self.kept: list[Crossing] = []
        self.count = self.samples = 0
        room = keep
        for number, batch in enumerate(fresh(batches), start=1):
            crossing = interfaces.cross(batch, number)
            self.count, self.samples = number, self.samples + crossing.samples
            if number == len(self.kept) + 1 and (crossing.bytes <= room or not self.kept):
                self.kept.append(crossing)
                room -= crossing.bytes
        if not self.count:
            raise ExampleError("there is no batch; pass some tens of batches of training inputs")

    @property
    def complete(self) -> bool:
        """Whether every batch is kept."""
        return len(self.kept) == self.count

    def __iter__(self) -> Iterator[Crossing]:
        if self.complete:
            yield from self.kept
        else:
            for number, batch in enumerate(fresh(self.batches), start=1):
                yield self.interfaces.cross(batch, number)

    def fine(self) -> Iterator[Crossing]:
        """The crossings with x and y."""
        return map(self.interfaces.filled, self)


def inputs_of(batch: Any, names: list[str]) -> Mapping[str, Any]:
    """The inputs of a batch by their names: a tensor, ``(input, labels)``, or a dict of keyword arguments."""
    if isinstance(batch, Mapping):
        return {name: value for name, value in batch.items() if name in names}
    return {names[0]: batch[0] if isinstance(batch, list | tuple) else batch}


def labels_of(batch: Any) -> Tensor | None:
    """The labels, one integer a sample, where the batch has them."""
    if isinstance(batch, Mapping):
        found = batch.get("labels")
    else:
        found = batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None
    is_label = isinstance(found, Tensor) and found.ndim == 1 and not found.is_floating_point()
    return found if is_label else None


def fresh(batches: Batches) -> Iterator[Any]:
    """One pass over batches that can be read several times: a list, a loader, or a function that gives an iterator.

    Raises:
        ExampleError: they can be read once only.
    """
    found = batches() if callable(batches) else iter(batches)
    if not callable(batches) and found is batches:
        raise ExampleError(
            "calibration reads its batches several times, and an iterator gives them once; pass a list, a loader, or a "
            "function that gives a new iterator, such as data.batches"
        )
    return iter(found)


def _check_finite(value: Tensor, what: str, number: int) -> None:
    if not bool(torch.isfinite(value).all()):
        raise CalibrationError(
            f"{what} is not finite in batch {number}; calibration needs a trained network and inputs that it takes: "
            "look for NaN or infinity in the batch, or load the trained weights"
        )
