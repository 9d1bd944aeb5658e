"""A call's kind, mode and inputs -> its messages, once the other ranks are to hear what this rank begins.

Ranks that are called differently would send messages that the others take for something else. So each announces every
call (:mod:`pararealize.distributed.watchdog.shared_calls`), and three things keep a message from being misread:

- Messages over gloo have tags that count the signatures that the ranks have agreed on: what was sent with other shapes,
  types, mode, autocast or kind of call fits no receive. NCCL knows no tags: there each call waits for them all.
- A call with a new signature waits for all announcements before it sends anything.
- A collective call, and an output or a loss that is given away, wait for them as well; by then they have mostly come.

The ranks of one network compare everything. Copies of the network compare what they average: each step, and which
parameters are trained, modes of modules, and some numbers of the parameters; every copy has batches of its own, and
inference is no other copy's business.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pararealize.distributed.watchdog.samples import sample, sample_text
from pararealize.distributed.watchdog.shared_calls import SharedCalls

from .messages.formats import TensorFormat
from .messages.message_order import StepMessages
from .messages.point_to_point import PointToPoint
from .module_modes import ModuleModes
from .rank_parameters import RankParameters

__all__ = ["RankCalls", "samples_of"]


class RankCalls:
    """All calls that one rank makes of its part of a network, one after the other.

    Args:
        channel: between the ranks of one network.
        tags: of the messages between them.
        network: the calls of these ranks.
        copies: the steps of the ranks that hold the same parts of the network's copies, where there are several.
        parameters: of this rank.
        modes: of its modules.
        fault: gives what speaks against every call of this rank, such as tensors without values.
    """

    def __init__(
        self,
        channel: PointToPoint,
        tags: Mapping[str, int],
        network: SharedCalls,
        copies: SharedCalls | None,
        parameters: RankParameters,
        modes: ModuleModes,
        fault: Callable[[], str],
    ) -> None:
        self._channel, self._tags = channel, tags
        self._network, self._copies = network, copies
        self._parameters, self._modes, self._fault = parameters, modes, fault
        self._signatures: dict[Any, tuple[StepMessages, Mapping[str, str]]] = {}
        self._steps = 0  # since the last inference that copies make alike
        self._averaged = 0  # steps outside of no_sync

    def over(self, parameters: RankParameters, modes: ModuleModes, fault: Callable[[], str]) -> RankCalls:
        """The calls of a deep copy of the rank's modules: over the same channel, hence with numbers after these."""
        calls = RankCalls(self._channel, self._tags, self._network, self._copies, parameters, modes, fault)
        calls._signatures = self._signatures
        return calls

    def begin(
        self,
        call: str,
        inputs: Mapping[str, Any],
        samples: Mapping[str, str],
        *,
        training: bool,
        held: Mapping[str, str] | None = None,
        **facts: str,
    ) -> StepMessages:
        """Announce an inference; its messages.

        Args:
            call: what it is, with all that decides what is sent.
            inputs: of the network.
            samples: of the inputs.
            training: whether the network is in train mode.
            held: what else ranks have to have alike that hold it.
            **facts: what else all ranks have to have alike.

        Raises:
            AgreedError: the ranks do not agree, and none has sent anything.
            DistributedError: they do not agree, or another one failed or left.
        """
        kind = self._channel.device.type
        autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        shapes = tuple(
            (value.shape, value.dtype) if isinstance(value, torch.Tensor) else repr(value) for value in inputs.values()
        )
        signature = call, training, autocast, shapes
        messages, signature_facts = self._signatures.get(signature, (None, None))
        if messages is None or signature_facts is None:
            signature_facts = {
                "call": call,
                "mode": "train" if training else "eval",
                "autocast": str(autocast or "off").removeprefix("torch."),
                **{f"input {name}": _text(value) for name, value in inputs.items()},
            }
        waits = messages is None or not self._channel.keeps_tags_apart
        self._network.begin(
            {**signature_facts, **facts},
            samples=samples,
            partial={**self._trained_together(), **self._modes.shared(), **(held or {})},
            fault=self._fault() if messages is None else "",
            waits=waits,
        )
        if waits:
            self._network.confirm()
        if messages is None:
            messages = StepMessages(self._channel, self._tags, len(self._signatures))
            self._signatures[signature] = messages, signature_facts
        return messages

    def begin_step(
        self,
        call: str,
        inputs: Mapping[str, Any],
        samples: Mapping[str, str],
        *,
        training: bool,
        averages: bool,
        scaler: str,
    ) -> StepMessages:
        """Announce a training step, to the network's other copies too; its messages.

        Args:
            call: as in :meth:`begin`.
            inputs: of the network.
            samples: of the inputs.
            training: whether the network is in train mode.
            averages: whether gradients are averaged and summed at its end, outside of ``no_sync``.
            scaler: whether and by what the loss is scaled.
        """
        facts = {"no_sync": "off" if averages else "on", "scaler": scaler}
        held = self._held_together() if averages else {}
        messages = self.begin(call, inputs, samples, training=training, held=held, **facts)
        self._steps += 1
        if self._copies is not None:
            steps = {"steps since the last inference": str(self._steps)}
            modules = {"trained parameters": self._trained(), "the mode of modules": self._modes.all()}
            # what is never averaged by the network, as in local SGD, may differ between averages of the user's own
            samples = self._parameter_sample() if averages else {}
            self._copies.begin({"call": "step", **facts, **steps, **modules}, samples=samples)
        self._averaged += averages
        return messages

    def refuse(self, call: str, fault: str) -> None:
        """Announce that this rank refuses a call.

        Raises:
            AgreedError: no rank has sent anything.
            DistributedError: one may have.
        """
        self._network.begin({"call": call}, fault=fault, waits=True)
        self._network.confirm()

    def announce(self, call: str, *, copies: bool = False, waits: bool = False, **facts: str) -> None:
        """Announce a call besides steps that all ranks of the network make together, such as a sum over them.

        The first collective call of the channel in it waits until all have announced the same; others confirm it.

        Args:
            call: what it is.
            copies: whether the ranks of all copies make it.
            waits: whether it is confirmed before anything is sent, so that all may go on where they do not agree.
            **facts: what all ranks have to have alike.
        """
        self._network.begin({"call": call, **facts}, waits=waits)
        if copies and self._copies is not None:
            self._copies.begin({"call": call, **facts}, waits=waits)

    def end_inference(self) -> None:
        """The copies of the network count steps from here on."""
        self._steps = 0

    @contextlib.contextmanager
    def of_one_copy(self) -> Iterator[None]:
        """Around inference that other copies of the network need not make: it does not begin a count of steps."""
        steps = self._steps
        try:
            yield
        finally:
            self._steps = steps

    def confirm(self) -> None:
        """Wait until all ranks of the network have announced the call that this one is in."""
        self._network.confirm()

    def confirm_copies(self) -> None:
        """Wait until the same ranks of all copies have announced the step that this one is in."""
        if self._copies is not None:
            self._copies.confirm()

    def _trained_together(self) -> dict[str, str]:
        return {
            f"trained parameters shared by ranks {_listed(ranks)}": _flags(parameters)
            for ranks, parameters in self._parameters.shared.items()
        }

    def _held_together(self) -> dict[str, str]:
        """Some numbers of a parameter and of a buffer on the CPU that ranks hold together, of others in every step.

        Copies of a parameter begin with the same bits and get the same gradients: they go apart where an optimiser
        treats one of them otherwise. Copies of a buffer do where forward writes it.
        """
        told: dict[str, str] = {}
        for ranks, parameters in self._parameters.held_together("parameters").items():
            told |= self._some_of(
                parameters,
                f"which the optimisers of ranks {_listed(ranks)} have to treat alike (clip by stage.clip_grad_norm_)",
            )
        for ranks, buffers in self._parameters.held_together("buffers").items():
            told |= self._some_of(
                buffers,
                f"of which ranks {_listed(ranks)} have a copy each that forward writes (put the segments that share it "
                "on one rank with assignment=, or build the model with modules of their own)",
            )
        return told

    def _some_of(self, tensors: Mapping[str, torch.Tensor], why: str) -> dict[str, str]:
        name = [*tensors][self._averaged % len(tensors)]
        return {
            f"{name}, {why},": sample_text(text)
            for text in samples_of({name: tensors[name]}).values()
            if text.partition(":")[2]  # an empty tensor has none
        }

    def _parameter_sample(self) -> dict[str, str]:
        """Some numbers of one parameter on the CPU, of another one in every step, which copies have to have alike.

        They go apart where an optimiser has another learning rate, or a checkpoint was loaded, on one of them alone.
        """
        if not (phases := self._parameters.phases):
            return {}
        number = self._averaged % len(phases)
        return samples_of({self._parameters.names[number][0]: phases[number][0]}, "parameter")

    def _trained(self) -> str:
        return _flags([parameter for parameter, _ in self._parameters.phases])


def samples_of(inputs: Mapping[str, Any], what: str = "input") -> dict[str, str]:
    """Some numbers of each tensor on the CPU, by its name; elsewhere, reading them would hold up the device."""
    return {
        f"{what} {name}": sample(value)
        for name, value in inputs.items()
        if type(value) in (torch.Tensor, nn.Parameter)
        and value.device.type == "cpu"
        and value.layout is torch.strided
        and not value.is_quantized
    }


def _listed(ranks: Sequence[int]) -> str:
    return ", ".join(map(str, ranks))


def _flags(parameters: Sequence[nn.Parameter]) -> str:
    """Which parameters are trained: how many, and a digest."""
    flags = bytes([parameter.requires_grad for parameter in parameters])
    return f"{sum(flags)} of {len(flags)} (digest {zlib.crc32(flags):08x})"


def _text(value: Any) -> str:
    return str(TensorFormat.of(value)) if isinstance(value, torch.Tensor) else repr(value)
