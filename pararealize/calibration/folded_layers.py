"""A network whose plan folds maps into segments' last layers -> those layers, with their maps and without them.

The network in sequence, to which everything is fitted, is the original: while it runs, folded layers have the weights
that they had before. These are known in the process that folded the maps, until the layers are trained; of a network
that was loaded they are not.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pararealize.coarse.folded_map import FoldedMap, FoldState
from pararealize.coarse.spec import CorrectionPlan
from pararealize.network.module import PararealModule
from pararealize.network.parts import Index
from pararealize.plan.spec import Window

__all__ = ["FoldableLayer", "FoldedLayers"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FoldableLayer:
    """A segment's last layer.

    Attributes:
        row: the plan's.
        map: K^{m,j}, which says whether a map is in the layer.
        layer: the linear layer or convolution.
    """

    row: CorrectionPlan
    map: FoldedMap
    layer: nn.Module

    @property
    def is_trained(self) -> bool:
        """Whether its weights may change."""
        return all(parameter.requires_grad for parameter in self.layer.parameters())

    @torch.no_grad()
    def output(self, segment: nn.Module, x: Tensor, context: tuple[Any, ...]) -> Tensor:
        """e, what the layer gives in the segment for x: ``(batch, *space)``."""
        assert isinstance(segment, fx.GraphModule)
        run = _LayerOutput(segment, self.row.layer)
        run.run(x, *context)
        assert run.value is not None
        return run.value


class FoldedLayers:
    """The last layers of a network's segments in which its plan wants maps.

    Args:
        net: the network.
    """

    def __init__(self, net: PararealModule) -> None:
        self._layers: dict[Index, FoldableLayer] = {}
        for row in net.plan.corrections:
            module = net.coarse._modules.get(row.name)
            if isinstance(module, FoldedMap):
                self._layers[row.index] = FoldableLayer(row=row, map=module, layer=net.get_submodule(row.layer))

    def of(self, window: Window) -> list[FoldableLayer]:
        """Those of a window, in order."""
        return [self._layers[row.index] for row in window.corrections if row.index in self._layers]

    @property
    def unknown(self) -> list[str]:
        """Layers with maps of which nobody knows what they had before."""
        return [one.row.layer for one in self._layers.values() if not one.map.knows(one.layer)]

    def unfold(self) -> None:
        """Give all layers what they had before, for good."""
        for one in self._layers.values():
            one.map.unfold(one.layer)

    def state(self, window: Window) -> list[FoldState]:
        """The layers and maps of a window, for :meth:`restore`."""
        return [one.map.state(one.layer) for one in self.of(window)]

    def restore(self, window: Window, states: list[FoldState]) -> None:
        """Make the layers and maps of a window what they were."""
        for one, state in zip(self.of(window), states, strict=True):
            one.map.restore(one.layer, state)

    @contextmanager
    def as_found(self) -> Iterator[None]:
        """The layers as they were without maps, for as long as this is open."""
        current = {one.layer: dict(one.layer._parameters) for one in self._layers.values() if one.map.before}
        for one in self._layers.values():
            for name, value in (one.map.before or {}).items():
                like = one.layer._parameters[name]
                assert like is not None
                # the dictionary of parameters is shared with the views of the layer that pieces call
                one.layer._parameters[name] = nn.Parameter(value.to(like), requires_grad=False)
        try:
            yield
        finally:
            for layer, parameters in current.items():
                layer._parameters.update(parameters)


class _LayerOutput(fx.Interpreter):
    """Runs a segment and keeps what one layer gives.

    Attributes:
        value: what it gave.
    """

    def __init__(self, segment: fx.GraphModule, layer: str) -> None:
        super().__init__(segment)
        self.value: Tensor | None = None
        self._layer = layer

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call a module of the segment."""
        value = super().call_module(target, args, kwargs)
        if target == self._layer:
            self.value = value.clone()  # the sum behind it may be in place
        return value
