"""The house itself: modules have their own names, faces show what is theirs, tests mirror sources, maps are true."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from torch import fx, nn

import pararealize

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = ROOT / "pararealize"
MODULES = sorted(module.name for module in pkgutil.walk_packages(pararealize.__path__, "pararealize."))
PACKAGES = [name for name in MODULES if (LIBRARY.parent / Path(*name.split(".")) / "__init__.py").exists()]
FILES = [name for name in MODULES if name not in PACKAGES]


def source(name: str) -> Path:
    path = LIBRARY.parent.joinpath(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_what_its_name_imports(name: str) -> None:
    """``import a.b.c`` then ``a.b.c``: no function that a face shows stands in the place of a module."""
    module = importlib.import_module(name)
    parent, _, leaf = name.rpartition(".")
    assert getattr(sys.modules[parent], leaf) is module
    assert isinstance(module, ModuleType)


@pytest.mark.parametrize("name", MODULES)
def test_no_module_bears_the_name_of_a_public_thing(name: str) -> None:
    leaf = name.rpartition(".")[2]
    public = {*getattr(importlib.import_module(name), "__all__", ()), *pararealize.__all__}
    assert leaf not in public


@pytest.mark.parametrize("name", PACKAGES)
def test_a_face_shows_what_its_own_files_define(name: str) -> None:
    """Every public name of a package stands in one of its files, so that it has one public place."""
    face = importlib.import_module(name)
    for shown in face.__all__:
        home = getattr(getattr(face, shown), "__module__", None)
        if home is not None and home.startswith("pararealize"):
            assert home.rpartition(".")[0] == name, f"{shown} is from {home}"


@pytest.mark.parametrize("name", PACKAGES)
def test_a_face_reads_as_the_contents_of_its_folder(name: str) -> None:
    words = set(re.findall(r"\w+", importlib.import_module(name).__doc__ or ""))
    here = {path.stem for path in source(name).parent.glob("*.py")} - {"__init__"}
    inner = {path.parent.name for path in source(name).parent.glob("*/__init__.py")}
    assert (here | inner) - words == set()


@pytest.mark.parametrize("name", FILES)
def test_every_file_has_a_test_of_its_own(name: str) -> None:
    folders = name.split(".")[1:]
    assert ROOT.joinpath("tests", *folders[:-1], f"test_{folders[-1]}.py").exists()


def test_every_folder_of_tests_mirrors_one_of_sources() -> None:
    packages = {"/".join(name.split(".")[1:]) for name in PACKAGES} | {"cli", "benchmarks"}
    folders = {str(path.parent.relative_to(ROOT / "tests")) for path in ROOT.glob("tests/**/test_*.py")} - {"."}
    assert folders <= packages


def test_the_wheel_has_every_package() -> None:
    metadata = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(metadata["tool"]["setuptools"]["packages"]) == {"pararealize", "pararealize_cli", *PACKAGES}


def test_the_library_imports_nothing_that_only_some_need() -> None:
    """Faces leave pictures to the files that draw them (``from pararealize.plan.figure import draw_plan``)."""
    code = "import sys, pararealize; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"matplotlib", "sympy", "tensorboard", "torchvision", "sklearn", "typer"}.isdisjoint(done.stdout.split())


def docstrings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            yield ast.get_docstring(node) or ""


@pytest.mark.parametrize("name", MODULES)
def test_files_that_docstrings_name_are_there(name: str) -> None:
    """``path_cuts.py`` in a docstring is a file of the same package, ``planning/path_cuts.py`` one from the root."""
    text = "\n".join(docstrings(ast.parse(source(name).read_text(encoding="utf-8"))))
    named = set(re.findall(r"(?<![\w./])((?:\w+/)*\w+\.py)\b", text)) - {"file.py", "model.py", "mynets.py"}
    here = source(name).parent
    assert {file for file in named if not (here / file).exists() and not (LIBRARY / file).exists()} == set()


def test_roles_that_docstrings_refer_to_resolve() -> None:
    """``:func:`~pararealize.plan.simulate``` names what is there under that very name."""
    missing = []
    for name in MODULES:
        text = "\n".join(docstrings(ast.parse(source(name).read_text(encoding="utf-8"))))
        for path in re.findall(r":\w+:`~?(pararealize[\w.]*)`", text):
            value: object = pararealize
            for part in path.split(".")[1:]:
                value = getattr(value, part, missing)
            if value is missing:
                missing.append(f"{name}: {path}")
    assert missing == []


def test_the_reference_names_the_public_place_of_each_thing() -> None:
    """The face of a package, or of the library; pictures, which faces leave out, in the files that draw them."""
    named = [
        re.match(r"\.\. auto(?:function|class):: ([\w.]+)\.(\w+)", line)
        for page in sorted((ROOT / "docs" / "reference").glob("*.md"))
        for line in page.read_text(encoding="utf-8").splitlines()
    ]
    places = [(match[1], match[2]) for match in named if match is not None]
    assert len(places) > 100
    public = {"pararealize", *PACKAGES, *(f"pararealize.{path.stem}" for path in LIBRARY.glob("*.py"))}
    wrong = [
        f"{place}.{name}"
        for place, name in places
        if not (place in public or name.startswith("draw_"))
        or name not in getattr(importlib.import_module(place), "__all__", ())
    ]
    assert wrong == []


def private_names(tree: ast.Module) -> set[str]:
    """Private attributes that the classes of a file give their instances."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            names.update(part.name for part in node.body if isinstance(part, ast.FunctionDef))
    return {name for name in names if re.fullmatch(r"_[a-z]\w*", name)}


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def test_private_attributes_are_read_in_their_own_file() -> None:
    torchs = {*vars(nn.Module()), *dir(nn.Module), *dir(fx.GraphModule), *dir(fx.Graph), *dir(inspect.Signature)}
    trees = {name: ast.parse(source(name).read_text(encoding="utf-8")) for name in MODULES}
    owners: dict[str, set[str]] = {}
    for name, tree in trees.items():
        for attribute in private_names(tree) - torchs:
            owners.setdefault(attribute, set()).add(name)
    reads = [
        f"{name}:{node.lineno} reads {node.attr} of {sorted(owners[node.attr])}"
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and not _is_self(node.value) and name not in owners.get(node.attr, {name})
    ]
    assert reads == []
