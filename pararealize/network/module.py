"""A tree of modules, graphs of the pieces, equation (3) as a graph -> PararealModule, which runs and owns them.

Source: Lee, Lee and Park, "A Parareal Architecture for Very Deep Convolutional Neural Network".
"""

from __future__ import annotations

import contextlib
import copy
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.distributed.device_mesh import DeviceMesh

from pararealize.argument_types import typed_arguments
from pararealize.coarse.folded_map import FoldedMap
from pararealize.coarse.spec import CorrectionPlan
from pararealize.distributed.distribution import distribute
from pararealize.distributed.partition import SegmentedNetwork
from pararealize.distributed.stage import Stage
from pararealize.errors import CheckpointError, ModelError, OriginalWarning, OutputError
from pararealize.plan.parts import Part
from pararealize.plan.plan import Plan
from pararealize.saving.network_folder import (
    Report,
    model_source,
    record_of,
    write_folder,
    write_weights,
)
from pararealize.saving.network_record import Conversion, NetworkRecord, weights_digest
from pararealize.saving.save_arguments import check_calibration, check_original
from pararealize.tracing.call_signature import CallSignature
from pararealize.tracing.conditions import CallConditions, SizeCheck, no_fault
from pararealize.tracing.guards import Guards
from pararealize.tracing.hooks import hook_of
from pararealize.tracing.module_copy import copy_contents, copy_hooks, share_contents
from pararealize.tracing.module_view import Piece
from pararealize.tracing.original import Original
from pararealize.tracing.recorded_module import RecordedModule
from pararealize.tracing.recordings import LIMIT, Recordings
from pararealize.tracing.tree_watch import TreeWatch

from .iteration import iterate_network
from .parts import read_parts
from .state import changes_of, checked_state, note_changes, note_weights, original_state
from .variant import Variant, give_pieces, record_variant

__all__ = ["PararealModule"]


class PararealModule(RecordedModule, SegmentedNetwork):
    """A parareal network: N segments that run independently of each other, and a coarse network that corrects them.

    It is an ordinary module; ``print(net.code)`` shows equation (3). The original's parameters keep their names in
    ``state_dict()``; those of adapters and coarse blocks stand under ``adapters.C2`` … and ``coarse.F1`` ….

    Attributes:
        plan: where it was cut, as plain data.
        stem: C^1, the original up to the first block; what is asked of it and of ``head``, other than calls, is asked
            of the model's own module of that name, where it has one.
        adapters: C^j for j = 2..N, by name (``C2`` …).
        segments: g^j for j = 1..N, by name (``g1`` …); they share the original's parameters.
        coarse: F^j for j = 1..N-1, by name (``F1`` …), save where F^j is g^{j+1} itself.
        head: h, the original from the last block on.
        part_graphs: the graphs of the original's parts, by name (``stem``, ``context``, ``g1`` …, ``head``).
        segment_devices: one for every segment, or ``None`` where all is where the model was.
        guards: conditions on the inputs under which all this is right. For inputs that break one, the original is
            recorded anew, once, and cut by the same plan, over the same parameters; see ``docs/howto/guards.md``.

    Example:
        >>> from pararealize import pararealize
        >>> from pararealize.models import resnet20
        >>> net = pararealize(resnet20(), n=3)
        >>> list(net.segments), list(net.adapters), list(net.coarse)
        (['g1', 'g2', 'g3'], ['C2', 'C3'], ['F1', 'F2'])
    """

    plan: Plan
    stem: Piece
    segments: nn.ModuleDict
    adapters: nn.ModuleDict
    coarse: nn.ModuleDict
    head: Piece
    context: Piece | None
    _original_keys: tuple[str, ...]
    _conversion: Conversion
    _built: tuple[str, dict[str, Any]] | None
    part_graphs: dict[str, fx.Graph]
    segment_devices: Sequence[torch.device] | None

    def __init__(
        self,
        tree: nn.Module,
        pieces: Mapping[str, fx.Graph],
        graph: fx.Graph,
        plan: Plan,
        original_keys: Sequence[str],
        devices: Sequence[torch.device] | None = None,
        *,
        guards: Guards,
        original: Original,
        fault: SizeCheck = no_fault,
        recording_limit: int = LIMIT,
        conversion: Conversion | None = None,
        built: tuple[str, dict[str, Any]] | None = None,
    ) -> None:
        fx.GraphModule.__init__(self, nn.Module(), fx.Graph(), plan.class_name)
        share_contents(self, tree)
        self.__dict__.update(
            plan=plan,
            guards=guards,
            segment_devices=devices,
            part_graphs=dict(pieces),
            _original_keys=tuple(original_keys),
            _conversion=Conversion() if conversion is None else conversion,
            _built=built,
            _recordings=Recordings(
                CallConditions.of(CallSignature.of_graph(graph), guards, fault),
                original,
                partial(record_variant, self),
                watch=TreeWatch(tree, pieces.values()),
                # where the parts are on several devices, the original cannot run, and is recorded without memory
                device=torch.device("meta") if len(set(devices or ())) > 1 else None,
                limit=recording_limit,
            ),
        )
        original.give_mode(self)
        give_pieces(self, pieces, graph)

    def _folded_maps(self) -> list[FoldedMap]:
        return [module for module in self.coarse.children() if isinstance(module, FoldedMap)]

    def _folded_rows(self) -> Iterator[tuple[CorrectionPlan, FoldedMap]]:
        for row in self.plan.corrections:
            if isinstance(folded := self.coarse._modules.get(row.name), FoldedMap):
                yield row, folded

    @property
    def network_parts(self) -> dict[str, Part]:
        """Every part by its name, in the order of the calls, as the graph has them."""
        return read_parts(self.graph)

    def original_state_dict(self) -> dict[str, Any]:
        """The state of the original network alone, under exactly its own keys.

        It loads into the original model, and into a conversion of it with any other n through
        :meth:`load_original_state_dict`. Values are as they are: trained, or with maps that a calibration has folded
        into layers (``coarse="folded"``) or running statistics that it has renewed, where that was done; an
        :class:`~pararealize.errors.OriginalWarning` tells of maps and statistics, with which the original and its other
        conversions give something else.
        """
        facts = ["running statistics were renewed by a calibration"] if "statistics" in changes_of(self) else []
        if layers := [row.layer for row, folded in self._folded_rows() if folded.has_map]:
            listed = ", ".join(layers[:3]) + f" and {len(layers) - 3} more" * (len(layers) > 3)
            facts.append(f"maps are folded into {listed}")
        if facts:
            warnings.warn(
                f"{', and '.join(facts)}: with this state the original and its other conversions give something else; "
                "take that of the model that was converted, or save this network as it is, with net.save(folder)",
                OriginalWarning,
                stacklevel=2,
            )
        return original_state(self)

    def load_original_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the original network's part of a checkpoint; other keys (another n's coarse blocks) are passed over.

        Maps that were folded into layers (``coarse="folded"``) are gone then: calibrate anew. A checkpoint in whose
        layers there are some is refused, as it has not the original's weights.

        Raises:
            CheckpointError: keys of the original are missing, others are unknown, values are no tensors, or a shape,
                a layout or the kind of numbers differs.
        """
        self.load_state_dict(checked_state(self, state_dict, self.plan.model), strict=False)
        for folded in self._folded_maps():
            folded.forget()
        note_weights(self, weights_digest(original_state(self)))
        note_changes(self, ())

    @typed_arguments(OutputError, "calibration", model=ModelError, arguments=ModelError, original=ModelError)
    def save(
        self,
        folder: str | os.PathLike[str],
        *,
        model: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        calibration: Report | None = None,
        original: nn.Module | None = None,
        replace: bool = False,
    ) -> Path:
        """Write the network into one folder, which appears whole or not at all; :func:`pararealize.load` reads it.

        Plan, weights, modes, and how the network was made stand in it, with a digest of every file; no path, no sample
        of the user's, and nothing that is unpickled. The same network gives the same bytes.

        Args:
            folder: a new one.
            model: how the original is built, as :func:`pararealize.models.build` takes it. Left out, it is known where
                that function, or a constructor of :mod:`pararealize.models`, built it; of any other, whoever loads the
                network passes the original. Of ``file.py:callable`` name and digest of the file are written.
            arguments: of that call: numbers, or lists of them.
            calibration: the report of :func:`calibrate` or :func:`fine_tune`, to be kept with it.
            original: the trained original, where its weights here were trained further: the folder keeps its own.
            replace: take the place of a network's folder that is there.

        Returns:
            The folder.

        Raises:
            OutputError: there is something already, or it cannot be written. What was there is as it was.
            ModelError: ``model`` and ``arguments`` build another one, or none; ``original`` is another one; or there
                are hooks, which no file holds.
            CalibrationError: ``calibration`` is no report.
            CheckpointError: the state is more than tensors.

        Example:
            >>> from tempfile import mkdtemp
            >>> from pararealize import pararealize
            >>> from pararealize.models import resnet20
            >>> folder = pararealize(resnet20(), n=3).save(mkdtemp() + "/resnet20-n3")
            >>> sorted(path.name for path in folder.iterdir())
            ['manifest.json', 'network.json', 'plan.json', 'weights.safetensors']
        """
        check_calibration(calibration)
        check_original(original, original_state(self))
        return write_folder(
            folder,
            self.saved_record(model, arguments),
            self.plan,
            partial(write_weights, self, original=original),
            calibration=calibration,
            replace=replace,
        )

    def saved_record(self, model: str | None = None, arguments: Mapping[str, Any] | None = None) -> NetworkRecord:
        """What :meth:`save` writes into ``network.json``."""
        self.__dict__["_recordings"].watch.check()
        tensors, built = original_state(self), self.__dict__["_built"]
        source = model_source(self.plan.model, model, arguments, built, tensors)
        limit = self.recording_limit
        return record_of(self, source, self.__dict__["_conversion"], converted=True, recording_limit=limit)

    def iterate(self, inputs: Any, k: int, *, errors: bool = False) -> Any:
        r"""The original network by k iterations of parareal, with the converted network as its coarse propagator.

        .. math:: U_{j+1}^{k+1} = g^{j+1}(U_j^k) + F^j(U_j^{k+1} - x_{j+1}) - F^j(U_j^k - x_{j+1}), \quad U_j^0 = z_j

        Iteration 0 is this network itself; after k iterations the first k + 1 interfaces are the original's, so that
        k = n - 1 is the original, to the bit on the CPU, and gradients to rounding. An iteration costs about one call
        of this network, and its memory where gradients are kept.

        A call counts as one step in train mode: running statistics move once, by each part's last evaluation, and
        dropout has one mask. Randomness that does not come from torch's default generators differs between calls.

        Of weights that were trained, the original is the network in sequence with these; after
        :func:`~pararealize.fine_tune` an :class:`~pararealize.errors.OriginalWarning` says so.

        Args:
            inputs: a tensor, a tuple of positional or a dict of keyword arguments.
            k: how many iterations; more than n - 1 change nothing.
            errors: compare every interface with the original's, which costs one more evaluation of it.

        Returns:
            The network's output; with ``errors``, :class:`~pararealize.network.iteration.Iterates`, which has it.

        Raises:
            PlanError: k is no number of iterations.
            ExampleError: the inputs are none that a network takes.
            ModelError: maps are folded into its segments, running statistics were renewed, or it has hooks.

        Example:
            >>> import torch
            >>> from pararealize import pararealize
            >>> from pararealize.models import resnet20
            >>> model, x = resnet20().eval(), torch.randn(2, 3, 32, 32)
            >>> torch.equal(pararealize(model, n=3).iterate(x, 2), model(x))
            True
        """
        if any(folded.has_map for folded in self._folded_maps()):
            raise ModelError(
                'maps are folded into the segments (coarse="folded"), so that iterations of these are not the '
                "original's; convert the original with another kind, or give the network the original's weights with "
                "load_original_state_dict"
            )
        if "statistics" in (changes := changes_of(self)):
            raise ModelError(
                "running statistics were renewed by a calibration, so that iterations of the segments are not the "
                "original's; give the network the original's state with load_original_state_dict, or calibrate the "
                "converted original with renew_statistics=False"
            )
        if "weights" in changes:
            warnings.warn(
                "the original's weights were fine-tuned: iterations lead to the network in sequence with the weights "
                "that it has now, which is not the model that was converted",
                OriginalWarning,
                stacklevel=2,
            )
        args, kwargs = CallSignature.of_graph(self.graph).as_arguments(inputs)
        recording = self.recording_of(*args, **kwargs)
        if hook := hook_of(self):
            raise ModelError(f"the network has a {hook}, which iterations would not call; remove it first")
        return iterate_network(recording, self.plan, self.segment_devices, inputs, k, errors=errors)

    def distribute(
        self,
        mesh: DeviceMesh,
        *,
        assignment: Sequence[int] | None = None,
        timeout: timedelta | float = 600.0,
        checkpoint_activations: bool = False,
        seed: int = 0,
        bucket_bytes: int = 25 << 20,
        reduce_linear: bool | Literal["auto"] = "auto",
    ) -> Stage:
        """Take one rank's share of the network, to run over :mod:`torch.distributed` with the other ranks of the mesh.

        Every rank builds the same network and calls this. Consecutive segments stand on each rank, the stem on the
        first and the head on the last; one tensor an interface crosses in each direction. The ranks agree on the plan
        and the weights before the first message. Nothing of the result refers to this network.

        Args:
            mesh: a device mesh with the dimension ``"parareal"``, and ``"dp"`` before it where there are several
                copies of the network; or one dimension without a name.
            assignment: how many segments each rank takes, in order; the smallest critical path when left out.
            timeout: time limit of every message, in seconds.
            checkpoint_activations: keep the activations between runs of operations only, about as many runs as each
                has points where one value is alive, and compute the others anew in backward.
            seed: fixes the weights that are drawn here, where the network is on the meta device.
            bucket_bytes: size of the buckets in which gradients are averaged over dp.
            reduce_linear: where neighbouring ranks have only identities as coarse blocks, add their corrections up in
                pairs, ``⌈log2⌉`` messages deep, in place of one message after the other; ``"auto"`` where the
                simulated step becomes shorter. Results change by rounding: additions have another order.

        Raises:
            DistributedError: the mesh or the assignment does not fit, the ranks do not agree, or one did not answer.

        Example:
            >>> import torch.distributed as dist
            >>> from torch.distributed.device_mesh import init_device_mesh
            >>> from pararealize import pararealize
            >>> from pararealize.models import resnet20
            >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
            >>> stage = pararealize(resnet20(), n=3).distribute(init_device_mesh("cpu", (1,)))
            >>> stage(torch.randn(5, 3, 32, 32)).shape
            torch.Size([5, 10])
            >>> dist.destroy_process_group()
        """
        self.__dict__["_recordings"].watch.check()
        stage = distribute(
            self,
            mesh,
            assignment=assignment,
            timeout=timeout,
            checkpoint_activations=checkpoint_activations,
            seed=seed,
            bucket_bytes=bucket_bytes,
            reduce_linear=reduce_linear,
        )
        with contextlib.suppress(ModelError, CheckpointError):  # of a network with hooks: no folder holds it
            stage.__dict__["saved_as"] = self.saved_record()
        return stage

    def __deepcopy__(self, memo: dict[int, Any]) -> PararealModule:
        recordings: Recordings[Variant] = self.__dict__["_recordings"]
        recordings.watch.check()
        tree, graph = copy_contents(self, memo), copy.deepcopy(self.graph)
        copied = PararealModule(
            tree,
            self.part_graphs,
            graph,
            self.plan,
            self._original_keys,
            self.segment_devices,
            guards=self.__dict__["guards"],
            original=copy.deepcopy(recordings.original, memo),
            fault=recordings.first.fault,
            recording_limit=recordings.limit,
            conversion=self.__dict__["_conversion"],
            built=self.__dict__["_built"],
        )
        memo[id(self)] = copied
        copy_hooks(self, copied, memo)
        return copied

    def __reduce__(self) -> Any:
        raise ModelError(
            "a parareal module is saved by its parts, not pickled: net.save(folder), then pararealize.load(folder); or "
            "net.state_dict() (safetensors) and net.plan.to_json()"
        )
