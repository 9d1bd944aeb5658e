"""``{module-map}``: the packages of the library, floor by floor from the top, each with the first lines of its files.

Everything is read from the sources: the floors from the import contract in ``pyproject.toml``, what a package is from
its face, the order of its files from the face's docstring, and what a file is from its own first line.
"""

import ast
import re
import tomllib
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = ROOT / "pararealize"


def floors():
    """The names of the library's packages and of the root's own files, from the top floor down."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [name for layer in layers for name in re.findall(r"\w+", layer)]


def docstring(path):
    """The docstring of a file, or of a package's face."""
    path = path / "__init__.py" if path.is_dir() else path
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def first_paragraph(path):
    """What a file says that it is, as Markdown in the cell of a table."""
    paragraph = docstring(path).split("\n\n")[0].replace("\n", " ")
    return paragraph.replace("``", "`").replace("|", "\\|").replace("->", "→")


def table(files):
    """A row a file."""
    rows = [f"| `{path.name}` | {first_paragraph(path)} |" for path in files]
    return ["| file | what goes in → what comes out |", "|---|---|", *rows, ""]


def package(folder):
    """A package with its files, and then the packages within it."""
    words = re.findall(r"\w+", docstring(folder))
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    files.sort(key=lambda path: (words.index(path.stem) if path.stem in words else len(words), path.stem))
    name = folder.relative_to(LIBRARY).as_posix()
    lines = [f"**`{name}/`**: {first_paragraph(folder)}", "", *table(files)]
    inner = sorted(face.parent for face in folder.glob("*/__init__.py"))
    return lines + [line for path in inner for line in package(path)]


class ModuleMap(SphinxDirective):
    """Tables of files, one a package."""

    def run(self):
        """Write Markdown and have it parsed."""
        names = floors()
        lines = [line for name in names if (LIBRARY / name).is_dir() for line in package(LIBRARY / name)]
        own = [LIBRARY / f"{name}.py" for name in names if (LIBRARY / f"{name}.py").exists()]
        lines += ["**The root's own files**", "", *table(own)]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Register the directive."""
    app.add_directive("module-map", ModuleMap)
    return {"version": "2", "parallel_read_safe": True, "parallel_write_safe": True}
