"""The training flag of a module that is recorded -> a value that tells whose flag was read.

A forward may hand its flag to a child, or a number that it chose by it: what differs between the modes then follows the
flag that was read, and not that of the module in which it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["ModeFlag", "without_flags"]


class ModeFlag:
    """Stands for ``module.training`` of a module of the copy; whoever looks at its value is told of.

    Attributes:
        value: the mode that is recorded.
        path: the module's qualified name.
    """

    __slots__ = ("_tell", "path", "value")

    def __init__(self, value: bool, path: str, tell: Callable[[str], None]) -> None:
        self.value, self.path, self._tell = value, path, tell

    def __bool__(self) -> bool:
        self._tell(self.path)
        return self.value

    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    def __hash__(self) -> int:
        return hash(bool(self))

    def __repr__(self) -> str:
        return repr(bool(self))

    def __getattr__(self, name: str) -> Any:
        return getattr(bool(self), name)


def _delegate(name: str) -> Callable[..., Any]:
    def operate(flag: ModeFlag, *others: Any) -> Any:
        return getattr(bool(flag), name)(*(bool(o) if isinstance(o, ModeFlag) else o for o in others))

    return operate


_BINARY = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
for _name in (
    *_BINARY,
    *(f"r{name}" for name in _BINARY),
    "lt",
    "le",
    "gt",
    "ge",
    "int",
    "index",
    "float",
    "neg",
    "abs",
):
    setattr(ModeFlag, f"__{_name}__", _delegate(f"__{_name}__"))


def without_flags(value: Any) -> Any:
    """Arguments of a call with plain values in the place of flags, of which nobody is told."""
    if type(value) is ModeFlag:
        return value.value
    if type(value) is tuple or type(value) is list:
        return type(value)(map(without_flags, value)) if any(type(item) is ModeFlag for item in value) else value
    if type(value) is dict and any(type(item) is ModeFlag for item in value.values()):
        return {key: without_flags(item) for key, item in value.items()}
    return value
