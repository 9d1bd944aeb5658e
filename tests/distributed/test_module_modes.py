"""Submodules set apart from the network's mode are told from those that are not, where ranks or copies share them."""

from __future__ import annotations

import copy

from torch import nn

from pararealize.distributed.module_modes import ModuleModes, kinds_by_name, sharers_of


def tree():
    return nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.BatchNorm1d(2))


def test_only_what_several_ranks_have_is_shared() -> None:
    names = [["", "a", "a.b"], ["", "a", "c"], ["", "c", "d"]]
    kinds = [dict.fromkeys(its_names, "Module") for its_names in names]
    assert sharers_of(kinds) == {(0, 1, 2): [""], (0, 1): ["a"], (1, 2): ["c"]}
    kinds[2]["c"] = "Linear"
    assert (1, 2) not in sharers_of(kinds)
    assert kinds_by_name(tree()) == {"": "Sequential", "0": "Linear", "1": "BatchNorm1d", "2": "BatchNorm1d"}


def test_what_is_set_apart_is_named() -> None:
    here = tree()
    modes = ModuleModes(here, {(0, 1): ["", "1"], (1, 2): ["elsewhere"]})
    assert modes.shared() == {"the mode of modules on ranks 0, 1": "the network's in all 1"}
    here[2].eval()  # of this rank alone
    assert modes.shared() == {"the mode of modules on ranks 0, 1": "the network's in all 1"}
    assert modes.all().startswith("eval in 2 (1 of 3")
    here[1].eval()
    assert modes.shared()["the mode of modules on ranks 0, 1"].startswith("eval in 1 (1 of 1")
    others = copy.deepcopy(here).train()
    assert modes.over(others).all() == "the network's in all 3"
    here.eval()
    here[0].train()
    assert modes.all().startswith("train in 0 (1 of 3")
