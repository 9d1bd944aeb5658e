"""Pages of the tutorial -> Jupyter notebooks, which their pages offer for download: nothing is written twice.

What stands in ``{doctest}`` blocks becomes cells of code with the output that the page shows; all else becomes
Markdown. ``python docs/_ext/notebooks.py`` runs every notebook and compares what it prints.
"""

import ast
import asyncio
import doctest
import os
import posixpath
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

DOCS = Path(__file__).resolve().parents[1]
FOLDER = "tutorial"
BLOCK = re.compile(r"^```\{doctest\}\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
ROLE = re.compile(r"\{\w+\}`~?(?:[\w.]+\.)?(?P<name>\w+)`")
LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?![a-z]+:|#)(?P<path>[^)\s]+)\)")
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
START = "import torch\n\ntorch.manual_seed(0)\ntorch.set_num_threads(1);"  # as every example of the pages begins
SECONDS = 120  # of a cell


def pages():
    """The pages that become notebooks."""
    return sorted((DOCS / FOLDER).glob("*.md"))


def notebook(page):
    """The notebook of a page."""
    text, cells, end = page.read_text(encoding="utf-8"), [], 0
    for block in BLOCK.finditer(text):
        cells += prose(text[end : block.start()])
        cells += code(block["code"])
        end = block.end()
    cells += prose(text[end:])
    about = f"*Made from the page `{FOLDER}/{page.stem}` of the documentation; needs `pararealize[data]`.*"
    cells[1:1] = [new_markdown_cell(about), new_code_cell(START)]
    for i, cell in enumerate(cells):
        cell["id"] = f"cell-{i}"  # the same in every build
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.validate(made)
    return made


def prose(text):
    """Markdown as any reader of notebooks has it: roles and links to other pages are names; the title by itself."""
    text = ROLE.sub(lambda role: f"`{role['name']}`", text.replace("```{code-block} ", "```")).strip()
    text = LINK.sub(lambda link: _link(link["text"], link["path"]), text)
    title, _, rest = text.partition("\n\n") if text.startswith("# ") else ("", "", text)
    return [new_markdown_cell(part) for part in (title, rest) if part]


def _link(text, path):
    """To the notebook of a page of the tutorial, and to another page by its name."""
    name = posixpath.normpath(posixpath.join(FOLDER, path)).removesuffix(".md")
    if posixpath.dirname(name) == FOLDER:
        return f"[{text}]({posixpath.basename(name)}.ipynb)"
    return f"{text} (`{name}` in the documentation)"


def code(text):
    """Cells of examples; one ends where the page shows output, since a notebook shows that below a cell."""
    cells, lines = [], []
    for example in doctest.DocTestParser().get_examples(text):
        lines.append(example.source.rstrip("\n"))
        if example.want:
            cells.append(new_code_cell("\n".join(lines), outputs=[_output(lines[-1], example.want)]))
            lines = []
    return [*cells, new_code_cell("\n".join(lines))] if lines else cells


def _output(source, want):
    """What is printed, or the value of an expression."""
    statement = ast.parse(source).body[-1]
    prints = not isinstance(statement, ast.Expr) or re.match(r"print\(", source)
    if prints:
        return new_output("stream", name="stdout", text=want)
    return new_output("execute_result", data={"text/plain": want.rstrip("\n")})


def shown(cell):
    """The text of a cell's output."""
    return "".join(out.text if out.output_type == "stream" else out.data["text/plain"] + "\n" for out in cell.outputs)


def run(made, kernel):
    """Run a notebook from an empty namespace; gives the cells whose output is another than the page's, with both.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell fails.
    """
    from nbclient import NotebookClient

    made.cells.insert(0, new_code_cell("%reset -f"))  # torch stays imported, which takes longer than most pages
    expected = [shown(cell) if cell.cell_type == "code" else "" for cell in made.cells]
    NotebookClient(made, km=kernel, timeout=SECONDS, coalesce_streams=True).execute()
    same = doctest.OutputChecker().check_output
    return [
        (cell.source, want, shown(cell))
        for cell, want in zip(made.cells, expected, strict=True)
        if want and not same(want, shown(cell), FLAGS)
    ]


def write(app):
    """Write the notebooks where pages find them."""
    folder = _folder(app)
    folder.mkdir(parents=True, exist_ok=True)
    for page in pages():
        nbformat.write(notebook(page), folder / f"{page.stem}.ipynb")


def _folder(app):
    return Path(app.doctreedir) / "notebooks"


def offer(app, docname, source):
    """A link below the title of a page."""
    folder, _, name = docname.rpartition("/")
    if folder == FOLDER:
        path = os.path.relpath(_folder(app) / f"{name}.ipynb", DOCS)
        title, _, rest = source[0].partition("\n")
        source[0] = f"{title}\n\nThis page as a notebook: {{download}}`{name}.ipynb </{path}>`.\n{rest}"


def setup(app):
    """Register both."""
    app.connect("builder-inited", write)
    app.connect("source-read", offer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


def main():
    """Run all notebooks; the status is 1 where one shows something else than its page."""
    from jupyter_client import AsyncKernelManager

    failed, kernel = False, AsyncKernelManager(kernel_name="python3", transport="ipc")
    try:
        for page in pages():
            for source, want, found in run(notebook(page), kernel):
                failed = True
                print(f"{page.name}:\n{source}\nis to show\n{want}and shows\n{found}", file=sys.stderr)
            print(f"{page.stem}.ipynb ran", flush=True)
    finally:
        asyncio.run(kernel.shutdown_kernel(now=True))
    return failed


if __name__ == "__main__":
    sys.exit(main())
