"""A message of the library's -> the same message in the words of the command line: flags in place of Python arguments.

The library's errors say what to pass to a function. Here, in one place, every such remedy becomes what to write on the
command line instead. What a message says of the model itself (``build the model with aux_logits=False``) stays.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

__all__ = ["in_flags"]

LEAF = "--leaf package.module:Class (or a submodule's qualified name)"
INPUTS = "--input-shape and --input-dtype, or --input NAME=SHAPE:DTYPE for each input,"


def _example(match: re.Match[str]) -> str:
    """Flags for ``torch.zeros(2, 128, dtype=torch.long)`` and the like: sizes without the batch."""
    sizes = ",".join(part.strip() for part in match["sizes"].split(",")[1:])
    kind = {"long": "int64", None: None}.get(match["dtype"], match["dtype"])
    return f"--input-shape {sizes}" + (f" --input-dtype {kind}" if kind else "")


_DTYPE = r"(?:, dtype=torch\.(?P<dtype>\w+))?\)"
# of a command whose inputs are those of a data set
_REMEDIES_OF_DATA: tuple[tuple[str, str], ...] = (
    (
        r"pass example_inputs, for instance (torch\.\w+\([^)]*\))",
        r"write --data file.py:callable that gives batches such as \1",
    ),
    (
        r"pass example_inputs that the model runs on",
        "write --data, --image-size and --channels such that the model runs on the batches",
    ),
)
_REMEDIES: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (
        r"(?:example_inputs, for instance )?torch\.(?:zeros|randn)\((?P<sizes>[\d, ]+?)" + _DTYPE,
        _example,
    ),
    (r"pass example_inputs that the model runs on", f"write {INPUTS} that the model runs on"),
    (r'example_inputs=\{\.\.\., "(\w+)": (False|True|None)\}', r"--input \1=\2 besides the other inputs"),
    (
        r"pass model='([^']+)', where that is yours, or the module: load\([^)]*\)\) \(--built-by [^)]*\)",
        r"write --built-by \1, where that is yours",
    ),
    (r"example_inputs", "--input"),
    (r"pass (?:a tensor, )?a tuple of its positional or a dict of its keyword arguments", "name each with --input"),
    (r"leaf_modules=\[\.\.\.\](?: with (?:a submodule that contains it|that|a smaller module))?", LEAF),
    (r"leaf_modules=\[that module's class\]", LEAF),
    (r"leaf_modules=\['([\w.]+)'\]", r"--leaf \1"),
    (r"leaf_modules=\[(\w+)\]", r"--leaf package.module:\1"),
    (r"leaf_modules names", "--leaf names"),
    (r"leaf_modules", "--leaf"),
    (r"sequential=\.\.\.", "--sequential"),
    (r"granularity='(\w+)'", r"--granularity \1"),
    (r"leave plan= out", "leave --plan out"),
    (r"the text that (?:Plan|Timeline)\.to_json\(\) wrote", "the plan.json that pararealize convert wrote"),
    (r"with pararealize\(model, n, \.\.\.\)\.plan", "with pararealize convert MODEL --n N --out FOLDER"),
    (r"pass a list such as \['cuda:0', 'cuda:1'\], or None", "write for instance cuda:0,cuda:1, or leave it out"),
    (r'pass "cost", "paper", or a list of names of blocks', "write cost, paper, or names of blocks, with commas"),
    (r"or a callable \(segment, x_shape, y_shape\) -> nn\.Module", "or file.py:function for one of your own"),
    (r"strict=False", "--no-strict"),
    (r"measure=True", "--measure"),
    (r"leave measure out", "leave --measure out"),
    (r"print them: net\.guards", "pararealize inspect shows them"),
    (r"net\.guards", "the guards"),
    (r"PararealModule\.distribute|distribute\(mesh, reduce_linear=\.\.\.\)", "--reduce-linear"),
)  # fmt: skip
# what an argument is called in a message: `n = 12`, `n is 0`, `source="stem"`, `cuts: 'stage2' is …`
_VALUE = r"(?P<quote>['\"]?)(?P<value>[^\s'\";,]*)(?P=quote)"


def in_flags(message: str, parameters: Collection[str]) -> str:
    """The message as somebody reads it who typed flags.

    Args:
        message: of one of the library's errors.
        parameters: of the command that was called, by their names in Python.

    Example:
        >>> in_flags('this model reads ids; pass source="stem"', ["source"])
        'this model reads ids; pass --source stem'
        >>> in_flags("pass example_inputs, for instance torch.zeros(2, 128, dtype=torch.long)", [])
        'pass --input-shape 128 --input-dtype int64'
        >>> in_flags("n = 12 is out of range: pass an integer n from 1 to 9", ["n"])
        '--n 12 is out of range: pass an integer --n from 1 to 9'
        >>> in_flags("it does not take 3×32×32; pass example_inputs that the model runs on", ["data", "image_size"])
        'it does not take 3×32×32; write --data, --image-size and --channels such that the model runs on the batches'
    """
    of_data = _REMEDIES_OF_DATA if "image_size" in parameters and "input_shape" not in parameters else ()
    for pattern, words in (*of_data, *_REMEDIES):
        message = re.sub(pattern, words, message)
    for name in sorted(parameters, key=len, reverse=True):
        flag = "--" + _OPTIONS.get(name, name).replace("_", "-")
        assignment = rf"(?<![\w.\-\"'(]){name}\s?=\s?{_VALUE}"
        message = re.sub(assignment, rf"{flag} \g<value>", message)
        message = re.sub(rf"(?:(?<=^)|(?<=; and )|(?<=; )|(?<=\n)){name}(?= is |: )", flag, message)
        message = re.sub(rf"(?<=an integer ){name}\b", flag, message)
        if "_" in name:  # no word of prose
            message = re.sub(rf"(?<![\w.\-]){name}\b", flag, message)
    return message


# parameters whose options are called otherwise
_OPTIONS = {"every": "all", "as_json": "json", "output": "out", "page": "report"}
