"""``model.py``: names and arguments as source, from which the same network is made elsewhere."""

import dataclasses
from pathlib import Path

import pytest
import torch

from pararealize_cli.model_file import Origin, source_code, source_of_callable
from pararealize_cli.options import ModelOptions

HEADER = "# {name} {version}\n{imports}call(models.build({model}),\n{arguments})\n"


def test_a_callable_of_a_file_is_named_as_seen_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = tmp_path / "runs" / "out"
    assert source_of_callable('nets "2".py:deep', out) == 'str(HERE / "../../nets \\"2\\".py") + ":deep"'
    assert source_of_callable("package.module:deep", out) == '"package.module:deep"'
    assert source_of_callable("resnet20", out) == '"resnet20"'


def test_only_what_was_asked_for_is_written():
    plain = Origin(model="resnet20", options=ModelOptions(), folder=Path("out"))
    assert plain.source_of_model() == '"resnet20"'
    assert plain.source_of_example() == plain.source_of_leaf_modules() == {}
    whole = Origin(
        model="resnet20",
        options=ModelOptions(num_classes=7, leaf=["torch.nn:Flatten", "torch.nn:ReLU"]),
        folder=Path("out"),
        example=torch.zeros(2, 5, dtype=torch.int64),
    )
    assert whole.source_of_model() == '"resnet20", num_classes=7'
    assert whole.source_of_example() == {"example_inputs": "torch.zeros((2, 5), dtype=torch.int64)"}
    several = dataclasses.replace(
        whole, example=(torch.zeros(2, 5), {"mask": torch.zeros(2, dtype=torch.bool), "n": [3]})
    )
    assert several.source_of_example()["example_inputs"] == (
        '(torch.zeros((2, 5), dtype=torch.float32), {"mask": torch.ones((2,), dtype=torch.bool), "n": [3]},)'
    )
    assert whole.source_of_leaf_modules() == {"leaf_modules": '[find("torch.nn:Flatten"), find("torch.nn:ReLU")]'}


@pytest.mark.parametrize(
    "arguments, imports",
    [
        ({"coarse": '"paper"'}, ""),
        ({"coarse": 'find("a:b")'}, "    from pararealize.lookup import find\n"),
        (
            {"scheme": 'scheme("a:b")', "leaf_modules": '[find("a:b")]'},
            "    from pararealize_cli.arguments import scheme\n    from pararealize.lookup import find\n",
        ),
    ],
)
def test_load_imports_what_its_arguments_call(arguments, imports):
    text = source_code(
        HEADER, Origin(model="m", options=ModelOptions(), folder=Path("out")), arguments, "\ncode\n\n", name="Net"
    )
    lines = "".join(f"        {name}={value},\n" for name, value in arguments.items())
    first, _, rest = text.partition("\n")
    assert first.startswith("# Net ")
    assert rest == f'{imports}call(models.build("m"),\n{lines})\ncode\n'
