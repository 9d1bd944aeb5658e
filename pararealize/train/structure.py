"""A network, or a rank's part of one -> what it is apart from its weights: modules, settings, code, what is trained.

Two networks of the same shapes may differ in an activation, a rate of dropout, or in what is frozen. A run that goes on
has to have the same. The facts of all ranks together are those of the network in one process.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import json
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import fx, nn

__all__ = ["describe_structure", "structure_facts"]

# code of libraries changes with their versions, and does the same
_LIBRARIES = [Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib", "stdlib")]
_LIBRARIES.append(Path(__file__).resolve().parents[1])


def structure_facts(net: nn.Module) -> dict[str, str]:
    """What is known here of the modules, tensors and code of a network, by qualified names.

    Of a network that was converted, the recorded code counts, and the modules that it calls; of others, every module
    and the source of its class, where that is no library's.
    """
    tree, graphs, parts = _parts_of(net)
    facts = {f"code of {target}": _code(graph) for target, graph in graphs.items()}
    called = {str(node.target) for graph in graphs.values() for node in graph.nodes if node.op == "call_module"}
    sources: dict[type, str] = {}
    for root in {*called, *parts} if graphs else {""}:
        module = tree.get_submodule(root)
        for name, inner in module.named_modules(prefix=root):
            facts[f"module {name}"] = f"{type(inner).__name__}({inner.extra_repr()})"
            if type(inner) not in sources:
                sources[type(inner)] = "\n".join(_sources(type(inner)))
            facts[f"settings of {name}"] = f"{_settings(inner)} {sources[type(inner)]}"
            if inner.training is not net.training:
                facts[f"settings of {name}"] += f" in {'train' if inner.training else 'eval'} mode"
    named = (*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False))
    for name, tensor in named:
        how = "trained" if tensor.requires_grad else "kept"
        facts[f"tensor {name}"] = f"{how} {tensor.dtype} {list(tensor.shape)}"
    return facts


def describe_structure(parts: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """The facts of all ranks, in short: how often there is each kind of module and tensor, and digests of everything.

    Example:
        >>> describe_structure([structure_facts(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))])["modules"]
        {'Linear(in_features=2, out_features=2, bias=True)': 1, 'ReLU()': 1, 'Sequential()': 1}
    """
    facts = {name: fact for part in parts for name, fact in part.items()}
    kinds: dict[str, dict[str, int]] = {"module": {}, "tensor": {}}
    for name in sorted(facts):
        kind, fact = name.partition(" ")[0], facts[name]
        if kind in kinds:
            fact = fact.partition(" [")[0] if kind == "tensor" else fact
            kinds[kind][fact] = kinds[kind].get(fact, 0) + 1
    digests = {
        word: hashlib.sha256(json.dumps(sorted(i for i in facts.items() if i[0].startswith(word))).encode()).hexdigest()
        for word in ("module", "tensor", "code", "settings")
    }
    return {
        "modules": dict(sorted(kinds["module"].items())),
        "tensors": dict(sorted(kinds["tensor"].items())),
        "digests": {word: digest[:16] for word, digest in digests.items()},
    }


def _parts_of(net: nn.Module) -> tuple[nn.Module, Mapping[str, fx.Graph], list[str]]:
    """The module that qualified names start at; recorded code by what it is called; and the other parts' names."""
    if (setup := getattr(net, "rank_setup", None)) is not None:  # of a rank
        modules = setup.modules
        return modules.tree, modules.graphs, [name for name in modules.targets.values() if name not in modules.graphs]
    inner = getattr(net, "net", None)
    for owner in (net, inner):
        graphs, parts = getattr(owner, "part_graphs", None), getattr(owner, "network_parts", None)
        if isinstance(owner, nn.Module) and isinstance(graphs, dict) and isinstance(parts, dict):
            recorded = {part.target: graphs[name] for name, part in parts.items() if name in graphs}
            return owner, recorded, [part.target for part in parts.values() if part.target not in recorded]
    return net, {}, []


def _code(graph: fx.Graph) -> str:
    return str(graph.python_code("self").src)


def _settings(module: nn.Module) -> list[tuple[str, str]]:
    """What a module keeps beside tensors and modules, where that is plain: numbers, words, functions."""
    return sorted(
        (name, text)
        for name, value in vars(module).items()
        if name != "training" and not name.startswith("_") and (text := _plain(value)) is not None
    )


def _plain(value: Any) -> str | None:
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    if isinstance(value, tuple | list):
        texts = [_plain(item) for item in value]
        return None if None in texts else f"({', '.join(map(str, texts))})"
    if inspect.isroutine(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
    return None


def _sources(kind: type) -> Iterator[str]:
    """The code of a class and of those that it inherits from, without comments and docstrings; none of libraries."""
    for base in kind.__mro__:
        try:
            file = inspect.getsourcefile(base)
            if file is None or any(Path(file).resolve().is_relative_to(library) for library in _LIBRARIES):
                continue
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError, SyntaxError, IndentationError):  # of a class without a file
            continue
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None and body:
                node.body = body[1:] or [ast.Pass()]
        yield ast.unparse(tree)
