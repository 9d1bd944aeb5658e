"""Options in groups: typer sees each of them in its place, and the command gets the group back."""

import inspect
from dataclasses import dataclass
from typing import Annotated, get_args

import torch
import typer
from typer.testing import CliRunner

from pararealize_cli import convert
from pararealize_cli.options import ConversionOptions, ModelOptions, Source, differing, expand_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    """A group."""

    width: Annotated[int, typer.Option(help="Of the page.")] = 2
    height: Annotated[int, typer.Option(help="Of the page.")] = 3


def page(
    *, title: str, size: Size, bold: Annotated[bool, typer.Option("--bold")] = False, height_of: str = "x"
) -> None:
    print(title, size, bold, height_of)


def test_a_group_is_expanded_in_its_place():
    parameters = inspect.signature(expand_groups(page)).parameters
    assert list(parameters) == ["title", "width", "height", "bold", "height_of"]
    assert [parameters[name].default for name in ("width", "height")] == [2, 3]


def test_typer_shows_the_options_and_the_command_gets_the_group():
    app = typer.Typer()
    app.command()(expand_groups(page))
    result = CliRunner().invoke(app, ["words", "--height", "5", "--bold"])
    assert result.stdout == "words Size(width=2, height=5) True x\n"
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert shown.index("--width") < shown.index("--height") < shown.index("--bold")
    assert CliRunner().invoke(app, ["words", "--width", "wide"]).exit_code == 2


def test_a_command_without_groups_stays_as_it_is():
    def plain(name: str = "x") -> None:
        """Help."""

    expanded = expand_groups(plain)
    assert inspect.signature(expanded).parameters == inspect.signature(plain).parameters
    assert expanded.__doc__ == "Help."


def test_groups_stand_for_arguments_of_the_library():
    words = ConversionOptions(coarse="linear", cuts="layer2.0,layer3.0", source=Source.stem, windows="4").arguments()
    assert words == {
        "coarse": "linear", "cuts": ["layer2.0", "layer3.0"], "source": "stem", "windows": 4, "sequential": 0,
        "granularity": "repeated",
    }  # fmt: skip
    named = ConversionOptions(windows="layer1.1, layer2.0", sequential="layer1.0").arguments()
    assert (named["windows"], named["sequential"]) == (["layer1.1", "layer2.0"], ["layer1.0"])
    assert type(words["source"]) is str
    assert ConversionOptions().arguments()["source"] is None
    options = ModelOptions(num_classes=7, leaf=["torch.nn:Flatten"], seed=3)
    assert differing(options, "seed") == ["--num-classes 7", "--leaf torch.nn:Flatten"]
    first, second = (options.build("resnet20") for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert options.leaf_modules("resnet20") == (torch.nn.Flatten,)
    assert first(torch.zeros(3, 3, 8, 8)).shape == (3, 7)


def test_none_and_nothing_are_no_defaults_to_show():
    """Typer 0.15 prints them: ``[default: None]``, beside the default that the help tells in words."""
    parameters = inspect.signature(expand_groups(convert.command)).parameters
    shown = {name: get_args(parameter.annotation)[1].show_default for name, parameter in parameters.items()}
    assert {name for name, value in shown.items() if not value} == {
        name for name, parameter in parameters.items() if parameter.default in (None, inspect.Parameter.empty)
    }
    assert not shown["model"]
    assert not shown["num_classes"]
    assert shown["seed"]
