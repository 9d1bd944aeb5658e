"""Modules of one rank -> in which of them the training flag differs from the network's, for those that ranks share.

``train()`` and ``eval()`` of the whole stage are a fact of every call. A submodule may be set apart, as a frozen batch
norm is: on one rank alone that is right where no other rank has the module, and an oversight where another has it too,
or where copies of the network do.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

from torch import nn

__all__ = ["ModuleModes", "kinds_by_name", "sharers_of"]


def kinds_by_name(tree: nn.Module) -> dict[str, str]:
    """The names of a rank's modules, and their classes: what is a layer here may be a bare holder of names there."""
    return {name: type(module).__name__ for name, module in tree.named_modules(remove_duplicate=False)}


def sharers_of(kinds: Sequence[Mapping[str, str]]) -> dict[tuple[int, ...], list[str]]:
    """For each set of several ranks the modules that exactly these have, from :func:`kinds_by_name` of every rank.

    Example:
        >>> sharers_of([{"a": "Linear", "b": "Linear", "c": "Linear"}, {"b": "Linear", "c": "Module"}])
        {(0, 1): ['b']}
    """
    holders: dict[tuple[str, str], list[int]] = {}
    for rank, its_kinds in enumerate(kinds):
        for name_and_kind in its_kinds.items():
            holders.setdefault(name_and_kind, []).append(rank)
    sharers: dict[tuple[int, ...], list[str]] = {}
    for (name, _), ranks in holders.items():
        if len(ranks) > 1:
            sharers.setdefault(tuple(ranks), []).append(name)
    return sharers


class ModuleModes:
    """The training flags of a rank's modules.

    Args:
        tree: the rank's modules, by the network's names.
        sharers: for each set of ranks the modules that exactly these have; those of other sets are passed over.
    """

    def __init__(self, tree: nn.Module, sharers: Mapping[tuple[int, ...], Sequence[str]]) -> None:
        self._tree, self._sharers = tree, sharers
        modules = dict(tree.named_modules(remove_duplicate=False))
        self._all = [(name, module) for name, module in modules.items() if name]
        self._shared = {
            ranks: [(name, modules[name]) for name in names if name]
            for ranks, names in sharers.items()
            if all(name in modules for name in names)
        }

    def over(self, tree: nn.Module) -> ModuleModes:
        """Those of copies of the rank's modules."""
        return ModuleModes(tree, self._sharers)

    def shared(self) -> dict[str, str]:
        """By a name for each set of ranks, what these have to have alike."""
        return {
            f"the mode of modules on ranks {', '.join(map(str, ranks))}": _words(modules, training=self._tree.training)
            for ranks, modules in self._shared.items()
        }

    def all(self) -> str:
        """What copies have to have alike."""
        return _words(self._all, training=self._tree.training)


def _words(modules: Sequence[tuple[str, nn.Module]], *, training: bool) -> str:
    apart = [name for name, module in modules if module.training is not training]
    if not apart:
        return f"the network's in all {len(modules)}"
    listed = ", ".join(apart[:3]) + ", …" * (len(apart) > 3)
    digest = zlib.crc32(" ".join(apart).encode())
    return f"{'eval' if training else 'train'} in {listed} ({len(apart)} of {len(modules)}, digest {digest:08x})"
