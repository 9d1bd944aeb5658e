"""The bytes of a file, a source of random numbers -> other bytes, and what was changed, in words.

``mutated`` takes any file; ``mutated_json`` one that holds JSON, of which it changes values, not letters, most of the
time. Both give something else than what they were given.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

__all__ = ["Mutation", "mutated", "mutated_json"]


class Mutation(NamedTuple):
    """A file's new content, and how it differs."""

    content: bytes
    change: str


def mutated(content: bytes, random: Random) -> Mutation:
    """Bytes changed at random: flipped, overwritten, cut out, doubled, inserted, exchanged."""
    while True:
        change = random.choice(_BYTE_CHANGES)
        other, text = change(content, random)
        if other != content:
            return Mutation(other, text)


def mutated_json(content: bytes, random: Random) -> Mutation:
    """Values changed, removed, doubled, exchanged, of another type, extreme; keys added; every sixth time, bytes."""
    if random.random() < 1 / 6:
        return mutated(content, random)
    while True:
        document = json.loads(content)
        raw: list[str] = []  # texts that Python's writer would not write
        changes = [_change(document, raw, random) for _ in range(random.choice((1, 1, 1, 1, 2, 3)))]
        if isinstance(document, dict) and document.get(_WHOLE):
            document = document[_WHOLE]
        text = json.dumps(document, indent=1)
        for i, piece in enumerate(raw):
            text = text.replace(f'"{_mark(i)}"', piece)
        other = text.encode("utf-8", "surrogatepass")
        if _differs(other, content):
            return Mutation(other, "; ".join(changes))


def _differs(text: bytes, content: bytes) -> bool:
    try:
        return bool(json.loads(text) != json.loads(content))
    except (ValueError, RecursionError):
        return True


# Bytes ----------------------------------------------------------------------------------------------------------------


def _span(content: bytes, random: Random) -> tuple[int, int]:
    """A part of the content, mostly a short one."""
    start = random.randrange(len(content) + 1)
    return start, min(len(content), start + random.choice((1, 1, 2, 4, 16, 256, 4096)))


def _flip(content: bytes, random: Random) -> tuple[bytes, str]:
    if not content:
        return b"\0", "a byte in an empty file"
    i, bit = random.randrange(len(content)), random.randrange(8)
    return content[:i] + bytes([content[i] ^ 1 << bit]) + content[i + 1 :], f"bit {bit} of byte {i}"


def _overwrite(content: bytes, random: Random) -> tuple[bytes, str]:
    start, end = _span(content, random)
    value = random.choice((b"\0", b"\xff", random.randbytes(1), b"\x1b", b"9"))
    return content[:start] + value * (end - start) + content[end:], f"bytes {start} to {end} are {value!r}"


def _cut(content: bytes, random: Random) -> tuple[bytes, str]:
    start, end = _span(content, random)
    return content[:start] + content[end:], f"bytes {start} to {end} are gone"


def _double(content: bytes, random: Random) -> tuple[bytes, str]:
    start, end = _span(content, random)
    return content[:end] + content[start:end] + content[end:], f"bytes {start} to {end} twice"


def _insert(content: bytes, random: Random) -> tuple[bytes, str]:
    start, end = _span(content, random)
    return content[:start] + random.randbytes(end - start) + content[start:], f"{end - start} bytes more at {start}"


def _exchange(content: bytes, random: Random) -> tuple[bytes, str]:
    (a, b), (c, d) = sorted((_span(content, random), _span(content, random)))
    if b > c:
        return content, ""
    return content[:a] + content[c:d] + content[b:c] + content[a:b] + content[d:], f"bytes {a} to {b} and {c} to {d}"


def _truncate(content: bytes, random: Random) -> tuple[bytes, str]:
    end = random.choice((0, 1, random.randrange(len(content) + 1), max(len(content) - 1, 0)))
    return content[:end], f"the first {end} bytes of {len(content)}"


def _append(content: bytes, random: Random) -> tuple[bytes, str]:
    more = random.choice((b"\0", b"\n\n", b"{}", content, random.randbytes(7)))
    return content + more, f"{len(more)} bytes more at the end"


def _encode(content: bytes, random: Random) -> tuple[bytes, str]:
    encoding = random.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7"))
    try:
        return content.decode().encode(encoding), f"in {encoding}"
    except UnicodeError:
        return content, ""


_BYTE_CHANGES: tuple[Callable[[bytes, Random], tuple[bytes, str]], ...] = (
    _flip, _flip, _flip, _overwrite, _cut, _double, _insert, _exchange, _truncate, _append, _encode,
)  # fmt: skip


# JSON -----------------------------------------------------------------------------------------------------------------

_WHOLE = "@whole@"


def _mark(i: int) -> str:
    return f"@raw {i}@"


Place = tuple[Any, Any, tuple[Any, ...]]  # a list or dict, a key of it, and the keys on the way


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[Place]:
    keys: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key, (*path, key)
        yield from _places(value[key], (*path, key))


def _change(document: Any, raw: list[str], random: Random) -> str:
    """Change one place of a document, and say how."""
    places = list(_places(document))
    if not places:
        return ""
    container, key, path = random.choice(places)
    where, before = ".".join(map(str, path)), container[key]
    kind = random.choice(("value", "value", "value", "type", "copy", "remove", "double", "exchange", "add", "raw"))
    if kind == "remove":
        del container[key]
        return f"{where} is gone"
    if kind == "double":
        return _doubled(container, key, where, raw, random)
    if kind == "exchange":
        return _exchanged(container, key, where, random)
    if kind == "add":
        return _added(container, where, random)
    if kind == "copy":
        alike = [(c, k, p) for c, k, p in places if p[-1] == path[-1] and c[k] != before]
        if alike:
            other, k, source = random.choice(alike)
            container[key] = copy.deepcopy(other[k])
            return f"{where} is that of {'.'.join(map(str, source))}"
    if kind == "raw":
        raw.append(_raw(random))
        container[key] = _mark(len(raw) - 1)
        return f"{where} is {raw[-1][:30]}"
    container[key] = _other_type(before, random) if kind == "type" else _other_value(before, random)
    return f"{where} was {_short(before)} and is {_short(container[key])}"


def _doubled(container: Any, key: Any, where: str, raw: list[str], random: Random) -> str:
    if isinstance(container, list):
        container.insert(random.randrange(len(container) + 1), copy.deepcopy(container[key]))
        return f"{where} twice"
    text, other = json.dumps(container[key]), json.dumps(_other_value(container[key], random))
    raw.append(f"{text}, {json.dumps(key)}: {other}")
    container[key] = _mark(len(raw) - 1)
    return f"{where} twice, the second time as {other[:30]}"


def _exchanged(container: Any, key: Any, where: str, random: Random) -> str:
    other = random.choice(range(len(container)) if isinstance(container, list) else list(container))
    container[key], container[other] = container[other], container[key]
    return f"{where} and {other} exchanged"


def _added(container: Any, where: str, random: Random) -> str:
    name, value = random.choice(_TEXTS), random.choice((None, 0, "x", [], {}, "y" * 100_000))
    for i in range(random.choice((1, 1, 1, 3000))):
        if isinstance(container, dict):
            container[f"{name}{i}" if i else name] = value if not i else 0
        else:
            container.append(value if not i else 0)
    return f"beside {where}: {name[:30]!r}"


_TEXTS = (
    "", "x", "note", "\x1b[31mred\x1b]0;title\x07", "a\rb\nc", "\x00", "\u202eabc", "\u2066x", "\x9b31m", "\ud800",
    "q" * 100_000, "$\\frac{a}{", "<script>alert(1)</script>", "é" * 300, "../../etc", "os:system", "__class__",
    "{0.__class__}", "%s%n", "[bold]x[/bold]", "1", "float64", "bool", "nn", "cuda:7", "stem", "custom", "exact",
)  # fmt: skip
_NUMBERS = (0, -1, 1, 2, 3, 2**31, 2**31 - 1, -(2**31), 2**63, 2**63 - 1, -(2**63), 10**30, 10**9, 65536)


def _other_value(value: Any, random: Random) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return random.choice((*_NUMBERS, value + 1, value - 1, -value, 2 * value, value // 2, value * 1000))
    if isinstance(value, float):
        choices = (0.0, -value, -1.0, 1e308, 5e-324, value + 1, 2 * value, -0.0, 1e-300, value * 1e12)
        return random.choice(choices)
    if isinstance(value, str):
        return random.choice((*_TEXTS, *_TEXTS, value[:-1], value + "x", value.upper(), value[::-1], value + "\x1b[2J"))
    if isinstance(value, list):
        return random.choice((value[::-1], value[:-1], value[1:], [], value + value, value * 1000, value[:1]))
    if isinstance(value, dict):
        items = list(value.items())
        return random.choice(({}, dict(items[1:]), dict(items[::-1]), {key.upper(): item for key, item in items}))
    return random.choice((0, "", [], {}, False, {"side": "past"}, 1.5))


def _other_type(value: Any, random: Random) -> Any:
    candidates = (None, True, 0, 1, 1.0, 2.5, "x", str(value)[:50], [], {}, [value], {"0": value}, [[[]]], [None])
    return random.choice([other for other in candidates if type(other) is not type(value)])


def _raw(random: Random) -> str:
    """A value that only a text can hold."""
    deep = random.choice((20, 200, 900, 5000, 100_000))
    return random.choice(
        (
            "NaN", "Infinity", "-Infinity", "1e999", "-0", "9" * random.choice((400, 5000)), "1e-999", "0x10", "01",
            "[" * deep + "]" * deep, '{"a":' * deep + "1" + "}" * deep, '"\\ud800"', '"\\u0000"', "'x'", "nul", "",
            '"\x1b"', "1.", "+1", "1_000", "// 1\n1", "1,", '"\\u202e"',
        )
    )  # fmt: skip


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
