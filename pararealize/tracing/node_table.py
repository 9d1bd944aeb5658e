"""Tensors of one forward pass -> the graph nodes whose values they are, at every moment of the pass.

A graph has values, which never change; a forward pass has tensor objects, which change in place and look into each
other's memory. The table translates between the two:

    id of a tensor      -> the node that it is the value of, now
    storage             -> every tensor that looks into it: what changes one of them in place changes all
    id of a tensor      -> the call that changed it since it was last read

A call in place is one node. From then on, what looks into the changed memory is read through ``after(tensor, call)``:
the edge to ``call`` keeps reader and writer in order when the graph is cut, copied or pruned.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor

from .mode_flag import ModeFlag
from .operations import after, fields_of, is_computed, tensors_in
from .sizes import SizeArgument, expression_of, is_symbolic

__all__ = ["CONSTANT", "NodeTable", "UnreadableError", "storage_of"]

CONSTANT = "_constant_"  # names begin so of tensors that a forward reads and no module has as an attribute

_BASE_TYPES = (str, int, float, bool, complex, torch.dtype, torch.device, torch.memory_format, torch.layout, range)


class UnreadableError(Exception):
    """The recorder cannot represent what happens inside a module; the caller may make that module opaque."""


class NodeTable:
    """Which node each tensor of a pass is the value of.

    Attributes:
        graph: the graph that is written.
        constants: tensors of the model that are neither parameters nor buffers, by the names that the graph reads.
    """

    def __init__(self, graph: fx.Graph, model: nn.Module) -> None:
        self.graph, self.constants = graph, dict[str, torch.Tensor]()
        self._model = model
        self._nodes: dict[int, fx.Node] = {}  # by id of the tensor
        self._attributes: dict[int, str] = {}  # id of a parameter, buffer or constant -> its qualified name
        self._model_storages: set[int] = set()  # of parameters and buffers
        self._aliases: dict[int, list[torch.Tensor]] = {}  # storage -> the tensors of the pass that look into it
        self._changes: dict[int, fx.Node] = {}  # id of a tensor -> what changed it in place since it was last read
        self._memories: dict[int, int] = {}  # storage of a stand-in for a value returned as it came -> the real storage
        self._alive: list[torch.Tensor] = []  # Python gives the id of a tensor that died to the next one

    # What is in the table from the beginning ------------------------------------------------------------------------

    def add_attribute(self, tensor: torch.Tensor, path: str) -> None:
        """Know a parameter or buffer by its qualified name; it becomes a node when it is first read."""
        self._attributes[id(tensor)] = path
        self._model_storages.add(storage_of(tensor))
        self._alive.append(tensor)

    def add_constant(self, tensor: torch.Tensor, path: str) -> None:
        """Know a tensor that the model holds as a plain attribute by its qualified name."""
        self._attributes.setdefault(id(tensor), path)

    def add_input(self, tensor: torch.Tensor, node: fx.Node) -> None:
        """Know an input by its placeholder."""
        self._add(tensor, node)
        node.meta.update(val=tensor, memory=self.memory(tensor))

    # What a call does to it -----------------------------------------------------------------------------------------

    def add_result(self, value: Any, node: fx.Node, unchanged: Collection[int] = ()) -> None:
        """Say that ``value`` is what ``node`` gives, and so for every tensor within it, which is an item of the node.

        ``unchanged`` are ids of tensors that the call was given and passed on: they stay the values that they were.
        """
        node.meta["val"] = value
        if isinstance(value, torch.Tensor):
            node.meta["memory"] = self.memory(value)
            self._add(value, node)
            return
        if isinstance(value, list | tuple):
            value = dict(enumerate(value))
        for key, item in value.items() if isinstance(value, Mapping) else ():
            if id(item) in unchanged or next(tensors_in(item), None) is None:
                continue
            child = self.graph.call_function(operator.getitem, (node, key))
            child.meta.update(node.meta)
            self.add_result(item, child, unchanged)

    def add_change(self, tensor: torch.Tensor, cause: fx.Node, results: Collection[torch.Tensor]) -> None:
        """Say that ``cause`` changed a tensor in place: it, unless it is a result, and all that share its memory."""
        if not any(tensor is result for result in results):
            self._change(tensor, cause)
        for other in self._aliases.get(storage_of(tensor), ()):
            if other is not tensor:
                self._change(other, cause)

    def set_memory(self, stand_in: torch.Tensor, tensor: torch.Tensor) -> None:
        """Let a stand-in, which has a storage of its own, count as a view of the tensor that it stands for."""
        self._memories[storage_of(stand_in)] = self.memory(tensor)

    def _change(self, tensor: torch.Tensor, cause: fx.Node) -> None:
        self.node(tensor)  # writes down a change that nothing has read yet: this one must not hide it
        self._changes[id(tensor)] = cause

    def _add(self, tensor: torch.Tensor, node: fx.Node) -> None:
        self._nodes[id(tensor)] = node
        self._changes.pop(id(tensor), None)
        self._alive.append(tensor)
        self._aliases.setdefault(storage_of(tensor), []).append(tensor)

    # What is read from it -------------------------------------------------------------------------------------------

    def memory(self, tensor: torch.Tensor) -> int:
        """Equal for tensors that look into the same memory, in the mode that is recorded."""
        storage = storage_of(tensor)
        return self._memories.get(storage, storage)

    def node(self, tensor: torch.Tensor) -> fx.Node:
        """The node to read for a tensor's present value; it is written where there is none yet."""
        node = self._nodes.get(id(tensor))
        if node is None:
            node = self._nodes[id(tensor)] = self.graph.get_attr(self._attribute(tensor))
            node.meta["val"] = tensor
            node.meta["trainable"] = self._is_parameter(str(node.target))
        if (cause := self._changes.pop(id(tensor), None)) is not None:
            node = self._nodes[id(tensor)] = self.graph.call_function(after, (node, cause))
            node.meta.update(cause.meta, val=tensor, region=None)
        return node

    def is_of_model(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is one of the model's own, or a view of a parameter or buffer."""
        return id(tensor) in self._attributes or storage_of(tensor) in self._model_storages

    def is_computed(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor was made during the pass, from inputs or from tensors of the model."""
        node = self._nodes.get(id(tensor))
        return node is not None and id(tensor) not in self._attributes and is_computed(node)

    def is_trainable(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter, or was computed from one."""
        node = self._nodes.get(id(tensor))
        if node is not None:
            return bool(node.meta.get("trainable"))
        path = self._attributes.get(id(tensor))
        return path is not None and path not in self.constants and self._is_parameter(path)

    def _is_parameter(self, path: str) -> bool:
        owner, _, name = path.rpartition(".")
        return name in self._model.get_submodule(owner)._parameters

    def _is_buffer(self, path: str) -> bool:
        owner, _, name = path.rpartition(".")
        return name in self._model.get_submodule(owner)._buffers

    def _attribute(self, tensor: torch.Tensor) -> str:
        """The name that the graph reads a tensor by which no call made."""
        path = self._attributes.get(id(tensor))
        if path is None:
            if isinstance(tensor, FakeTensor):
                raise UnreadableError("it uses a tensor made where the recorder could not see it")
            path = self._attributes[id(tensor)] = f"{CONSTANT}{len(self.constants)}"
            self.constants[path] = tensor
            self._alive.append(tensor)
        # a real parameter comes from a closure in the forward, which holds the model itself
        elif not isinstance(tensor, FakeTensor) and not self._is_buffer(path) and not self._is_parameter(path):
            self.constants[path] = tensor
        return path

    # Python values as fx holds them ---------------------------------------------------------------------------------

    def argument(self, value: Any) -> Any:
        """A call's argument as fx holds it: nodes for tensors, plain containers for the rest.

        Raises:
            UnreadableError: a graph cannot hold it.
        """
        if isinstance(value, torch.Tensor):
            return self.node(value)
        if value is None or value is ... or isinstance(value, _BASE_TYPES):
            return value
        if isinstance(value, ModeFlag):
            return self.graph.get_attr(f"{value.path}.training" if value.path else "training")
        if is_symbolic(value):
            return SizeArgument(expression_of(value))
        if isinstance(value, slice):
            return slice(*map(self.argument, (value.start, value.stop, value.step)))
        if isinstance(value, list | tuple):  # a torch.Size and a named tuple, too
            return (list if isinstance(value, list) else tuple)(map(self.argument, value))
        if type(value) is dict and all(isinstance(key, str) for key in value):
            return {key: self.argument(item) for key, item in value.items()}
        raise UnreadableError(f"it passes a {type(value).__name__}, which a graph cannot hold")

    def output(self, value: Any) -> Any:
        """The model's result as fx holds it; output classes are rebuilt by calling them.

        Raises:
            UnreadableError: a graph cannot hold it.
        """
        if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
            return type(value)(self.output(item) for item in value)
        fields = fields_of(value)
        if fields is not None:
            return self._rebuilt(value, fields)
        if type(value) in (dict, OrderedDict) and all(isinstance(key, str) for key in value):
            items = {key: self.output(item) for key, item in value.items()}
            return items if type(value) is dict else self.graph.call_function(OrderedDict, (items,))
        return self.argument(value)

    def _rebuilt(self, value: Any, fields: Mapping[str, Any]) -> fx.Node:
        """The call of an output class on those of its fields that are not ``None``."""
        arguments: dict[str, Any] = {}
        for name, field in fields.items():
            try:
                arguments |= {} if field is None else {name: self.output(field)}
            except UnreadableError as error:
                raise UnreadableError(
                    f"its output {name!r} is a {type(field).__name__}, which a graph cannot hold; switch it off "
                    '(for a cache: example_inputs={..., "use_cache": False})'
                ) from error
        node = self.graph.call_function(type(value), (), arguments)
        node.meta.update(val=value, nn_module_stack={"": type(self._model)})
        return node


def storage_of(tensor: torch.Tensor) -> int:
    """Equal for tensors that look into one storage, while it lives."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)
