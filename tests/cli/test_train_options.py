"""Groups of options of ``pararealize train``, and what they stand for."""

import dataclasses

import pytest

from pararealize import Recipe
from pararealize.errors import OutputError
from pararealize_cli.train_options import (
    Amp,
    Initialise,
    MultigridOptions,
    Optimizer,
    PlacementOptions,
    RateSchedule,
    RecipeOptions,
    ResumeFrom,
    RunOptions,
)


def test_the_defaults_are_those_of_the_paper():
    assert RecipeOptions().recipe(None, None) == dataclasses.replace(Recipe(), initialise="he")


def test_every_value_of_a_recipe_has_an_option():
    assert {field.name for field in dataclasses.fields(RecipeOptions)} == {
        field.name for field in dataclasses.fields(Recipe)
    }
    words = RecipeOptions(
        optimizer=Optimizer.adamw,
        schedule=RateSchedule.cosine,
        milestones="1, 2",
        amp=Amp.auto,
        initialise=Initialise.none,
        epochs=3,
    )
    recipe = words.recipe("cuda:0", None)
    assert (recipe.optimizer, recipe.schedule, recipe.milestones, recipe.amp) == ("adamw", "cosine", (1, 2), "float16")
    assert (recipe.initialise, recipe.epochs) == (None, 3)
    assert {type(recipe.optimizer), type(recipe.schedule), type(recipe.amp)} == {str}  # plain values, as JSON has them


def test_options_of_multigrid_are_for_its_methods_alone():
    options = MultigridOptions(levels=3, coarsening=2, iterations="3/2", relaxation="FCF", monitor=True)
    assert options.solver("parareal") == {}
    expected = {"levels": 3, "coarsening": 2, "relaxation": "FCF", "forward_iterations": 3, "backward_iterations": 2}
    assert options.solver("multigrid") == options.solver("oneshot") == expected
    watching = options.monitoring("multigrid", steps=12, epochs=20)
    assert watching == {"monitor": {"every": 12, "exact_after": 192}}


def test_one_process_has_no_mesh(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert PlacementOptions(devices="cpu").mesh("parareal", 3) is None


def test_a_run_is_resumed_or_replaced():
    RunOptions(resume=True).check()
    RunOptions(force=True).check()
    with pytest.raises(OutputError, match="give one of the two"):
        RunOptions(resume=True, force=True).check()
    with pytest.raises(OutputError, match="give one of the two"):
        RunOptions(resume_from=ResumeFrom.previous, force=True).check()
    assert RunOptions(keep=3).arguments() == {
        "resume": False, "force": False, "checkpoint_every": None, "keep": 3, "log_every": 10,
        "resume_from": "last",
    }  # fmt: skip
