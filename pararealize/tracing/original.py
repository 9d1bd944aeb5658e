"""The model that a converted network was made from, over the network's own tensors: what it is recorded anew from.

``copy_model`` copies the model with its class and its forward. A converted network takes the submodules, parameters and
buffers of that copy for its own, and the copy's root stays behind here: it has no memory besides, computes what the
original computes with the weights that the network has now, and follows ``to``, ``load_state_dict`` and training.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from .captured import Capture
from .front_end import capture
from .hooks import without_backward_hooks, without_hooks
from .model_twin import real_twin, twin_of
from .module_view import ModuleView, mirror

__all__ = ["Original"]


class Original:
    """A model that can be recorded again.

    Args:
        root: the model's copy, whose submodules and tensors a network shares.
        opaque: qualified names of the modules that were one node each in the first recording.

    Attributes:
        signature: of its forward.
    """

    def __init__(self, root: nn.Module, opaque: Sequence[str] = ()) -> None:
        # another dictionary for the root: a network adds modules to its own
        self._root, self._opaque = root, tuple(opaque)
        root.__dict__["_modules"] = dict(root._modules)
        without_hooks(root)  # they are the network's own, and run around whatever it is recorded as
        self.signature = inspect.signature(root.forward)

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self._root).__name__

    def give_mode(self, network: ModuleView) -> None:
        """Let a network's training flag be the root's: a module that refers to the root reads it there."""
        self._root.training = network.training
        mirror(network, self._root)

    def capture(self, args: Sequence[Any], kwargs: Mapping[str, Any], *, device: torch.device | None = None) -> Capture:
        """Record a call with these arguments.

        The recording runs on a copy with buffers of its own and parameters in the same memory, so that a thread that
        uses the network meanwhile is not disturbed.

        Args:
            args: the positional ones.
            kwargs: the others.
            device: where the copy is made; on the meta device nothing is computed, nor checked.

        Raises:
            PararealizeError: as :func:`pararealize.capture` does.
            TypeError: the arguments do not fit the forward.
        """
        model = self._copy(device)
        if device is not None:
            args, kwargs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), (tuple(args), dict(kwargs)))
        example: Any = tuple(args)
        if kwargs:
            parameters, binding = self.signature.parameters, self.signature.bind(*args, **kwargs)
            more = [name for name in binding.arguments if parameters[name].kind is inspect.Parameter.VAR_KEYWORD]
            example = {name: value for name, value in binding.arguments.items() if name not in more}
            for name in more:
                example.update(binding.arguments[name])
        return capture(model, example, leaf_modules=self._opaque)

    def _copy(self, device: torch.device | None) -> nn.Module:
        if device is None:
            twin, _ = real_twin(self._root, share_parameters=True)
            without_backward_hooks(twin)  # who sees gradients in a call would be surprised by those of a check
            return twin
        memo: dict[int, Any] = {id(buffer): buffer.detach().to(device) for buffer in self._root.buffers()}
        for parameter in self._root.parameters():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to(device), requires_grad=parameter.requires_grad)
        return twin_of(self._root, memo)

    def __deepcopy__(self, memo: dict[int, Any]) -> Original:
        return Original(copy.deepcopy(self._root, memo), self._opaque)
