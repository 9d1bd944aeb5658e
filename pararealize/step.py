"""What a rank owns and its inputs -> its part of one step, forward and backward.

    forward    x_j = C^j(x), y_j = g^j(x_j)        all segments of all ranks at the same time
               receive z_{j-1}
               z_j = y_j + F^{j-1}(z_{j-1} - x_j)   on leaves: this graph is cut off from the one above
               send z_j                             on the last rank: head and loss
    backward   receive dz_j
               the graph of F^{j-1} alone           gives dz_{j-1}, dx_j, dy_j
               send dz_{j-1}                        before the expensive part, so that all ranks differentiate at once
               the graph of C^j and g^j, from dx_j and dy_j

Values of the stem and the context that other ranks read are cut off in the same way; their gradients come back last.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from .errors import DistributedError
from .gradients import Replicas
from .layout import Layout, SharedValue
from .recording import Recording
from .wire import Incoming, Kinds, Watching, Wire

__all__ = ["Own", "Pass", "backward", "check_loss", "forward"]

_LETTERS = {"adapter": "C^{j}", "fine": "g^{j}", "coarse": "F^{i}", "send": "send z_{j}", "receive": "receive"}


@dataclasses.dataclass(slots=True)
class Own:
    """What a rank owns, and how it reaches the others.

    Attributes:
        layout: who owns what.
        rank: this one, in the parareal group.
        n: segments of the network.
        source: what adapters read.
        parts: modules by name.
        calls: how parts are called: the modules themselves, or their recomputing forms.
        wire: messages.
        watch: is told of each action.
        replicas: averages over dp ranks, where there are any and they are to be averaged.
        recording: is written to, where there is one.
    """

    layout: Layout
    rank: int
    n: int
    source: str
    parts: Mapping[str, nn.Module]
    calls: Mapping[str, Callable[..., Any]]
    wire: Wire
    watch: Watching
    replicas: Replicas | None = None
    recording: Recording | None = None

    @property
    def first(self) -> int:
        """The first segment of this rank."""
        return self.layout.runs[self.rank][0]

    @property
    def last(self) -> int:
        """The last segment of this rank."""
        return self.layout.runs[self.rank][1]

    @property
    def is_last(self) -> bool:
        """Whether the head is here."""
        return self.rank == self.layout.ranks - 1

    def tag(self, name: str) -> int:
        """A number for each message, even forward; the next odd one is its gradient's."""
        names = [value.name for value in self.layout.values]
        return 2 * (names.index(name) if name in names else len(names) + int(name.removeprefix("z_")))

    def call(self, name: str, *args: Any) -> Any:
        """Call a part."""
        return self.calls[name](*args)

    @contextlib.contextmanager
    def doing(self, action: str, j: int, direction: str = "forward") -> Iterator[None]:
        """Around an action: who watches and who records are told."""
        self.watch.doing(f"{_LETTERS.get(action, action).format(j=j, i=j - 1)} {direction}")
        if self.recording is None:
            yield
        else:
            with self.recording.during(j, action, direction):
                yield

    @contextlib.contextmanager
    def phase(self, number: int) -> Iterator[None]:
        """Around one backward call."""
        if self.replicas is None:
            yield
            return
        self.replicas.begin_phase(number)
        yield
        self.replicas.end_phase()

    def phases(self) -> dict[str, int]:
        """For each part, the number of the last backward call that reaches it: coarse and head, segments, stem."""
        found = {}
        for name in self.parts:
            if name in ("stem", "context"):
                found[name] = self.last - self.first + 2
            elif name[0] in "Cg" and name[1:].isdigit():
                found[name] = self.last - int(name[1:]) + 1
            else:
                found[name] = 0
        if "stem" in found and not self.cuts_stem:
            found["stem"] = found["g1"]
        return found

    @property
    def cuts_stem(self) -> bool:
        """Whether others than g^1 read what the stem gives, so that its graph is cut off."""
        return self.source == "stem" or len(self.layout.parts["stem"].gives) > 1


@dataclasses.dataclass(slots=True)
class Pass:
    """What a step keeps from forward to backward.

    Attributes:
        kinds: of the messages.
        graph: whether there is a backward.
        known: inputs and values of stem and context by name, as the rank's parts read them.
        made: those of the values that this rank made, with their graphs.
        x: segment inputs with their graphs, by segment; ``x_leaf`` without.
        y: segment outputs with their graphs, by segment; ``y_leaf`` without.
        z_in: z from the rank before, a leaf.
        z: the last corrected value of this rank.
        z_gradient: the message that brings its gradient.
        corrected: z after each of this rank's coarse blocks, by segment.
        output: of the head.
    """

    kinds: Kinds
    graph: bool
    known: dict[str, Any]
    made: dict[str, Any] = dataclasses.field(default_factory=dict)
    x: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    x_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    y_leaf: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    z_in: torch.Tensor | None = None
    z: torch.Tensor | None = None
    z_gradient: Incoming | None = None
    corrected: dict[int, torch.Tensor] = dataclasses.field(default_factory=dict)
    output: Any = None


def forward(own: Own, inputs: Mapping[str, Any], kinds: Kinds, *, graph: bool) -> Pass:
    """All that a rank computes and sends, up to the network's output on the last rank.

    Args:
        own: the rank.
        inputs: the network's inputs by the names that parts read.
        kinds: what messages look like for inputs like these; filled in the first time.
        graph: whether there will be a backward.
    """
    run = Pass(kinds, graph, dict(inputs))
    coming = [
        own.wire.expect(value.name, 0, own.tag(value.name), kinds)
        for value in own.layout.values
        if own.rank in value.readers
    ]
    z_name = f"z_{own.first - 1}"
    z_coming = own.wire.expect(z_name, own.rank - 1, own.tag(z_name), kinds) if own.rank else None
    for name in ("context", "stem"):
        if name in own.parts:
            _make_values(own, run, name)
    for incoming in coming:
        with own.doing("receive", own.first):
            value = own.wire.take(incoming, kinds)
        flag = next(value.differentiable for value in own.layout.values if value.name == incoming.name)
        run.known[incoming.name] = _leaf(value) if graph and flag else value
    for j in range(own.first, own.last + 1):
        _fine(own, run, j)
    _correct(own, run, z_coming)
    return run


def _make_values(own: Own, run: Pass, name: str) -> None:
    """Run the context or the stem, and send what others read of it."""
    part = own.layout.parts[name]
    with own.doing(name, own.first):
        result = own.call(name, *(run.known[read] for read in part.reads))
    several = name == "context" or len(part.gives) > 1
    made = dict(zip(part.gives, result if several else (result,), strict=True))
    shared = {value.name: value for value in own.layout.values}
    cut = run.graph and (name == "context" or own.cuts_stem)
    for value_name, value in made.items():
        if cut and value_name in shared and shared[value_name].differentiable:
            run.made[value_name] = value
            run.known[value_name] = _leaf(value)
        else:
            run.known[value_name] = value
        for reader in shared[value_name].readers if value_name in shared else ():
            with own.doing("send", own.first):
                own.wire.send(value_name, value, reader, own.tag(value_name), run.kinds)


def _fine(own: Own, run: Pass, j: int) -> None:
    """``x_j = C^j(x)`` and ``y_j = g^j(x_j)``, equation (2)."""
    if j > 1:
        (source,) = own.layout.parts[f"C{j}"].reads
        with own.doing("adapter", j):
            x = own.call(f"C{j}", run.known[source])
    else:
        x = run.known["x_1"]
        if "x_1" in run.made and not (own.n > 1 and own.source == "stem"):
            x = x.clone()  # g^1 may change it in place, and it is a leaf
    with own.doing("fine", j):
        y = own.call(f"g{j}", x, *_context(own, run, f"g{j}"))
    run.x[j], run.y[j] = x, y
    run.x_leaf[j], run.y_leaf[j] = (_leaf(x), _leaf(y)) if run.graph else (x, y)


def _correct(own: Own, run: Pass, z_coming: Incoming | None) -> None:
    """``z_{j+1} = y_{j+1} + F^j(z_j - x_{j+1})``, equations (3a) to (3c), for this rank's segments, and the head."""
    if z_coming is None:
        z = run.y_leaf[1]
    else:
        with own.doing("receive", own.first):
            z = own.wire.take(z_coming, run.kinds)
        run.z_in = z = _leaf(z) if run.graph else z
    for j in range(max(own.first, 2), own.last + 1):
        with own.doing("coarse", j):
            z = run.y_leaf[j] + own.call(f"F{j - 1}", z - run.x_leaf[j], *_context(own, run, f"F{j - 1}"))
        run.corrected[j] = z
    run.z = z
    if own.is_last:
        if own.n == 1 and run.graph:
            z = z.clone()  # the head may change it in place, and it is a leaf
        with own.doing("head", own.last):
            run.output = own.call("head", z, *_context(own, run, "head"))
        return
    name = f"z_{own.last}"
    with own.doing("send", own.last):
        own.wire.send(name, z, own.rank + 1, own.tag(name), run.kinds)
    if run.graph:
        run.z_gradient = own.wire.expect_back(name, own.rank + 1, own.tag(name) + 1, run.kinds)


def _context(own: Own, run: Pass, name: str) -> list[Any]:
    return [run.known[read] for read in own.layout.parts[name].reads]


# Backward ------------------------------------------------------------------------------------------------------------


def backward(own: Own, run: Pass, loss: torch.Tensor | None, share: Callable[[], None]) -> None:
    """All that a rank differentiates: gradients stand in its parameters' ``grad`` behind it.

    Args:
        own: the rank.
        run: its forward.
        loss: on the last rank, what to differentiate.
        share: begins to give the loss to all ranks; it is called where nothing waits for it.
    """
    with own.phase(0):
        _uncorrect(own, run, loss)
    if run.z_in is not None:
        name = f"z_{own.first - 1}"
        with own.doing("send", own.first, "backward"):
            own.wire.send_back(name, [run.z_in.grad], own.rank - 1, own.tag(name) + 1, run.kinds)
    share()
    returning = [
        (value, own.wire.expect_back(value.name, reader, own.tag(value.name) + 1, run.kinds))
        for reader in range(1, own.layout.ranks)
        for value in own.layout.values
        if own.rank == 0 and value.differentiable and reader in value.readers
    ]
    for j in range(own.last, own.first - 1, -1):
        with own.phase(own.last - j + 1), own.doing("fine", j, "backward"):
            pairs = [(run.y[j], run.y_leaf[j].grad), (run.x[j], run.x_leaf[j].grad)]
            _differentiate([pair for pair in pairs if j > 1 or pair[0] is run.y[j]])
    _return_values(own, run)
    if own.rank == 0:
        with own.phase(own.last - own.first + 2):
            _unmake_values(own, run, returning)


def _uncorrect(own: Own, run: Pass, loss: torch.Tensor | None) -> None:
    """Differentiate the head and this rank's coarse blocks."""
    assert run.z is not None
    gradient = None
    if loss is None:
        assert run.z_gradient is not None
        with own.doing("receive", own.last, "backward"):
            (gradient,) = own.wire.take_back(run.z_gradient)
        if run.z is run.y_leaf.get(1):
            run.z.grad = gradient
            return
    own.watch.doing(f"{'head' if own.is_last else f'F^{own.last - 1}'} backward")
    if own.recording is None:
        torch.autograd.backward(run.z if loss is None else loss, gradient)
        return
    recording = own.recording
    times: dict[int, float] = {}  # one call differentiates all of it; hooks say when it passed each z_j
    for j, z in run.corrected.items():
        z.register_hook(lambda _, j=j: times.__setitem__(j, recording.now()))
    start = recording.now()
    torch.autograd.backward(run.z if loss is None else loss, gradient)
    end = recording.now()
    rows = [(j, "coarse") for j in sorted(run.corrected, reverse=True)]
    begins = [times.get(j, start) for j, _ in rows]
    if own.is_last:
        rows, begins = [(own.last, "head"), *rows], [start, *begins]
    for (j, action), begin, stop in zip(rows, begins, [*begins[1:], end], strict=True):
        recording.add(j, action, "backward", begin, stop)


def _return_values(own: Own, run: Pass) -> None:
    """Send the gradients of the values that came from the first rank."""
    for value in own.layout.values:
        if value.differentiable and own.rank in value.readers:
            gradients = [leaf.grad for leaf in _tensors(run.known[value.name])]
            with own.doing("send", own.first, "backward"):
                own.wire.send_back(value.name, gradients, 0, own.tag(value.name) + 1, run.kinds)


def _unmake_values(own: Own, run: Pass, returning: list[tuple[SharedValue, Incoming]]) -> None:
    """Differentiate context and stem, from what this rank's parts gave and what the others sent."""
    for value, incoming in returning:
        with own.doing("receive", own.first, "backward"):
            gradients = own.wire.take_back(incoming)
        for leaf, gradient in zip(_tensors(run.known[value.name]), gradients, strict=True):
            leaf.grad = gradient if leaf.grad is None else leaf.grad + gradient
    with own.doing("stem", own.first, "backward"):
        _differentiate(
            [
                (made, leaf.grad)
                for name, value in run.made.items()
                for made, leaf in zip(_tensors(value), _tensors(run.known[name]), strict=True)
            ]
        )


def _differentiate(pairs: list[tuple[torch.Tensor, torch.Tensor | None]]) -> None:
    found = [(tensor, gradient) for tensor, gradient in pairs if tensor.requires_grad and gradient is not None]
    if found:
        torch.autograd.backward([tensor for tensor, _ in found], [gradient for _, gradient in found])


def _leaf(value: Any) -> Any:
    """The value without its graph, whose gradient is kept."""
    return pytree.tree_map(
        lambda leaf: leaf.detach().requires_grad_() if _has_gradient(leaf) else leaf,
        value,
    )


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors of a value that have gradients, in the order in which messages carry them."""
    return [leaf for leaf in pytree.tree_leaves(value) if _has_gradient(leaf)]


def _has_gradient(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and (leaf.is_floating_point() or leaf.is_complex())


def check_loss(loss: Any) -> torch.Tensor:
    """A loss that can be differentiated.

    Raises:
        DistributedError: it is none.
    """
    if not isinstance(loss, torch.Tensor) or loss.numel() != 1 or not loss.requires_grad:
        given = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, torch.Tensor) else type(loss).__name__
        given += "" if getattr(loss, "requires_grad", True) else " without a graph"
        raise DistributedError(
            f"loss_fn gave {given}; it has to return one number that depends on "
            "the output, such as a mean over the batch"
        )
    return loss
