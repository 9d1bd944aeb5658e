"""One recording of a model -> whether it changed Python state, which no graph would change again.

A module that changed its own is to be one call, which does it anew each time. What a second pass leaves as it is, and
holds nothing but sizes and plain values, is a cache that the graph does without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from .leaves import is_layer
from .node_table import UnreadableError
from .python_state import Change, Snapshot, changes_between, line_of, snapshot

__all__ = ["StateWatch"]


class StateWatch:
    """The Python state of a copy of a model, watched during one recording.

    Args:
        model: the copy.
        is_call: whether the module of a qualified name is one call.
    """

    def __init__(self, model: nn.Module, is_call: Callable[[str, nn.Module], bool]) -> None:
        self._model, self._is_call = model, is_call
        self._before = snapshot(model, is_call)
        self._of_calls: dict[str, Snapshot] = {}  # of modules that are one call each, after the last one
        for path, module in model.named_modules():  # outer ones first
            is_inner = any(path.startswith(f"{outer}.") for outer in self._of_calls)
            if path and not is_inner and not is_layer(module) and is_call(path, module):
                self._of_calls[path] = _within(module)

    def enter(self, path: str, module: nn.Module) -> None:
        """A module that is one call is called: nobody else may have changed it since it was the last time."""
        if (last := self._of_calls.get(path)) is not None:
            self._refuse_outsiders(path, changes_between(last, _within(module)))

    def leave(self, path: str, module: nn.Module) -> None:
        """The call is over; what it changed is its own affair."""
        self._of_calls[path] = _within(module)

    def check(
        self, is_computed: Callable[[torch.Tensor], bool], run_again: Callable[[Sequence[torch.Tensor]], bool]
    ) -> None:
        """The recording is over: refuse what it changed, unless that is a cache.

        Args:
            is_computed: whether a tensor was computed from inputs or parameters.
            run_again: runs the forward once more from the state that it left, in which are these tensors; whether it
                did the same again.

        Raises:
            UnreadableError: the module at the end of ``error.pararealize_stack`` changed something.
        """
        for path, last in self._of_calls.items():
            self._refuse_outsiders(path, changes_between(last, _within(self._model.get_submodule(path))))
        after = snapshot(self._model, self._is_call)
        changes = changes_between(self._before, after)
        if not changes:
            return
        for change in changes:
            if any(map(is_computed, after.tensors.get(change, ()))):
                raise self._error(change, "keeps a computed tensor in")
        first = snapshot(self._model, self._is_call, identity=False)
        is_same = run_again([tensor for change in changes for tensor in after.tensors.get(change, ())])
        again = changes_between(first, snapshot(self._model, self._is_call, identity=False))
        if again or not is_same:
            raise self._error((again or changes)[0], "changes")

    def _refuse_outsiders(self, path: str, changes: Sequence[Change]) -> None:
        for change in changes:
            outer = path.rpartition(".")[0]
            raise self._error(Change(outer, f"{path.rpartition('.')[2]}.{change.name}", change.kind), "changes")

    def _error(self, change: Change, verb: str) -> UnreadableError:
        names = change.path.split(".") if change.path else []
        paths = [".".join(names[:i]) for i in range(len(names) + 1)]
        stack = [(path, self._model.get_submodule(path)) for path in paths]
        while len(stack) > 1 and is_layer(stack[-1][1]):  # a layer's settings are changed by what calls it
            stack.pop()
        where = line_of(stack[-1][1], change.name.rpartition(".")[2])
        error = UnreadableError(
            f"it {verb} the {change.kind} {change.name!r}{f' ({where})' if where else ''}, which no graph repeats"
        )
        error.pararealize_stack = tuple(stack)  # type: ignore[attr-defined]
        return error


def _within(module: nn.Module) -> Snapshot:
    return snapshot(module, lambda *_: False, variables=False)
