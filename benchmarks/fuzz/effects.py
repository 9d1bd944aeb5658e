"""``effects.toml`` and ``helpers.toml`` -> what a forward may do besides computing with tensors, as source code."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

__all__ = ["EFFECTS", "HELPERS", "Effect"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """Lines for places of a program.

    Attributes:
        name: what it is called in tables.
        init: lines of a block's ``__init__``; ``root_init`` of the network's.
        pre: lines of a block before its layers, ``post`` after them.
        wrap: a ``with`` statement around a block's layers.
        layer: the expression by which a block calls its layers, in place of ``self.layers(x)``.
        root_pre, root_loop, root_post: lines of the network: before the blocks, after each block, behind the last.
        root_wrap: a ``with`` statement around ``root_part`` of the network: "stem", "blocks", "head" or "all".
        loop: the expression by which the network calls a block, in place of ``block(x)``.
        setup: lines that run once the network is built; they may name ``{at}``, a module of it.
        at: whether ``{at}`` may be the network itself, too.
        everywhere: whether one position depends on all others by it, so that no network with it is causal.
        domains: the kinds of input that it can work on.
    """

    name: str
    init: str = ""
    pre: str = ""
    post: str = ""
    wrap: str = ""
    layer: str = ""
    root_init: str = ""
    root_pre: str = ""
    root_loop: str = ""
    root_post: str = ""
    root_wrap: str = ""
    root_part: str = "blocks"
    loop: str = ""
    setup: str = ""
    at: bool = False
    everywhere: bool = False
    domains: tuple[str, ...] = ("vector", "sequence", "tokens", "image", "causal")


def _read(name: str) -> dict[str, object]:
    return tomllib.loads((Path(__file__).parent / name).read_text(encoding="utf-8"))


EFFECTS = tuple(Effect(name=name, **fields) for name, fields in _read("effects.toml").items())  # type: ignore[arg-type]
HELPERS = {name: str(code) for name, code in _read("helpers.toml").items()}
