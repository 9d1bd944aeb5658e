"""``{module-map}``: every file of the library beside the first line of its docstring, in the order that the page gives.

The directive's lines are headings, each followed by names of files; files that no line names come last.
"""

import ast
from pathlib import Path

from sphinx.util.docutils import SphinxDirective

LIBRARY = Path(__file__).resolve().parents[2] / "pararealize"


def first_line(path):
    """What a file says that it is."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    paragraph = docstring.split("\n\n")[0].replace("\n", " ").replace("``", "`").replace("|", "\\|")
    return paragraph.replace("->", "→")


class ModuleMap(SphinxDirective):
    """Tables of files, one a heading."""

    has_content = True

    def run(self):
        """Write Markdown and have it parsed."""
        groups, named = [], set()
        for line in filter(str.strip, self.content):
            heading, _, names = line.partition(":")
            groups.append((heading.strip(), names.split()))
            named.update(names.split())
        rest = sorted(p.stem for p in LIBRARY.glob("*.py") if p.stem not in named)
        lines = []
        for heading, names in [*groups, ("And", rest)]:
            there = [name for name in names if (LIBRARY / f"{name}.py").exists()]
            if there:
                rows = [f"| `{name}.py` | {first_line(LIBRARY / f'{name}.py')} |" for name in there]
                lines += [f"**{heading}**", "", "| file | what goes in → what comes out |", "|---|---|", *rows, ""]
        return self.parse_text_to_nodes("\n".join(lines))


def setup(app):
    """Register the directive."""
    app.add_directive("module-map", ModuleMap)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
