"""Graphs over a tree of modules -> TreeWatch: whether the tree still has the modules that they were written over.

A graph calls the leaves of the tree and reads tensors of its containers; the forward of a container is in the graph,
and is not run. A module put in the place of another, or a hook on a container, would therefore do nothing:

    replaced                        a new head, adapters around layers, quantised or synchronised layers
    a container with a new hook     register_forward_hook, fully_shard, torch.nn.utils.weight_norm
    a container with a new forward  the same function set on the object, or another class
"""

from __future__ import annotations

import collections
import itertools
import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from pararealize.errors import ModelError

from .hooks import describe_hook, hooks_by_kind

__all__ = ["TreeWatch", "omitted_calls"]

_modules_of = operator.attrgetter("_modules")


class TreeWatch:
    """The modules on the paths of graphs, as they were when the graphs came.

    Args:
        tree: the modules.
        graphs: with the tree's names.
        follows: whether what runs these looks called modules up in the tree at every call, and may find others there.
        omitted: paths of modules whose function is computed without a call, at least once, as that of containers is.
    """

    def __init__(
        self, tree: nn.Module, graphs: Iterable[fx.Graph], *, follows: bool = False, omitted: Iterable[str] = ()
    ) -> None:
        self._tree, self._omitted = tree, dict.fromkeys(omitted)
        self._children: dict[str, tuple[nn.Module, str, nn.Module]] = {}  # by path: owner, name there, module
        self._containers: dict[str, tuple[nn.Module, type, Any]] = {}  # by path: module, class, forward of its own
        self._called: set[str] = set()
        self.add(graphs, follows=follows)

    @property
    def omitted(self) -> tuple[str, ...]:
        """The paths of modules whose function is computed without a call."""
        return tuple(self._omitted)

    def add(self, graphs: Iterable[fx.Graph], *, follows: bool = False) -> None:
        """Watch the paths of further graphs, too."""
        containers, called = _paths_in(graphs)
        containers = {**dict.fromkeys(_owners_of(self._omitted)), **containers, **self._omitted}
        self._called.update(path for path in called if path not in self._omitted)
        if follows:
            containers, called = {path: None for path in containers if path not in self._called}, {}
        for path in (*containers, *called):
            self._children.setdefault(path, self._place(path))
        for path in containers:
            module = self._children[path][2]
            self._containers.setdefault(path, (module, type(module), vars(module).get("forward")))
        self._look()

    def _look(self) -> None:
        """Write down what a call compares: columns, which take no line of Python for each module."""
        owners, names, children = zip(*self._children.values(), strict=True) if self._children else ((), (), ())
        self._owners = tuple({id(owner): owner for owner in owners}.values())
        self._contents = tuple(owner._modules for owner in self._owners)  # torch's containers may take another one
        self._named = [owner._modules for owner in owners], names, children
        containers, classes, forwards = zip(*self._containers.values(), strict=True) if self._containers else ((),) * 3
        self._own = containers, classes, [vars(module) for module in containers], forwards
        # of those that are called, too, hooks run with the calls; those of torch.nn.utils are in the graph
        uncalled = [module for path, (module, _, _) in self._containers.items() if path not in self._called]
        self._hooks = [hooks for module in uncalled for hooks in hooks_by_kind(module).values()]
        self._hook_counts = [*map(len, self._hooks)]

    def check(self) -> None:
        """Refuse a tree that has changed; of what torch.compile has compiled, modules and hooks are guards.

        Raises:
            ModelError: a module has been replaced, or a container has got a hook or another forward.
        """
        if torch.compiler.is_compiling():
            if self._is_as_it_was_compiled():
                return
        elif not self.fault():
            return
        raise ModelError(
            f"{self.fault()}, since the network was converted, and its recording would run as before; change the "
            "model, and convert that anew"
        )

    def _is_as_it_was_compiled(self) -> bool:
        """The same as :meth:`fault` looks for, as torch.compile can follow it."""
        for contents, name, child in zip(*self._named, strict=True):
            if contents.get(name) is not child:
                return False
        return [len(hooks) for hooks in self._hooks] == self._hook_counts

    def fault(self) -> str:
        """What has changed; empty where nothing has."""
        contents, names, children = self._named
        containers, classes, attributes, forwards = self._own
        if (
            [*map(len, self._hooks)] == self._hook_counts
            and all(map(operator.is_, map(_modules_of, self._owners), self._contents))
            and all(map(operator.is_, map(dict.get, contents, names), children))
            and all(map(operator.is_, map(type, containers), classes))
            and all(map(operator.is_, map(dict.get, attributes, itertools.repeat("forward")), forwards))
        ):
            return ""
        faults = list(self._changes())
        if not faults:  # the same modules, in another dictionary
            self._look()
        return "; ".join(faults[:3]) + f"; and {len(faults) - 3} more" * (len(faults) > 3)

    def _place(self, path: str) -> tuple[nn.Module, str, nn.Module]:
        *containers, name = path.split(".")
        owner = self._tree
        for container in containers:
            child = owner._modules[container]
            assert child is not None
            owner = child
        module = owner._modules[name]
        assert module is not None
        return owner, name, module

    def _changes(self) -> Iterator[str]:
        for path, (owner, name, module) in self._children.items():
            if (now := owner._modules.get(name)) is not module:
                kind = "is not there any more" if now is None else f"is another module ({type(now).__name__})"
                yield f"{path} ({type(module).__name__}) {kind}"
        for path, (module, own_class, forward) in self._containers.items():
            if type(module) is not own_class:
                yield f"{path} ({own_class.__name__}) is of another class ({type(module).__name__})"
            if vars(module).get("forward") is not forward:
                yield f"{path} ({own_class.__name__}) has another forward"
            for kind, hooks in hooks_by_kind(module).items():
                before = next((n for other, n in zip(self._hooks, self._hook_counts, strict=True) if other is hooks), 0)
                if path not in self._called and len(hooks) != before:
                    last = f" {describe_hook([*hooks.values()][-1])}" if len(hooks) > before else ""
                    yield f"{path} ({own_class.__name__}) has {'got' if last else 'lost'} a {kind}{last}"


def _paths_in(graphs: Iterable[fx.Graph]) -> tuple[dict[str, None], dict[str, None]]:
    """The paths of containers that graphs lead through, and of modules that they call."""
    containers: dict[str, None] = {}
    called: dict[str, None] = {}
    for node in itertools.chain.from_iterable(graph.nodes for graph in graphs):
        if node.op in ("call_module", "get_attr"):
            containers.update(dict.fromkeys(_owners_of([str(node.target)])))
            if node.op == "call_module":
                called[str(node.target)] = None
    return containers, called


def _owners_of(paths: Iterable[str]) -> Iterator[str]:
    """The paths of all modules that paths lead through, outer ones first."""
    for path in paths:
        yield from itertools.accumulate(path.split(".")[:-1], "{}.{}".format)


def omitted_calls(before: fx.Graph, graphs: Iterable[fx.Graph]) -> tuple[str, ...]:
    """The modules that one graph calls more often than others do that take its place."""
    now = collections.Counter(_calls_in(*graphs))
    return tuple(collections.Counter(_calls_in(before)) - now)


def _calls_in(*graphs: fx.Graph) -> Iterator[str]:
    return (str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_module")
