"""Values by name -> messages between ranks, each with a tag of its own, whose order both sides know.

Which rank sends what to whom is decided before the first step (:mod:`pararealize.plan.peers` for a parareal
network, the common program of all ranks for multigrid). Here stands in which order it is sent, and why that ends:

- Every rank issues its messages in the order of its program, and the programs of the two ranks of a pair name the
  messages between them in the same order: values of the stem, then z or s; backward, the gradients of z or s, then
  those of the values. NCCL needs that: it ignores tags, and what one rank of a pair issues first is matched with what
  the other issues first. There each direction has a group of its own, so that no receive stands in front of a send of
  the same rank to the same peer, and what all ranks read of the stem is a broadcast. gloo matches by tag, so there each
  name has its own, even forward; the next odd one is its gradient's. Every signature of the inputs has other tags: gloo
  would write a longer message than was expected over the end of its memory, or abort, and take a shorter one for the
  whole.
- Where the network has several windows, the last rank of one sends to those of the next, hence also backwards in the
  order of ranks. Over gloo all receives are posted ahead nevertheless; over NCCL (``posts_ahead`` is false) each rank
  posts them window by window, in the order of its program, and those of gradients only where nothing is sent between.
- A send never blocks: it is begun (``isend``) and waited for at the end of the step (``PointToPoint.flush``).
- A receive waits for a value that another rank computes from its inputs and from messages that stand before this one
  in forward order (stem, segments, z_1, z_2, …), or before it in backward order, which is the reverse. So no chain of
  waits can close to a circle, and the rank at the end of a chain computes.

How a tensor looks is learnt once for each signature of the inputs. In the first step a description goes ahead of each
message, as an object; sending one waits for the receiver, which is safe for the reason above. From the second step on
no description is sent, and receives are posted before anything is computed: a message then goes straight into its
memory while the receiver still computes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from pararealize.errors import DistributedError
from pararealize.tracing.containers import tensors_of

from .formats import TensorFormat, ValueFormat
from .point_to_point import PointToPoint

__all__ = ["ORDERED_TAG", "PendingMessage", "StepMessages", "message_tags"]

ORDERED_TAG = 0  # of names without a tag: those from one rank to another arrive in the order in which they were sent
_TAGS = 1 << 30  # as many as messages of steps may have
_DIRECT = 4  # ranks up to which each sends its part of a sum to each: one message's time, and few messages


def message_tags(names: Iterable[str]) -> dict[str, int]:
    """An even tag for each name; the next odd one is that of its gradient."""
    return {name: 2 * i for i, name in enumerate(dict.fromkeys(names), start=1)}


@dataclasses.dataclass(slots=True)
class PendingMessage:
    """A message that is on its way to this rank.

    Attributes:
        name: what it is called in errors.
        peer: the rank that sends it.
        tensors: memory for its tensors.
        works: one receive a tensor; ``None`` until the message's format is known.
        is_broadcast: whether it comes to all ranks in one call.
    """

    name: str
    peer: int
    tensors: list[torch.Tensor] = dataclasses.field(default_factory=list)
    works: list[dist.Work] | None = None
    is_broadcast: bool = False


class StepMessages:
    """The messages of one rank in all steps whose inputs have one signature.

    Args:
        channel: carries them.
        tags: of the names of values; a name that is not in it has :data:`ORDERED_TAG`.
        signature: its number, the same on all ranks; messages of steps with other signatures have other tags, so that
            none is taken for one of these.

    Attributes:
        formats_known: whether a step has been done, so that no descriptions are sent any more.
    """

    def __init__(self, channel: PointToPoint, tags: Mapping[str, int], signature: int = 0) -> None:
        self.channel, self.formats_known = channel, False
        self._tags = tags
        width = max([ORDERED_TAG, *tags.values()]) + 2
        self._first_tag = signature % (_TAGS // width) * width
        self._formats: dict[str, ValueFormat] = {}

    @property
    def posts_ahead(self) -> bool:
        """Whether receives may be posted in any order, since a message fits only a receive with its tag."""
        return self.channel.keeps_tags_apart

    # Values ----------------------------------------------------------------------------------------------------------

    def send(self, name: str, value: Any, to: int) -> None:
        """Begin to send a value; it must not change until the step ends."""
        if not self.formats_known:
            self._formats[name] = ValueFormat.of(value)
            self.channel.send_object(name, (name, self._formats[name]), to)
        for tensor in self._packed(name, value):
            self.channel.isend(name, tensor, to, self._tag(name))

    def _packed(self, name: str, value: Any) -> Iterator[torch.Tensor]:
        """The tensors of a value in the format of its name."""
        for leaf, tensor_format in zip(tensors_of(value), self._formats[name].tensors, strict=True):
            if tuple(leaf.shape) != tensor_format.shape or leaf.dtype != tensor_format.dtype:
                raise DistributedError(
                    f"{self.channel.who(self.channel.rank)}: {name} is {TensorFormat.of(leaf)}, and with inputs like "
                    f"these it was {tensor_format} before; the shape or the type of what crosses between segments must "
                    "follow from the inputs' shapes"
                )
            yield tensor_format.packed(leaf.detach())

    def expect(self, name: str, peer: int) -> PendingMessage:
        """Say that a value will come from a rank; its receives are posted at once where its format is known."""
        pending = PendingMessage(name, peer)
        if self.formats_known:
            self._post(pending, self._formats[name].tensors, self._tag(name))
        return pending

    def receive(self, pending: PendingMessage) -> Any:
        """Wait for a value."""
        if pending.works is None and pending.is_broadcast:
            self._formats[pending.name] = self.channel.broadcast_object(pending.name, None, pending.peer)
            self._begin_broadcast(pending)
        if pending.works is None:
            name, value_format = self.channel.receive_object(pending.name, pending.peer)
            if name != pending.name:
                raise DistributedError(
                    f"{self.channel.who(self.channel.rank)} expected {pending.name} from "
                    f"{self.channel.who(pending.peer)}, which sent {name}"
                )
            self._formats[name] = value_format
            self._post(pending, self._formats[name].tensors, self._tag(name))
        return self._formats[pending.name].filled(self._arrived(pending))

    # Values that several ranks read ----------------------------------------------------------------------------------

    def calls_for(self, readers: Sequence[int]) -> list[tuple[int, ...]]:
        """The readers of a value in as many groups as calls of :meth:`give` take it to all of them.

        Where messages have no tags, what all others read is one broadcast in place of a communicator for each.
        """
        if not self.posts_ahead and 1 < len(readers) == self.channel.size - 1:
            return [tuple(readers)]
        return [(reader,) for reader in readers]

    def give(self, name: str, value: Any, readers: Sequence[int]) -> None:
        """Begin to give a value to one group of :meth:`calls_for`; it must not change until the step ends."""
        channel = self.channel
        if len(readers) == 1:
            self.send(name, value, readers[0])
            return
        if not self.formats_known:
            self._formats[name] = channel.broadcast_object(name, ValueFormat.of(value), channel.rank)
        for tensor in self._packed(name, value):
            channel.keep(name, channel.rank, channel.broadcast(tensor, channel.rank), tensor)

    def expect_given(self, name: str, owner: int, readers: Sequence[int]) -> PendingMessage:
        """As :meth:`expect`, of what its owner gives to all its readers by :meth:`give`."""
        if len(self.calls_for(readers)) == len(readers):
            return self.expect(name, owner)
        pending = PendingMessage(name, owner, is_broadcast=True)
        if self.formats_known:
            self._begin_broadcast(pending)
        return pending

    def _begin_broadcast(self, pending: PendingMessage) -> None:
        channel = self.channel
        pending.tensors = [tensor_format.empty(channel.device) for tensor_format in self._formats[pending.name].tensors]
        pending.works = [channel.broadcast(tensor, pending.peer) for tensor in pending.tensors]

    # Gradients: of the differentiable tensors of a value, sent back by the rank that received it --------------------

    def send_gradients(self, name: str, gradients: Sequence[torch.Tensor | None], to: int) -> None:
        """Begin to send the gradients of a value's tensors; ``None`` stands for zeros."""
        for gradient, tensor_format in zip(gradients, self._formats[name].gradients, strict=True):
            if gradient is None:
                gradient = tensor_format.empty(self.channel.device).zero_()
            filled = tensor_format.packed(gradient)
            self.channel.isend(f"the gradient of {name}", filled, to, self._tag(name) + 1)

    def expect_gradients(self, name: str, peer: int) -> PendingMessage:
        """Post the receives of a value's gradients; their formats are the value's."""
        pending = PendingMessage(f"the gradient of {name}", peer)
        self._post(pending, self._formats[name].gradients, self._tag(name) + 1)
        return pending

    def receive_gradients(self, pending: PendingMessage) -> list[torch.Tensor]:
        """Wait for gradients."""
        return self._arrived(pending)

    # Sums over all ranks, the same bits on each -----------------------------------------------------------------------

    def expect_parts(self, name: str, *, gradients: bool = False) -> list[PendingMessage]:
        """Post the receives of the others' parts of a sum; none where the sum is a collective call of the backend."""
        others = [rank for rank in range(self.channel.size) if rank != self.channel.rank]
        if not self.posts_ahead or self.channel.size > _DIRECT or name not in self._formats:
            return []
        parts = [PendingMessage(f"the gradient of {name}" if gradients else name, rank) for rank in others]
        for pending in parts:
            self._post(pending, self._formats[name].tensors, self._tag(name) + gradients)
        return parts

    def sum_over_ranks(
        self, name: str, part: torch.Tensor | None, pending: list[PendingMessage], *, gradients: bool = False
    ) -> torch.Tensor:
        """The sum of a tensor over all ranks, which all of them call: of a value in parts, or of its gradients.

        Among few ranks that speak by tags each sends its part to each, and all add in the order of the ranks; otherwise
        it is an all-reduce. Both give the same bits on every rank and in every run.

        Args:
            name: of the value.
            part: this rank's.
            pending: what :meth:`expect_parts` gave.
            gradients: whether it is the value's gradient.
        """
        channel, label = self.channel, f"the gradient of {name}" if gradients else name
        if not gradients and not self.formats_known:
            assert part is not None
            self._formats[name] = self._common_format(name, part)
        (tensor_format,) = self._formats[name].tensors
        if part is None:
            part = tensor_format.empty(channel.device).zero_()
        if tuple(part.shape) != tensor_format.shape:
            raise DistributedError(
                f"{channel.who(channel.rank)}: its part of {label} is {TensorFormat.of(part)}, and with inputs like "
                f"these it was {tensor_format} before; shapes of segments must follow from the inputs' shapes"
            )
        part = tensor_format.packed(part.detach())
        if not self.posts_ahead or channel.size > _DIRECT:
            return channel.all_reduce(label, part.clone())
        others = [rank for rank in range(channel.size) if rank != channel.rank]
        for rank in others:
            channel.isend(label, part, rank, self._tag(name) + gradients)
        pending = pending or self.expect_parts(name, gradients=gradients)
        parts = {message.peer: self._arrived(message)[0] for message in pending} | {channel.rank: part}
        first, *rest = (parts[rank] for rank in range(channel.size))
        return sum(rest, first)

    def _common_format(self, name: str, part: torch.Tensor) -> ValueFormat:
        """The format of a sum: the first rank's, in the element type that holds all parts."""
        channel = self.channel
        formats: list[TensorFormat] = [
            channel.broadcast_object(name, TensorFormat.of(part) if owner == channel.rank else None, owner)
            for owner in range(channel.size)
        ]
        dtype = formats[0].dtype
        for other in formats[1:]:
            dtype = torch.promote_types(dtype, other.dtype)
        if len({one.shape for one in formats}) > 1:
            raise DistributedError(
                f"the ranks' parts of {name} are {', '.join(map(str, formats))}, and cannot be summed; shapes of "
                "segments must be those of the plan"
            )
        return ValueFormat((dataclasses.replace(formats[0], dtype=dtype),), 0)

    # Values for all ranks ---------------------------------------------------------------------------------------------

    def share(self, name: str, value: torch.Tensor | None, owner: int) -> tuple[torch.Tensor, dist.Work]:
        """Begin to give one number of one rank to all others, as its copy on all ranks.

        Its format is learnt in the first step, too. Other steps cast to it: unlike messages between segments, a loss
        has the element type of what the caller compares with, of which the ranks know nothing.
        """
        if not self.formats_known:
            value_format = None if value is None else ValueFormat.of(value)
            self._formats[name] = self.channel.broadcast_object(name, value_format, owner)
        (tensor_format,) = self._formats[name].tensors
        tensor = tensor_format.empty(self.channel.device)
        if value is not None:
            tensor.copy_(value.detach().reshape(tensor_format.shape))
        return tensor, self.channel.broadcast(tensor, owner)

    def copy_to_all(self, value: Any, owner: int) -> Any:
        """A value of one rank, on all of them: tensors anywhere within it are copied to the ranks' devices."""
        channel, is_owner = self.channel, self.channel.rank == owner
        value_format = channel.broadcast_object("the output", ValueFormat.of(value) if is_owner else None, owner)
        ours = tensors_of(value) if is_owner else []
        tensors = []
        for i, tensor_format in enumerate(value_format.tensors):
            tensor = tensor_format.packed(ours[i]) if is_owner else tensor_format.empty(channel.device)
            channel.wait(channel.broadcast(tensor, owner), "the output", owner)
            tensors.append(tensor)
        return value if is_owner else value_format.filled(tensors)

    # -----------------------------------------------------------------------------------------------------------------

    def _tag(self, name: str) -> int:
        return self._first_tag + self._tags.get(name, ORDERED_TAG)

    def _post(self, pending: PendingMessage, formats: Sequence[TensorFormat], tag: int) -> None:
        pending.tensors = [tensor_format.empty(self.channel.device) for tensor_format in formats]
        pending.works = [self.channel.irecv(tensor, pending.peer, tag) for tensor in pending.tensors]

    def _arrived(self, pending: PendingMessage) -> list[torch.Tensor]:
        assert pending.works is not None
        for work in pending.works:
            if pending.is_broadcast:
                self.channel.wait(work, pending.name, pending.peer)
            else:
                self.channel.wait_for_message(work, pending.name, pending.peer)
        return pending.tensors
